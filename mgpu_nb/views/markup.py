"""Pieces of HTML that the panels are made of: bars, sparklines, and the tables of `mgpu_nb.tables`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..tables import STYLE, Html, Table, block, escape, gib, line, number, table
from ..tasks import count_failed

__all__ = [
    "CANCELLED",
    "DONE",
    "FAILED",
    "OTHERS",
    "OURS",
    "RUNNING",
    "STYLE",
    "Html",
    "Table",
    "bar",
    "block",
    "duration",
    "escape",
    "gib",
    "line",
    "number",
    "shown_path",
    "sparkline",
    "stacked_bar",
    "status_bar",
    "table",
]

# Their contrast is 3 or more on a white and on a dark page. A line of the page is between the pieces of a bar, and
# every bar has its value in text beside it.
OURS, OTHERS = "#0072B2", "#B87A00"
DONE, FAILED, RUNNING, CANCELLED = "#009E73", "#D55E00", "#1F77D0", "#808080"

_EDGE = "#808080"
_BLOCKS = "▁▂▃▄▅▆▇█"


def duration(seconds: float | None) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``; empty if unknown."""
    if seconds is None:
        return ""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def shown_path(path: str | os.PathLike[str]) -> str:
    """A path as it is shown: from the working directory if it is below it, which is short and true on any machine."""
    whole = Path(path)
    with contextlib.suppress(OSError, ValueError):  # the directory may be gone, and most paths are elsewhere
        return whole.relative_to(Path.cwd()).as_posix()
    return str(whole)


def stacked_bar(
    parts: Sequence[tuple[float, str] | tuple[float, str, str]], total: float, label: str, width: int = 160
) -> Html:
    """A bar of `width` pixels with a piece for each part; what is left shows the page.

    The pieces stand on one line and never add up to more than the bar, whatever they are rounded to.

    Parameters
    ----------
    parts
        Amount and colour of each piece, and ``"thin"`` for one that is not there yet: tasks that run.
    total
        Amount of the whole bar.
    label
        The bar in words.
    width
        Of the bar, pixels.
    """
    pieces = []
    left = 10_000  # hundredths of a per cent
    for amount, colour, *form in parts:
        share = min(left, int(10_000 * max(0.0, amount) / total)) if total > 0 else 0
        left -= share
        if amount > 0 and total > 0:
            high = 2 if form else 8
            pieces.append(
                f'<div style="height:{high}px;width:{share / 100:g}%;background-color:{colour}"></div>'
            )
    return Html(
        f'<div role="img" aria-label="{escape(label)}" title="{escape(label)}" style="display:inline-flex;'
        f'width:{width}px;height:10px;border:1px solid {_EDGE};overflow:hidden">{"".join(pieces)}</div>'
    )


def status_bar(
    counts: Mapping[str, int],
    total: int,
    label: str,
    *,
    running: Iterable[float | None] = (),
    width: int = 160,
) -> Html:
    """A bar of tasks: done, failed and cancelled ones, and of those that run what they have done.

    Parameters
    ----------
    counts
        Number of ended tasks by status. What was cancelled or skipped has not failed.
    total
        Number of all tasks.
    label
        The bar in words.
    running
        Fraction done of each running task, 0 to 1; None if it reported none. What is not done of them is a thin line.
    width
        Of the bar, pixels.
    """
    shares = [min(1.0, max(0.0, share or 0.0)) for share in running]
    ok, cancelled = counts.get("ok", 0), counts.get("cancelled", 0) + counts.get("skipped", 0)
    return stacked_bar(
        [
            (ok, DONE), (count_failed(counts), FAILED), (cancelled, CANCELLED), (sum(shares), RUNNING),
            (len(shares) - sum(shares), RUNNING, "thin"),
        ],
        total, label, width,
    )  # fmt: skip


def bar(share: float, colour: str, label: str, width: int = 160) -> Html:
    """A bar filled to a share, 0 to 1."""
    return stacked_bar([(max(0.0, min(1.0, share)), colour)], 1.0, label, width)


def sparkline(values: Iterable[float | None], top: float | None, width: int = 24) -> str:
    """The last values as a row of block characters, each the maximum of its share of the time.

    Parameters
    ----------
    values
        Oldest first; None if unknown.
    top
        Value of a full block; the maximum by default.
    width
        Number of characters.
    """
    known = list(values)
    if not known:
        return " " * width
    size = max(1, -(-len(known) // width))
    bins = [known[max(0, end - size) : end] for end in range(len(known), 0, -size)][:width][::-1]
    highs = [max((v for v in part if v is not None), default=None) for part in bins]
    full = top if top else max((h for h in highs if h is not None), default=0.0)
    last = len(_BLOCKS) - 1
    blocks = [" " if h is None else _BLOCKS[min(last, round(last * h / full)) if full else 0] for h in highs]
    return "".join(blocks).rjust(width)
