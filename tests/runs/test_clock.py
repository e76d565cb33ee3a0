"""A clock that is set while a run goes on: no duration is negative, and records keep their order."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mgpu_nb import GPUPool, Run, Task
from mgpu_nb.telemetry.recorder import FILE, Recorder
from mgpu_nb.telemetry.samples import Snapshot, WorkerSample, WorkerState
from mgpu_nb.views.run import state_of


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the clock of this process by some seconds."""
    real = time.time

    def by(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: real() + seconds)

    return by


@pytest.mark.parametrize("seconds", [-7200.0, 7200.0])
def test_durations_are_those_of_a_clock_that_nobody_sets(
    pool: GPUPool, tmp_path: Path, set_clock: Callable[[float], None], seconds: float
) -> None:
    go = tmp_path / "go"

    def waits(path: str) -> None:
        while not Path(path).exists():
            time.sleep(0.002)

    tasks = [Task(abs, -1, name="a"), Task(waits, str(go), name="b"), Task(abs, -3, name="c", after=["b"])]
    run = pool.run([*tasks, Task(waits, str(go) + "-never", name="d", after=["c"])], folder=tmp_path / "run")
    while not run.records:
        time.sleep(0.002)
    set_clock(seconds)
    elapsed = state_of(run._ledger).elapsed
    assert elapsed is not None
    assert 0 <= elapsed < 100
    go.touch()
    while len(run.records) < 3 or "d" not in run.running:
        time.sleep(0.002)
    run.cancel()
    run.wait(60)
    assert [record.name for record in run.as_completed()] == ["a", "b", "c", "d"]
    assert all(0 <= (record.seconds or 0.0) < 100 for record in run.records)
    ledger = run._ledger
    assert ledger.ended_at is not None
    assert 0 <= ledger.ended_at - ledger.began < 100
    opened = Run.open(tmp_path / "run")
    assert [record.status for record in opened.records] == ["ok", "ok", "ok", "cancelled"]
    assert 0 <= (run.idle or 0.0) <= 1


def test_samples_go_on_after_a_clock_is_set_back(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, lambda action: action())
    worker = WorkerState(
        pool=1, slot=0, label="cpu:0", uuid="cpu", kind="cpu", pid=7, task="a", run=str(tmp_path)
    )
    for at in (1e9, 1e9 + 1, 1e9 - 7200, 1e9 - 7199):
        recorder(Snapshot(at, (), (WorkerSample(worker, 5, "rss"),)))
    assert (tmp_path / FILE).read_text().count(".000,task,") == 4
