"""Ends of process trees: who ends with whom, orphans adopted, children killed."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import sys
from pathlib import Path

__all__ = [
    "MARK",
    "Lifeline",
    "become_subreaper",
    "die_with_parent",
    "end_with",
    "is_cut",
    "kill_children",
    "kill_marked",
]

MARK = "MGPU_NB_SERVER"
"""Environment variable by which what a server and its workers have started is known."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Have the orphans below this process handed to it (Linux; elsewhere they go to init)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """Have this process killed when its parent ends, at once if that has ended already (Linux).

    The signal comes at the end of the thread that started this process.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


class Lifeline:
    """A pipe of which a process that is started gets the reading end: it is signalled when this one is gone.

    The kernel does that, whatever the process does then: it may import, hold the GIL, be stopped. To be used as
    `read` for the process, then `watch`.
    """

    def __init__(self) -> None:
        self.read, self._write = os.pipe()

    def watch(self, pid: int) -> None:
        """Have a process killed when the last writing end is closed (Linux), and keep that end alone."""
        if hasattr(fcntl, "F_SETSIG"):
            fcntl.fcntl(self.read, fcntl.F_SETOWN, pid)
            end_with(self.read, signal.SIGKILL)
        self._close_read()

    def _close_read(self) -> None:
        if self.read >= 0:
            os.close(self.read)
            self.read = -1

    def close(self) -> None:
        """Close it."""
        self._close_read()
        if self._write >= 0:
            os.close(self._write)
            self._write = -1


def end_with(lifeline: int, signum: signal.Signals) -> None:
    """Have this signal sent, to the process that watches, when the other end of the lifeline is closed."""
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signum)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


def is_cut(lifeline: int) -> bool:
    """Whether the other end of a lifeline is closed."""
    return bool(select.select([lifeline], [], [], 0)[0])


def kill_children(keep: set[int]) -> None:
    """Kill the children of this process that are not in `keep`."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            children = map(int, file.read().split())
    except OSError:
        return
    for pid in children:
        if pid not in keep:
            with contextlib.suppress(OSError):  # one that runs as somebody else is not ours to end
                os.kill(pid, signal.SIGKILL)


def kill_marked(value: str) -> None:
    """Kill the processes of this user that were started with this value of `MARK` (Linux), and what they start."""
    mark = f"{MARK}={value}".encode()
    for _ in range(5):  # one may have started another meanwhile
        found = False
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # somebody else's, or it ended just now
                if mark in (place / "environ").read_bytes().split(b"\0"):
                    os.kill(int(place.name), signal.SIGKILL)
                    found = True
        if not found:
            return
