"""The table of a run's tasks for display."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .markup import Html, Table, escape

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["run_table"]

_SHOWN = ("name", "status", "device", "attempt", "started", "seconds", "peak_memory", "error")
_HEADINGS = {"started": "started, s", "peak_memory": "peak, GiB", "attempt": "attempts"}
_MARKS = {
    "ok": "ok",
    "running": "… running",
    "queued": "· queued",
    "cancelled": "– cancelled",
    "skipped": "– skipped",
}


def run_table(frame: pd.DataFrame) -> Table:
    """`Run.frame` for display: failures marked in words, sizes in GiB, starts in seconds since the first.

    Words and numbers carry all information, so that nothing is lost on a page that drops styles, such as GitHub's.
    Columns without a value are left out; the metrics that tasks reported come last.
    """
    reported = list(frame.columns[list(frame.columns).index("notes") + 1 :])
    started = (frame["started"] - frame["started"].min()).dt.total_seconds()
    shown: dict[str, list[Any]] = {
        "status": [_status(status) for status in frame["status"]],
        "started": [_number(at, "{:.2f}") for at in started],
        "seconds": [_number(seconds, "{:.2f}") for seconds in frame["seconds"]],
        "peak_memory": [_number(size, "{:.2f}", 2**30) for size in frame["peak_memory"]],
        "error": [_text(error).partition("\n")[0][:80] for error in frame["error"]],
    }
    head, columns = [], []
    for name in (*_SHOWN, *reported):
        values = frame[name]
        real = values.dtype.kind == "f"
        cells = shown.get(name) or [_number(value, "{:.4g}") if real else _text(value) for value in values]
        if any(cells):
            numeric = values.dtype.kind in "iuf" or name in ("attempt", "started", "peak_memory")
            head.append((_HEADINGS.get(name, str(name)), "n" if numeric else ""))
            columns.append(cells)
    return Table(head, zip(*columns, strict=True), "tasks of the run")


def _status(status: str) -> str:
    return _MARKS.get(status) or Html(f'<span class="e">✗ {escape(status)}</span>')


def _number(value: Any, form: str, unit: float = 1) -> str:
    return form.format(value / unit) if _text(value) else ""


def _text(value: Any) -> str:
    import pandas as pd

    return "" if pd.api.types.is_scalar(value) and pd.isna(value) else str(value)
