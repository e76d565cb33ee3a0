"""What this process may use of the machine's cores and memory: its affinity and its container count."""

from __future__ import annotations

import functools
import os

__all__ = ["cores", "memory", "resident", "unused"]

_CGROUP = "/sys/fs/cgroup"


def cores() -> int:
    """Return the number of CPU cores this process may use: its affinity, and the quota of its container."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no affinity to read
        count = os.cpu_count() or 1
    quota, period = _cpu_quota()
    if quota and period:
        count = min(count, max(1, round(quota / period)))
    return max(1, count)


def memory() -> tuple[int, int, int]:
    """Return (total, used, free) bytes of RAM, of the container's share where that has a limit.

    Free is what could be had without swapping: caches that the kernel would drop count as free.
    """
    import psutil

    machine = psutil.virtual_memory()
    total, free = machine.total, machine.available
    limit, current = _number("memory.max"), _number("memory.current")
    if limit is not None and current is not None and limit < total:
        total = limit
        free = max(0, min(free, limit - current + _reclaimable()))
    return total, total - free, free


def unused() -> int:
    """Return a lower bound of the free bytes of `memory` that takes no time to learn: RAM that nobody uses at all."""
    if _may_be_limited(_CGROUP) and _number("memory.max") is not None:
        return 0
    try:
        if not (total := _machine_total()):
            return 0
        kept = total // 50  # by the system, for itself
        return max(0, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") - kept)
    except (ValueError, OSError):  # not known on macOS
        return 0


def resident(pid: int | None) -> int | None:
    """Return the resident bytes of a process; None where it has ended."""
    import psutil

    try:
        return None if pid is None else int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


@functools.cache
def _machine_total() -> int:
    """Return the bytes of RAM of this machine; 0 in a container that is shown others than the system tells."""
    import psutil

    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return total if abs(total - psutil.virtual_memory().total) < total // 100 else 0


@functools.cache
def _may_be_limited(cgroup: str) -> bool:
    """Whether there is a file that may say so: to look for it in vain each time takes longer than all else."""
    return os.path.exists(f"{cgroup}/memory.max")


def _cpu_quota() -> tuple[int | None, int | None]:
    """Return the microseconds of CPU the container may use, and in how many; (None, None) where unlimited."""
    words = _read("cpu.max").split()
    if len(words) == 2 and words[0].isdigit():
        return int(words[0]), int(words[1])
    return _number("cpu/cpu.cfs_quota_us"), _number("cpu/cpu.cfs_period_us")  # cgroup v1; -1 is no limit


def _reclaimable() -> int:
    """Return the bytes of file cache that count as the container's and go when memory is asked for."""
    for line in _read("memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key == "inactive_file":
            return int(value)
    return 0


def _number(name: str) -> int | None:
    text = _read(name).strip()
    return int(text) if text.isdigit() else None


def _read(name: str) -> str:
    try:
        with open(f"{_CGROUP}/{name}") as file:
            return file.read()
    except OSError:
        return ""
