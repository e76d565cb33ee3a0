"""The process that starts workers: it has imported torch, has never touched CUDA, and owns what it starts.

A worker is a fork of it (13 ms instead of the second that a new interpreter takes to import torch), or a new
interpreter where forking is not safe. Each pool talks to it through a session of its own. When a session
ends, for whatever reason, its workers are killed; when the parent process is gone, all of them are.
"""

from __future__ import annotations

import errno
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from typing import Any, NoReturn

from ..version import __version__
from .carried import carried
from .channel import Channel, Frame
from .process import become_subreaper, die_with_parent, end_with, is_cut, kill_children
from .protocol import PROTOCOL, Message, Preloaded, pack_preloaded
from .sources import Sources

__all__ = ["main"]


def main() -> None:
    """Serve until the parent process is gone.

    Arguments: descriptor of the connection, import path, preloads, start method, descriptor of the lifeline, version of
    the protocol.
    """
    fd, path, preload, method, lifeline, protocol = sys.argv[1:7]
    if is_cut(int(lifeline)):
        os._exit(1)
    if int(protocol) != PROTOCOL:
        sys.exit(
            f"workers of mgpu_nb {__version__} speak protocol {PROTOCOL}, their parent process {protocol}"
        )
    sys.path[:] = json.loads(path)
    for inherited in (int(fd), int(lifeline)):
        os.set_inheritable(inherited, False)
    try:
        Server(socket.socket(fileno=int(fd)), method, int(lifeline)).run(json.loads(preload))
        code = 0
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        os._exit(code)  # torch takes seconds to end in order


