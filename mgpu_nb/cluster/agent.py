"""The agent of a node: runs the engine of this machine for a pool that is elsewhere, and passes on what workers say.

It dials the parent process itself, and ends with that connection; its workers end with it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from ..engines.base import ProcessEvents, Watcher, WorkerEvents, WorkerHandle
from ..engines.channel import Frame
from ..engines.local import LocalEngine, LocalWorker, close_descriptors
from ..engines.payload import segment_sizes
from ..engines.protocol import Failure, Message, pack, unpack_memory
from ..engines.watched import Watched
from ..scheduler.loop import Loop
from ..telemetry.samples import WorkerState
from .door import dial
from .facts import facts_of_this_node
from .invitation import Invitation
from .link import BrokenLink, Link, LinkFrame
from .messages import OF_WORKERS, RECORDED, TO_WORKERS, UNKNOWN, Kind, pack_ports, pack_slots
from .neighbours import Witness, neighbour
from .ports import KeptPorts
from .readings import Readings

__all__ = ["Agent", "Wanted", "serve"]

log = logging.getLogger("mgpu_nb.agent")

CHECK_EVERY = 2.0  # seconds
MOST_WAITING = 2**23  # bytes that wait for the link; beyond them what processes print stays in their pipes
MOMENT = 1.0  # seconds within which the processes of a node that is taken away are sent SIGTERM


@dataclass(frozen=True)
class Wanted:
    """What the parent process wants of a node, as its welcome says."""

    gpu_ids: Sequence[int | str] | Literal["cpu"] | None
    slots: int | None
    threads: int | None
    preload: tuple[str, ...]
    start_method: str | None
    env: dict[str, str]

    @classmethod
    def of(cls, welcome: Mapping[str, Any]) -> Wanted:
        """Read a welcome."""
        return cls(
            welcome["gpu_ids"],
            welcome["slots"],
            welcome["threads"],
            tuple(welcome["preload"]),
            welcome["start_method"],
            dict(welcome["env"]),
        )


class NodeWorker(LocalWorker):
    """A worker of this node, whose messages come from the parent process.

    Attributes
    ----------
    far
        Its number there.
    kind, uuids
        Its devices.
    signalled
        Whether the parent process has sent it a signal.
    """

    def __init__(
        self, far: int, kind: str, uuids: Sequence[str], loop: Watcher, ready: Callable[[LocalWorker], None]
    ) -> None:
        super().__init__(len(uuids), loop, ready)
        self.far, self.kind, self.uuids = far, kind, uuids
        self.told_pid = self.signalled = False
        self._unsent: list[int] = []

    def pass_on(self, frame: LinkFrame) -> None:
        """Send it a message of the parent process.

        Raises
        ------
        OSError
            If a segment of it could not be received.
        """
        ident = frame.ident
        if frame.kind == Message.TASK:
            self.records_output = bool(ident & RECORDED)
            ident &= ~RECORDED
        elif frame.kind == Message.PREFETCH:
            self.add_tokens(1)
        self._unsent += [fd for fd in frame.fds if fd >= 0]
        if -1 in frame.fds:
            raise OSError(errno.EMFILE, "no file descriptor was left for an argument")
        with contextlib.suppress(ConnectionError):  # it has just died; the server will report that
            self.channel.send(frame.kind, ident, frame.meta, frame.body, frame.fds)
        self.watched.renew()
        self.release()

    def release(self) -> None:
        """Close the descriptors that it was sent, once it has them."""
        if self._unsent and not self.channel.pending:
            for fd in self._unsent:
                os.close(fd)
            self._unsent = []

    def close(self) -> None:
        """Close all descriptors of it."""
        super().close()
        for fd in self._unsent:
            os.close(fd)
        self._unsent = []


class NodeEngine(LocalEngine):
    """The engine of this machine, which passes on what its workers send and does not read it.

    Parameters
    ----------
    relay
        Called with a worker and its frame, whose descriptors it closes.
    wanted
        What the parent process wants.
    takes_more
        Whether what processes print is read: else it stays in their pipes until `read_on`.
    """

    def __init__(
        self, relay: Callable[[NodeWorker, Frame], None], wanted: Wanted, takes_more: Callable[[], bool]
    ) -> None:
        super().__init__(wanted.preload, wanted.start_method, wanted.env)
        self._relay, self._takes_more = relay, takes_more
        self._unread: list[LocalWorker] = []

    def connect(self, loop: Watcher, events: ProcessEvents) -> None:
        """Use this loop, and report what becomes of processes; the other events are passed on as frames."""
        super().connect(loop, cast(WorkerEvents, events))

    def make(self, far: int, kind: str, uuids: Sequence[str]) -> NodeWorker:
        """Make a worker and ask for its process.

        Raises
        ------
        OSError
            If that is impossible now.
        """
        worker = NodeWorker(far, kind, uuids, self._loop, self._channel_ready)
        try:
            self.ask_for(worker)
        except BaseException:
            worker.close()
            raise
        return worker

    def read_on(self) -> None:
        """Read what processes have printed meanwhile, if more is taken."""
        if self._unread and self._takes_more():
            unread, self._unread = self._unread, []
            for worker in unread:
                if worker.number in self.workers:
                    self._watch_log(worker)

    def _log_readable(self, worker: LocalWorker) -> None:
        if self._takes_more():
            super()._log_readable(worker)
        else:
            self._loop.unwatch(worker.log)
            self._unread.append(worker)

    def _channel_ready(self, worker: LocalWorker) -> None:
        super()._channel_ready(worker)
        if isinstance(worker, NodeWorker):
            worker.release()

    def _frame(self, worker: LocalWorker, frame: Frame) -> None:
        if frame.kind not in OF_WORKERS or not isinstance(worker, NodeWorker):
            super()._frame(worker, frame)
            return
        if frame.kind == Message.VALUE:
            self._read_output(worker)
        elif frame.kind == Message.ERROR:
            self._read_log(worker)
        elif frame.kind == Message.MEMORY:
            worker.reported = unpack_memory(frame.meta)
        elif frame.kind == Message.SKIPPED:
            worker.skipped()
        self._relay(worker, frame)


class Agent:
    """Serves the parent process over a link until that ends; the events of its engine go there.

    Parameters
    ----------
    link
        Connection to the parent process.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self.loop = Loop()
        self.engine: NodeEngine
        self.workers: dict[int, NodeWorker] = {}  # by their numbers there
        self._ended: dict[
            int, int | None
        ] = {}  # wait status of those that may have been ended with this node
        self._ports: KeptPorts | None = None
        self._serves = self._draining = self._over = False
        self._watched = Watched(self.loop, link, self._ready)
        self._readings = Readings(self._states, self._read)
        self._code = 0

    def run(self) -> int:
        """Serve; the exit code."""
        notes = _Notes(self._note)
        logging.getLogger("mgpu_nb").addHandler(notes)
        self._watched.begin()
        self._check()
        try:
            while not self._over:
                self.loop.run_pending()
                self.loop.run_once()
        finally:
            logging.getLogger("mgpu_nb").removeHandler(notes)
            self.link.close()
            self._readings.close()
            if self._serves:
                self.engine.close()
            if self._ports is not None:
                self._ports.close()
            self.loop.close()
        return self._code

    def _begin(self, welcome: Mapping[str, Any]) -> None:
        """Have slots for the parent process, as it wants them."""
        self.link.lends = bool(welcome["opens"])
        self.link.lender = neighbour(welcome["witness"])
        if self.link.lender is not None:
            self._send(Kind.OPENS)
        wanted = Wanted.of(welcome)
        self.engine = NodeEngine(self._relay, wanted, self._takes_more)
        try:
            slots = self.engine.slots(wanted.gpu_ids, wanted.slots, wanted.threads)
        except (ValueError, TypeError) as error:
            self._send(Kind.NO_SLOTS, meta=str(error).encode())
            self._flush_all()
            self._leave(2, str(error))
            return
        self.engine.connect(self.loop, self)
        self._serves = True
        self._readings.start()
        self.engine.warm_up()
        self._send(Kind.SLOTS, meta=self._keep_ports(len(slots)), body=pack_slots(slots))
        devices = ", ".join(slot.label for slot in slots)
        print(f"mgpu-nb agent: node {welcome['name']} serves a pool with {devices}", flush=True)

    def _keep_ports(self, count: int) -> bytes:
        """Keep a port for each slot; what the parent process is told of them."""
        try:
            self._ports = KeptPorts(self.link.address, count)
        except OSError as error:
            self._note(f"it can keep no ports, so that no gang of several nodes can meet there: {error}")
            return b""
        return pack_ports(self._ports.address, self._ports.ports)

    def _leave(self, code: int, words: str) -> None:
        print(f"mgpu-nb agent: {words}", file=sys.stderr, flush=True)
        self._code, self._over = code, True

    def drain(self, reason: str) -> None:
        """Take no more jobs, and end when there are none; told twice, end at once. A signal handler may call it."""
        self.loop.call_soon_threadsafe(partial(self._drain, reason))

    def _drain(self, reason: str) -> None:
        if self._draining:
            self._end(reason)
        else:
            self._draining = True
            self._send(Kind.DRAINING, meta=reason.encode())
            for number in list(self._ended):
                self._was_lost(self.workers[number])
            self._end_if_idle()

    def _end_if_idle(self) -> None:
        if self._draining and not self.workers and not self._over:
            self._end("")

    def _end(self, reason: str) -> None:
        self._send(Kind.BYE, meta=reason.encode())
        self._flush_all()
        self._over = True

    # The link.

    def _send(
        self,
        kind: int,
        worker: int = 0,
        ident: int = 0,
        meta: bytes = b"",
        body: bytes = b"",
        segments: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.link.send(kind, worker, ident, meta, body, segments, flush=False)
        self.loop.call_before_sleep(self._flush)  # all of a turn at once

    def _flush(self) -> None:
        self.link.flush()
        self._has_sent()

    def _has_sent(self) -> None:
        self._watched.renew()
        if self._serves:
            self.engine.read_on()

    def _takes_more(self) -> bool:
        return self.link.waiting < MOST_WAITING

    def _flush_all(self) -> None:
        end = time.monotonic() + 2.0
        while not self.link.flush() and not self.link.closed and time.monotonic() < end:
            time.sleep(0.01)

    def _check(self) -> None:
        """See now and then whether the parent's machine can be reached: TCP alone takes minutes to give it up."""
        if self.link.check():
            self.loop.call_later(CHECK_EVERY, self._check)
        else:
            self._over = True

    def _ready(self) -> None:
        if self.link.pending:
            self.link.flush()
        try:
            for frame in self.link.receive():
                self._frame(frame)
        except BrokenLink as error:
            self._leave(1, f"what the parent process sent cannot be read: {error}")
        if self.link.closed:
            self._over = True
        elif self.link.more:
            self.loop.call_soon_threadsafe(self._ready)
        if self._over:
            self._watched.end()
        else:
            self._has_sent()

    def _frame(self, frame: LinkFrame) -> None:
        worker = self.workers.get(frame.worker)
        if frame.kind in TO_WORKERS:
            self._pass_on(worker, frame)
        elif frame.kind == Kind.WELCOME:
            self._begin(json.loads(frame.body))
        elif frame.kind == Kind.REFUSED:
            self._leave(2, f"the pool does not take this node: {frame.meta.decode(errors='replace')}")
        elif frame.kind == Kind.START:
            self._start(frame)
        elif frame.kind == Kind.PING:
            self._send(Kind.PONG, 0, frame.ident, str(time.time_ns()).encode())
        elif frame.kind == Kind.DRAIN:
            self.engine.drain()
        elif frame.kind == Kind.LEAVE:
            self._draining = True
            self._end_if_idle()
        elif worker is not None and (frame.worker not in self._ended or frame.kind == Kind.ABANDON):
            self._order(worker, frame)

    def _pass_on(self, worker: NodeWorker | None, frame: LinkFrame) -> None:
        if worker is None or worker.far in self._ended:  # it has just died
            close_descriptors(frame.fds)
            return
        try:
            worker.pass_on(frame)
        except OSError as error:
            self.broken(worker, f"its call could not be passed on: {error}")

    def _order(self, worker: NodeWorker, frame: LinkFrame) -> None:
        """Do with a worker what the parent process asks for."""
        if frame.kind == Kind.SIGNAL:
            worker.signalled = True
            self.engine.signal(worker, signal.Signals(frame.ident))
        elif frame.kind == Kind.STOP:
            worker.stop()
        elif frame.kind == Kind.UNPREFETCH:
            taken = worker.unprefetch()
            self._send(Kind.TAKEN_BACK, worker.far, frame.ident, b"1" if taken else b"0")
        elif frame.kind == Kind.ABANDON:
            del self.workers[worker.far]
            self._ended.pop(worker.far, None)
            self.engine.abandon(worker)
            worker.close()
            self._end_if_idle()

    def _start(self, frame: LinkFrame) -> None:
        try:
            kind, uuids = json.loads(frame.meta)
            self.workers[frame.worker] = self.engine.make(frame.worker, kind, uuids)
        except OSError as error:
            self._send(Kind.NOT_STARTED, frame.worker, 0, str(error).encode())

    def _relay(self, worker: NodeWorker, frame: Frame) -> None:
        """Pass a worker's message on, with the bytes that count of its segments."""
        segments: list[tuple[int, int]] = []
        try:
            if frame.fds:
                segments = list(zip(frame.fds, segment_sizes(frame.body, len(frame.fds)), strict=True))
            self._send(frame.kind, worker.far, frame.ident, frame.meta, frame.body, segments)
        finally:
            close_descriptors(frame.fds)

    def _note(self, text: str) -> None:
        self.loop.call_soon_threadsafe(lambda: self._send(Kind.NOTE, meta=text.encode()))

    def _states(self) -> list[WorkerState]:
        """Its workers, by any thread."""
        return [
            WorkerState(
                pool=0, slot=0, label=uuid, uuid=uuid, kind=worker.kind, pid=worker.pid,
                allocated=None if worker.reported is None else worker.reported[0],
                reserved=None if worker.reported is None or len(worker.uuids) > 1 else worker.reported[1],
            )
            for worker in list(self.workers.values())
            for uuid in worker.uuids
        ]  # fmt: skip

    def _read(self, reading: bytes) -> None:
        def send() -> None:
            if self._takes_more():  # one that is late is of no use
                self._send(Kind.READING, body=reading)

        self.loop.call_soon_threadsafe(send)

    # Events of the engine.

    def ready(self, worker: WorkerHandle) -> None:
        """Pass on that a process is set up."""
        self._event(Kind.READY, worker, worker.pid or 0)

    def setup_failed(self, worker: WorkerHandle, failure: Failure) -> None:
        """Pass on that setup raised."""
        self._event(Kind.SETUP_FAILED, worker, meta=pack(failure))

    def unfit(self, worker: WorkerHandle) -> None:
        """Pass on that a process has not begun its job."""
        self._event(Kind.UNFIT, worker)

    def output(self, worker: WorkerHandle, data: bytes) -> None:
        """Pass on what a process wrote."""
        self._event(Kind.OUTPUT, worker, body=data)

    def broken(self, worker: WorkerHandle, reason: str) -> None:
        """Pass on that a process cannot be read."""
        self._event(Kind.BROKEN, worker, meta=reason.encode())

    def not_started(self, worker: WorkerHandle, reason: str, *, fault: bool) -> None:
        """Pass on that there is no process."""
        self._event(Kind.NOT_STARTED, worker, int(fault), reason.encode())
        self._forget(worker)

    def exited(self, worker: WorkerHandle, status: int | None, out_of_memory: bool | str = False) -> None:
        """Pass on the end of a process; if it may have been ended with this node, a moment later or as its loss.

        Who takes a node away may send SIGTERM to the agent alone, or to all of its processes, one after the other.
        """
        assert isinstance(worker, NodeWorker)  # noqa: S101 (there are no others here)
        by_term = status is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM)
        if not by_term or worker.signalled or worker.far not in self.workers:
            self._has_ended(worker, status, out_of_memory)
        elif self._draining:
            self._was_lost(worker)
        else:
            self._ended[worker.far] = status
            self.loop.call_later(MOMENT, partial(self._ended_alone, worker))

    def _ended_alone(self, worker: NodeWorker) -> None:
        if worker.far in self._ended:
            self._has_ended(worker, self._ended.pop(worker.far))

    def _was_lost(self, worker: NodeWorker) -> None:
        self._ended.pop(worker.far, None)
        self._event(Kind.LOST, worker)
        self._forget(worker)

    def _has_ended(self, worker: NodeWorker, status: int | None, out_of_memory: bool | str = False) -> None:
        ident = UNKNOWN if status is None else status
        words = out_of_memory if isinstance(out_of_memory, str) else "memory" if out_of_memory else ""
        self._event(Kind.EXITED, worker, ident, words.encode())
        self._forget(worker)

    def _event(
        self, kind: Kind, worker: WorkerHandle, ident: int = 0, meta: bytes = b"", body: bytes = b""
    ) -> None:
        assert isinstance(worker, NodeWorker)  # noqa: S101 (there are no others here)
        if worker.far in self.workers:
            if worker.pid is not None and not worker.told_pid:
                worker.told_pid = True
                self._send(Kind.STARTED, worker.far, worker.pid)
            self._send(kind, worker.far, ident, meta, body)

    def _forget(self, worker: WorkerHandle) -> None:
        assert isinstance(worker, NodeWorker)  # noqa: S101
        if self.workers.pop(worker.far, None) is not None:
            worker.close()
        self._end_if_idle()


class _Notes(logging.Handler):
    """Passes warnings of this process on, by any thread."""

    def __init__(self, send: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on."""
        with contextlib.suppress(Exception):
            self._send(record.getMessage()[:2000])


def serve(file: str | os.PathLike[str], name: str = "") -> int:
    """Be the agent of this machine for the pool of an invitation; the exit code.

    Parameters
    ----------
    file
        The invitation.
    name
        Name of this node; by default that of the host.

    Raises
    ------
    OSError, ValueError
        If the invitation cannot be read, nobody answers at its address, or the pool refuses this machine; the message
        says what to do.
    """
    invitation = Invitation.read(Path(file))
    witness = Witness()  # for as long as this process is there
    link, _ = dial(invitation, {**facts_of_this_node(name or None), "witness": witness.told})
    agent = Agent(link)
    words = {signal.SIGTERM: "the node is being taken away", signal.SIGINT: "its agent was interrupted"}
    for signum, reason in words.items():
        signal.signal(signum, lambda *_, reason=reason: agent.drain(reason))
    return agent.run()
