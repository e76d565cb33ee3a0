"""Rows of tasks that ended, run and wait, and the table made of them."""

from typing import Any

import pandas as pd

from mgpu_nb import Record
from mgpu_nb.runs.frame import task_frame, task_rows


def record(**more: Any) -> Record:
    return Record(**{"name": "a", "index": 0, "kind": "m:f", "status": "ok", **more})


def rows() -> Any:
    ended = record(started=1.5, gpu_id=1, peak_memory=2**40, notes=("one", "two"), metrics={"loss": 0.5})
    return task_rows(["c", "a", "b"], [ended], {"b"}, {"b": {"loss": 0.25, "status": "mine"}, "c": {}})


def test_rows_are_in_order_of_submission_with_what_is_known() -> None:
    waits, ended, runs = rows()
    assert [row["name"] for row in rows()] == ["c", "a", "b"]
    assert (waits["status"], waits["notes"], waits["started"]) == ("queued", "", None)
    assert (ended["status"], ended["notes"], ended["loss"]) == ("ok", "one; two", 0.5)
    assert (runs["status"], runs["loss"]) == ("running", 0.25)


def test_a_metric_does_not_replace_a_column() -> None:
    (row,) = task_rows(["a"], [record(metrics={"name": "x", "notes": "y", "loss": 1})])
    assert (row["name"], row["notes"], row["loss"]) == ("a", "", 1)


def test_a_frame_keeps_integers_and_times_where_some_are_missing() -> None:
    frame = task_frame(rows())
    assert frame["started"].tolist() == [pd.NaT, pd.Timestamp(1.5, unit="s", tz="UTC"), pd.NaT]
    assert frame["gpu_id"].tolist() == [pd.NA, 1, pd.NA]
    assert frame["peak_memory"].dtype == "Int64"
    assert frame["peak_memory"][1] == 2**40
    assert str(task_frame(task_rows(["a"], []))["queued"].dt.tz) == "UTC"
