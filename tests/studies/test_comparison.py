"""Runs side by side."""

from pathlib import Path

import jobs
import pandas as pd
import pytest

from mgpu_nb import GPUPool, Record, Run, Task, compare
from mgpu_nb.runs.ledger import Ledger
from mgpu_nb.tasks import Status


def test_runs_side_by_side(pool: GPUPool, tmp_path: Path) -> None:
    one = pool.run([Task(jobs.add, i) for i in range(3)], name="one", folder=tmp_path / "one").wait(60)
    pool.run([Task(jobs.add, 1), Task(jobs.raises)], name="two", folder=tmp_path / "two").wait(60)
    frame = compare([one, tmp_path / "two"])
    assert frame["run"].tolist() == ["one", "two"]
    assert frame[["tasks", "ok", "failed"]].to_numpy().tolist() == [[3, 3, 0], [2, 1, 1]]
    assert frame["wall"].between(0, 60).all()
    assert isinstance(frame, pd.DataFrame)
    with pytest.raises(ValueError, match="at least one"):
        compare([])
    with pytest.raises(FileNotFoundError):
        compare([tmp_path])
    with pytest.raises(ValueError, match="no task has run"):
        compare([Run(Ledger("empty", tmp_path, ["a"]))])


def run_of(folder: Path, *statuses: Status) -> Run:
    """A run whose tasks ended so, each after two seconds; what never started has no times."""
    ledger = Ledger("<b>", folder, [f"{n}" for n in range(len(statuses))])
    for n, status in enumerate(statuses):
        name = f"{n}"
        if status in ("cancelled", "skipped"):
            ledger.ended(Record(name=name, index=n, kind="k", status=status))
            continue
        began, size = 2.0 * n, 3 * 2**30
        ledger.ended(
            Record(
                name=name,
                index=n,
                kind="k",
                status=status,
                slot=0,
                started=began,
                finished=began + 2,
                seconds=2.0,
                peak_memory=size,
            )
        )
    ledger.close()
    return Run(ledger)


def test_cancelled_and_skipped_have_not_failed(tmp_path: Path) -> None:
    frame = compare([run_of(tmp_path, "ok", "error", "timeout", "cancelled", "cancelled", "skipped")])
    counts = frame[["ok", "failed", "cancelled", "skipped"]].to_numpy().tolist()
    assert counts == [[1, 2, 2, 1]]


def test_it_is_shown_with_units_and_is_a_frame(tmp_path: Path) -> None:
    frame = compare([run_of(tmp_path, "ok", "ok")])
    for text in (repr(frame), frame._repr_html_()):  # type: ignore[operator]
        assert "wall, s" in text
        assert "peak memory, GiB" in text
        assert "3.00" in text
    assert "&lt;b&gt;" in frame._repr_html_()  # type: ignore[operator]
    assert frame["peak_memory"].tolist() == [3 * 2**30]
    assert type(frame[["run", "wall"]]) is pd.DataFrame
    assert type(frame.sort_values("wall")) is pd.DataFrame
