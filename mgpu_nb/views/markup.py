"""Pieces of HTML that the panels are made of. Text in, text out; everything foreign is escaped."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable, Sequence

__all__ = [
    "OTHERS",
    "OURS",
    "STYLE",
    "bar",
    "duration",
    "escape",
    "gib",
    "number",
    "sparkline",
    "stacked_bar",
    "table",
]

# Okabe and Ito's palette: told apart by all kinds of colour vision; a value in text stands beside every bar.
OURS, OTHERS, FREE = "#0072B2", "#E69F00", "#D9D9D9"
DONE, FAILED, RUNNING = "#009E73", "#D55E00", "#56B4E9"

_BLOCKS = "▁▂▃▄▅▆▇█"

STYLE = """<style>
.mgpu{overflow-x:auto;max-width:1100px;color:var(--jp-ui-font-color1,inherit)}
.mgpu{font:13px/1.45 var(--jp-ui-font-family,sans-serif)}
.mgpu table{border-collapse:collapse;margin:2px 0;table-layout:auto}
.mgpu th,.mgpu td{padding:2px 10px 2px 0;text-align:left;white-space:nowrap;border:0;background:none}
.mgpu th{font-weight:600;color:var(--jp-ui-font-color2,#666)}
.mgpu .n{text-align:right;font-variant-numeric:tabular-nums}
.mgpu .t{max-width:24em;overflow:hidden;text-overflow:ellipsis}
.mgpu td.s{white-space:pre;font-family:var(--jp-code-font-family,monospace);letter-spacing:-1px;color:#0072B2}
[data-jp-theme-light=false] .mgpu td.s{color:#56B4E9}
.mgpu{container-type:inline-size}
@container (max-width:620px){.mgpu .s,.mgpu .o{display:none}.mgpu [role=img]{max-width:80px}}
.mgpu .q{color:var(--jp-ui-font-color2,#666)}
.mgpu .e{color:var(--jp-error-color1,#B22222)}
</style>"""


def escape(text: object, most: int = 200) -> str:
    """Return text that is safe within HTML and stays on its line: markup is shown, not obeyed."""
    shown = str(text)
    if len(shown) > most:
        shown = shown[: most - 1] + "…"
    # Cc: control, Cf: format (right-to-left overrides among them), Cs: halves of surrogate pairs.
    plain = "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in shown)
    return html.escape(plain, quote=True)


def gib(size: float | None, digits: int = 1) -> str:
    """Return bytes in GiB, without the unit; empty where not known."""
    return "" if size is None else f"{size / 2**30:.{digits}f}"


def number(value: float | None, unit: str = "") -> str:
    """Return a whole number with its unit; empty where not known."""
    return "" if value is None else f"{value:.0f}{unit}"


def duration(seconds: float | None) -> str:
    """Return seconds as ``m:ss`` or ``h:mm:ss``; empty where not known."""
    if seconds is None:
        return ""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def stacked_bar(parts: Sequence[tuple[float, str]], total: float, label: str, width: int = 160) -> str:
    """Return a bar of `width` pixels with a piece for each (amount, colour); `label` says it in words."""
    pieces = []
    left = 100.0
    for amount, colour in parts:
        share = min(left, 100 * amount / total) if total > 0 else 0.0
        left -= share
        if share > 0:
            pieces.append(
                f'<div style="display:inline-block;height:10px;width:{share:.1f}%;background-color:{colour}"></div>'
            )
    return (
        f'<div role="img" aria-label="{escape(label)}" title="{escape(label)}" style="display:inline-block;height:10px;'
        f'width:{width}px;background-color:{FREE};line-height:0;text-align:left">{"".join(pieces)}</div>'
    )


def bar(share: float, colour: str, label: str, width: int = 160) -> str:
    """Return a bar filled to a share, 0 to 1."""
    return stacked_bar([(max(0.0, min(1.0, share)), colour)], 1.0, label, width)


def sparkline(values: Iterable[float | None], top: float | None, width: int = 24) -> str:
    """Return the last values as a row of block characters, each the largest of its share of the time.

    Parameters
    ----------
    values
        Oldest first; None where nothing is known.
    top
        Value of a full block; by default the largest.
    width
        Characters.
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


def table(head: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]], caption: str, *, live: bool) -> str:
    """Return a table; `head` holds (heading, class) pairs, cells are HTML already.

    In a static one alignment stands in every cell: pages that drop style sheets keep it, and JupyterLab's own style
    of tables would win over a class.
    """
    side = {"n": "right"}
    marks = [
        f'class="{kind}"' if live else f'class="{kind}" style="text-align:{side.get(kind, "left")}"'
        for _, kind in head
    ]
    cells = "".join(
        f'<th {mark} scope="col">{name}</th>' for (name, _), mark in zip(head, marks, strict=True)
    )
    body = "".join(
        "<tr>" + "".join(f"<td {mark}>{cell}</td>" for mark, cell in zip(marks, row, strict=True)) + "</tr>"
        for row in rows
    )
    return (
        f'<table aria-label="{escape(caption)}"><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>'
    )
