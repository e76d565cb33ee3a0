"""Workers as local processes: asked of a server, signalled, heard of."""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import signal
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from .channel import Channel
from .payload import Payload
from .protocol import Begin, Message, Preloaded
from .servers import Server, default_method, force_spawn, kernel_ends, lock, release, retire, server_for

__all__ = ["Event", "LocalEngine", "LocalWorker", "Session"]

log = logging.getLogger("mgpu_nb")

_numbers = itertools.count(1)
MAX_SERVERS = 3  # that are tried before it is given up


class Session(NamedTuple):
    """A pool's connection to a server."""

    channel: Channel
    server: Server


class LocalWorker:
    """A worker process as the kernel sees it."""

    def __init__(self, begin: Begin, setup: Payload) -> None:
        self.number = next(_numbers)
        self.begin = begin
        self.setup = setup
        self.pid: int | None = None
        self.session: Session | None = None
        ours, self.channel_end = Channel.pair()
        self.channel = Channel(ours, blocking=False)
        kernel_ends.add(self.channel)
        self.log, self.log_end = os.pipe()
        # A byte in this pipe is the right to run the task sent ahead: the worker takes it, or the kernel back.
        self.claims, self._claim = os.pipe()
        for fd in (self.log, self.claims, self._claim):
            os.set_blocking(fd, False)
        self.channel.send(Message.BEGIN, meta=pickle.dumps(begin), body=setup.body, fds=setup.fds)

    def offer(self, tasks: int) -> None:
        """Lay out claims to tasks that are sent ahead: the first tasks take them, what is taken back is the last's."""
        os.write(self._claim, b"!" * tasks)

    def take_back(self) -> bool:
        """Take the claim back; False where the worker has it."""
        try:
            return bool(os.read(self.claims, 1))
        except BlockingIOError:
            return False

    def handed_over(self) -> None:
        """Close the ends that the process has now."""
        self.channel_end.close()
        if self.log_end >= 0:
            os.close(self.log_end)
            self.log_end = -1

    def close(self) -> None:
        """Close all that the kernel holds of it."""
        self.handed_over()
        self.channel.close()
        for fd in (self.log, self.claims, self._claim):
            os.close(fd)


class Event(NamedTuple):
    """What became of a worker: ``started`` (`value`: pid) or ``exited`` (`value`: wait status, None: unknown)."""

    kind: str
    worker: LocalWorker
    value: int | None


class LocalEngine:
    """Starts and ends the workers of one pool.

    Parameters
    ----------
    preload
        Modules that the server imports before it starts workers, torch and numpy beside them.
    method
        ``fork`` or ``spawn``; by default what is safe here.
    env
        Environment of the pool's workers, over the kernel's own.
    """

    def __init__(
        self, preload: tuple[str, ...], method: str | None, env: Mapping[str, str] | None = None
    ) -> None:
        self.preload = ("torch", "numpy.random", "mgpu_nb.engines.worker", *preload)
        self.method = method or default_method()
        self.env = dict(env or {})
        self.sessions: list[Session] = []
        self.workers: dict[int, LocalWorker] = {}

    def warm_up(self) -> None:
        """Have a server ready."""
        self._session()

    def start(self, begin: Begin, setup: Payload) -> LocalWorker:
        """Ask for a worker; returns at once. What becomes of it comes as events."""
        worker = LocalWorker(begin, setup)
        self.workers[worker.number] = worker
        self._ask(worker)
        return worker

    def _ask(self, worker: LocalWorker) -> None:
        worker.session = self._session()
        fds = [worker.channel_end.fileno(), worker.log_end, worker.claims]
        try:
            worker.session.channel.send(Message.START, worker.number, fds=fds)
        except OSError:  # the server is gone; its session says so too
            log.debug("the server did not take the start of worker %d", worker.number)

    def _session(self) -> Session:
        """Return the connection to the server for the environment as it is now.

        Raises
        ------
        OSError
            Where servers end as soon as they are started.
        """
        for _ in range(MAX_SERVERS):
            with (
                lock
            ):  # of all pools: a server must not be stopped between being found and being connected to
                server = server_for(self.preload, self.method, self.env)
                for session in self.sessions:
                    if session.server is server:
                        return session
                try:
                    session = Session(server.connect(), server)
                except OSError:  # it has just died
                    retire(server)
                    continue
                self.sessions.append(session)
                return session
        raise OSError(f"the server of the workers does not start: {server.last_words() or 'it said nothing'}")

    def signal(self, worker: LocalWorker, signum: signal.Signals) -> None:
        """Send a signal, if the process still is there: the server knows, a bare pid could be another's by now."""
        if worker.session is not None and not worker.session.channel.closed:
            try:
                worker.session.channel.send(Message.SIGNAL, worker.number, str(int(signum)).encode())
            except OSError:
                log.debug("the server did not take a signal for worker %d", worker.number)

    def disown(self, worker: LocalWorker) -> None:
        """Hear no more of a worker; where its server never said that it started, start no more from that server."""
        self.workers.pop(worker.number, None)
        if worker.session is not None and worker.pid is None:
            retire(worker.session.server)

    def events(self, session: Session) -> Iterator[Event]:
        """Return what a session has to say."""
        for frame in session.channel.receive():
            if frame.kind == Message.PRELOADED:
                self._preloaded(session, pickle.loads(frame.body))
                continue
            worker = self.workers.get(frame.ident)
            if worker is None:
                continue
            if frame.kind == Message.STARTED:
                worker.handed_over()
                worker.pid = int(frame.meta)
                yield Event("started", worker, worker.pid)
            elif frame.kind == Message.EXITED:
                del self.workers[worker.number]
                yield Event("exited", worker, int(frame.meta))
            elif frame.kind == Message.STALE:
                retire(session.server)
                self._ask(worker)
        if session.channel.closed:
            for worker in [w for w in self.workers.values() if w.session is session]:
                del self.workers[worker.number]
                yield Event("exited", worker, None)

    def _preloaded(self, session: Session, told: Preloaded) -> None:
        for name, text in told.errors.items():
            log.warning("preloading %s failed, workers import it themselves:\n%s", name, text)
        if told.woke_cuda:
            log.warning(
                "preloading %s initialised CUDA: workers are spawned, not forked, each in seconds",
                told.woke_cuda,
            )

    def bad_fork(self, worker: LocalWorker) -> None:
        """A worker found CUDA awake in its parent: from now on workers with these preloads are spawned."""
        preload = self.preload if worker.session is None else worker.session.server.preload
        log.warning(
            "CUDA was initialised by one of the preloaded modules (%s): workers are spawned, not forked, each in "
            "seconds. Move what touches the GPU at import into a function.",
            ", ".join(preload),
        )
        force_spawn(self.preload)
        if worker.session is not None:
            retire(worker.session.server)

    def idle_sessions(self) -> list[Session]:
        """Return the sessions of replaced servers that have no workers left."""
        busy = {id(worker.session) for worker in self.workers.values()}
        return [session for session in self.sessions if session.server.retired and id(session) not in busy]

    def close_session(self, session: Session) -> None:
        """Close a session: what workers it has left are killed. A replaced server ends with its last."""
        self.sessions.remove(session)
        session.channel.close()
        release(session.server)

    def close(self) -> None:
        """Close all sessions."""
        for session in list(self.sessions):
            self.close_session(session)
