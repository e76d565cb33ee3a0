"""Whether the system killed for memory: the cgroup's own counter knows."""

from __future__ import annotations

from pathlib import Path

__all__ = ["oom_kills"]


def oom_kills(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> int | None:
    """Return how many processes of this process's cgroup the kernel has killed for memory; None if unknown.

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
