"""Cores and memory of a container stand for those of the machine."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from mgpu_nb.hardware import host

GIB = 2**30


@pytest.fixture
def cgroup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """A cgroup folder to write the container's limits into, on a machine of 16 cores."""
    monkeypatch.setattr(host, "_CGROUP", str(tmp_path))
    monkeypatch.setattr(host, "LOOK_EVERY", 0.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)

    def write(**files: str) -> None:
        for name, text in files.items():
            path = tmp_path / name.replace("_", ".", 1)
            path.write_text(text)

    return write


def test_cores_follow_the_affinity(cgroup: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert host.cores() == 16
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5})
    assert host.cores() == 2


def test_cores_where_there_is_no_affinity(
    cgroup: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert host.cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert host.cores() == 1


@pytest.mark.parametrize(
    ("quota", "count"),
    [("400000 100000", 4), ("max 100000", 16), ("50000 100000", 1), ("9900000 100000", 16)],
)
def test_cores_follow_the_quota(cgroup: Callable[..., Any], quota: str, count: int) -> None:
    cgroup(cpu_max=quota)
    assert host.cores() == count


@pytest.mark.parametrize(("quota", "count"), [("300000", 3), ("-1", 16)])
def test_cores_follow_the_quota_of_cgroup_v1(
    cgroup: Callable[..., Any], tmp_path: Path, quota: str, count: int
) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000")
    assert host.cores() == count


def test_memory_is_the_machines(cgroup: Callable[..., Any]) -> None:
    total, used, free = host.memory()
    assert total == psutil.virtual_memory().total
    assert used + free == total


def test_memory_follows_the_limit(cgroup: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    machine = psutil.virtual_memory()._replace(total=64 * GIB, available=50 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    cgroup(memory_max=f"{8 * GIB}\n", memory_current=f"{5 * GIB}\n")
    assert host.memory() == (8 * GIB, 5 * GIB, 3 * GIB)
    cgroup(memory_stat=f"anon {2 * GIB}\ninactive_file {2 * GIB}\n")
    assert host.memory() == (8 * GIB, 3 * GIB, 5 * GIB)
    cgroup(memory_max="max\n")
    assert host.memory() == (64 * GIB, 14 * GIB, 50 * GIB)


def test_what_is_unused_is_less_than_what_is_free(cgroup: Callable[..., Any]) -> None:
    assert 0 < host.unused() < host.memory()[0]


def test_under_a_limit_nothing_is_known_at_once(cgroup: Callable[..., Any]) -> None:
    cgroup(memory_max="max\n")
    assert host.unused() > 0
    cgroup(memory_max=f"{8 * GIB}\n")
    assert host.unused() == 0


def test_where_the_container_is_shown_less_ram_nothing_is_known_at_once(
    cgroup: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = psutil.virtual_memory()
    shown = machine._replace(total=machine.total // 2)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: shown)
    host._machine_total.cache_clear()
    try:
        assert host.unused() == 0
    finally:
        host._machine_total.cache_clear()
