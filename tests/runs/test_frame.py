"""Rows of tasks that ended, run and wait, and the table made of them."""

import dataclasses
import datetime
import enum
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

from mgpu_nb import GPUPool, Record, Run, Task
from mgpu_nb.runs.frame import best_row, sort_frame, task_frame, task_rows
from mgpu_nb.views.table import run_table


class Color(enum.Enum):
    RED = 1


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


def test_of_one_name_the_later_has_a_prefix() -> None:
    done = record(
        arguments={"name": "x", "lr": 1}, value={"lr": 2, "loss": 3}, metrics={"loss": 4, "notes": "y"}
    )
    (row,) = task_rows(["a"], [done])
    assert list(row)[:7] == ["name", "status", "argument.name", "lr", "value.lr", "loss", "metric.loss"]
    assert (row["name"], row["argument.name"], row["lr"], row["value.lr"]) == ("a", "x", 1, 2)
    assert (row["loss"], row["metric.loss"], row["metric.notes"], row["notes"]) == (3, 4, "y", "")


def test_the_column_value_is_what_was_returned() -> None:
    names = ["a", "b"]
    rows = task_rows(
        names, [record(name=n, arguments={"value": 1}, value=2, metrics={"value": 3}) for n in names]
    )
    assert [(r["value"], r["argument.value"], r["metric.value"]) for r in rows] == [(2, 1, 3)] * 2


def test_a_prefix_may_be_taken_as_well() -> None:
    (row,) = task_rows(["a"], [record(arguments={"value.x": 1, "x": 2}, value={"x": 3})])
    assert (row["value.x"], row["x"], row["value.value.x"]) == (1, 2, 3)


class Scores(NamedTuple):
    acc: float
    curve: list[int]


@dataclasses.dataclass
class Fit:
    acc: float
    model: Any = None


@pytest.mark.parametrize(
    ("value", "columns"),
    [
        (0.5, {"value": 0.5}), (None, {}), (np.float64(0.5), {"value": 0.5}), (torch.tensor(0.5), {"value": 0.5}),
        ("text", {"value": "text"}), ({"acc": np.float32(0.5), "n": torch.tensor(3)}, {"acc": 0.5, "n": 3}),
        (Scores(0.5, [1]), {"acc": 0.5, "curve": [1]}), (Fit(0.5, len), {"acc": 0.5, "model": len}),
        ([1, 2], {"value": [1, 2]}), ((1, 2), {"value": (1, 2)}), ({}, {"value": {}}), ({1: 2}, {"value": {1: 2}}),
        ({"w": [1], "b": [2]}, {"value": {"w": [1], "b": [2]}}), (Fit, {"value": Fit}),
        (dict.fromkeys(map(str, range(200)), 1), {"value": dict.fromkeys(map(str, range(200)), 1)}),
    ],
    ids=repr,
)  # fmt: skip
def test_a_value_has_a_column_per_entry(value: Any, columns: dict[str, Any]) -> None:
    (row,) = task_rows(["a"], [record(value=value)])
    assert list(row.items())[2:-11] == list(columns.items())


def test_objects_stay_objects() -> None:
    array, table = np.arange(3), pd.DataFrame({"a": [1]})
    frame = task_frame(task_rows(["a"], [record(value={"n": 1, "w": array, "t": table, "l": [1, 2]})]))
    assert frame["w"][0] is array
    assert frame["t"][0] is table
    assert frame["l"][0] == [1, 2]
    assert task_frame(task_rows(["a"], [record(value=array)]))["value"][0] is array


def test_a_frame_shows_no_nanoseconds_and_no_word_for_missing_integers() -> None:
    frame = task_frame(rows())
    local = datetime.datetime.fromtimestamp(1.5)
    assert frame["started"].tolist() == [pd.NaT, pd.Timestamp(local), pd.NaT]
    assert str(frame["started"].dtype) == "datetime64[ms]"
    assert "<NA>" not in frame.to_string()
    assert frame["gpu_id"][1] == 1
    assert frame["peak_memory"][1] == 2**40
    assert frame["attempt"].tolist() == [0, 0, 0]
    assert task_frame(task_rows(["a"], [record(peak_memory=2**60 + 1)]))["peak_memory"][0] == 2**60 + 1
    assert list(task_frame(task_rows(["a"], [])).columns) == [
        *("name", "status", "device", "seconds", "started", "peak_memory", "error"),
        *("attempt", "pid", "queued", "finished", "notes"),
    ]


def test_cells_that_pandas_has_no_type_for() -> None:
    odd = ["\udcff", 10**5000, 1j, "=1+1"]
    names = list("abcd")
    found = task_rows(names, [record(name=n, value=v) for n, v in zip(names, odd, strict=True)])
    assert task_frame(found)["value"].tolist() == odd
    assert str(run_table(task_frame(found)))


