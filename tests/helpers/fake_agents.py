"""Agents without processes: each answers for workers that it does not have. For the cost of many nodes.

``python -m fake_agents INVITATION AGENTS SLOTS`` is a process with so many agents, each of so many slots.
"""

from __future__ import annotations

import pickle
import selectors
import sys
import time
from functools import partial
from pathlib import Path

from mgpu_nb.cluster.door import dial
from mgpu_nb.cluster.facts import facts_of_this_node
from mgpu_nb.cluster.invitation import Invitation
from mgpu_nb.cluster.link import Link, LinkFrame
from mgpu_nb.cluster.messages import RECORDED, Kind, pack_slots
from mgpu_nb.engines.protocol import Measured, Message, pack
from mgpu_nb.hardware.slots import Slot

VALUE = pickle.dumps(None)


class FakeAgent:
    """An agent whose workers return None at once."""

    def __init__(self, invitation: Invitation, name: str, slots: int) -> None:
        self.link: Link = dial(invitation, facts_of_this_node(name), timeout=60)[0]
        self.slots = tuple(
            Slot(index=n, kind="cpu", gpu_id=None, uuid=f"cpu:{n}", name="CPU", threads=1)
            for n in range(slots)
        )

    def ready(self) -> None:
        """Answer what has come."""
        while True:
            for frame in self.link.receive():
                self.answer(frame)
            if not self.link.more:
                break
        self.link.flush()

    def answer(self, frame: LinkFrame) -> None:
        """Answer a frame as an agent whose worker is done already."""
        kind = frame.kind
        send = partial(self.link.send, flush=False)  # all of a turn at once, as an agent does
        if kind == Kind.WELCOME:
            send(Kind.SLOTS, body=pack_slots(self.slots))
        elif kind == Message.BEGIN:
            send(Kind.STARTED, frame.worker, 10_000 + frame.worker)
            send(Kind.READY, frame.worker, 10_000 + frame.worker)
        elif kind in (Message.TASK, Message.PREFETCH):
            recorded = frame.ident & RECORDED
            measured = pack(Measured(time.time(), 1e-4, 10**8)) if recorded else b""
            send(Message.VALUE, frame.worker, frame.ident & ~RECORDED, measured, VALUE)
        elif kind == Kind.PING:
            send(Kind.PONG, 0, frame.ident, str(time.time_ns()).encode())
        elif kind == Kind.UNPREFETCH:
            send(Kind.TAKEN_BACK, frame.worker, frame.ident, b"0")
        elif kind in (Kind.STOP, Kind.SIGNAL):
            send(Kind.EXITED, frame.worker, 0)


def main() -> None:
    """Serve until the pool has hung up."""
    path, agents, slots = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    invitation = Invitation.read(Path(path))
    selector = selectors.DefaultSelector()
    for n in range(agents):
        agent = FakeAgent(invitation, f"f{n}", slots)
        selector.register(agent.link, selectors.EVENT_READ, agent)
        agent.ready()
    while selector.get_map():
        for key, _ in selector.select(1.0):
            key.data.ready()
            if key.data.link.closed:
                selector.unregister(key.fileobj)


if __name__ == "__main__":
    main()
