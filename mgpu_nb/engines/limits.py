"""What the system allows this process: enough file descriptors and processes for the workers of a pool."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from pathlib import Path

__all__ = ["check_limits"]

PER_SLOT = (
    6  # descriptors of a worker that starts while its predecessor ends: 4 of its own, 2 of the one that ends
)
BESIDE = 32  # of servers, files of a run, and what else this process opens
COUNTED_BELOW = 4096  # processes; a higher limit is not worth the look at all of them


def check_limits(slots: int) -> None:
    """Raise the soft limits of this process as far as the workers of a pool need it.

    Raises
    ------
    OSError
        If the hard limits do not allow them; the message has the numbers, and the command that raises the limit.
    """
    _check_descriptors(slots)
    _check_processes(slots)


def _check_descriptors(slots: int) -> None:
    used = _open_descriptors()
    needed = used + PER_SLOT * slots + BESIDE
    allowed = _raise_limit(resource.RLIMIT_NOFILE, 2 * needed)  # half of them may hold large values
    if allowed < needed:
        raise OSError(
            errno.EMFILE,
            f"{slots} slots need {needed} file descriptors with the {used} that are open, `ulimit -n` says {allowed}: "
            f"take fewer slots, or start Python after `ulimit -n {2 * needed}` (as root, or in limits.conf)",
        )


def _check_processes(slots: int) -> None:
    if not hasattr(resource, "RLIMIT_NPROC") or os.geteuid() == 0:  # root has no such limit
        return
    needed = slots + 1  # threads count as well, but how many there will be the tasks decide
    allowed = _raise_limit(resource.RLIMIT_NPROC, resource.RLIM_INFINITY)
    if allowed >= COUNTED_BELOW:
        return
    used = _threads_of_user()
    if allowed < used + needed:
        raise OSError(
            errno.EAGAIN,
            f"{slots} slots need {needed} processes, this user has {used} (with threads) of the {allowed} that "
            f"`ulimit -u` allows: take fewer slots, or start Python after `ulimit -u {2 * (used + needed)}`",
        )


def _raise_limit(which: int, wanted: int) -> int:
    """Soft limit of this process, raised as far as is wanted and the hard one allows."""
    soft, hard = resource.getrlimit(which)
    if _is_at_least(soft, wanted):
        return _number(soft)
    most = wanted if _is_at_least(hard, wanted) else hard
    with contextlib.suppress(OSError, ValueError):  # macOS says infinity and means 10,240
        resource.setrlimit(which, (most, hard))
    return _number(resource.getrlimit(which)[0])


def _is_at_least(limit: int, wanted: int) -> bool:
    return limit == resource.RLIM_INFINITY or (wanted != resource.RLIM_INFINITY and limit >= wanted)


def _number(limit: int) -> int:
    return 2**62 if limit == resource.RLIM_INFINITY else limit


def _open_descriptors() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return len(os.listdir(folder))
    return 0


def _threads_of_user() -> int:
    """Number of threads that count for the limit of processes; 0 if unknown."""
    count = 0
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended just now
            if place.stat().st_uid == os.getuid():
                count += len(os.listdir(place / "task"))
    return count
