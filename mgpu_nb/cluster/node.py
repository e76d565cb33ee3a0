"""A node of a cluster and its workers, as the parent process sees them."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import os
import pickle
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ..engines.attachments import Sent
from ..engines.base import NodeState, Watcher, WorkerEvents
from ..engines.environment import Environment
from ..engines.interpreter import Interpreter
from ..engines.payload import Payload, Received
from ..engines.protocol import (
    Begin,
    Message,
    ProtocolError,
    TaskMeta,
    unpack_failure,
    unpack_measured,
)
from ..engines.telling import tell
from ..engines.watched import Watched
from ..hardware import nodes
from ..hardware.slots import Slot
from ..output import clean
from ..telemetry.node import Node as Telemetry
from .link import BrokenLink, Link, LinkFrame
from .messages import RECORDED, UNKNOWN, Kind, unpack_ports, unpack_slots
from .missing import explain, missing_module
from .neighbours import neighbour

__all__ = ["Node", "RemoteWorker"]

log = logging.getLogger("mgpu_nb")

PING_EVERY = 2.0  # seconds
SILENCE = 8.0  # seconds without a sign of life after which a node is lost
SILENCE_AT_START = 120.0  # the same before it has slots: a driver that sleeps takes seconds for each GPU
SECOND_LOOK = 0.5  # seconds; this process may have been the one that was stopped

_numbers = itertools.count(1)


class RemoteWorker:
    """A worker process of a node.

    Attributes
    ----------
    node
        Where it is.
    """

    def __init__(self, node: Node) -> None:
        self.number = next(_numbers)
        self.node = node
        self.pid: int | None = None
        self.reported: tuple[int, int] | None = None
        self._sent = Sent()
        self._ahead: list[int] = []  # prefetched jobs, as far as it is known here
        self._asked: set[int] = set()  # which of them were asked back, and no answer has come
        self._skipping = 0  # that were taken back, and the worker has not come to yet

    @property
    def prefetches(self) -> bool:
        """Whether it takes jobs ahead: not while it still has to skip some, or may have to."""
        return not (self._skipping or self._asked)

    def begin(self, begin: Begin, setup: Payload) -> None:
        """Send the first messages.

        Raises
        ------
        OSError
            If no descriptor is left to keep a large setup.
        """
        self.node.link.send(Kind.START, self.number, 0, json.dumps(_devices(begin)).encode())
        environment = self.node.environment(begin.environment)
        begin = replace(begin, environment=environment, node=self.node.name, parent=socket.gethostname())
        self._send(Message.BEGIN, 0, pickle.dumps(begin), setup)

    def assign(self, job: int, meta: TaskMeta | None, payload: Payload) -> None:
        """Send a job."""
        recorded = meta is not None and bool(meta.name)
        if meta is not None and meta.environment is not None:
            meta = meta._replace(environment=self.node.environment(meta.environment))
        packed = b"" if meta is None else meta.packed()
        self._ahead = []
        try:
            self._send(Message.TASK, job | RECORDED if recorded else job, packed, payload)
        except OSError as error:  # no descriptor is left to keep a large argument
            self.node.fail(self, f"its call could not be sent: {error}")

    def prefetch(self, jobs: Sequence[tuple[int, Payload]]) -> None:
        """Send jobs to be run after the present one."""
        for job, payload in jobs:
            self._ahead.append(job)
            self._send(Message.PREFETCH, job, b"", payload)

    def answer(self, job: int, payload: Payload) -> None:
        """Send a job what it asked for, and nothing else: its worker reads no other message meanwhile."""
        try:
            self._send_alone(Message.ANSWER, job, b"", payload)
        except OSError as error:  # no descriptor is left to keep a large value
            self.node.fail(self, f"the value that it asked for could not be sent: {error}")

    def _send(self, kind: Message, ident: int, meta: bytes, payload: Payload) -> None:
        """Send a call, after what the worker must have before it."""
        for _, body in self._sent.missing(payload.sources, payload.definitions):
            self.node.link.send(Message.ATTACHMENT, self.number, 0, b"", body, flush=False)
        self._send_alone(kind, ident, meta, payload)

    def _send_alone(self, kind: Message, ident: int, meta: bytes, payload: Payload) -> None:
        self.node.link.send(kind, self.number, ident, meta, payload.body, payload.segments, flush=False)
        self.node.flush_later()

    def unprefetch(self) -> bool:
        """Ask for the last prefetched job back, once; the answer is an event."""
        if self._ahead and self._ahead[-1] not in self._asked:
            self._asked.add(self._ahead[-1])
            self.node.send(Kind.UNPREFETCH, self.number, self._ahead[-1])
        return False

    def taken_back(self, job: int, *, taken: bool) -> None:
        """Note the answer."""
        self._asked.discard(job)
        if taken:
            self._skipping += 1
            with contextlib.suppress(ValueError):
                self._ahead.remove(job)

    def ended(self, job: int) -> None:
        """Note that a job has ended."""
        with contextlib.suppress(ValueError):
            self._ahead.remove(job)

    def skipped(self) -> None:
        """Note that the worker came to a job that was taken back."""
        if not self._skipping:
            raise ProtocolError("it skipped a task that was not taken back")
        self._skipping -= 1

    def stop(self) -> None:
        """Have the process end once it has no job."""
        self.node.send(Kind.STOP, self.number)

    def close(self) -> None:
        """Forget it; nothing of it is held here."""


class Node:
    """A node whose agent has come, and the connection to it. All but `send` and `state` is for the thread of the loop.

    Parameters
    ----------
    name
        Name of the node, another than that of any other node of the pool.
    link, facts
        Connection to its agent, and what the agent has said of itself.
    loop, events
        Those of the scheduler.
    told
        Called with the node and a frame that is about no worker.
    lost
        Called with the node and the reason when it is gone; its workers are told lost by then.
    """

    def __init__(
        self,
        name: str,
        link: Link,
        facts: Mapping[str, Any],
        loop: Watcher,
        events: WorkerEvents,
        told: Callable[[Node, LinkFrame], None],
        lost: Callable[[Node, str], None],
    ) -> None:
        self.name, self.link, self.facts = name, link, facts
        self.workers: dict[int, RemoteWorker] = {}
        self.slots: tuple[Slot, ...] = ()
        self.telemetry = Telemetry(name)
        self._meets_at = ""  # address
        self._ports: tuple[int, ...] = ()  # of it, one for each slot
        self.draining = ""
        self.given_back = self.gone = False
        self.hopeless = False  # whether it can have no slots
        self._loop, self._events, self._told, self._lost = loop, events, told, lost
        self._watched = Watched(loop, link, self._ready)
        self.interpreter = Interpreter(facts["interpreter"], facts["python"], tuple(facts["path"]), {}, {})
        self._environments: tuple[Environment, Environment] | None = None
        self._clock = facts["time"] - time.time()  # seconds by which the node's clock is ahead
        self._round_trip = float("inf")
        self._pings: dict[int, float] = {}
        self._numbers = itertools.count(1)
        self._heard, self._received, self._suspected = time.monotonic(), 0, False

    @property
    def state(self) -> NodeState:
        """What it is now; any thread may ask."""
        slots, why = self.slots, self.draining
        state: Literal["starting", "ready", "ending"] = "ending" if why else "ready" if slots else "starting"
        return NodeState(self.name, self.facts["hostname"], self.facts["pid"], slots, state, why)

    def attend(self, wanted: Mapping[str, Any], witness: list[Any] | None) -> None:
        """Tell its agent what is wanted, and begin to read what it sends."""
        self.link.lender = neighbour(self.facts.get("witness"))
        opens = self.link.lender is not None
        told = {**wanted, "name": self.name, "witness": witness, "opens": opens}
        self.link.send(Kind.WELCOME, body=json.dumps(told).encode())
        nodes.add(self.telemetry)
        self._watched.begin()
        self._ping()

    # What goes there.

    def send(self, kind: Kind, worker: int = 0, ident: int = 0) -> None:
        """Send a short message; any thread may."""
        self.link.send(kind, worker, ident, flush=False)
        self.flush_later()

    def flush_later(self) -> None:
        """Have what was sent written by the loop, all of a turn at once: a call of TLS costs more than a message."""
        self._loop.call_before_sleep(self._flush)

    def _flush(self) -> None:
        if not self.gone:
            self.link.flush()
            self._watched.renew()

    def start(self, begin: Begin, setup: Payload) -> RemoteWorker:
        """Start a worker.

        Raises
        ------
        OSError
            See `RemoteWorker.begin`; the node then has no such worker.
        """
        worker = RemoteWorker(self)
        self.workers[worker.number] = worker
        try:
            worker.begin(begin, setup)
        except BaseException:
            self.abandon(worker)
            raise
        return worker

    def environment(self, environment: Environment) -> Environment:
        """What a task finds around it there: the node's own variables, and over them what was changed here."""
        if self._environments is None or self._environments[0] is not environment:
            changed, removed = _changed(environment.variables)
            own = {name: value for name, value in self.facts["environment"].items() if name not in removed}
            path = tuple(self.interpreter.import_path(environment.path))
            there = replace(environment, variables={**own, **changed}, path=path)
            self._environments = environment, there
        return self._environments[1]

    # What comes from there.

    def _ready(self) -> None:
        if self.link.pending:
            self.link.flush()
        try:
            for frame in self.link.receive():
                self._frame(frame)
                if self.gone:
                    return
        except BrokenLink as error:
            self.lose(f"what it sent cannot be read: {error}")
            return
        if self.link.closed:
            self.lose(self.link.reason or "its connection ended")
            return
        if self.link.more:
            self._loop.call_soon_threadsafe(self._more)
        self._watched.renew()

    def _more(self) -> None:
        if not self.gone:
            self._ready()

    def _frame(self, frame: LinkFrame) -> None:
        if not frame.worker:
            self._own_frame(frame)
        elif (worker := self.workers.get(frame.worker)) is not None:
            try:
                self._worker_frame(worker, frame)
            except Exception as error:  # a task can write anything to any descriptor
                self._events.broken(worker, f"what its process sent cannot be read: {error}")

    def _own_frame(self, frame: LinkFrame) -> None:
        if frame.kind == Kind.PONG:
            self._pong(frame)
        elif frame.kind == Kind.OPENS:
            self.link.lends = True
        elif frame.kind == Kind.READING:
            try:
                self.telemetry.update(frame.body, -self._clock)
            except ValueError as error:
                log.debug("%s", error)
        elif frame.kind == Kind.NOTE:
            log.warning("node %s: %s", self.name, clean(frame.meta.decode(errors="replace")))
        elif frame.kind == Kind.BYE:
            self.lose(frame.meta.decode(errors="replace") or self.draining or "its agent ended")
        else:
            self._told(self, frame)

    def _worker_frame(self, worker: RemoteWorker, frame: LinkFrame) -> None:
        events, kind, meta = self._events, frame.kind, frame.meta
        if kind == Message.VALUE:
            worker.ended(frame.ident)
            value = Received(frame.body, memory=frame.memory)
            events.value(worker, frame.ident, value, self._measured(unpack_measured(meta)))
        elif kind == Message.ERROR:
            worker.ended(frame.ident)
            found = unpack_failure(meta)
            lacking = f"module {name!r}" if (name := missing_module(found)) else ""
            failure = explain(found, self.name, self.interpreter)
            measured = self._measured(failure.measured)
            events.error(worker, frame.ident, replace(failure, measured=measured), lacking)
        elif kind == Kind.OUTPUT:
            events.output(worker, frame.body)
        elif kind == Kind.TAKEN_BACK:
            worker.taken_back(frame.ident, taken=meta == b"1")
            if meta == b"1":
                events.taken_back(worker, frame.ident)
        elif not tell(events, worker, kind, frame.ident, meta, frame.body):
            self._state_frame(worker, frame)

    def _state_frame(self, worker: RemoteWorker, frame: LinkFrame) -> None:
        """Take a message about the process itself."""
        events, kind, words = self._events, frame.kind, frame.meta.decode(errors="replace")
        if kind == Kind.STARTED:
            worker.pid = frame.ident
        elif kind == Kind.READY:
            worker.pid = frame.ident or worker.pid
            events.ready(worker)
        elif kind == Kind.SETUP_FAILED:
            failure = explain(unpack_failure(frame.meta), self.name, self.interpreter)
            events.setup_failed(worker, failure)
        elif kind == Kind.UNFIT:
            events.unfit(worker)
        elif kind == Kind.BROKEN:
            events.broken(worker, words)
        elif kind == Kind.NOT_STARTED:
            del self.workers[worker.number]
            events.not_started(worker, words, fault=bool(frame.ident))
        elif kind == Kind.LOST:
            del self.workers[worker.number]
            events.lost(worker, self.draining or "it was ended from outside (SIGTERM)")
        elif kind == Kind.EXITED:
            del self.workers[worker.number]
            events.exited(worker, None if frame.ident == UNKNOWN else frame.ident, words or False)
        else:
            raise ProtocolError(f"no message of kind {kind} is due")

    def _measured(self, measured: Any) -> Any:
        """What was measured, by the clock of this process."""
        if measured is None or abs(self._clock) < 2 * self._round_trip:
            return measured  # it is no more than the time that a message takes
        return measured._replace(started=measured.started - self._clock)

    # Whether it is there.

    def _ping(self) -> None:
        if self.gone:
            return
        now = time.monotonic()
        if self.link.received != self._received:
            self._heard, self._received, self._suspected = now, self.link.received, False
        elif now - self._heard > (SILENCE if self.slots else SILENCE_AT_START):
            if self._suspected:
                self.lose(f"nothing came from it for {now - self._heard:.0f} s")
                return
            self._suspected = True
            self._loop.call_later(SECOND_LOOK, self._ping)
            return
        number = next(self._numbers)
        self._pings = {number: now}
        self.send(Kind.PING, 0, number)
        self._loop.call_later(PING_EVERY, self._ping)

    def _pong(self, frame: LinkFrame) -> None:
        sent = self._pings.pop(frame.ident, None)
        if sent is None:
            return
        round_trip = time.monotonic() - sent
        if round_trip < self._round_trip:  # the shorter it took, the better is known what time it was there
            self._round_trip = round_trip
            self._clock = int(frame.meta) / 1e9 - (time.time() - round_trip / 2)

    def lose(self, reason: str) -> None:
        """Give the node up: tell its workers lost."""
        if self.gone:
            return
        self.leave("" if self.given_back else reason)
        workers, self.workers = self.workers, {}
        for worker in workers.values():
            self._events.lost(worker, reason)
        self._lost(self, reason)

    def leave(self, reason: str = "") -> None:
        """Hang up; with a reason if that was not wanted."""
        self.link.flush()
        self.gone = True
        self._watched.end()
        self.link.close()
        nodes.remove(self.telemetry, reason)

    def give_back(self, reason: str) -> None:
        """Let its agent end, which has no job any more."""
        self.given_back, self.draining = True, reason
        self.send(Kind.LEAVE)

    def take_slots(self, frame: LinkFrame, indexes: Iterator[int]) -> tuple[Slot, ...]:
        """Slots of the node by a frame of its agent, numbered as slots of the pool."""
        found = unpack_slots(frame.body, self.name)
        self._meets_at, self._ports = unpack_ports(frame.meta, len(found))
        self.slots = tuple(replace(slot, index=next(indexes)) for slot in found)
        return self.slots

    def meeting_point(self, slot: Slot) -> tuple[str, int]:
        """Address and port that the node keeps for a slot of it.

        Raises
        ------
        OSError
            If it has kept none.
        """
        if not self._ports:
            raise OSError(
                f"node {self.name} has no port at which others could meet a task of it; see its log"
            )
        return self._meets_at, self._ports[[each.index for each in self.slots].index(slot.index)]

    def fail(self, worker: RemoteWorker, reason: str) -> None:
        """Give a worker up to which a call could not be sent; any thread may."""
        self._loop.call_soon_threadsafe(lambda: self._events.broken(worker, reason))

    def signal(self, worker: RemoteWorker, signum: signal.Signals) -> None:
        """Send a signal to a worker."""
        self.send(Kind.SIGNAL, worker.number, int(signum))

    def abandon(self, worker: RemoteWorker) -> None:
        """Report nothing more of a worker."""
        if self.workers.pop(worker.number, None) is not None:
            self.send(Kind.ABANDON, worker.number)


def _devices(begin: Begin) -> tuple[str, list[str]]:
    """Kind and UUIDs of the devices of a worker."""
    if begin.gpu_id is None:
        return "cpu", [begin.uuid]
    return "cuda", begin.pins["CUDA_VISIBLE_DEVICES"].split(",")


def _changed(variables: Mapping[str, str]) -> tuple[dict[str, str], set[str]]:
    """Environment variables that were set, and those that were removed, since this process began."""
    before = _variables_at_start()
    changed = {name: value for name, value in variables.items() if before.get(name) != value}
    return changed, before.keys() - variables.keys()


@functools.cache
def _variables_at_start() -> dict[str, str]:
    try:
        entries = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:  # not on Linux: what is there now
        return dict(os.environ)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in (e.partition(b"=") for e in entries)}
