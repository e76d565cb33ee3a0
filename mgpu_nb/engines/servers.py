"""The server processes that this kernel owns; see `engines.server` for what they do."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping
from typing import Any

from ..hardware.slots import SAME_SUMS, THREAD_VARIABLES
from .channel import Channel

__all__ = [
    "Server",
    "default_method",
    "force_spawn",
    "import_path",
    "kernel_ends",
    "lock",
    "release",
    "retire",
    "server_for",
    "stop_servers",
]

# Read by libraries when they are imported: a server started with other values is of no use.
_READ_AT_IMPORT = ("TORCH", "PYTORCH_", "CUDA_", "KMP_", "GOMP_", "MKL_", "OMP_", "LD_", "MALLOC_", "PYTHON")
_PINNED = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", *THREAD_VARIABLES)
_BOOT = "import sys, json; sys.path[:] = json.loads(sys.argv[2]); from mgpu_nb.engines import server; server.main()"


class Server:
    """A server process of this kernel. It ends when `control` closes, at the latest with the kernel."""

    def __init__(
        self, key: tuple[Any, ...], preload: tuple[str, ...], method: str, env: Mapping[str, str]
    ) -> None:
        self.key = key
        self.preload = preload
        self.retired = False
        self.sessions = 0
        self._last_words = ""
        ours, theirs = Channel.pair()
        self.control = Channel(ours, blocking=True)
        kernel_ends.add(self.control)
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        environment = {**SAME_SUMS, **os.environ, **env}
        # A process that ran threads cannot be forked.
        environment.update(dict.fromkeys(THREAD_VARIABLES, "1"))
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
        kernel_ends.add(channel)
        return channel

    def last_words(self) -> str:
        """What the process wrote, for the message about its end."""
        if self.errors.closed:
            return self._last_words
        return os.pread(self.errors.fileno(), 2**16, 0).decode(errors="replace")[-2000:].strip()

    def stop(self) -> None:
        """End it and all that it started; it answers the closed connection by ending."""
        self.control.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._last_words = self.last_words()
        self.errors.close()


_servers: dict[tuple[Any, ...], Server] = {}
lock = threading.RLock()  # of all below, and of what servers count
kernel_ends: weakref.WeakSet[Channel] = weakref.WeakSet()
"""This process's ends of all connections to servers and workers."""
_preloads_that_init_cuda: set[tuple[str, ...]] = set()


def stop_servers() -> None:
    """End the server processes of this kernel; the next pool starts new ones."""
    with lock:
        for server in _servers.values():
            server.stop()
        _servers.clear()


def _forget() -> None:
    """In a fork of the kernel: let go of its connections, or workers would think the kernel still there."""
    for channel in list(kernel_ends):
        channel.close()
    _servers.clear()
    lock.release()


atexit.register(stop_servers)
# Nobody else may hold the lock when the kernel is forked: in the child they would hold it for ever.
os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=_forget)


def import_path() -> list[str]:
    """Return the kernel's sys.path with the current folder by its name."""
    return [os.path.abspath(entry) if entry == "" else entry for entry in sys.path]


def default_method() -> str:
    """``fork`` where a process that has imported torch can be forked safely, ``spawn`` elsewhere."""
    return "fork" if hasattr(os, "fork") and sys.platform != "darwin" else "spawn"


def server_for(preload: tuple[str, ...], method: str, env: Mapping[str, str]) -> Server:
    """Return the server for these preloads and the environment as it is now; start it where there is none."""
    if method == "fork" and preload in _preloads_that_init_cuda:
        method = "spawn"
    if method != "fork":
        preload = ()
    # Of the pool's own variables a server gets those alone that count at import: pools that differ in others share it.
    read = {k: v for k, v in env.items() if _at_import(k)}
    environment = tuple(sorted({**{k: v for k, v in os.environ.items() if _at_import(k)}, **read}.items()))
    key = (os.getpid(), preload, method, environment)
    with lock:
        server = _servers.get(key)
        if server is not None and (server.retired or server.process.poll() is not None):
            retire(server)
            server = None
        if server is None:
            server = _servers[key] = Server(key, preload, method, read)
        return server


def _at_import(name: str) -> bool:
    return name.startswith(_READ_AT_IMPORT) and name not in _PINNED


def retire(server: Server) -> None:
    """Start no more workers from a server; it ends with its last session."""
    with lock:
        if _servers.get(server.key) is server:
            del _servers[server.key]
        server.retired = True
        if server.sessions == 0:
            server.stop()


def release(server: Server) -> None:
    """Note that a session has ended; a retired server ends with its last."""
    with lock:
        server.sessions -= 1
        if server.retired and server.sessions == 0:
            server.stop()


def force_spawn(preload: tuple[str, ...]) -> None:
    """From now on spawn workers with these preloads: one of them wakes CUDA, and no fork could use it then."""
    _preloads_that_init_cuda.add(preload)
