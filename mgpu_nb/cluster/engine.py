"""The engine of a pool whose workers are on other machines."""

from __future__ import annotations

import itertools
import logging
import math
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from ..engines.base import (
    Begin,
    Clock,
    Memory,
    NodeState,
    Payload,
    SystemClock,
    Watcher,
    WorkerEvents,
    WorkerHandle,
)
from ..hardware.nodes import natural
from ..hardware.slots import GpuIds, Slot
from ..options import check_arguments
from .door import Door
from .entrance import Entrance
from .facts import Refused, check_facts
from .link import Link, LinkFrame
from .messages import Kind
from .neighbours import Witness
from .node import Node, RemoteWorker
from .placement import Placement
from .placer import Placer, TakesBack

__all__ = ["ClusterEngine"]

log = logging.getLogger("mgpu_nb")

_pools = itertools.count(1)


class ClusterEngine:
    """Starts and ends the workers of one pool on the nodes whose agents have dialled in.

    Parameters
    ----------
    placer
        What has agents started.
    address, port
        Address of this machine that the nodes reach, and port; by default loopback, and any that is free. It is open
        while agents are expected: always, where it is not known how many will come.
    preload, start_method, env
        As `LocalEngine` takes them, on each node.
    start_timeout
        Seconds that it waits for a first agent, and for another when the last has gone.
    """

    assigns_from_any_thread: Literal[True] = True

    def __init__(
        self,
        placer: Placer,
        *,
        address: str | None = None,
        port: int = 0,
        preload: Sequence[str] = (),
        start_method: str | None = None,
        env: Mapping[str, str] | None = None,
        start_timeout: float = 600.0,
    ) -> None:
        self.clock: Clock = SystemClock()
        self.nodes: dict[str, Node] = {}
        self._placer = placer
        self._address, self._port = address or "127.0.0.1", port
        self._patience = start_timeout
        self._wanted: dict[str, Any] = {
            "gpu_ids": None,
            "slots": None,
            "threads": None,
            "preload": list(preload),
            "start_method": start_method,
            "env": dict(env or {}),
        }
        self._by_slot: dict[int, Node] = {}
        self._most_slots = 1  # of a node that has come
        self._draining = self._closed = False
        self._loop: Watcher
        self._events: WorkerEvents
        self._witness: Witness | None = None
        self._entrance: Entrance | None = None
        self._placement: Placement | None = None

    # Slots.

    def slots(
        self, gpu_ids: GpuIds | Literal["cpu"] | None, slots: int | None, threads: int | None
    ) -> tuple[Slot, ...]:
        """None yet; what is asked for is asked of each node."""
        ids, slots, threads = check_arguments(
            ClusterEngine.slots, gpu_ids=gpu_ids, slots=slots, threads=threads
        )
        if ids not in (None, "cpu") and slots is not None:
            raise ValueError(
                f"gpu_ids={ids} is {len(ids)} slots on each node already: leave out slots={slots}"
            )
        listed = ids if ids in (None, "cpu") else list(ids)
        self._wanted |= {"gpu_ids": listed, "slots": slots, "threads": threads}
        return ()

    @property
    def expected(self) -> int | None:
        """Number of slots when all nodes are there, if that is known."""
        each = self._slots_each
        return None if each is None or self._placer.nodes is None else each * self._placer.nodes

    @property
    def _slots_each(self) -> int | None:
        """Number of slots of a node, if that is known."""
        ids, slots = self._wanted["gpu_ids"], self._wanted["slots"]
        return len(ids) if isinstance(ids, list) else slots or self._placer.slots_per_node

    def waits_for(self) -> str:
        """What it waits for."""
        placement = self._placement
        if placement is None or self._closed:
            return ""
        trouble = "" if self._entrance is None else self._entrance.trouble
        missing, said = placement.missing(), "; ".join(filter(None, [trouble, placement.words]))
        if missing is None:
            waits = "" if self.nodes else "an agent"
        else:
            waits = f"{missing} of {self._placer.nodes} nodes" if missing else ""
        return waits and f"{waits}{f' ({said})' if said else ''}"

    # Nodes that have nothing to do.

    @property
    def idle(self) -> float | None:
        """Seconds without a job after which a node is given back; None for never."""
        return self._placer.idle if isinstance(self._placer, TakesBack) else None

    @property
    def given_back(self) -> str:
        """What was given back and not asked for since."""
        count = 0 if self._placement is None else self._placement.given_back
        if not count:
            return ""
        were = "was" if count == 1 else "were"
        return f"{count} of {self._placer.nodes} nodes {were} given back, having had nothing to do for {self.idle:g} s"

    def give_back(self, host: str, reason: str) -> None:
        """Let the agent of a node end."""
        if (node := self.nodes.get(host)) is not None:
            log.info("node %s is given back: %s", host, reason)
            node.give_back(reason)

    def ask_again(self, slots: int) -> None:
        """Ask for as many nodes as so many slots are on, less those of which the slots are not known yet."""
        if self._placement is None or self._entrance is None or self._draining:
            return
        starting = sum(not (node.slots or node.draining) for node in self.nodes.values())
        wanted = math.ceil(slots / (self._slots_each or self._most_slots)) - starting
        if (more := self._placement.lacking(wanted)) > 0:
            self._entrance.open()
            self._placement.ask_again(more)

    def node_states(self) -> tuple[NodeState, ...]:
        """Nodes whose agents are there now, by name."""
        there = [node.state for node in list(self.nodes.values())]
        return tuple(sorted(there, key=lambda node: natural(node.name)))

    # Starts and ends.

    def connect(self, loop: Watcher, events: WorkerEvents) -> None:
        """Use this loop, report to `events`, and be there for agents.

        Raises
        ------
        OSError
            If the address is none of this machine, or the port is taken.
        """
        self._loop, self._events = loop, events
        self._witness = Witness()
        name = f"pool {next(_pools)} of process {os.getpid()}"
        try:
            door = Door(self._admit, self._joined, address=self._address, port=self._port, pool=name)
            self._entrance = Entrance(door, loop)
        except BaseException:
            self._witness.close()
            raise
        path = self._entrance.file
        command = [sys.executable, "-m", "mgpu_nb", "agent", "--connect", str(path)]
        self._placement = Placement(self._placer, command, path, self._patience, self._no_agent)

    def warm_up(self) -> None:
        """Have agents started."""
        if self._placement is not None and not self._placement.is_alive():
            self._placement.start()

    def start(self, begin: Begin, setup: Payload) -> WorkerHandle:
        """Start a worker on the node of its slot."""
        node = self._by_slot.get(begin.slot)
        if node is None or node.gone:
            raise OSError(f"the node of slot {begin.slot} is gone")
        return node.start(begin, setup)

    def meeting_point(self, slot: Slot) -> tuple[str, int]:
        """Address and port that the node of a slot keeps for it."""
        node = self._by_slot.get(slot.index)
        if node is None or node.gone:
            raise OSError(f"the node of slot {slot.index} is gone")
        return node.meeting_point(slot)

    def signal(self, worker: WorkerHandle, signum: signal.Signals) -> None:
        """Have the agent send a signal."""
        if isinstance(worker, RemoteWorker):
            worker.node.signal(worker, signum)

    def abandon(self, worker: WorkerHandle) -> None:
        """Report no more of a worker."""
        if isinstance(worker, RemoteWorker):
            worker.node.abandon(worker)

    def drain(self) -> None:
        """Ask for no more agents."""
        self._draining = True
        if self._entrance is not None:
            self._entrance.shut()
        for node in self.nodes.values():
            node.send(Kind.DRAIN)

    def close(self) -> None:
        """Close all connections: agents end with them, and their workers with those."""
        self._closed = True
        if self._entrance is not None:
            self._entrance.shut()
        for node in list(self.nodes.values()):
            node.leave()
        if self._placement is not None:
            self._placement.close()
        if self._entrance is not None:
            self._entrance.close()
        if self._witness is not None:
            self._witness.close()

    def described(self, host: str) -> Mapping[str, Any]:
        """What a node is made of, as it has said itself."""
        node = self.nodes.get(host)
        if node is None:
            return {}
        packages = {
            "mgpu_nb": node.facts["version"],
            **{name: node.facts[name] for name in ("torch", "cloudpickle")},
        }
        return {
            "path": node.facts["interpreter"],
            "python": node.facts["python"],
            "packages": {name: version for name, version in packages.items() if version},
        }

    # Memory.

    def memory(self, slot: Slot, enough: int | None = None) -> Memory:
        """Memory of a slot's device, as its node told last."""
        del enough
        node = self._by_slot.get(slot.index)
        return Memory(None, None) if node is None else node.telemetry.memory(slot)

    def held(self, worker: WorkerHandle, slot: Slot) -> int | None:
        """Bytes that a worker holds, as its node told last."""
        return worker.node.telemetry.held(worker.pid, slot) if isinstance(worker, RemoteWorker) else None

    # Nodes that come and go.

    def _admit(self, facts: Mapping[str, Any]) -> Mapping[str, Any]:
        """Check an agent that wants to join; by a thread of the door.

        Raises
        ------
        Refused
            If it cannot; the words say why, and what to do.
        """
        for note in check_facts(facts):
            log.warning("%s", note)
        if self._draining or self._closed:
            raise Refused("the pool is closing")
        return {}

    def _joined(self, link: Link, facts: dict[str, Any]) -> None:
        self._loop.call_soon_threadsafe(lambda: self._attend(link, facts))

    def _attend(self, link: Link, facts: Mapping[str, Any]) -> None:
        """Take an agent in."""
        most = self._placer.nodes
        if self._closed or self._draining or (most is not None and len(self.nodes) >= most):
            reason = (
                "the pool is closing" if self._closed or self._draining else f"it has all of its {most} nodes"
            )
            link.send(Kind.REFUSED, meta=reason.encode())
            link.close()
            if self._placement is not None:
                self._placement.turned_away(facts)
            return
        name, number = facts["node"], itertools.count(2)
        while name in self.nodes:
            name = f"{facts['node']}-{next(number)}"
        node = self.nodes[name] = Node(name, link, facts, self._loop, self._events, self._told, self._lost)
        if self._placement is not None:
            self._placement.came(facts)
            if self._placement.missing() == 0 and self._entrance is not None:
                self._entrance.shut()
        node.attend(self._wanted, None if self._witness is None else self._witness.told)

    def _told(self, node: Node, frame: LinkFrame) -> None:
        if frame.kind == Kind.SLOTS:
            slots = node.take_slots(frame, self._free_indexes())
            self._most_slots = max(self._most_slots, len(slots))
            self._by_slot |= dict.fromkeys((slot.index for slot in slots), node)
            self._events.joined(slots)
            if self._placement is not None:
                self._placement.served(node)
        elif frame.kind == Kind.NO_SLOTS:
            node.hopeless = True
            node.lose(f"it has no slots for this pool: {frame.meta.decode(errors='replace')}")
        elif frame.kind == Kind.DRAINING:
            node.draining = frame.meta.decode(errors="replace")
            self._events.draining(node.slots, f"node {node.name}: {node.draining}")

    def _free_indexes(self) -> Iterator[int]:
        """Numbers of slots that no node has, the lowest first."""
        return (number for number in itertools.count() if number not in self._by_slot)

    def _lost(self, node: Node, reason: str) -> None:
        del self.nodes[node.name]
        for slot in node.slots:
            del self._by_slot[slot.index]
        if not node.given_back:
            log.warning(
                "node %s is gone%s: %s", node.name, "" if node.slots else " before it had slots", reason
            )
        if node.slots:
            self._events.left(node.slots, reason)
        if self._placement is None or self._entrance is None or self._draining:
            return
        useless = "" if node.slots else f"node {node.name}: {reason}"
        if node.given_back:
            self._placement.went(node, useless=useless, given_back=node.facts)
        else:
            self._entrance.open()
            self._placement.went(node, useless=useless, hopeless=node.hopeless)

    def _no_agent(self, reason: str) -> None:
        self._loop.call_soon_threadsafe(lambda: self._events.gave_up(reason))