def ended(values: dict[str, Any], **more: Any) -> Any:
    return task_rows(list(values), [record(name=name, value=value, **more) for name, value in values.items()])


def test_the_best_is_the_first_of_equals_and_no_nan() -> None:
    values = {"a": math.nan, "b": 1.0, "c": 3, "d": 3, "e": 1.0, "f": None, "g": "9"}
    assert best_row(ended(values), "value", "max") == "c"
    assert best_row(ended(values), "value", "min") == "b"
    assert best_row(ended({"a": -math.inf, "b": 1.0}), "value", "min") == "a"
    mixed = task_rows(["a", "b"], [record(name="a", value=1), record(name="b", value=2, status="error")])
    assert best_row(mixed, "value", "max") == "a"


@pytest.mark.parametrize(
    ("values", "metric", "message"),
    [
        ({"a": {"acc": 1.0, "why": "x"}}, "ac", r"one of acc, seconds, got 'ac'; did you mean 'acc'\?"),
        ({"a": {"acc": 1.0, "why": "x"}}, "why", "one of acc, seconds"),
        ({"a": {"acc": math.nan}}, "acc", "one of seconds"),
    ],
)
def test_a_metric_without_numbers_lists_those_with(values: Any, metric: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        best_row(ended(values, seconds=2.0), metric, "max")


def test_there_is_no_best_of_what_failed() -> None:
    with pytest.raises(ValueError, match="no task has ended ok"):
        best_row(task_rows(["a"], [record(status="error")]), "value", "max")


def test_a_frame_is_sorted_with_missing_last() -> None:
    frame = task_frame(ended({"a": 2.0, "b": None, "c": 1.0, "d": math.nan, "e": 2.0}))
    assert sort_frame(frame, "value")["name"].tolist() == list("caebd")
    assert sort_frame(frame, "value", ascending=False)["name"].tolist() == list("aecbd")
    mixed = task_frame(ended({"a": "x", "b": 2, "c": [1], "d": 1}))
    assert sort_frame(mixed, "value")["name"].tolist() == list("dbca")
    with pytest.raises(ValueError, match="did you mean 'value'"):
        sort_frame(frame, "valu")


def test_a_table_leaves_out_arguments_that_are_the_same() -> None:
    records = [record(name=n, arguments={"lr": n, "wd": 0.1}, value=1) for n in "ab"]
    head, first, _ = str(run_table(task_frame(task_rows(["a", "b"], records)))).splitlines()
    assert head.split() == ["name", "status", "lr", "value"]
    assert first.split() == ["a", "ok", "a", "1"]


def test_a_table_leaves_out_what_says_nothing() -> None:
    records = [
        record(name=n, value={"loss": 0.5}, metrics={"loss": 0.5, "progress": 1.0}, attempt=1, device="cpu:0")
        for n in "ab"
    ]
    head = str(run_table(task_frame(task_rows(["a", "b"], records)))).splitlines()[0]
    assert head.split() == ["name", "status", "loss", "device"]
    records[0] = dataclasses.replace(records[0], attempt=2, metrics={"loss": 0.25, "progress": 0.5})
    shown = run_table(task_frame(task_rows(["a", "b"], records)))
    assert str(shown).splitlines()[0].split() == [
        "name",
        "status",
        "loss",
        "metric.loss",
        "progress",
        "device",
        "attempts",
    ]
    assert [name for name, kind in shown.head if "o" in kind.split()] == ["device"]  # on a narrow page


@pytest.mark.slow
def test_ten_thousand_rows_in_no_time() -> None:
    names = [f"t{n}" for n in range(10_000)]
    records = [record(name=name, arguments={"lr": 0.1}, value={"acc": 1.0}) for name in names]
    began = time.process_time()
    task_rows(names, records)
    assert time.process_time() - began < 2


@dataclasses.dataclass
class Fitted:
    acc: float
    weights: Any
    stage: Any = None


class Counted(NamedTuple):
    n: int
    model: Any


def returned(kind: int) -> Any:
    """What users return: some of it has no form on disk."""
    odd = [
        Fitted(0.5, np.ones(2), Color.RED),
        Counted(3, object()),
        {"loss": 0.1, "t": torch.tensor(1.0), "c": Color.RED},
    ]
    return odd[kind]


def test_a_run_that_is_opened_has_the_same_columns(pool: GPUPool, tmp_path: Path) -> None:
    frame = pool.run([Task(returned, n) for n in range(3)], folder=tmp_path).wait(60).frame()
    opened = Run.open(tmp_path).frame()
    assert list(opened.columns) == list(frame.columns)
    for name in ("acc", "n", "loss", "t"):
        pd.testing.assert_series_equal(opened[name], frame[name])
    assert (opened["weights"][0], opened["stage"][0], opened["c"][2]) == (
        "float64[2]",
        "Color.RED",
        "Color.RED",
    )
    assert Run.open(tmp_path).best("acc").value["acc"] == 0.5
