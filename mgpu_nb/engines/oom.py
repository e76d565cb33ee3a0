"""Whether the operating system killed a process for memory: the counter of its cgroup."""

from __future__ import annotations

import os
import signal
from pathlib import Path

__all__ = ["OutOfMemoryKills", "oom_kills"]


def oom_kills(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> int | None:
    """Number of processes of this process's cgroup that were killed for memory; None if unknown.

    Version 2 keeps the count in ``memory.events``, version 1 in ``memory.oom_control``.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folder, name = root, "memory.events"
        elif "memory" in controllers.split(","):
            folder, name = root / "memory", "memory.oom_control"
        else:
            continue
        # In a container the path may name what only the host sees; its own root is then the cgroup.
        for place in (folder / path.lstrip("/"), folder):
            try:
                words = (place / name).read_text().split()
                return int(words[words.index("oom_kill") + 1])
            except (OSError, ValueError, IndexError):
                continue
    return None


class OutOfMemoryKills:
    """Tells which processes were killed for memory, by what the counter has grown."""

    def __init__(self) -> None:
        self._count = oom_kills()

    def explain(self, status: int | None) -> bool:
        """Whether this explains the end of a process with this wait status."""
        if status is None or not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            return False
        before, self._count = self._count or 0, oom_kills()
        return (self._count or 0) > before
