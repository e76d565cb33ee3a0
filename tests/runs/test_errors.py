"""What an error of a run says: whose it is, how many there are, where the log is, and the user's own lines."""

import dataclasses
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import jobs
import pytest

from mgpu_nb import GPUPool, Run, SetupError, Task, TaskError, launch
from mgpu_nb.errors import add_note
from mgpu_nb.places import device_name


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    why: str


def says_and_raises() -> None:
    print("before")
    inner()


def inner() -> None:
    raise ValueError("bad")


def notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", []))


def test_the_error_names_task_count_and_log(pool: GPUPool, tmp_path: Path) -> None:
    tasks = [Task(jobs.add, n, name=f"t{n}") for n in range(3)]
    tasks += [
        Task(says_and_raises, name="bad-3"),
        Task(jobs.raises, name="bad-4"),
        Task(jobs.add, 1, after="bad-4"),
    ]
    run = pool.run(tasks, name="r", folder=tmp_path / "run").wait(60)
    for _ in range(2):
        with pytest.raises(ValueError, match="bad") as caught:
            run.results()
        (note,) = notes(caught.value)
        place = device_name(run.records[3].device, run.records[3].host)
        assert note == (
            f"task 'bad-3' of run 'r' on {place}; 2 of 6 failed, 1 of 6 skipped; run.logs('bad-3')"
        )
        assert len(caught.traceback) < 6
    assert {record.name for record in run.failures} == {"bad-3", "bad-4"}
    trace = run.records[3].traceback.splitlines()
    assert trace[1].endswith("in says_and_raises")
    assert not any("mgpu_nb" in line for line in trace)
    with pytest.raises(Exception, match="bad") as opened:
        Run.open(run.folder).results()
    assert notes(opened.value)[0].startswith("task 'bad-3' of run 'r'")


class OwnNotes(Exception):
    __notes__ = 3  # type: ignore[assignment]

    def add_note(self, note: str) -> None:
        raise RuntimeError(note)


def test_a_note_is_added_to_whatever_exception_once() -> None:
    for error in (OwnNotes(), Frozen("cold"), ValueError()):
        add_note(error, "a")
        add_note(error, "a")
        assert notes(error) == ["a"]


def test_twenty_failures_are_twenty(pool: GPUPool, tmp_path: Path) -> None:
    run = pool.run([Task(jobs.raises) for _ in range(20)], folder=tmp_path / "run").wait(60)
    assert len(run.failures) == 20


def test_a_call_of_submit_and_map_is_named(pool: GPUPool) -> None:
    for future in (pool.submit(jobs.raises), pool.submit(lambda: jobs.raises())):
        with pytest.raises(ValueError, match="bad") as caught:
            future.result(60)
        assert "the call of " in notes(caught.value)[0]
        assert re.search(r" on (n\d )?cpu:", notes(caught.value)[0])  # bound to agents they are on nodes
    with pytest.raises(ValueError, match="x") as caught:
        list(pool.map(jobs.raises, ["x"]))
    assert re.match(r"the call of raises on (n\d )?cpu:", notes(caught.value)[0])
    assert "_apply" not in str(caught.value.__cause__)


def test_what_does_not_pickle_is_named_before_anything_starts(pool: GPUPool, tmp_path: Path) -> None:
    tasks = [Task(jobs.add, 1), Task(jobs.says, {"a": [threading.Lock()]}, name="locked")]
    with pytest.raises(TypeError) as caught:
        pool.run(tasks, folder=tmp_path / "run")
    first, second = notes(caught.value)
    assert "in this call args[0]['a'][0] is a _thread.lock" in first
    assert second == "task 'locked' cannot be sent to a worker; no task was started"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_traceback_of_a_rank_begins_at_the_function(tmp_path: Path) -> None:
    run = launch(says_and_raises, nprocs=1, gpu_ids="cpu", folder=tmp_path).wait(60)
    assert run.records[0].traceback.splitlines()[1].endswith("in says_and_raises")


def leaves() -> None:
    sys.exit(0)


def interrupts() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("fn", [leaves, interrupts])
def test_what_ends_a_program_is_the_tasks_own(pool: GPUPool, tmp_path: Path, fn: Callable[[], None]) -> None:
    run = pool.run([Task(fn, name="main")], name="r", folder=tmp_path / "run").wait(60)
    with pytest.raises(TaskError, match=r"task 'main' raised (SystemExit: 0|KeyboardInterrupt)") as caught:
        run.results()
    assert type(caught.value.__cause__) in (SystemExit, KeyboardInterrupt)
    with pytest.raises(TaskError, match=f"a call of {fn.__name__} raised"):
        pool.submit(fn).result(60)
    assert run.records[0].status == "error"
    assert pool.submit(len, "ab").result(60) == 2


@pytest.mark.slow
def test_a_rank_and_a_setup_that_leave_do_not_end_the_driver(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="raised SystemExit: 0"):
        launch(leaves, nprocs=2, folder=tmp_path / "run").results()
    with GPUPool(slots=1, setup=leaves) as own:
        with pytest.raises(SetupError, match=r"SystemExit: 0\. Mend setup") as caught:
            own.submit(len, "ab").result(60)
        assert isinstance(caught.value.__cause__, TaskError)
        assert isinstance(caught.value.__cause__.__cause__, SystemExit)


def many_lines() -> None:
    raise RuntimeError("CUDA error: device-side assert\nCUDA kernel errors might be\n" + "more\n" * 500)


def test_the_error_of_a_record_is_one_line_and_its_traceback_has_all(pool: GPUPool, tmp_path: Path) -> None:
    run = pool.run([Task(many_lines, name="t", retries=1)], name="r", folder=tmp_path / "run").wait(60)
    (record,) = run.records
    assert record.error.startswith(
        "RuntimeError: CUDA error: device-side assert CUDA kernel errors might be more"
    )
    assert not {"\n", "\r"} & set(record.error)
    assert len(record.error) < 500
    assert record.traceback.count("more\n") == 500
    assert all("\n" not in note for note in record.notes)
    assert Run.open(run.folder).records[0].error == record.error
