"""The server processes of this process, and everything else of the runtime that is one per process."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping
from typing import Any, Protocol

from ..hardware.slots import THREAD_VARIABLES, with_defaults
from ..store.writer import wait_for_writers
from .channel import Channel
from .environment import import_path
from .interpreter import Interpreter
from .process import MARK, Lifeline, kill_marked
from .protocol import PROTOCOL
from .scratch import scratch_file

__all__ = ["Runtime", "Server", "default_method", "runtime"]

# Read by libraries when they are imported: a server started with other values is of no use.
_READ_AT_IMPORT = ("TORCH", "PYTORCH_", "CUDA_", "KMP_", "GOMP_", "MKL_", "OMP_", "LD_", "MALLOC_", "PYTHON")
_PINNED = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", *THREAD_VARIABLES)
_BOOT = "import sys, json; sys.path[:] = json.loads(sys.argv[2]); from mgpu_nb.engines import server; server.main()"


_numbers = itertools.count(1)


class Server:
    """A server process. It ends when `control` closes, at the latest with this process.

    Raises
    ------
    OSError
        If no process can be started.
    """

    def __init__(
        self,
        key: tuple[Any, ...],
        preload: tuple[str, ...],
        method: str,
        env: Mapping[str, str],
        channels: weakref.WeakSet[Connection],
        python: Interpreter | None = None,
    ) -> None:
        self.key = key
        self.preload = preload
        self.retired = False
        self.sessions = 0
        self._last_output = self._blame = ""
        self._mark = f"{os.getpid()}-{next(_numbers)}-{secrets.token_hex(4)}"
        self._end: threading.Thread | None = None
        with contextlib.ExitStack() as failed:
            ours, theirs = Channel.pair()
            failed.callback(theirs.close)
            self.control = Channel(ours, blocking=True)
            failed.callback(self.control.close)
            self.lifeline = Lifeline()
            failed.callback(self.lifeline.close)
            self.errors = scratch_file()
            failed.callback(self.errors.close)
            self.process = self._start(theirs.fileno(), method, env, python)
            self.lifeline.watch(self.process.pid)
            failed.pop_all()
        theirs.close()
        self._channels = channels
        channels.add(self.control)
        channels.add(self.lifeline)

    def _start(
        self, control: int, method: str, env: Mapping[str, str], python: Interpreter | None
    ) -> subprocess.Popen[bytes]:
        own = os.environ if python is None else python.variables(os.environ)
        environment = with_defaults({**own, **env})
        # A process that ran threads cannot be forked.
        environment.update(dict.fromkeys(THREAD_VARIABLES, "1"))
        environment["PYTORCH_NVML_BASED_CUDA_CHECK"] = (
            "1"  # torch.cuda.is_available() must not initialise CUDA
        )
        environment[MARK] = self._mark
        if folder := _folder_for_temporary_files():
            environment["TMPDIR"] = folder
        fds = [control, self.lifeline.read]
        path = import_path()
        program = [sys.executable, "-c", _BOOT]
        if python is not None:
            path = python.import_path(path)
            program = [python.path, "-c", python.boot() + _BOOT]
        paths = json.dumps(path), json.dumps(self.preload)
        return subprocess.Popen(
            [*program, str(control), *paths, method, str(self.lifeline.read), str(PROTOCOL)],
            stdin=subprocess.DEVNULL,
            stdout=self.errors,
            stderr=self.errors,
            cwd=None if _has_folder() else "/",
            env=environment,
            pass_fds=fds,
            # A notebook kernel that ends, and whoever ends a script with its group, sends SIGTERM to the whole
            # group. Workers would be seen to fail, by a parent that has not ended yet.
            process_group=0,
        )

    def connect(self) -> Channel:
        """Open a session."""
        ours, theirs = Channel.pair()
        with theirs:
            self.control.send(0, fds=[theirs.fileno()])
        self.sessions += 1
        channel = Channel(ours, blocking=False)
        self._channels.add(channel)
        return channel

    def last_output(self) -> str:
        """End of what the process wrote."""
        with contextlib.suppress(ValueError):  # closed by the thread that waits for its end
            file = self.errors.fileno()
            written = os.pread(file, 2**13, max(0, os.fstat(file).st_size - 2**13))
            return written.decode(errors="replace")[-2000:].strip()
        return self._last_output

    def blame(self, reason: str) -> None:
        """Note why this process gave it up."""
        self._blame = reason

    def how_it_ended(self) -> str:
        """Its exit code and the end of what it wrote, or why it was given up, for a message."""
        if self._blame:
            return self._blame
        code = self.process.returncode
        end = "" if code is None else f"signal {-code}; " if code < 0 else f"exit code {code}; "
        return f"{end}{self.last_output() or 'it wrote nothing'}"

    def stop(self) -> None:
        """End it and all that it started, soon; it answers the closed connection by ending."""
        if self._end is None:
            self.control.close()
            self.lifeline.close()
            self._end = threading.Thread(target=self._wait, name="mgpu_nb-server-end")
            try:
                self._end.start()
            except RuntimeError:  # no thread is left, or the interpreter ends
                self._end = None
                self._wait()

    def wait_for_end(self) -> None:
        """Wait until it has ended after `stop`."""
        if self._end is not None:
            self._end.join()

    def _wait(self) -> None:
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.returncode:  # killed: what its workers had started is nobody's now
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
            kill_marked(self._mark)
        self._last_output = self.last_output()
        self.errors.close()


def _folder_for_temporary_files() -> str:
    """Folder in memory, if there is no other: libraries ask for one when they are imported. Else an empty text."""
    try:
        tempfile.gettempdir()
    except OSError:
        return "/dev/shm" if os.access("/dev/shm", os.W_OK) else ""  # noqa: S108
    return ""


def _has_folder() -> bool:
    """Whether the working directory still exists."""
    try:
        os.getcwd()
    except OSError:
        return False
    return True


class Connection(Protocol):
    """What this process alone may hold: an end of a channel, a lifeline, a link to another machine."""

    def close(self) -> None:
        """Close it; in a fork too, where no other thread is left to give up a lock."""


class Pool(Protocol):
    """What the runtime asks of the pools of this process when it ends."""

    thread: threading.Thread

    def close(self, *, cancel_queued: bool = False, cancel_running: bool = False, reason: str = "") -> None:
        """Take no more jobs."""


class Runtime:
    """What there is once per process: servers, connections, pools; and what happens to them at a fork and at exit.

    Attributes
    ----------
    lock
        Held while servers are looked up, counted and stopped, and while this process is forked.
    channels
        This process's ends of all connections to servers, workers and other machines.
    pools
        Pools that are not garbage.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.channels: weakref.WeakSet[Connection] = weakref.WeakSet()
        self.pools: weakref.WeakSet[Pool] = weakref.WeakSet()
        self._servers: dict[tuple[Any, ...], Server] = {}
        self._ending: list[Server] = []
        self._preloads_that_init_cuda: set[tuple[str, ...]] = set()

    @property
    def servers(self) -> list[Server]:
        """Servers that new workers may come from."""
        return list(self._servers.values())

    def server_for(
        self,
        preload: tuple[str, ...],
        method: str,
        env: Mapping[str, str],
        python: Interpreter | None = None,
    ) -> Server:
        """Server for these preloads and the environment as it is now; started if there is none.

        By default it is of this process's interpreter.
        """
        if method == "fork" and preload in self._preloads_that_init_cuda:
            method = "spawn"
        if method != "fork":
            preload = ()
        # Of the pool's own variables only those that are read at import: pools that differ in others share a server.
        read = {k: v for k, v in env.items() if _read_at_import(k)}
        variables = {**{k: v for k, v in os.environ.items() if _read_at_import(k)}, **read}
        which = None if python is None else (python.path, python.version, python.search)
        key = (os.getpid(), preload, method, tuple(sorted(variables.items())), which)
        with self.lock:
            server = self._servers.get(key)
            if server is not None and (server.retired or server.process.poll() is not None):
                self.retire(server)
                server = None
            if server is None:
                server = self._servers[key] = Server(key, preload, method, read, self.channels, python)
            return server

    def retire(self, server: Server) -> None:
        """Start no more workers from a server; it ends with its last session."""
        with self.lock:
            if self._servers.get(server.key) is server:
                del self._servers[server.key]
            server.retired = True
            if server.sessions == 0:
                self._stop(server)

    def release(self, server: Server) -> None:
        """Note that a session has ended; a retired server ends with its last."""
        with self.lock:
            server.sessions -= 1
            if server.retired and server.sessions == 0:
                self._stop(server)

    def _stop(self, server: Server) -> None:
        server.stop()
        self._ending = [ending for ending in self._ending if ending.process.returncode is None]
        self._ending.append(server)

    def force_spawn(self, preload: tuple[str, ...]) -> None:
        """Spawn workers with these preloads from now on: one initialises CUDA, which no fork could use then."""
        self._preloads_that_init_cuda.add(preload)

    def stop_servers(self) -> None:
        """End the servers; the next pool starts new ones."""
        with self.lock:
            for server in self._servers.values():
                self._stop(server)
            self._servers.clear()
            ending, self._ending = self._ending, []
        for server in ending:
            server.wait_for_end()

    def at_exit(self) -> None:
        """Let tasks end, as executors do (a notebook kernel that is shut down ends them), then the servers."""
        interactive = "ipykernel" in sys.modules
        pools = list(self.pools)
        for pool in pools:
            pool.close(cancel_running=interactive, reason="the notebook kernel ended" if interactive else "")
        for pool in pools:
            if pool.thread.is_alive():
                pool.thread.join()
        wait_for_writers()
        self.stop_servers()

    def after_fork_in_child(self) -> None:
        """Close the parent's connections: workers would take the child for the parent, which may be gone."""
        for channel in list(self.channels):
            channel.close()
        self._servers.clear()
        self.lock.release()


runtime = Runtime()
atexit.register(runtime.at_exit)
# Nobody else may hold the lock when this process is forked: in the child they would hold it for ever.
os.register_at_fork(
    before=runtime.lock.acquire,
    after_in_parent=runtime.lock.release,
    after_in_child=runtime.after_fork_in_child,
)


def default_method() -> str:
    """``fork`` where a process that has imported torch can be forked safely, ``spawn`` elsewhere."""
    return "fork" if hasattr(os, "fork") and sys.platform != "darwin" else "spawn"


def _read_at_import(name: str) -> bool:
    return name.startswith(_READ_AT_IMPORT) and name not in _PINNED
