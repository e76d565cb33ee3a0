"""Pieces of HTML that the panels are made of: bars, sparklines, and the tables of `mgpu_nb.tables`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..tables import STYLE, Html, Table, block, escape, gib, line, number, table

__all__ = [
    "OTHERS",
    "OURS",
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
    "sparkline",
    "stacked_bar",
    "table",
]

# Okabe and Ito's palette: distinguishable with any colour vision; every bar has its value in text beside it.
OURS, OTHERS, FREE = "#0072B2", "#E69F00", "#D9D9D9"
DONE, FAILED, RUNNING = "#009E73", "#D55E00", "#56B4E9"

_BLOCKS = "▁▂▃▄▅▆▇█"


def duration(seconds: float | None) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``; empty if unknown."""
    if seconds is None:
        return ""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def stacked_bar(parts: Sequence[tuple[float, str]], total: float, label: str, width: int = 160) -> Html:
    """A bar of `width` pixels with a piece for each (amount, colour); `label` says it in words."""
    pieces = []
    left = 100.0
    for amount, colour in parts:
        share = min(left, 100 * amount / total) if total > 0 else 0.0
        left -= share
        if share > 0:
            pieces.append(
                f'<div style="display:inline-block;height:10px;width:{share:.1f}%;background-color:{colour}"></div>'
            )
    return Html(
        f'<div role="img" aria-label="{escape(label)}" title="{escape(label)}" style="display:inline-block;height:10px;'
        f'width:{width}px;background-color:{FREE};line-height:0;text-align:left">{"".join(pieces)}</div>'
    )


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
