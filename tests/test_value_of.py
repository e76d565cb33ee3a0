"""The value of a task as an argument of a later one."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import pytest

from mgpu_nb import GPUPool, Run, Task, ValueOf
from mgpu_nb.runs.fingerprint import fingerprint


def makes(n: int) -> dict[str, Any]:
    return {"numbers": np.arange(n), "text": "x" * n}


def total(values: list[dict[str, Any]], scale: float = 1.0, *, more: dict[str, Any] | None = None) -> float:
    found = scale * sum(int(value["numbers"].sum()) for value in values)
    return found + (len(more["of"][0]["text"]) if more else 0)


def is_unstorable(n: int) -> object:
    return slice(n)


class Holds:
    def __init__(self, value: object) -> None:
        self.value = value


def holds(value: Holds) -> object:
    return value.value


def touch(path: str, *values: Any) -> list[Any]:
    with Path(path).open("a") as file:
        file.write(f"{len(values)}\n")
    return list(values)


def test_the_value_of_a_task_is_compared_copied_and_pickled_by_name() -> None:
    assert repr(ValueOf("a", "b")) == "ValueOf('a', 'b')"
    assert ValueOf("a") == copy.deepcopy(ValueOf("a")) == pickle.loads(pickle.dumps(ValueOf("a")))
    assert ValueOf("a") != ValueOf("a", "b")
    assert len({ValueOf("a"), ValueOf("a")}) == 1


@pytest.mark.parametrize("names", [(), (1,), ("",), (Task(abs, 1),)])
def test_what_is_no_name_is_refused(names: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match="ValueOf takes"):
        ValueOf(*names)


def test_values_reach_later_tasks_through_the_folder_of_the_run(pool: GPUPool, tmp_path: Path) -> None:
    tasks = [
        Task(total, ValueOf("m-0", "m-1"), 2.0, more={"of": [ValueOf("m-1")]}, name="all"),
        Task(jobs.add, ValueOf("all"), ValueOf("all"), name="twice"),
        *(Task(makes, n + 3, name=f"m-{n}") for n in range(2)),
    ]
    run = pool.run(tasks, folder=tmp_path / "run")
    assert run.results(60)[:2] == [22.0, 44.0]
    assert Run.open(tmp_path / "run").results()[:2] == [22.0, 44.0]
    again = pool.run(tasks, folder=tmp_path / "run")
    assert again.results(60)[:2] == [22.0, 44.0]
    assert [record.started for record in again.records] == [record.started for record in run.records]
    assert run.frame().set_index("name").loc["twice", "a"] == "ValueOf('all')"


def test_a_task_is_run_again_where_what_it_waits_for_has_changed(pool: GPUPool, tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    def tasks(n: int, more: int = 1) -> list[Task]:
        return [
            Task(jobs.add, n, 1, name="first"),
            Task(jobs.add, more, 1, name="other"),
            Task(touch, log, ValueOf("first"), name="second"),
            Task(touch, log, ValueOf("second"), 1, name="third"),
            Task(touch, log, ValueOf("other"), 1, 2, name="beside"),
        ]

    def ran() -> list[int]:
        found = sorted(int(line) for line in Path(log).read_text().split())
        Path(log).write_text("")
        return found

    pool.run(tasks(1), folder=tmp_path / "run").results(60)
    assert ran() == [1, 2, 3]
    changed = pool.run(tasks(2), folder=tmp_path / "run")
    assert changed.results(60)[3] == [[3], 1]
    assert ran() == [1, 2]
    assert "what it waits for differ" in changed.records[3].notes[0]
    assert pool.run(tasks(2, more=5), folder=tmp_path / "run").results(60)[4] == [6, 1, 2]
    assert ran() == [3]


def test_only_what_comes_after_a_failed_task_is_skipped_and_a_retry_passes_values(
    pool: GPUPool, tmp_path: Path
) -> None:
    tasks = [
        Task(jobs.add, 1, 1, name="good"),
        Task(jobs.fails_until, str(tmp_path / "tries"), 2, name="flaky"),
        Task(jobs.add, ValueOf("good"), 1, name="beside"),
        Task(touch, str(tmp_path / "log"), ValueOf("good"), ValueOf("flaky"), name="both"),
    ]
    run = pool.run(tasks, folder=tmp_path / "run")
    run.wait(60)
    assert [record.status for record in run.records] == ["ok", "error", "ok", "skipped"]
    assert run.retry().results(60)[3] == [2, 1]


def test_a_value_that_is_not_kept_on_disk_is_the_error_of_the_task_that_asks_for_it(
    pool: GPUPool, tmp_path: Path
) -> None:
    tasks = [
        Task(is_unstorable, 3, name="made"),
        Task(touch, str(tmp_path / "log"), ValueOf("made"), name="asks"),
    ]
    run = pool.run(tasks, folder=tmp_path / "run")
    run.wait(60)
    assert [record.status for record in run.records] == ["ok", "error"]
    assert "slice is not kept on disk" in run.records[1].error
    assert "value of task 'made'" in run.records[1].traceback


def test_it_may_stand_anywhere_in_the_arguments(pool: GPUPool, tmp_path: Path) -> None:
    tasks = [Task(holds, Holds([{"deep": (ValueOf("a"),)}]), name="b"), Task(jobs.add, 1, 1, name="a")]
    assert pool.run(tasks, folder=tmp_path / "run").results(60)[0] == [{"deep": (2,)}]


def test_it_is_for_the_tasks_of_a_run_only(pool: GPUPool, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="it is for the tasks of a run"):
        pool.submit(jobs.says_nothing, ValueOf("a")).result(60)
    with pytest.raises(ValueError, match="'b' waits for 'c', which is not a task of this run"):
        pool.run([Task(jobs.add, ValueOf("c"), 1, name="b")], folder=tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(ValueError, match="cycle: a -> a"):
        pool.run([Task(jobs.add, ValueOf("a"), 1, name="a")], folder=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_name_is_part_of_the_identity() -> None:
    prints = {fingerprint(Task(jobs.add, ValueOf(*names), 1), 0) for names in (["a"], ["b"], ["a", "b"])}
    prints.add(fingerprint(Task(jobs.add, "a", 1), 0))
    assert len(prints) == 4
