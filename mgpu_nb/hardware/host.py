"""Cores and memory that this process may use, with respect to its affinity and its container."""

from __future__ import annotations

import functools
import os

__all__ = ["cores", "memory", "resident", "unused"]

_CGROUP = "/sys/fs/cgroup"


def cores() -> int:
    """Number of CPU cores this process may use, by its affinity and the quota of its container."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no affinity to read
        count = os.cpu_count() or 1
    quota, period = _cpu_quota()
    if quota and period:
        count = min(count, max(1, round(quota / period)))
    return max(1, count)


def memory() -> tuple[int, int, int]:
    """Total, used and free bytes of RAM, of the container if that has a limit.

    Free memory can be allocated without swapping: caches that the operating system would drop count as free.
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
    """Lower bound of the free bytes of `memory`, at almost no cost: RAM that is not in use at all."""
    if _may_be_limited(_CGROUP) and _number("memory.max") is not None:
        return 0
    try:
        if not (total := _machine_total()):
            return 0
        kept = total // 50  # reserved by the operating system
        return max(0, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") - kept)
    except (ValueError, OSError):  # unknown on macOS
        return 0


def resident(pid: int | None) -> int | None:
    """Resident bytes of a process; None if it has ended."""
    import psutil

    try:
        return None if pid is None else int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


@functools.cache
def _machine_total() -> int:
    """Bytes of RAM of this machine; 0 in a container in which sysconf and /proc disagree."""
    import psutil

    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return total if abs(total - psutil.virtual_memory().total) < total // 100 else 0


@functools.cache
def _may_be_limited(cgroup: str) -> bool:
    """Whether the file of a memory limit exists; cached, as a failing lookup would cost more than all the rest."""
    return os.path.exists(f"{cgroup}/memory.max")


def _cpu_quota() -> tuple[int | None, int | None]:
    """Microseconds of CPU the container may use per period, and the period; (None, None) without a limit."""
    words = _read("cpu.max").split()
    if len(words) == 2 and words[0].isdigit():
        return int(words[0]), int(words[1])
    return _number("cpu/cpu.cfs_quota_us"), _number("cpu/cpu.cfs_period_us")  # cgroup v1; -1 is no limit


def _reclaimable() -> int:
    """Bytes of file cache that are charged to the container and freed on demand."""
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
