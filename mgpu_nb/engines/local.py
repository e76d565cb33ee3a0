"""The engine of this machine: workers are forked from a server process, or spawned."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import pickle
import platform
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

from ..hardware import host
from ..hardware.freest import freest_gpus
from ..hardware.slots import Slot, device_memory, resolve_slots, unused_memory, used_by
from . import oom
from .attachments import Sent
from .base import Clock, Environment, Memory, SystemClock, Watcher, WorkerEvents, WorkerHandle
from .channel import BrokenChannel, Channel, Frame
from .interpreter import Interpreter
from .limits import check_limits
from .payload import Payload, Received
from .protocol import (
    Begin,
    Message,
    Preloaded,
    ProtocolError,
    TaskMeta,
    unpack_failure,
    unpack_measured,
    unpack_preloaded,
)
from .servers import Server, default_method, runtime
from .telling import tell
from .watched import Watched

__all__ = ["LocalEngine", "LocalWorker", "Session", "close_descriptors"]

log = logging.getLogger("mgpu_nb")

_numbers = itertools.count(1)
STALL = 10.0  # seconds in which something more of a message must come
MAX_SERVERS = 3  # attempts before it is given up
LOOK_AGAIN, LOOKS = 0.02, 50  # seconds between looks at how a server ended, and how many
READS = (
    4  # of 64 KiB at once, more than a pipe holds; a worker that writes without pause must not keep the loop
)


class Session(NamedTuple):
    """A pool's connection to a server."""

    channel: Channel
    server: Server


class LocalWorker:
    """A worker process of this machine as its parent sees it.

    Parameters
    ----------
    devices
        Number of the devices that it works on.
    loop
        What watches its channel, from `watched.begin` on.
    ready
        Called with the worker when something has come from it, or it takes more.
    abroad
        What an environment is for the worker, where it is of another interpreter.
    """

    def __init__(
        self,
        devices: int,
        loop: Watcher,
        ready: Callable[[LocalWorker], None],
        abroad: Callable[[Environment], Environment] | None = None,
    ) -> None:
        self.number = next(_numbers)
        self.devices = devices
        self.abroad = abroad
        self.pid: int | None = None
        self.reported: tuple[int, int] | None = None
        self.session: Session | None = None
        self.ready = False
        self.broken = False  # what it sends cannot be read any more
        self.stall_timer: Any = None  # while a message has begun to arrive and is not complete
        self.records_output = False  # of a task whose log is kept: read before its end is reported
        self._sent = Sent()
        self._skipping = 0  # prefetched jobs that were taken back and that the worker has not come to yet
        with contextlib.ExitStack() as failed:
            ours, self.channel_end = Channel.pair()
            failed.callback(self.channel_end.close)
            self.channel = Channel(ours, blocking=False)
            self.watched = Watched(loop, self.channel, partial(ready, self))
            failed.callback(self.channel.close)
            self.log, self.log_end = os.pipe()
            failed.callback(close_descriptors, (self.log, self.log_end))
            # A byte in this pipe is the right to run a prefetched job: the worker takes it, or the parent back.
            self.tokens, self._add_token = os.pipe()
            failed.pop_all()
        runtime.channels.add(self.channel)
        for fd in (self.log, self.tokens, self._add_token):
            os.set_blocking(fd, False)

    def begin(self, begin: Begin, setup: Payload) -> None:
        """Send the first message, before its process is there to read it."""
        self._attach(setup)
        self.channel.send(Message.BEGIN, meta=pickle.dumps(begin), body=setup.body, fds=setup.fds)

    def add_tokens(self, count: int) -> None:
        """Let it run so many more of the jobs that are sent ahead."""
        os.write(self._add_token, b"!" * count)

    @property
    def prefetches(self) -> bool:
        """Whether it takes jobs ahead: not while it still has to skip some that were taken back."""
        return not self._skipping

    def assign(self, job: int, meta: TaskMeta | None, payload: Payload) -> None:
        """Send a job."""
        self.records_output = meta is not None and bool(meta.name)
        if self.abroad is not None and meta is not None and meta.environment is not None:
            meta = meta._replace(environment=self.abroad(meta.environment))
        packed = b"" if meta is None else meta.packed()
        with contextlib.suppress(OSError):  # it has just died; the server will report that
            self._attach(payload)
            self.channel.send(Message.TASK, job, packed, payload.body, payload.fds)
        self.watched.renew()

    def prefetch(self, jobs: Sequence[tuple[int, Payload]]) -> None:
        """Send jobs to be run after the present one, and a token for each."""
        self.add_tokens(len(jobs))
        with contextlib.suppress(OSError):
            ready: list[tuple[int, bytes]] = []
            for job, payload in jobs:
                if missing := self._sent.missing(payload.sources, payload.definitions):
                    if ready:  # they are for what was there before
                        self.channel.send_many(Message.PREFETCH, ready)
                        ready = []
                    self.channel.send_many(Message.ATTACHMENT, missing)
                ready.append((job, payload.body))
            self.channel.send_many(Message.PREFETCH, ready)
        self.watched.renew()

    def answer(self, job: int, payload: Payload) -> None:
        """Send a job what it asked for."""
        with contextlib.suppress(OSError):
            self.channel.send(Message.ANSWER, job, b"", payload.body, payload.fds)
        self.watched.renew()

    def _attach(self, payload: Payload) -> None:
        """Send what the worker must have before a call."""
        if missing := self._sent.missing(payload.sources, payload.definitions):
            self.channel.send_many(Message.ATTACHMENT, missing)

    def unprefetch(self) -> bool:
        """Take the token of the last prefetched job back; False if the worker has it."""
        try:
            taken = bool(os.read(self.tokens, 1))
        except BlockingIOError:
            return False
        self._skipping += taken
        return taken

    def skipped(self) -> None:
        """Note that the worker came to a job that was taken back."""
        if not self._skipping:
            raise ProtocolError("it skipped a task that was not taken back")
        self._skipping -= 1

    def stop(self) -> None:
        """Shut the channel: the process ends when it has read it to its end."""
        with contextlib.suppress(OSError):
            self.channel.shut()

    def handed_over(self) -> None:
        """Close the ends that the process has now."""
        self.channel_end.close()
        if self.log_end >= 0:
            os.close(self.log_end)
            self.log_end = -1

    def close(self) -> None:
        """Close all descriptors of it."""
        self.handed_over()
        self.channel.close()
        for fd in (self.log, self.tokens, self._add_token):
            os.close(fd)


