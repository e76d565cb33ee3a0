"""Limits of the control groups that this process is in: its own and those above it, of version 1 and 2.

A job of SLURM or a service of systemd is a group below others without a file system of its own, a container sees its
group as the root, old systems have a hierarchy for each controller: each is found by ``/proc/self/cgroup`` and
``/proc/self/mountinfo``, and whatever level is the tightest holds.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["ROOT", "Level", "MemoryLimit", "cpu_quota", "levels", "memory_limits", "oom_kills"]

ROOT = "/sys/fs/cgroup"
MEMBERSHIP = "/proc/self/cgroup"
MOUNTS = "/proc/self/mountinfo"


class Level(NamedTuple):
    """A group that this process is in: its folder, its path as people name it, its version (1 or 2)."""

    folder: str
    path: str
    version: int


class MemoryLimit(NamedTuple):
    """Limit of a group's memory, bytes.

    Attributes
    ----------
    size
        What all processes of the group may use.
    used
        What they use, without file caches that are dropped on demand.
    source
        Which group's it is, and the file that holds it.
    """

    size: int
    used: int
    source: str

    @property
    def free(self) -> int:
        """Bytes left of it."""
        return max(0, self.size - self.used)


class _Mount(NamedTuple):
    """A mounted hierarchy: which part of it, where, and its controllers (none for version 2)."""

    part: str
    place: str
    controllers: frozenset[str]


def levels(controller: str, root: str = ROOT, membership: str | None = None) -> tuple[Level, ...]:
    """Groups that `controller` puts this process in, its own first, the root or what is seen of it last.

    Parameters
    ----------
    controller
        ``memory``, ``cpu``.
    root
        Where hierarchies are mounted; others count where there is none of this controller.
    membership
        File that says which groups a process is in; that of this process by default.
    """
    return _levels(controller, root, _read(membership or MEMBERSHIP), MOUNTS)


@functools.lru_cache(maxsize=64)
def _levels(controller: str, root: str, membership: str, mounts: str) -> tuple[Level, ...]:
    """Levels by the text of the membership, as nothing else changes them."""
    found: list[Level] = []
    mounted = list(_mounts(_read(mounts)))
    for version, path in _paths(controller, membership):
        for mount in _mounted(version, controller, root, mounted):
            found += _upwards(mount, path, version)
    return tuple(dict.fromkeys(found))


def _paths(controller: str, membership: str) -> list[tuple[int, str]]:
    """Version and path of the groups of a controller; the roots where nothing is told of."""
    found = []
    for line in membership.splitlines():
        _, names, path = [*line.split(":", 2), "", ""][:3]
        if not names:
            found.append((2, path))
        elif controller in names.split(","):
            found.append((1, path))
    there = {version for version, _ in found}
    missing = ([1] if 1 not in there else []) + ([2] if not membership.strip() else [])
    return found + [(version, "/") for version in missing]


def _mounted(version: int, controller: str, root: str, mounts: list[_Mount]) -> list[_Mount]:
    """Where the hierarchy is: mounted below `root`, else where convention has it, else mounted elsewhere."""
    fitting = [
        mount
        for mount in mounts
        if (controller in mount.controllers if version == 1 else not mount.controllers)
    ]
    below = [mount for mount in fitting if mount.place == root or mount.place.startswith(f"{root}/")]
    if below:
        return below
    usual = [f"{root}/{controller}"] if version == 1 else [root, f"{root}/unified"]
    found = [_Mount("/", place, frozenset()) for place in usual if Path(place).is_dir()]
    return found or (fitting if root == ROOT else [])


def _upwards(mount: _Mount, path: str, version: int) -> Iterator[Level]:
    """Levels from the group `path` of a hierarchy up to where it is mounted."""
    # In a container the path may be that of the host: what is mounted is then its part of it, or its own root.
    inside = path
    if mount.part != "/":
        inside = path[len(mount.part) :] if f"{path}/".startswith(f"{mount.part}/") else ""
    parts = [part for part in inside.split("/") if part]
    if ".." in parts:  # of a namespace that it was moved out of
        parts = []
    for count in range(len(parts), -1, -1):
        folder = "/".join([mount.place, *parts[:count]])
        if Path(folder).is_dir():
            yield Level(folder, "/" + "/".join(parts[:count]), version)


def _mounts(text: str) -> Iterator[_Mount]:
    """Mounted control groups of a ``mountinfo``."""
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        part, place = (re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), f) for f in fields[3:5])
        controllers = frozenset() if kind[0] == "cgroup2" else frozenset(kind[2].split(","))
        yield _Mount(part, place, controllers)


def memory_limits(within: int, root: str = ROOT) -> list[MemoryLimit]:
    """Limits below `within` bytes of the groups of this process, its own first.

    A limit at which the system begins to slow the group down (``memory.high``) is one as well. Swap is not memory to
    count on; where version 1 limits the sum of both, that holds for memory too.
    """
    found = []
    all_levels = levels("memory", root)
    old = next((level for level in all_levels if level.version == 1), None)
    # Version 1 tells at once what the tightest level has, also of levels above what a container sees.
    stat = {} if old is None else _stat(old)
    least = min(stat.get("hierarchical_memory_limit", 0), stat.get("hierarchical_memsw_limit", within))
    for level in all_levels:
        if level.version == 1 and least >= within:
            continue
        for limit, usage in _KINDS[level.version]:
            size = _number(level, limit)
            if size is None or size >= within:  # "max", or the largest number of version 1
                continue
            found.append(MemoryLimit(size, _used(level, usage), f"{limit} of cgroup {level.path}"))
    above = stat.get("hierarchical_memory_limit", 0)
    if old is not None and 0 < above < min([within, *(limit.size for limit in found)]):
        used = _used(old, "memory.usage_in_bytes")
        found.append(MemoryLimit(above, used, f"memory limit of a cgroup above {old.path}"))
    return found


def _used(level: Level, usage: str) -> int:
    """Bytes in use by a group, without file caches that are dropped on demand."""
    caches = _stat(level).get("total_inactive_file" if level.version == 1 else "inactive_file", 0)
    return max(0, (_number(level, usage) or 0) - caches)


_KINDS = {
    1: (
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ("memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes"),
    ),
    2: (("memory.max", "memory.current"), ("memory.high", "memory.current")),
}


def cpu_quota(root: str = ROOT) -> float | None:
    """Cores that the tightest group of this process may use at a time; None without a limit."""
    found = []
    for level in levels("cpu", root):
        if level.version == 2:
            words = _read(f"{level.folder}/cpu.max").split()
            quota, period = [*words, "", ""][:2]
        else:
            quota = _read(f"{level.folder}/cpu.cfs_quota_us").strip()  # -1 is no limit
            period = _read(f"{level.folder}/cpu.cfs_period_us").strip()
        if quota.isdigit() and period.isdigit() and int(period) and int(quota):
            found.append(int(quota) / int(period))
    return min(found, default=None)


def oom_kills(root: str = ROOT, membership: str | None = None) -> int | None:
    """Processes of this process's own group that were killed for memory, by whatever limit; None if unknown.

    Version 2 keeps the count in ``memory.events``, version 1 in ``memory.oom_control``.
    """
    for level in levels("memory", root, membership):
        name = "memory.events" if level.version == 2 else "memory.oom_control"
        words = _read(f"{level.folder}/{name}").split()
        if words:
            count = words[words.index("oom_kill") + 1 :][:1] if "oom_kill" in words else []
            if count and count[0].isdigit():
                return int(count[0])
    return None


def _stat(level: Level) -> dict[str, int]:
    """Values of ``memory.stat``; those that begin with ``total_`` are of the groups below as well."""
    pairs = (line.split() for line in _read(f"{level.folder}/memory.stat").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _number(level: Level, name: str) -> int | None:
    text = _read(f"{level.folder}/{name}").strip()
    return int(text) if text.isdigit() else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, ValueError):
        return ""