class Session:
    """A pool's connection, and the workers it started: number -> pid."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.workers: dict[int, int] = {}

    def send(self, kind: Message, worker: int = 0, meta: object = "", body: bytes = b"") -> None:
        """Send a frame to the pool, unless it is gone."""
        try:
            self.channel.send(kind, worker, str(meta).encode(), body)
        except OSError:
            self.channel.closed = True


class Server:
    """Accepts sessions over `control`, starts and reaps workers.

    While it imports, the kernel kills it at the end of the `lifeline`. Then it has workers to end, and is only woken.
    """

    def __init__(self, control: socket.socket, method: str, lifeline: int) -> None:
        self.lifeline = lifeline
        self.control = Channel(control, blocking=False)
        self.method = method
        self.sessions: list[Session] = []
        self.sources = Sources()
        self.selector = selectors.DefaultSelector()
        self.preloaded = b""
        self.wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else _pipe()

    def run(self, preload: list[str]) -> None:
        """Import the preloads, then start workers on demand."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Jupyter interrupts the whole group
        become_subreaper()  # what a dead worker leaves behind comes to us, and we end it
        wake, woken = self.wake
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        self.preloaded = pack_preloaded(self._preload(preload))
        end_with(self.lifeline, signal.SIGCONT)
        if is_cut(self.lifeline):
            return
        self.selector.register(wake, selectors.EVENT_READ, None)
        self.selector.register(self.control, selectors.EVENT_READ, self.control)
        while not self.control.closed:
            for key, _ in self.selector.select():
                if key.data is None:
                    os.read(wake, 4096)
                elif key.data is self.control:
                    self._accept()
                elif isinstance(key.data, Session):
                    self._serve(key.data)
            self._reap()
        self._end()

    def _preload(self, names: list[str]) -> Preloaded:
        errors, cuda_module = {}, ""
        gc.disable()  # a tenth to a quarter of the time of an import goes into looking for garbage
        for name in names:
            try:
                importlib.import_module(name)
            except BaseException:  # a module that calls sys.exit must not take the server with it
                errors[name] = traceback.format_exc()
            torch = sys.modules.get("torch")
            if not cuda_module and torch is not None and torch.cuda.is_initialized():
                cuda_module = name
        if worker := sys.modules.get("mgpu_nb.engines.worker"):
            worker.blas()
        if cuda_module:
            self.method = "spawn"  # a fork of this process could not use CUDA
        self.sources.scan()
        gc.freeze()  # workers share these objects for as long as their collector leaves them alone
        gc.enable()
        return Preloaded(errors, cuda_module)

    def _accept(self) -> None:
        for frame in self.control.receive():
            if len(frame.fds) != 1 or frame.fds[0] < 0:
                print("no file descriptor was left for a pool (ulimit -n)", file=sys.stderr, flush=True)
                continue  # the other end is closed, which its pool sees
            session = Session(Channel(socket.socket(fileno=frame.fds[0]), blocking=False))
            self.sessions.append(session)
            self.selector.register(session.channel, selectors.EVENT_READ, session)
            session.send(Message.PRELOADED, body=self.preloaded)

    def _serve(self, session: Session) -> None:
        for frame in session.channel.receive():
            if frame.kind == Message.START:
                self._start(session, frame)
            elif frame.kind == Message.SIGNAL and (pid := session.workers.get(frame.ident)):
                os.kill(pid, int(frame.meta))  # not reaped yet, so the number is still this worker's
        if session.channel.closed:
            self.selector.unregister(session.channel)
            session.channel.close()
            for pid in session.workers.values():
                os.kill(pid, signal.SIGKILL)

    def _start(self, session: Session, frame: Frame) -> None:
        if self.method == "fork" and self.sources.edited():
            session.send(Message.STALE, frame.ident)
        else:
            try:
                pid = self._fork(frame.fds) if self.method == "fork" else _spawn(frame.fds)
            except OSError as error:  # no process or descriptor left: the trouble of this worker, not of all
                session.send(Message.NOT_STARTED, frame.ident, error)
            else:
                session.workers[frame.ident] = pid
                session.send(Message.STARTED, frame.ident, pid)
        for fd in frame.fds:
            if fd >= 0:
                os.close(fd)

    def _fork(self, fds: tuple[int, ...]) -> int:
        _check_fds(fds)
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                die_with_parent(server)
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                self.selector.close()
                self.control.close()
                for session in self.sessions:
                    session.channel.close()
                for fd in (*self.wake, self.lifeline):
                    os.close(fd)
                channel, log, tokens = fds
                _work(channel, log, tokens, self.sources)
            finally:
                os._exit(1)  # whatever happened: there must not be two servers
        return pid

    def _reap(self) -> None:
        """Wait for processes that have ended, tell their pools, and kill what they left behind."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                pid = 0
            if pid == 0:
                break
            ended = [(s, worker) for s in self.sessions for worker, its in s.workers.items() if its == pid]
            for session, worker in ended:
                del session.workers[worker]
            kill_children(
                keep=self._pids()
            )  # also after the end of an orphan: its children come to us only now
            for session, worker in ended:
                session.send(Message.EXITED, worker, status)
        self.sessions = [s for s in self.sessions if s.workers or not s.channel.closed]

    def _pids(self) -> set[int]:
        return {pid for session in self.sessions for pid in session.workers.values()}

    def _end(self) -> None:
        """Kill every worker and all that they started, also what is handed to us only now."""
        signal.set_wakeup_fd(-1)
        while True:
            for pid in self._pids():
                os.kill(pid, signal.SIGKILL)
            kill_children(keep=set())
            try:
                pid, _ = os.waitpid(-1, 0)
            except ChildProcessError:
                return
            for session in self.sessions:
                session.workers = {w: p for w, p in session.workers.items() if p != pid}


def _work(channel: int, log: int, tokens: int, sources: Sources) -> NoReturn:
    from . import worker

    code = 1
    try:
        code = worker.main(channel, log, tokens, sources)
    except SystemExit as error:  # of a fork that a task made
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:  # a stream may be closed
            os._exit(code)


def _spawn(fds: tuple[int, ...]) -> int:
    code = carried() + "import sys, json; sys.path[:] = json.loads(sys.argv[1])\n"
    code += "from mgpu_nb.engines import server\nserver.spawned()"
    _check_fds(fds)
    for fd in fds:
        os.set_inheritable(fd, True)
    arguments: list[Any] = [sys.executable, "-c", code, json.dumps(sys.path), *map(str, (*fds, os.getpid()))]
    return os.posix_spawn(sys.executable, arguments, os.environ)


def spawned() -> None:
    """Run a worker in an interpreter of its own. Arguments: import path, channel, log, tokens, pid of the server."""
    channel, log, tokens, server = map(int, sys.argv[2:6])
    die_with_parent(server)
    for stream in (1, 2):  # what the imports say that follow, and why they fail
        os.dup2(log, stream)
    for fd in (channel, log, tokens):
        os.set_inheritable(fd, False)
    _work(channel, log, tokens, Sources())


def _check_fds(fds: tuple[int, ...]) -> None:
    """Raise if there was no descriptor left to receive them with."""
    if min(fds) < 0:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def _pipe() -> tuple[int, int]:
    ends = os.pipe()
    for fd in ends:
        os.set_blocking(fd, False)
    return ends
