"""The counter of what the system killed for memory, and which ends it explains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgpu_nb.engines import oom
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


class Kills:
    """A counter, and a clock, that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.now = 7, 100.0
        monkeypatch.setattr(oom, "_kills", lambda: self.count)
        monkeypatch.setattr("mgpu_nb.engines.oom.time.monotonic", lambda: self.now)
        self.told = oom.OutOfMemoryKills()


class Engine:
    """Stands for one."""


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> Kills:
    return Kills(monkeypatch)


def test_as_many_ends_are_explained_as_were_counted(kills: Kills) -> None:
    first, second = Engine(), Engine()
    kills.told.join(first)
    assert not kills.told.explain(9)  # what was killed before does not count
    kills.count = 9
    kills.told.join(second)
    assert not kills.told.explain(15)  # SIGTERM
    assert [kills.told.explain(9) for _ in range(3)] == [True, True, False]


def test_the_kill_of_a_tasks_own_child_explains_nothing_later(kills: Kills) -> None:
    engine = Engine()
    kills.told.join(engine)
    kills.count = 9
    assert kills.told.explain(9)
    kills.now += oom.FORGOTTEN + 1
    assert not kills.told.explain(9)


def test_what_was_killed_while_there_was_no_pool_explains_nothing(kills: Kills) -> None:
    engine = Engine()
    kills.told.join(engine)
    kills.told.leave(engine)
    kills.count = 8
    kills.told.join(engine)
    assert not kills.told.explain(9)
    assert not kills.told.explain(None)
