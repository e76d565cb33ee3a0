"""Rows of `Run.frame` and of ``summary_results.csv``: one per task, ended or not."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..options import check_choice
from ..store.export import TIMES
from ..summary import columns, is_scalar
from ..tasks import Record

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FIXED", "Rows", "best_row", "sort_frame", "task_frame", "task_rows"]

_FIRST = ("name", "status")
_LAST = (
    "device", "seconds", "started", "peak_memory", "error", "attempt", "gpu_id", "pid", "queued", "finished", "notes",
)  # fmt: skip
FIXED = (*_FIRST, *_LAST)
_NUMBERS = ("seconds", "peak_memory", "attempt", "gpu_id", "pid")
_BOOKKEEPING = ("attempt", "gpu_id", "pid", *TIMES)
_GROUPS = ("argument", "value", "metric")


class Rows(list[dict[str, Any]]):
    """Rows of tasks.

    Attributes
    ----------
    arguments
        Columns that hold arguments.
    hosts
        Whether there is a column ``host``, because tasks ran on several machines.
    """

    arguments: tuple[str, ...] = ()
    hosts: bool = False


def task_rows(
    tasks: Sequence[str],
    records: Iterable[Record],
    running: Collection[str] = (),
    metrics: Mapping[str, Mapping[str, Any]] | None = None,
    arguments: Mapping[str, Mapping[str, Any]] | None = None,
    waits: str = "queued",
) -> Rows:
    """Rows of a run's tasks in order of submission, all with the same columns; see `Run.frame` for these.

    Times are in seconds since the epoch, memory in bytes; what is not known is None.

    Parameters
    ----------
    tasks
        Names of all tasks.
    records
        Records of those that have ended.
    running
        Names of those that run.
    metrics, arguments
        By task, of those without a record: what they have reported so far, and their arguments.
    waits
        Status of the others without a record.
    """
    ended = {record.name: record for record in records}
    several = len({record.host for record in ended.values() if record.device}) > 1
    last = (_LAST[0], "host", *_LAST[1:]) if several else _LAST
    every = (*_FIRST, *last)
    known: list[tuple[dict[str, Any], tuple[Mapping[str, Any], ...]]] = []
    for name in tasks:
        if (record := ended.get(name)) is not None:
            fixed = {column: getattr(record, column) for column in every} | {"notes": "; ".join(record.notes)}
            known.append((fixed, (record.arguments, columns(record.value), record.metrics)))
        else:
            status = "running" if name in running else waits
            fixed = dict.fromkeys(every) | {"name": name, "status": status, "attempt": 0}
            fixed |= dict.fromkeys({"device", "host", "error", "notes"} & fixed.keys(), "")
            known.append((fixed, ((arguments or {}).get(name, {}), {}, (metrics or {}).get(name, {}))))
    labels = _labels([parts for _, parts in known], every)
    rows = Rows(
        {column: fixed[column] for column in _FIRST}
        | {label: parts[group].get(name) for (group, name), label in labels.items()}
        | {column: fixed[column] for column in last}
        for fixed, parts in known
    )
    rows.arguments = tuple(label for (group, _), label in labels.items() if not group)
    rows.hosts = several
    return rows


def _labels(
    rows: Iterable[tuple[Mapping[str, Any], ...]], fixed: Iterable[str]
) -> dict[tuple[int, str], str]:
    """Columns of arguments, values and metrics, by the number of the group and the name within it.

    None has the name of a `fixed` one.
    """
    names: list[dict[str, None]] = [{} for _ in _GROUPS]
    for parts in rows:
        for seen, part in zip(names, parts, strict=True):
            seen.update(dict.fromkeys(part))
    labels: dict[tuple[int, str], str] = {}
    taken = set(fixed)
    for group, (prefix, seen) in enumerate(zip(_GROUPS, names, strict=True)):
        for name in seen:
            label = f"{prefix}.{name}" if name == "value" != prefix else name
            while label in taken:
                label = f"{prefix}.{label}"
            taken.add(label)
            labels[group, name] = label
    return labels


def task_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a table, with times of this machine's clock in milliseconds.

    Numbers of which some are missing are floats. ``gpu_id`` is left out if no task ran on a GPU. Objects stay objects.
    """
    import pandas as pd

    names = list(dict.fromkeys(name for row in rows for name in row)) or list(FIXED)
    data: dict[str, Any] = {}
    for name in names:
        cells = [row[name] for row in rows]
        if name in TIMES:
            at = [None if cell is None else datetime.fromtimestamp(round(cell, 3)) for cell in cells]
            data[name] = pd.Series(at, dtype="datetime64[ms]")
        elif name in _NUMBERS:
            whole = name != "seconds" and None not in cells
            data[name] = pd.Series(cells, dtype="int64" if whole else "float64")
        else:
            data[name] = _series(pd, cells)
    if not any(row.get("gpu_id") is not None for row in rows):
        del data["gpu_id"]
    frame = pd.DataFrame(data)
    frame.attrs["arguments"] = list(getattr(rows, "arguments", ()))
    frame.attrs["hosts"] = bool(getattr(rows, "hosts", False))
    return frame


def _series(pd: Any, cells: list[Any]) -> Any:
    """Column of its own type if all cells are scalars, else of objects."""
    if all(map(is_scalar, cells)):
        try:
            return pd.Series(cells)
        except (ValueError, OverflowError):  # half a surrogate pair, a number of 5,000 digits
            pass
    return pd.Series(cells, dtype=object)


def sort_frame(frame: pd.DataFrame, column: str, ascending: bool = True) -> pd.DataFrame:
    """The table sorted by a column: numbers before texts, rows without a value last, equals in their order.

    Raises
    ------
    ValueError
        If there is no such column; the message names the nearest.
    """
    check_choice(column, list(frame.columns), "sort")
    cells, missing = frame[column].tolist(), frame[column].isna().tolist()
    plain = frame[column].dtype != object

    def key(row: int) -> Any:
        cell = cells[row]
        number = None if plain else _number(cell)
        return cell if plain else (number is None, number or 0.0, "" if number is not None else str(cell))

    order = sorted((n for n, absent in enumerate(missing) if not absent), key=key, reverse=not ascending)
    order += [n for n, absent in enumerate(missing) if absent]
    return frame.iloc[order].reset_index(drop=True)


def best_row(rows: Sequence[Mapping[str, Any]], metric: str, mode: str) -> str:
    """Name of the task that was ok with the largest or, by mode ``"min"``, smallest number in a column.

    The first of equals; NaN is never best.

    Raises
    ------
    ValueError
        If there is no such column, or no number in it; the message lists the columns that have numbers.
    """
    good = [row for row in rows if row["status"] == "ok"]
    found = [(row, number) for row in good if (number := _number(row.get(metric))) is not None]
    if not good:
        raise ValueError(f"no task has ended ok yet, so none is the best by {metric!r}")
    if not found:
        numbers = dict.fromkeys(name for row in good for name in row if _number(row[name]) is not None)
        check_choice(metric, [name for name in numbers if name not in _BOOKKEEPING], "metric")
    best = (min if mode == "min" else max)(found, key=lambda pair: pair[1])
    return str(best[0]["name"])


def _number(cell: object) -> float | None:
    """The number in a cell; None if there is none, or NaN."""
    if not isinstance(cell, (int, float)):
        return None
    return None if math.isnan(cell) else cell
