"""The table of a run, to be looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from pandas.io.formats.style import Styler

__all__ = ["table"]

_SHOWN = ("name", "status", "device", "attempt", "started", "seconds", "peak_memory", "error")
_HEADINGS = {"started": "started, s", "peak_memory": "peak, GiB", "attempt": "attempts"}
_MARKS = {
    "ok": "ok",
    "running": "… running",
    "queued": "· queued",
    "cancelled": "– cancelled",
    "skipped": "– skipped",
}


def table(frame: pd.DataFrame) -> Styler:
    """Return `Run.frame` styled: a mark in words for what failed, GiB, seconds since the first start.

    Words and numbers carry all there is to know, so that nothing is lost where a page drops styles, as GitHub does.
    Columns without a value are left out; what the tasks reported follows.
    """
    reported = list(frame.columns[list(frame.columns).index("notes") + 1 :])
    reported = [name for name in reported if name not in _HEADINGS.values()]
    shown = frame[[*_SHOWN, *reported]].copy()
    shown["status"] = [_MARKS.get(status, f"✗ {status}") for status in shown["status"]]
    shown["started"] = (shown["started"] - shown["started"].min()).dt.total_seconds()
    shown["peak_memory"] = shown["peak_memory"].astype("Float64") / 2**30
    shown["error"] = [
        text.partition("\n")[0][:80] if isinstance(text, str) else "" for text in shown["error"]
    ]
    shown = shown.rename(columns=_HEADINGS)
    empty = [name for name in shown if shown[name].isna().all() or (shown[name] == "").all()]
    shown = shown.drop(columns=empty)
    numbers: dict[Any, Any] = {
        name: "{:.2f}" for name in ("started, s", "seconds", "peak, GiB") if name in shown
    }
    numbers |= {name: "{:.4g}" for name in reported if name in shown and shown[name].dtype.kind == "f"}
    return (
        shown.style.format(numbers, na_rep="", escape="html")
        .format(_text, subset=[n for n in shown if n not in numbers], na_rep="", escape="html")
        .format_index(_text, escape="html", axis=1)
        .hide(axis="index")
        .set_table_attributes('border="0"')
        .map(_colour, subset=["status"])
    )


def _text(value: Any) -> str:
    return str(value)


def _colour(status: Any) -> str:
    return "color: #B22222; font-weight: 600" if str(status).startswith("✗") else ""