class LocalEngine:
    """Starts and ends the workers of one pool on this machine.

    Parameters
    ----------
    preload
        Modules that the server imports before it starts workers, beside torch and numpy.
    start_method
        ``fork`` or ``spawn``; by default what is safe here.
    env
        Environment of the pool's workers, over that of the parent process.
    python
        The interpreter of the workers, by default this process's own.
    """

    assigns_from_any_thread: Literal[True] = True

    def __init__(
        self,
        preload: Sequence[str] = (),
        start_method: str | None = None,
        env: Mapping[str, str] | None = None,
        python: Interpreter | None = None,
    ) -> None:
        self.clock: Clock = SystemClock()
        self.preload = ("torch", "numpy.random", "mgpu_nb.engines.worker", *preload)
        if python is not None:
            absent = [name for name in ("torch", "numpy") if not python.packages[name]]
            self.preload = tuple(name for name in self.preload if name.partition(".")[0] not in absent)
        self.method = start_method or (default_method() if python is None else "spawn")
        self.python = python
        self.env = dict(env or {})
        self.sessions: list[Session] = []
        self.workers: dict[int, LocalWorker] = {}
        self._draining = False
        self._environments: tuple[Environment, Environment] | None = None
        self._loop: Watcher
        self._events: WorkerEvents

    # The machine.

    def slots(
        self, gpu_ids: Sequence[int | str] | Literal["cpu"] | None, slots: int | None, threads: int | None
    ) -> tuple[Slot, ...]:
        """Slots on the devices of this machine."""
        here = socket.gethostname()
        found = tuple(replace(slot, host=here) for slot in resolve_slots(gpu_ids, slots, threads))
        check_limits(len(found))
        return found

    def freest(self, slots: int | None, taken: Mapping[str, int]) -> list[str]:
        """UUIDs of the freest GPUs of this machine; see `freest_gpus`."""
        return freest_gpus(slots, taken)

    def memory(self, slot: Slot, enough: int | None = None) -> Memory:
        """Memory of a device; free RAM that nobody uses at all is known in no time."""
        if enough is not None and (unused := unused_memory(slot)) >= enough:
            return Memory(None, unused)
        return device_memory(slot)

    def held(self, worker: WorkerHandle, slot: Slot) -> int | None:
        """Memory of a worker: as the driver knows it, else as torch reported it; on a virtual device its RSS."""
        if slot.kind == "cpu":
            return host.resident(worker.pid)
        used = used_by(slot.uuid).get(worker.pid or 0)
        if used is None and worker.reported is not None and getattr(worker, "devices", 1) == 1:
            used = worker.reported[1]  # torch's figures are sums over the devices
        if slot.shares_ram:
            resident = host.resident(worker.pid)
            return used if resident is None else resident + (used or 0)
        return used

    # Starts and ends.

    def connect(self, loop: Watcher, events: WorkerEvents) -> None:
        """Use this loop and report to `events`."""
        oom.shared.join(
            self
        )  # not when it is made: by the main thread, where an interrupt could leave its lock locked
        self._loop, self._events = loop, events

    def warm_up(self) -> None:
        """Have a server running."""
        self._session()

    def start(self, begin: Begin, setup: Payload) -> LocalWorker:
        """Ask the server for a worker."""
        if self.python is not None:
            begin = replace(
                begin, python=platform.python_version(), environment=self._abroad(begin.environment)
            )
        abroad = None if self.python is None else self._abroad
        worker = LocalWorker(len(set(begin.devices)), self._loop, self._channel_ready, abroad)
        try:
            worker.begin(begin, setup)
            self.ask_for(worker)
        except BaseException:
            worker.close()
            raise
        return worker

    def ask_for(self, worker: LocalWorker) -> None:
        """Ask the server for the process of a worker.

        Raises
        ------
        OSError
            If that is impossible now.
        """
        self._ask(worker)
        self.workers[worker.number] = worker
        worker.watched.begin()
        self._watch_log(worker)

    def _watch_log(self, worker: LocalWorker) -> None:
        self._loop.watch(worker.log, partial(self._log_readable, worker))

    def _abroad(self, environment: Environment) -> Environment:
        """An environment as it is for the other interpreter; the same object for as long as it is the same."""
        assert self.python is not None  # noqa: S101 (there is no other caller)
        if self._environments is None or self._environments[0] is not environment:
            self._environments = environment, self.python.environment(environment)
        return self._environments[1]

    def _ask(self, worker: LocalWorker) -> None:
        worker.session = self._session()
        fds = [worker.channel_end.fileno(), worker.log_end, worker.tokens]
        try:
            worker.session.channel.send(Message.START, worker.number, fds=fds)
        except OSError:  # the server is gone, which its session reports too
            log.debug("the server did not take the start of worker %d", worker.number)

    def _session(self) -> Session:
        """Connection to the server for the environment as it is now.

        Raises
        ------
        OSError
            If servers end as soon as they are started.
        """
        for _ in range(MAX_SERVERS):
            with runtime.lock:  # a server must not be stopped between being found and being connected to
                server = runtime.server_for(self.preload, self.method, self.env, self.python)
                for session in self.sessions:
                    if session.server is server:
                        return session
                try:
                    session = Session(server.connect(), server)
                except OSError:  # it has just died
                    runtime.retire(server)
                    continue
                self.sessions.append(session)
                self._loop.watch(session.channel, partial(self._session_readable, session))
                return session
        raise OSError(f"the server of the workers does not start: {server.how_it_ended()}")

    def signal(self, worker: WorkerHandle, signum: signal.Signals) -> None:
        """Have the server send a signal: it knows the process, a bare pid could be another's by now."""
        session = worker.session if isinstance(worker, LocalWorker) else None
        if session is not None and not session.channel.closed:
            try:
                session.channel.send(Message.SIGNAL, worker.number, str(int(signum)).encode())
            except OSError:
                log.debug("the server did not take a signal for worker %d", worker.number)

    def abandon(self, worker: WorkerHandle) -> None:
        """Report no more of a worker; if its server never started it, that server starts no more."""
        mine = self.workers.pop(worker.number, None)
        if mine is not None:
            self._forget(mine)
            if mine.session is not None and mine.pid is None:
                runtime.retire(mine.session.server)

    def drain(self) -> None:
        """Expect the server to end."""
        self._draining = True

    def close(self) -> None:
        """Close all sessions: their servers kill what is left."""
        for session in list(self.sessions):
            self._close_session(session)
        oom.shared.leave(self)

    # What arrives.

    def _channel_ready(self, worker: LocalWorker) -> None:
        """Read what a worker sends, and write what it has not taken yet."""
        channel = worker.channel
        if channel.pending:
            with contextlib.suppress(OSError):
                channel.flush()
        worker.watched.renew()
        if not worker.broken:
            try:
                for frame in channel.receive():
                    self._frame(worker, frame)
            except (BrokenChannel, ProtocolError) as error:
                self._broken(worker, str(error))
            except Exception as error:  # a task can write anything to any descriptor
                self._broken(worker, f"{type(error).__name__}: {error}")
            if channel.partial and worker.stall_timer is None and not worker.broken:
                self._await_rest(worker)
        if channel.closed or worker.broken:
            worker.watched.end()
            if not worker.broken and worker.number in self.workers and worker.stall_timer is None:
                self._await_rest(worker)  # its end, which the server reports

    def _broken(self, worker: LocalWorker, what: str) -> None:
        worker.broken = True
        log.error("what worker %d sent cannot be read: %s", worker.number, what)
        self._events.broken(worker, f"what its process sent cannot be read: {what}{_HOW_IT_BREAKS}")

    def _await_rest(self, worker: LocalWorker) -> None:
        """Give a worker up from which nothing more of a message comes, or that has closed its channel and lives."""
        received = worker.channel.received

        def look() -> None:
            worker.stall_timer = None
            if worker.channel.closed:
                self._broken(worker, "its end of the channel was closed")
            elif worker.channel.partial and worker.channel.received == received:
                self._broken(worker, f"a message stopped {STALL:g} s ago and is not complete")
            elif worker.channel.partial:
                self._await_rest(worker)

        worker.stall_timer = self._loop.call_later(STALL, look)

    def _frame(self, worker: LocalWorker, frame: Frame) -> None:
        events, kind, meta = self._events, frame.kind, frame.meta
        if len(frame.fds) > (kind == Message.VALUE):
            close_descriptors(frame.fds)
            raise ProtocolError(f"a message of kind {kind} came with {len(frame.fds)} descriptors")
        if kind == Message.VALUE:
            value, measured = Received(frame.body, frame.fds), unpack_measured(meta)
            self._read_output(worker)
            events.value(worker, frame.ident, value, measured)
        elif kind == Message.ERROR:
            failure = unpack_failure(meta)
            self._read_log(worker)
            events.error(worker, frame.ident, failure)
        elif not tell(events, worker, kind, frame.ident, meta, frame.body):
            self._state_frame(worker, frame)

    def _state_frame(self, worker: LocalWorker, frame: Frame) -> None:
        """Take a message about the process itself."""
        events, kind = self._events, frame.kind
        if kind == Message.READY:
            worker.ready = True
            if worker.pid is None:  # the server, which knows, has not been heard yet
                worker.pid = frame.ident if frame.ident < 2**31 else None
            events.ready(worker)
        elif kind == Message.SETUP_FAILED:
            failure = unpack_failure(frame.meta)
            self._read_log(worker)
            events.setup_failed(worker, failure)
        elif kind == Message.OUTDATED or (kind == Message.BAD_FORK and not worker.ready):
            events.unfit(worker)
            if kind == Message.BAD_FORK:
                self._spawn_from_now_on(worker)
        else:
            raise ProtocolError(f"no message of kind {kind} is due")

    def _read_output(self, worker: LocalWorker) -> None:
        if worker.records_output:
            self._read_log(worker)

    def _log_readable(self, worker: LocalWorker) -> None:
        if not self._read_log(worker):
            self._loop.unwatch(worker.log)

    def _read_log(self, worker: LocalWorker) -> bool:
        """Read what the process has written; False at the end of it."""
        for _ in range(READS):
            try:
                data = os.read(worker.log, 2**16)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._events.output(worker, data)
        return True

    def _session_readable(self, session: Session) -> None:
        try:
            for frame in session.channel.receive():
                self._session_frame(session, frame)
        except (BrokenChannel, ProtocolError) as error:  # its workers end with the session
            session.server.blame(str(error))
            log.warning("what the server of the workers sent cannot be read: %s", error)
            session.channel.close()
        if session.channel.closed:
            runtime.retire(session.server)  # before its workers are replaced: it may not look dead yet
            self._loop.unwatch(session.channel)
            self._session_ended(session)
        self._close_idle()

    def _session_ended(self, session: Session, looks: int = 0) -> None:
        """Report the ends of a server's workers, once it is known how it ended itself."""
        code = session.server.process.poll()
        if code is None and looks < LOOKS:
            self._loop.call_later(LOOK_AGAIN, partial(self._session_ended, session, looks + 1))
            return
        if not self._draining:
            log.error("the server of the workers ended: %s", session.server.how_it_ended())
        for worker in [w for w in self.workers.values() if w.session is session]:
            if worker.ready:
                self._exited(worker, None)
            else:
                self._not_started(worker, session.server.how_it_ended(), fault=bool(code and code > 0))
        self._close_idle()

    def _not_started(self, worker: LocalWorker, reason: str, *, fault: bool = False) -> None:
        del self.workers[worker.number]
        self._channel_ready(worker)
        self._read_log(worker)
        self._forget(worker)
        self._events.not_started(worker, reason, fault=fault)

    def _close_idle(self) -> None:
        """Close the sessions of servers from which no worker comes any more and none is left."""
        busy = {id(worker.session) for worker in self.workers.values()}
        for idle in [s for s in self.sessions if s.server.retired and id(s) not in busy]:
            self._close_session(idle)

    def _session_frame(self, session: Session, frame: Frame) -> None:
        if frame.kind == Message.PRELOADED:
            _log_preloads(unpack_preloaded(frame.body))
        elif (worker := self.workers.get(frame.ident)) is None:
            return
        elif frame.kind == Message.STARTED:
            worker.handed_over()
            worker.pid = int(frame.meta)
        elif frame.kind == Message.EXITED:
            self._exited(worker, int(frame.meta))
        elif frame.kind == Message.STALE:
            runtime.retire(session.server)
            try:
                self._ask(worker)
            except OSError as error:
                self._not_started(worker, str(error))
        elif frame.kind == Message.NOT_STARTED:
            self._not_started(
                worker, f"no process could be started: {frame.meta.decode(errors='replace')}{_FEW}"
            )

    def _exited(self, worker: LocalWorker, status: int | None) -> None:
        """Read the last output of a process that ended, then report its end."""
        del self.workers[worker.number]
        self._channel_ready(worker)
        self._read_log(worker)
        self._forget(worker)
        killed = oom.shared.explain(status)
        self._events.exited(worker, status, str(host.bound()) if killed else False)

    def _forget(self, worker: LocalWorker) -> None:
        if worker.stall_timer is not None:
            worker.stall_timer.cancel()
        worker.watched.end()
        self._loop.unwatch(worker.log)

    def _spawn_from_now_on(self, worker: LocalWorker) -> None:
        """A worker found CUDA initialised in its parent: workers with these preloads are spawned."""
        preload = self.preload if worker.session is None else worker.session.server.preload
        log.warning(
            "CUDA was initialised by one of the preloaded modules (%s): workers are spawned, not forked, each in "
            "seconds. Move what touches the GPU at import into a function.",
            ", ".join(preload),
        )
        runtime.force_spawn(self.preload)
        if worker.session is not None:
            runtime.retire(worker.session.server)

    def _close_session(self, session: Session) -> None:
        """Close a session: workers that it has left are killed. A retired server ends with its last session."""
        self._loop.unwatch(session.channel)
        self.sessions.remove(session)
        session.channel.close()
        runtime.release(session.server)


_FEW = " (too few processes or descriptors: `ulimit -u`, `ulimit -n`, or the limit of the container)"
_HOW_IT_BREAKS = (
    " (code that uses a descriptor after closing it does this: it may be the worker's connection by then)"
)


def close_descriptors(fds: Sequence[int]) -> None:
    """Close descriptors; -1 stands for one that never came."""
    for fd in fds:
        if fd >= 0:
            os.close(fd)


def _log_preloads(preloaded: Preloaded) -> None:
    for name, text in preloaded.errors.items():
        log.warning("preloading %s failed, workers import it themselves:\n%s", name, text)
    if preloaded.cuda_module:
        log.warning(
            "preloading %s initialised CUDA: workers are spawned, not forked, each in seconds",
            preloaded.cuda_module,
        )
