"""Control groups of this process: nested, of both versions, mounted anywhere."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from mgpu_nb.hardware import cgroups
from mgpu_nb.hardware.cgroups import Level, cpu_quota, levels, memory_limits

GIB = 2**30
HUGE = 9223372036854771712  # what version 1 says where there is no limit
Make = Callable[..., str]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Make:
    """A file system of groups, the membership of this process and what is mounted where."""
    numbers = itertools.count()

    def make(
        membership: str, files: Mapping[str, object], mounts: tuple[tuple[str, str, str], ...] = ()
    ) -> str:
        root = tmp_path / str(next(numbers))
        root.mkdir()
        for name, value in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{value}\n")
        text = ""
        for n, (part, place, controllers) in enumerate(mounts):
            kind = f"cgroup cgroup rw,{controllers}" if controllers else "cgroup2 cgroup rw"
            text += f"{30 + n} 25 0:{n} {part} {root}{place} rw,nosuid shared:{n} - {kind}\n"
        for name, said in (("membership", membership), ("mounts", text)):
            (root / name).write_text(said)
        monkeypatch.setattr(cgroups, "MEMBERSHIP", str(root / "membership"))
        monkeypatch.setattr(cgroups, "MOUNTS", str(root / "mounts"))
        return str(root)

    return make


def sizes(root: str) -> list[tuple[int, int]]:
    return [(limit.size, limit.used) for limit in memory_limits(64 * GIB, root)]


def test_the_tightest_of_nested_groups_holds(machine: Make) -> None:
    root = machine(
        "0::/slurm/job_7/step_0\n",
        {
            "slurm/memory.max": "max",
            "slurm/job_7/memory.max": 8 * GIB,
            "slurm/job_7/memory.current": 6 * GIB,
            "slurm/job_7/memory.stat": f"anon 1\ninactive_file {2 * GIB}",
            "slurm/job_7/step_0/memory.max": 16 * GIB,
            "slurm/job_7/step_0/memory.current": GIB,
        },
        (("/", "", ""),),
    )
    assert sizes(root) == [(16 * GIB, GIB), (8 * GIB, 4 * GIB)]
    tightest = min(memory_limits(64 * GIB, root))
    assert tightest.source == "memory.max of cgroup /slurm/job_7"
    assert tightest.free == 4 * GIB


def test_version_1_nested_with_numbers_that_mean_no_limit(machine: Make) -> None:
    root = machine(
        "9:cpu,cpuacct:/x\n4:memory:/slurm/uid_0/job_7\n1:name=systemd:/x\n0::/x\n",
        {
            "memory/memory.limit_in_bytes": HUGE,
            "memory/slurm/uid_0/memory.limit_in_bytes": HUGE,
            "memory/slurm/uid_0/job_7/memory.limit_in_bytes": 4 * GIB,
            "memory/slurm/uid_0/job_7/memory.usage_in_bytes": 3 * GIB,
            "memory/slurm/uid_0/job_7/memory.stat": f"inactive_file 5\ntotal_inactive_file {GIB}",
            "memory/slurm/uid_0/job_7/memory.memsw.limit_in_bytes": 5 * GIB,
            "memory/slurm/uid_0/job_7/memory.memsw.usage_in_bytes": 5 * GIB,
        },
        (("/", "/memory", "memory"), ("/", "/unified", "")),
    )
    assert sizes(root) == [(4 * GIB, 2 * GIB), (5 * GIB, 4 * GIB)]


def test_a_limit_above_what_a_container_sees_is_told_of_by_version_1(machine: Make) -> None:
    root = machine(
        "4:memory:/docker/1\n",
        {
            "memory/memory.limit_in_bytes": HUGE,
            "memory/memory.usage_in_bytes": GIB,
            "memory/memory.stat": f"hierarchical_memory_limit {2 * GIB}\nhierarchical_memsw_limit {HUGE}",
        },
        (("/docker/1", "/memory", "memory"),),
    )
    assert sizes(root) == [(2 * GIB, GIB)]


def test_where_the_tightest_is_no_limit_levels_are_not_read(machine: Make) -> None:
    root = machine(
        "4:memory:/a\n",
        {"memory/a/memory.limit_in_bytes": GIB, "memory/a/memory.stat": f"hierarchical_memory_limit {HUGE}"},
        (("/", "/memory", "memory"),),
    )
    assert sizes(root) == []


@pytest.mark.parametrize(
    ("membership", "part"),
    [
        ("0::/", "/"),
        ("0::/docker/1", "/docker/1"),
        ("0::/docker/1", "/"),
        ("0::/../../user.slice", "/"),
        ("0::/../2", "/docker/1"),
        ("", "/"),
    ],
    ids=["namespace", "bind mount", "path of the host", "moved out", "moved beside", "no membership"],
)
def test_a_container_is_limited_by_its_root(machine: Make, membership: str, part: str) -> None:
    files = {"memory.max": GIB, "memory.current": 5, "memory.high": "max"}
    assert sizes(machine(membership, files, ((part, "", ""),))) == [(GIB, 5)]
    assert sizes(machine(membership, files)) == [(GIB, 5)]  # nothing is told of mounts


def test_a_group_within_a_part_that_is_mounted(machine: Make) -> None:
    root = machine(
        "0::/docker/1/job", {"job/memory.high": GIB, "memory.max": 2 * GIB}, (("/docker/1", "", ""),)
    )
    assert sizes(root) == [(GIB, 0), (2 * GIB, 0)]


def test_a_hybrid_has_its_memory_where_the_controller_is(machine: Make) -> None:
    files = {"memory/a/memory.limit_in_bytes": GIB, "unified/a/cgroup.procs": ""}
    root = machine("4:memory:/a\n0::/a\n", files, (("/", "/memory", "memory"), ("/", "/unified", "")))
    assert [level.folder for level in levels("memory", root)] == [
        f"{root}/memory/a",
        f"{root}/memory",
        f"{root}/unified/a",
        f"{root}/unified",
    ]
    assert sizes(root) == [(GIB, 0)]


def test_a_place_with_a_space(machine: Make) -> None:
    root = machine(
        "4:memory:/a\n", {"my mem/a/memory.limit_in_bytes": GIB}, (("/", "/my\\040mem", "memory"),)
    )
    assert levels("memory", root)[0] == Level(f"{root}/my mem/a", "/a", 1)


@pytest.mark.parametrize("text", ["", "max", "-1", "many", "9" * 40, "0x10"])
def test_what_is_no_limit(machine: Make, text: str) -> None:
    assert sizes(machine("0::/a", {"a/memory.max": text}, (("/", "", ""),))) == []


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 1.5),
        ({"a/b/cpu.max": "300000 100000", "a/cpu.max": "max 100000"}, 3),
        ({"a/b/cpu.max": "0 0", "a/cpu.max": "", "cpu.max": "x y z"}, None),
    ],
)
def test_the_quota_of_nested_groups(machine: Make, files: dict[str, str], cores: float | None) -> None:
    assert cpu_quota(machine("0::/a/b", files, (("/", "", ""),))) == cores


def test_the_quota_of_nested_groups_of_version_1(machine: Make) -> None:
    files = {
        "cpu,cpuacct/a/cpu.cfs_quota_us": 250000,
        "cpu,cpuacct/a/cpu.cfs_period_us": 100000,
        "cpu,cpuacct/a/b/cpu.cfs_quota_us": -1,
        "cpu,cpuacct/a/b/cpu.cfs_period_us": 100000,
    }
    assert cpu_quota(machine("3:cpu,cpuacct:/a/b\n", files, (("/", "/cpu,cpuacct", "cpu,cpuacct"),))) == 2.5


def test_this_process_has_no_group_that_is_not_there() -> None:
    assert all(Path(level.folder).is_dir() for level in levels("memory"))
    assert all(limit.size > 0 for limit in memory_limits(2**62))
