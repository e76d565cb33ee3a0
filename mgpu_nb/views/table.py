"""The table of a run's tasks for display."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..summary import short
from ..tables import Html, Table, escape, gap

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["frame_table", "run_table"]

_FIRST = ("name", "status")
_LAST = ("device", "attempt", "started", "seconds", "peak_memory", "error")
_LESS = ("device", "started", "peak_memory")  # not shown on a narrow page
_LEFT_OUT = ("gpu_id", "pid", "queued", "finished", "notes")
_HEADINGS = {"started": "started, s", "peak_memory": "peak, GiB", "attempt": "attempts"}
_MARKS = {
    "ok": "ok",
    "running": "… running",
    "queued": "· queued",
    "not ended": "· not ended",
    "no record": "– no record",
    "cancelled": "– cancelled",
    "skipped": "– skipped",
}

FIRST, LAST = 15, 10  # tasks that are shown of many
MOST_FAILED = 15  # between them
MOST = FIRST + LAST + MOST_FAILED
CUT = 80  # characters of a value


def run_table(frame: pd.DataFrame) -> Table:
    """`Run.frame` for display: failures marked in words, sizes in GiB, starts in seconds since the first.

    Words and numbers carry all information, so that nothing is lost on a page that drops styles, such as GitHub's.
    Columns without a value are left out, and arguments that are the same for all (``frame.attrs["arguments"]``); so are
    attempts if each was the first, progress if all is done, and a metric that says the same as the value of its name.
    Arguments, values and metrics stand between the status and the device. Of more than 40 tasks the first 15 and the
    last 10 are shown, and the first 15 between that failed. Of several machines the name stands before the device.
    """
    hosts = bool(frame.attrs.get("hosts"))
    known = {*_FIRST, *_LAST, *_LEFT_OUT, *(["host"] if hosts else [])}
    same = {name for name in frame.attrs.get("arguments", ()) if _is_same(frame[name])}
    said = {name for name in frame.columns if _says_nothing(frame, name)}
    own = [name for name in frame.columns if name not in known | same | said]
    places = _places(frame["status"].tolist())
    part = frame.iloc[places]
    started = (part["started"] - frame["started"].min()).dt.total_seconds()
    shown: dict[str, list[Any]] = {
        "status": [_status(status) for status in part["status"]],
        "started": [_number(at, "{:.2f}") for at in started],
        "seconds": [_number(seconds, "{:.2f}") for seconds in part["seconds"]],
        "peak_memory": [_number(size, "{:.2f}", 2**30) for size in part["peak_memory"]],
        "error": [_text(error).partition("\n")[0] for error in part["error"]],
    }
    if hosts:
        pairs = zip(map(_text, part["device"]), map(_text, part["host"]), strict=True)
        shown["device"] = [f"{host} {device}".strip() if device else "" for device, host in pairs]
    head, columns = [], []
    for name in (*_FIRST, *own, *(name for name in _LAST if name not in said)):
        values = part[name]
        real = values.dtype.kind == "f"
        cells = shown.get(name) or [_real(value) if real else _text(value) for value in values]
        if any(cells):
            numeric = values.dtype.kind in "iuf" or name in ("attempt", "started", "peak_memory")
            kind = "n " * numeric + "o" * (name in _LESS)
            head.append((_HEADINGS.get(name, str(name)), kind.strip()))
            columns.append(cells)
    rows = [tuple(escape(cell, CUT) for cell in row) for row in zip(*columns, strict=True)]
    return Table(head, _with_gaps(rows, places, frame), "tasks of the run")


def frame_table(
    frame: pd.DataFrame, label: str, above: Iterable[str] = (), forms: Mapping[str, str] | None = None
) -> Table:
    """A table of data for display: numbers to the right with four digits, what is missing empty.

    Parameters
    ----------
    frame
        The data. Its index is not shown: `reset_index` makes it a column.
    label
        Name of the table for screen readers.
    above
        Lines above it.
    forms
        Format of the values of a column, such as ``{:.0%}``.
    """
    head, columns = [], []
    for name in map(str, frame.columns):
        values = frame[name]
        kind = values.dtype.kind
        form = (forms or {}).get(name, {"f": "{:.4g}", "i": "{:,}", "u": "{:,}"}.get(kind, "{}"))
        head.append((name.replace("_", " "), "n" if kind in "iuf" else ""))
        columns.append([_number(value, form) for value in values])
    return Table(head, zip(*columns, strict=True), label, above)


def _says_nothing(frame: pd.DataFrame, name: str) -> bool:
    """Whether a column repeats what another says, or says what is so anyway."""
    values = frame[name].dropna()
    if name in ("attempt", "progress"):
        return bool(len(values)) and all(
            value in (0, 1) if name == "attempt" else value == 1 for value in values
        )
    other = name.removeprefix("metric.")
    return other != name and other in frame and _is_equal(frame[other], frame[name])


def _is_equal(one: pd.Series[Any], other: pd.Series[Any]) -> bool:
    try:
        return bool(one.equals(other))
    except Exception:  # of values that cannot be compared
        return False


def _places(statuses: Sequence[str]) -> list[int]:
    """Places of the tasks that are shown: all of few; of many the ends and the first failures between."""
    count = len(statuses)
    if count <= MOST:
        return list(range(count))
    between = range(FIRST, count - LAST)
    failed = [n for n in between if statuses[n] not in _MARKS][:MOST_FAILED]
    return [*range(FIRST), *failed, *range(count - LAST, count)]


def _with_gaps(
    rows: Sequence[tuple[Any, ...]], places: Sequence[int], frame: pd.DataFrame
) -> Iterator[tuple[Any, ...]]:
    """The rows, and between two that do not follow each other one that says what became of the tasks between."""
    before = -1
    for row, place in zip(rows, places, strict=True):
        if place > before + 1:
            counts = Counter(frame["status"].iloc[before + 1 : place])
            words = ", ".join(f"{count:,} {status}" for status, count in counts.most_common())
            name, _, *others = gap(place - before - 1, "more", len(row))
            yield name, Html(f'<span class="q">{escape(words)}</span>'), *others
        before = place
        yield row


def _status(status: str) -> str:
    return _MARKS.get(status) or Html(f'<span class="e">✗ {escape(status)}</span>')


def _is_same(values: pd.Series[Any]) -> bool:
    """Whether a column has one value in all of several rows."""
    return len(values) > 1 and len({_text(value) for value in values}) == 1


def _real(value: float) -> str:
    """A number in four digits; a whole one in all of its own, for it may be an integer beside missing ones."""
    whole = math.isfinite(value) and value == round(value) and abs(value) < 1e15
    return _number(value, "{:.0f}" if whole else "{:.4g}")


def _number(value: Any, form: str, unit: float = 1) -> str:
    if not _text(value):
        return ""
    return form.format(value if unit == 1 else value / unit)


def _text(value: Any) -> str:
    import pandas as pd

    return "" if pd.api.types.is_scalar(value) and pd.isna(value) else str(short(value))
