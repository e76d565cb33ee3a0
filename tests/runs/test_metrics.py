"""Metrics of a run over time: real pools, retries, crashes, resumed runs, runs that were opened."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import mgpu_nb
from mgpu_nb import GPUPool, Run, Task, worker
from mgpu_nb.store.metrics import FILE


def fits(steps: int, lr: float = 0.1, **more: Any) -> float:
    for step in range(steps):
        worker().report(loss=lr / (1 + step), acc=step, stage="fit", good=True, **more)
    return lr


@pytest.mark.slow
def test_every_report_is_a_point(pool: GPUPool, tmp_path: Path) -> None:
    tasks = [Task(fits, 100 + n, lr=0.5, name=f"fit-{n}") for n in range(3)]
    run = pool.run(tasks, folder=tmp_path / "run").wait(60)
    frame = run.metrics()
    assert list(frame.columns) == ["task", "attempt", "step", "time", "name", "value"]
    assert list(frame.groupby(["task", "name"], sort=False).size()) == [100, 100, 101, 101, 102, 102]
    last = frame[frame.task == "fit-2"]
    assert list(last.step[:102]) == list(range(102))
    assert last.time.is_monotonic_increasing or last.time.min() >= 0
    assert frame.value.dtype == float
    assert run.metrics("acc").value.dtype == "int64"
    assert list(run.metrics(["acc", "loss"]).name.unique()) == ["acc", "loss"]
    assert run.records[0].metrics == {"loss": 0.5 / 100, "acc": 99, "stage": "fit", "good": True}
    pd.testing.assert_frame_equal(Run.open(run.folder).metrics(), frame)
    with pytest.raises(ValueError, match=r"no numbers named 'los' were reported; there are acc, loss"):
        run.metrics("los")


def test_nothing_reported_is_an_empty_table(pool: GPUPool, tmp_path: Path) -> None:
    run = pool.run([Task(abs, -1)], folder=tmp_path / "run").wait(60)
    assert run.metrics("loss").empty
    assert not (run.folder / FILE).exists()


def fails_once(folder: str) -> None:
    here = worker()
    for step in range(3):
        here.report(step=step, loss=float(here.attempt), progress=step / 4)
    if here.attempt == 1:
        raise ValueError("the first attempt")


def test_each_attempt_has_its_points(pool: GPUPool, tmp_path: Path) -> None:
    run = pool.run([Task(fails_once, "", name="a", retries=1)], folder=tmp_path / "run").wait(60)
    frame = run.metrics("loss")
    assert list(frame.attempt) == [1, 1, 1, 2, 2, 2]
    assert list(frame.value) == [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]


def reports_and_dies(flag: str) -> None:
    for step in range(50):
        worker().report(loss=step)
        time.sleep(0.005)
    time.sleep(0.5)  # the last tenth of a second is the worker's to lose
    Path(flag).touch()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_task_keeps_what_it_sent(pool: GPUPool, tmp_path: Path) -> None:
    run = pool.run([Task(reports_and_dies, str(tmp_path / "flag"))], folder=tmp_path / "run").wait(60)
    assert run.records[0].status == "killed"
    assert list(run.metrics().value) == list(range(50))
    assert run.records[0].metrics == {"loss": 49}


def reports_or_fails(value: int, flag: str) -> int:
    worker().report(loss=value)
    if value and not Path(flag).exists():
        raise ValueError("not yet")
    worker().report(loss=10 * value)
    return value


def test_a_resumed_run_keeps_the_metrics_of_the_records_it_keeps(pool: GPUPool, tmp_path: Path) -> None:
    flag = str(tmp_path / "flag")
    tasks = [Task(reports_or_fails, n, flag, name=f"t-{n}") for n in range(2)]
    first = pool.run(tasks, folder=tmp_path / "run").wait(60)
    assert list(first.metrics().value) == [0, 0, 1]
    Path(flag).touch()
    again = pool.run(tasks, folder=tmp_path / "run").wait(60)
    frame = again.metrics()
    assert list(zip(frame.task, frame.value, strict=True)) == [
        ("t-0", 0),
        ("t-0", 0),
        ("t-1", 1),
        ("t-1", 10),
    ]


def storms(count: int) -> float:
    here = worker()
    began = time.perf_counter()
    for n in range(count):
        here.report(loss=n, acc=0.5)
    return (time.perf_counter() - began) / count


@pytest.mark.slow
def test_a_storm_of_reports_is_bounded(pool: GPUPool, tmp_path: Path) -> None:
    storm = pool.run([Task(storms, 200_000)], name="storm", folder=tmp_path / "storm")
    assert [pool.submit(abs, -n).result(60) for n in range(200)] == list(range(200))
    storm.wait(120)
    assert storm.records[0].ok
    frame = storm.metrics("loss")
    assert 5_000 <= len(frame) <= 10_001
    assert (frame.value.iloc[0], frame.value.iloc[-1]) == (0, 199_999)
    assert (storm.folder / FILE).stat().st_size < 5 * 2**20


def test_metrics_are_there_while_a_run_goes_on(pool: GPUPool, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    run = pool.run([Task(reports_and_waits, str(flag))], folder=tmp_path / "run")
    end = time.monotonic() + 60
    other = Run.open(tmp_path / "run")
    while (run.metrics().empty or other.metrics().empty) and time.monotonic() < end:
        time.sleep(0.01)
    assert list(run.metrics().value) == [0.5]
    assert list(other.metrics().value) == [0.5]
    flag.touch()
    run.wait(60)
    assert list(other.metrics().value) == [0.5, 0.25]


def reports_and_waits(flag: str) -> None:
    worker().report(loss=0.5)
    end = time.monotonic() + 60
    while not Path(flag).exists() and time.monotonic() < end:
        time.sleep(0.01)
    worker().report(loss=0.25)


def test_a_report_of_what_is_no_number_is_an_error_of_the_task(pool: GPUPool, tmp_path: Path) -> None:
    run = pool.run([Task(fits, 1, extra=[1])], folder=tmp_path / "run").wait(60)
    assert "takes a number, a string, a bool or None, not list" in run.records[0].error
    mgpu_nb.worker().report(loss=1)  # outside of a pool: it goes nowhere


def test_a_metric_is_drawn_by_task_and_by_argument(pool: GPUPool, tmp_path: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    tasks = [Task(fits, 5, lr=lr, name=f"{lr}-{n}") for lr in (0.5, 0.25) for n in range(2)]
    run = pool.run(tasks, folder=tmp_path / "run").wait(60)
    ax = run.plot("loss", log=True)
    assert [item.get_label() for item in ax.lines] == ["0.5-0", "0.5-1", "0.25-0", "0.25-1"]
    assert np.asarray(ax.lines[0].get_xdata()).tolist() == [0, 1, 2, 3, 4]
    ax = run.plot("loss", by="lr", x="time")
    assert [item.get_label() for item in ax.lines] == ["lr=0.25 (2 tasks)", "lr=0.5 (2 tasks)"]
    assert ax.get_xlabel() == "seconds since the task began"
    assert len(Run.open(run.folder).plot("acc", by="task").lines) == 4
    assert len(Run.open(run.folder).plot("acc", by="lr").lines) == 2
    with pytest.raises(ValueError, match=r"no numbers named 'los'.*acc, loss"):
        run.plot("los")
    with pytest.raises(
        ValueError, match=r"by='l': no task has an argument of that name; there are task, lr, steps"
    ):
        run.plot("loss", by="l")
    with pytest.raises(ValueError, match="x must be one of step, time"):
        run.plot("loss", x="epoch")  # type: ignore[arg-type]
    silent = pool.run([Task(abs, -1)], folder=tmp_path / "silent").wait(60)
    with pytest.raises(ValueError, match=r"worker\(\)\.report\(loss=\.\.\.\)"):
        silent.plot("loss")
