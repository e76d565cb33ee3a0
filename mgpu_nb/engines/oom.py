"""Whether the operating system killed a process for memory: the counter of its cgroup."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
import weakref
from pathlib import Path

from ..hardware.cgroups import oom_kills

__all__ = ["OutOfMemoryKills", "shared"]

FORGOTTEN = 5.0  # seconds; a kill that no process of ours has ended by was of another: a task's own child


class OutOfMemoryKills:
    """Tells which processes were killed for memory, by what the counter has grown: as many as it counts.

    One for all pools of a process, which share its group: a kill explains the end of one process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engines: weakref.WeakSet[object] = weakref.WeakSet()
        self._count = 0
        self._unexplained = 0
        self._seen = 0.0

    def join(self, engine: object) -> None:
        """Count for an engine too; what was killed while there was none does not count."""
        with self._lock:
            if not self._engines:
                self._count, self._unexplained = _kills(), 0
            self._engines.add(engine)

    def leave(self, engine: object) -> None:
        """Count for an engine no more."""
        with self._lock:
            self._engines.discard(engine)

    def explain(self, status: int | None) -> bool:
        """Whether this explains the end of a process with this wait status."""
        if status is None or not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            return False
        with self._lock:
            now, count = time.monotonic(), _kills()
            if now - self._seen > FORGOTTEN:
                self._unexplained = 0
            if count > self._count:
                self._unexplained, self._seen = self._unexplained + count - self._count, now
            self._count = count
            explained = self._unexplained > 0
            self._unexplained -= explained
            return explained


def _kills() -> int:
    """Kills in this process's group or, where no group counts them (its root, say), on the whole machine."""
    if (count := oom_kills()) is not None:
        return count
    try:
        found = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


shared = OutOfMemoryKills()


def _after_fork() -> None:
    # A lock held by another thread during the fork would stay locked in the child.
    global shared
    shared = OutOfMemoryKills()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
