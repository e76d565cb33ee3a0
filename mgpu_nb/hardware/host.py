"""Cores and memory that this process may use, with respect to its affinity, its container and its job."""

from __future__ import annotations

import functools
import os
import time
from typing import NamedTuple

from . import cgroups

__all__ = ["MemoryBound", "bound", "cores", "memory", "notes", "process_limit", "resident", "unused"]

_CGROUP = cgroups.ROOT
LOOK_EVERY = 1.0  # seconds between looks for a limit where none was found: what `unused` costs


class MemoryBound(NamedTuple):
    """The RAM that there is for this process and all beside it, and what bounds it.

    Attributes
    ----------
    total, free
        Bytes.
    source
        The group that limits it and its file; empty where it is the RAM of the machine.
    """

    total: int
    free: int
    source: str

    def __str__(self) -> str:
        return f"{self.total:,} bytes" + (f" ({self.source})" if self.source else " of RAM")


def cores() -> int:
    """Number of CPU cores this process may use, by its affinity (so its cpuset) and the quotas of its groups."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no affinity to read
        count = os.cpu_count() or 1
    if (quota := cgroups.cpu_quota(_CGROUP)) is not None:
        count = min(count, max(1, round(quota)))
    return max(1, count)


def memory() -> tuple[int, int, int]:
    """Total, used and free bytes of RAM, of the tightest group that this process is in if that has a limit.

    Free memory can be allocated without swapping: caches that the operating system would drop count as free.
    """
    found = bound()
    return found.total, found.total - found.free, found.free


def bound() -> MemoryBound:
    """RAM that there is, with what limits it."""
    import psutil

    machine = psutil.virtual_memory()
    total, free, source = machine.total, machine.available, ""
    for limit in cgroups.memory_limits(total, _CGROUP):
        free = min(free, limit.free)
        if limit.size < total:
            total, source = limit.size, limit.source
    _look.limited, _look.at = bool(source), time.monotonic()
    return MemoryBound(total, max(0, free), source)


def process_limit() -> int | None:
    """Bytes of address space that a process started here may have (``ulimit -v``); None without a limit."""
    try:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    except (ImportError, AttributeError, ValueError, OSError):
        return None
    return None if soft == resource.RLIM_INFINITY or soft <= 0 else soft


def notes() -> list[str]:
    """What a user should know of the memory here that its figures do not say, as sentences."""
    found, said = bound(), []
    if found.source:
        said.append(f"RAM is limited by {found.source}")
    if (most := process_limit()) is not None and most < found.total:
        said.append(f"a process may have {_mib(most)} of address space (ulimit -v)")
    job = _slurm_memory()
    if job is not None and job[1] < found.total:
        # A hint and no limit: the cluster may enforce it by a group, which is seen, or look at it now and then; and a
        # shell within a job has the variable of a job that is long gone.
        said.append(
            f"the job was given {_mib(job[1])} ({job[0]}), which no cgroup enforces: keep below it by memory="
        )
    return said


def _mib(size: int) -> str:
    return f"{size >> 20:,} MiB"


def _slurm_memory() -> tuple[str, int] | None:
    """Variable and bytes of what SLURM gave the job on this node; None outside of one."""
    per_node, per_cpu = os.environ.get("SLURM_MEM_PER_NODE", ""), os.environ.get("SLURM_MEM_PER_CPU", "")
    if per_node.isdigit() and int(per_node):  # 0 is all of the node
        return "SLURM_MEM_PER_NODE", int(per_node) << 20
    cpus = os.environ.get("SLURM_CPUS_ON_NODE", "")
    if per_cpu.isdigit() and cpus.isdigit() and int(per_cpu) * int(cpus):
        return "SLURM_MEM_PER_CPU", int(per_cpu) * int(cpus) << 20
    return None


class _Look:
    """Whether a group limited the memory when it was last looked for."""

    limited = False
    at = -LOOK_EVERY


_look = _Look()


def unused() -> int:
    """Lower bound of the free bytes of `memory`, at almost no cost: RAM that is not in use at all."""
    if time.monotonic() - _look.at >= LOOK_EVERY:
        bound()
    if _look.limited:
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
