"""The kernel's side of local processes: the servers it owns, and the workers they start for a pool."""

from __future__ import annotations

import atexit
import itertools
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..device import THREAD_VARIABLES
from .channel import Channel
from .payload import Payload
from .protocol import Begin, Message, Preloaded

__all__ = ["Event", "LocalEngine", "LocalWorker", "Session"]

log = logging.getLogger("mgpu_nb")

# Read by libraries when they are imported: a server started with other values is of no use.
_READ_AT_IMPORT = ("TORCH", "PYTORCH_", "CUDA_", "KMP_", "GOMP_", "MKL_", "OMP_", "LD_", "MALLOC_", "PYTHON")
_PINNED = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", *THREAD_VARIABLES)
_BOOT = "import sys, json; sys.path[:] = json.loads(sys.argv[2]); from mgpu_nb.engines import server; server.main()"


class Server:
    """A server process of this kernel. It ends when `control` closes, at the latest with the kernel."""

    def __init__(self, key: tuple[Any, ...], preload: tuple[str, ...], method: str) -> None:
        self.key = key
        self.preload = preload
        self.retired = False
        self.sessions = 0
        ours, theirs = Channel.pair()
        self.control = Channel(ours, blocking=True)
        _kernel_ends.add(self.control)
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        environment = dict(os.environ)
        environment.update(
            dict.fromkeys(THREAD_VARIABLES, "1")
        )  # a process that ran threads cannot be forked
        environment["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # torch.cuda.is_available() must not wake CUDA
        arguments = [str(theirs.fileno()), json.dumps(import_path()), json.dumps(preload), method]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=self.errors,
                stderr=self.errors,
                env=environment,
                pass_fds=[theirs.fileno()],
            )

    def connect(self) -> Channel:
        """Open a session."""
        ours, theirs = Channel.pair()
        with theirs:
            self.control.send(0, fds=[theirs.fileno()])
        self.sessions += 1
        channel = Channel(ours, blocking=False)
        _kernel_ends.add(channel)
        return channel

    def last_words(self) -> str:
        """What the process wrote, for the message about its end."""
        return os.pread(self.errors.fileno(), 2**16, 0).decode(errors="replace")[-2000:].strip()

    def stop(self) -> None:
        """End it and all that it started; it answers the closed connection by ending."""
        self.control.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()


_servers: dict[tuple[Any, ...], Server] = {}
_lock = threading.Lock()
_kernel_ends: weakref.WeakSet[Channel] = weakref.WeakSet()
_bad_preloads: set[tuple[str, ...]] = set()
_numbers = itertools.count(1)


def stop_servers() -> None:
    """End the server processes of this kernel; the next pool starts new ones."""
    with _lock:
        for server in _servers.values():
            server.stop()
        _servers.clear()


def _forget() -> None:
    """In a fork of the kernel: let go of its connections, or workers would think the kernel still there."""
    for channel in list(_kernel_ends):
        channel.close()
    _servers.clear()


atexit.register(stop_servers)
os.register_at_fork(after_in_child=_forget)


def import_path() -> list[str]:
    """Return the kernel's sys.path with the current folder by its name."""
    return [os.path.abspath(entry) if entry == "" else entry for entry in sys.path]


def default_method() -> str:
    """``fork`` where a process that has imported torch can be forked safely, ``spawn`` elsewhere."""
    return "fork" if hasattr(os, "fork") and sys.platform != "darwin" else "spawn"


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
        _kernel_ends.add(self.channel)
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
    """

    def __init__(self, preload: tuple[str, ...], method: str | None) -> None:
        self.preload = ("torch", "numpy.random", "mgpu_nb.engines.worker", *preload)
        self.method = method or default_method()
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
        method = "spawn" if self.preload in _bad_preloads else self.method
        preload = self.preload if method == "fork" else ()
        environment = tuple(
            sorted(
                (k, v) for k, v in os.environ.items() if k.startswith(_READ_AT_IMPORT) and k not in _PINNED
            )
        )
        key = (os.getpid(), preload, method, environment)
        with _lock:
            server = _servers.get(key)
            if server is not None and (server.retired or server.process.poll() is not None):
                self._drop(server)
                server = None
            if server is None:
                server = _servers[key] = Server(key, preload, method)
            for session in self.sessions:
                if session.server is server:
                    return session
            session = Session(server.connect(), server)
            self.sessions.append(session)
            return session

    def _drop(self, server: Server) -> None:
        """Forget a server; it ends with its last session."""
        if _servers.get(server.key) is server:
            del _servers[server.key]
        server.retired = True
        if server.sessions == 0:
            server.stop()

    def signal(self, worker: LocalWorker, signum: signal.Signals) -> None:
        """Send a signal, if the process still is there: the server knows, a bare pid could be another's by now."""
        if worker.session is not None and not worker.session.channel.closed:
            try:
                worker.session.channel.send(Message.SIGNAL, worker.number, str(int(signum)).encode())
            except OSError:
                log.debug("the server did not take a signal for worker %d", worker.number)

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
                with _lock:
                    self._drop(session.server)
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
        with _lock:
            _bad_preloads.add(self.preload)
            if worker.session is not None:
                self._drop(worker.session.server)

    def idle_sessions(self) -> list[Session]:
        """Return the sessions of replaced servers that have no workers left."""
        busy = {id(worker.session) for worker in self.workers.values()}
        return [session for session in self.sessions if session.server.retired and id(session) not in busy]

    def close_session(self, session: Session) -> None:
        """Close a session: what workers it has left are killed. A replaced server ends with its last."""
        self.sessions.remove(session)
        session.channel.close()
        with _lock:
            session.server.sessions -= 1
            if session.server.retired and session.server.sessions == 0:
                session.server.stop()

    def close(self) -> None:
        """Close all sessions."""
        for session in list(self.sessions):
            self.close_session(session)
