"""Ends of process trees: orphans adopted, children killed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

__all__ = ["become_subreaper", "kill_children"]

_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Have the orphans below this process handed to it (Linux; elsewhere they go to init)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


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
