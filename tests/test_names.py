"""What the completion of a notebook offers: what a user wants, and nothing of the inside."""

from typing import Any

import numpy as np
import pytest

import mgpu_nb
from mgpu_nb import GPUPool, Record, Run, Study, Task

RECORD = (
    "arguments attempt device error exception failed fingerprint finished gpu_id host index kind log metrics name "
    "notes ok peak_allocated peak_memory peak_reserved pid queued seconds slot started status traceback uuid value"
)
NAMES: dict[type[Any], str] = {
    Run: "add_done_callback as_completed best cancel done failures frame idle listen log_file logs metrics open plot "
    "plot_graph plot_memory plot_timeline problem progress records results retry running samples slots table time_left "
    "wait",
    Record: RECORD,
    Task: "after args arguments cost devices fn kind kwargs memory name retries seed timeout",
    GPUPool: "expected_slots logs map nodes python run runs shutdown slots submit sweep wait_for_slots",
    Study: "counts frame plot predict serial_fraction wall",
}


@pytest.mark.parametrize("kind", NAMES, ids=lambda kind: kind.__name__)
def test_a_class_has_the_names_that_users_need(kind: type[Any]) -> None:
    assert [name for name in dir(kind) if not name.startswith("_")] == NAMES[kind].split()


def test_what_a_handle_has_beside_its_class(pool: GPUPool, tmp_path: Any) -> None:
    run = pool.run([Task(abs, -1)], folder=tmp_path / "run")
    assert {name for name in vars(run) if not name.startswith("_")} == {"folder", "name", "tasks"}
    assert {name for name in vars(pool) if not name.startswith("_")} == {"isolation"}
    run.wait(60)


def test_the_package_offers_its_public_names() -> None:
    assert set(mgpu_nb.__all__) <= {*dir(mgpu_nb), "__version__"}
    for name in mgpu_nb.__all__:
        assert getattr(mgpu_nb, name) is not None
    assert callable(mgpu_nb.runs)


def test_tasks_and_records_are_one_short_line() -> None:
    task = Task(max, np.zeros(1000), key=len, name="a", retries=2)
    assert repr(task) == "Task(max, args=(float64[1000],), kwargs={'key': len}, name='a', retries=2)"
    assert repr(Task("os.path:join", "a")) == "Task(os.path:join, args=('a',))"
    done = Record(
        name="a", index=0, kind="m:f", status="ok", value=list(range(1000)), seconds=1.234, device="cpu:0"
    )
    assert repr(done) == "Record('a': ok, value=[0, 1, 2, 3, 4, 5, 6, 7, ...], 1.23 s, on cpu:0)"
    bad = Record(name="b", index=1, kind="m:f", status="error", error="ValueError: bad\nmore")
    assert repr(bad) == "Record('b': error, 'ValueError: bad')"
