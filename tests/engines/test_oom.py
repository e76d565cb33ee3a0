"""The counter of what the system killed for memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgpu_nb.hardware.cgroups import oom_kills

V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"


@pytest.fixture
def cgroup(tmp_path: Path) -> Callable[..., Any]:
    def make(membership: str, files: dict[str, str]) -> int | None:
        (tmp_path / "membership").write_text(membership)
        for name, text in files.items():
            path = tmp_path / "root" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return oom_kills(str(tmp_path / "root"), str(tmp_path / "membership"))

    return make


def test_version_2(cgroup: Callable[..., Any]) -> None:
    assert cgroup("0::/a/b\n", {"a/b/memory.events": "low 0\noom 5\noom_kill 3\n"}) == 3


def test_version_2_in_a_container_whose_path_only_the_host_sees(cgroup: Callable[..., Any]) -> None:
    assert cgroup("0::/docker/123\n", {"memory.events": "oom_kill 1\n"}) == 1


def test_version_1(cgroup: Callable[..., Any]) -> None:
    assert cgroup("9:cpu,cpuacct:/x\n8:memory:/x\n", {"memory/x/memory.oom_control": V1}) == 7


def test_not_known(cgroup: Callable[..., Any], tmp_path: Path) -> None:
    assert cgroup("0::/\n", {}) is None
    assert cgroup("0::/\n", {"memory.events": "oom 1\n"}) is None
    assert oom_kills(str(tmp_path), str(tmp_path / "nowhere")) is None


@pytest.mark.parametrize(
    ("membership", "files", "kills"),
    [
        ("8:memory:/x\n0::/x\n", {"memory/x/memory.oom_control": V1}, 7),
        ("0::/x\n8:memory:/x\n", {"memory/x/memory.oom_control": V1}, 7),
        ("8:memory:/docker/1\n", {"memory/memory.oom_control": V1}, 7),
        ("0::/a:b\n", {"a:b/memory.events": "oom_kill 2\noom_group_kill 9\n"}, 2),
        ("0::/a\n", {"a/memory.events": "oom_kill 4\n", "memory.events": "oom_kill 9\n"}, 4),
        ("0::/a\n", {"a/memory.events": "oom_kill many\n"}, None),
        ("0::/a\n", {"a/memory.events": "oom_kill"}, None),
        ("8:memory:/x\n", {"memory/x/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n"}, None),
        ("3:cpu:/x\n", {"memory.events": "oom_kill 1\n"}, None),
        ("", {}, None),
    ],
    ids=[
        "both",
        "both, new first",
        "old in a container",
        "colon",
        "own before root",
        "no number",
        "cut off",
        "old kernel",
        "no memory controller",
        "empty",
    ],
)
def test_the_count_is_of_this_process_or_not_known(
    cgroup: Callable[..., Any], membership: str, files: dict[str, Any], kills: int | None
) -> None:
    assert cgroup(membership, files) == kills
