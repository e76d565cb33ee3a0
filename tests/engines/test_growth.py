"""What a worker keeps: caches that are meant to stay are no reason to replace it, growth that goes on is one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import pytest

from mgpu_nb.engines import growth
from mgpu_nb.engines.growth import AGAIN, Growth
from mgpu_nb.engines.memory import Memory

pytestmark = pytest.mark.usefixtures("small_heap")
MIB = 2**20


class Kept(Memory):
    """Memory of a process that keeps what a test says."""

    def __init__(self) -> None:
        self.size = 0

    def growth(self) -> int:
        return self.size

    def trim(self) -> None:
        pass


class Tasks:
    """Tasks of a worker, each of which keeps something more."""

    def __init__(self, allowed: int | None, replaced: Mapping[str, int]) -> None:
        self.memory = Kept()
        self.growth = Growth(self.memory, allowed, replaced)

    def __call__(self, function: str, more: int) -> int:
        self.memory.size += more * MIB
        return self.growth.held(function, 1.0) // MIB


Worker = Callable[..., Tasks]


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    monkeypatch.setattr("mgpu_nb.context.cached_bytes", lambda: 0)
    return lambda allowed=100 * MIB, **replaced: Tasks(allowed, replaced)


def test_what_is_allowed_is_no_growth(worker: Worker) -> None:
    task = worker()
    assert [task("f", 50), task("f", 50), task("f", 1)] == [0, 0, 101]
    assert worker(None)("f", 10_000) == 0


def test_what_a_function_keeps_again_is_loaded_for_it(worker: Worker) -> None:
    task = worker(f=1)
    assert [task("f", 500), task("f", 0), task("f", 90), task("f", 500)] == [0, 0, 0, 590]
    assert worker(f=1)("g", 500) == 500  # another function


def test_models_by_argument_are_kept_once_there_were_as_many(worker: Worker) -> None:
    task = worker(f=2)
    assert [task("f", 500), task("f", 500), task("f", 0)] == [0, 0, 0]
    assert task("f", 500) == 500


def test_a_leak_gets_no_more_room_with_each_worker_that_it_costs(worker: Worker) -> None:
    kept = []
    for times in (0, 1, AGAIN, 100):
        task = worker(f=times)
        kept.append(next(n for n in range(1000) if task("f", 50)) * 50)
    assert kept[0] < kept[1] < kept[2] == kept[3]


def test_a_cache_of_the_tasks_modules_is_meant_to_keep(worker: Worker) -> None:
    task = worker()

    def load(name: str) -> str:
        return name * 2

    load.__module__ = "models_of_a_task"
    cache = functools.lru_cache(maxsize=2)(load)
    cache("a")
    assert task("f", 500) == 0
    assert task("f", 500) == 500  # and that was not the cache
    cache("b")
    assert task("f", 0) == 0
    cache("c")  # takes the place of another
    assert task("f", 500) == 500


def test_a_cache_without_bound_is_trusted_so_often(worker: Worker) -> None:
    task = worker()

    def load(name: int) -> int:
        return name

    load.__module__ = "models_of_a_task"
    cache = functools.cache(load)
    held = []
    for n in range(growth.UNBOUNDED + 1):
        cache(n)
        held.append(task("f", 500))
    assert held == [0] * growth.UNBOUNDED + [500]


def test_short_tasks_are_looked_at_together(worker: Worker) -> None:
    task = worker()
    task.memory.size = 500 * MIB
    looks = [task.growth.held("f", growth.WORTH_A_LOOK / 4) for _ in range(8)]
    assert looks == [0, 0, 0, 500 * MIB, 0, 0, 0, 500 * MIB]


def test_each_task_on_a_gpu_is_looked_at(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kept, "uses_gpu", True)
    task = worker()
    task.memory.size = 500 * MIB
    assert task.growth.held("f", 0.0) == 500 * MIB
