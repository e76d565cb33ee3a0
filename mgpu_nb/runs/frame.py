"""Rows of `Run.frame` and of ``summary_results.csv``: one per task, ended or not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..store.journal import TIMES
from ..tasks import Record

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["task_frame", "task_rows"]

_COLUMNS = (
    "name",
    "status",
    "device",
    "gpu_id",
    "pid",
    "attempt",
    "queued",
    "started",
    "finished",
    "seconds",
    "peak_memory",
    "error",
)
_INTEGERS = ("gpu_id", "pid", "attempt", "peak_memory")


def task_rows(
    tasks: Sequence[str],
    records: Iterable[Record],
    running: Collection[str] = (),
    metrics: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Rows of a run's tasks in order of submission; times in seconds since the epoch, memory in bytes.

    Parameters
    ----------
    tasks
        Names of all tasks.
    records
        Records of those that have ended.
    running
        Names of those that run; the others without a record are queued.
    metrics
        Values that the tasks without a record have reported so far, by task.
    """
    ended = {record.name: record for record in records}
    return [
        _ended(ended[name])
        if name in ended
        else _pending(name, "running" if name in running else "queued", (metrics or {}).get(name, {}))
        for name in tasks
    ]


def task_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a table: times in UTC, integers that may be missing."""
    import pandas as pd

    frame = pd.DataFrame(rows)
    for column in TIMES:
        frame[column] = pd.to_datetime(frame[column].astype("float64"), unit="s", utc=True)
    for column in _INTEGERS:
        frame[column] = frame[column].astype("Int64")
    return frame


def _ended(record: Record) -> dict[str, Any]:
    row = {name: getattr(record, name) for name in _COLUMNS} | {"notes": "; ".join(record.notes)}
    return _with(row, record.metrics)


def _pending(name: str, status: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    row = dict.fromkeys(_COLUMNS) | {"name": name, "status": status, "notes": ""}
    return _with(row, metrics)


def _with(row: dict[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The row with what the task reported; a metric of a column's name is left out."""
    return row | {name: value for name, value in metrics.items() if name not in row}
