"""Tables of text, as plain text and as HTML: the one renderer of all that the package displays.

At the bottom of the package, because the lowest rooms have tables too: hardware lists devices. What is escaped and what
is not is a matter of type: `Html` is HTML, any other text is escaped.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import zip_longest

from .output import clean, safe

__all__ = [
    "ERROR",
    "LINE",
    "SHARE",
    "STYLE",
    "Document",
    "Html",
    "Table",
    "block",
    "escape",
    "gap",
    "gib",
    "line",
    "number",
    "table",
]

# The colour of text is the page's own, or is mixed with it, so that it can be read in a light, a dark and any other
# theme: no single colour has a contrast of 4.5 on both white and black. Browsers that cannot mix show the one before.
ERROR, LINE = "#E5383B", "#1F77D0"  # of error texts and sparklines
SHARE = 40  # per cent of the page's colour in them

STYLE = f"""<style>
.mgpu{{overflow-x:auto;max-width:1100px;color:var(--jp-ui-font-color1,inherit)}}
.mgpu{{font:13px/1.45 var(--jp-ui-font-family,sans-serif)}}
.mgpu table{{border-collapse:collapse;margin:2px 0;table-layout:auto;color:inherit}}
.mgpu th,.mgpu td{{padding:2px 10px 2px 0;text-align:left;white-space:nowrap;border:0;background:none}}
.mgpu th{{font-weight:600;color:color-mix(in srgb,currentColor 75%,transparent)}}
.mgpu caption{{text-align:left;font-weight:600;caption-side:top;color:inherit;padding:2px 0}}
.mgpu .n{{text-align:right;font-variant-numeric:tabular-nums}}
.mgpu .t{{max-width:24em;overflow:hidden;text-overflow:ellipsis}}
.mgpu td.s{{white-space:pre;font-family:var(--jp-code-font-family,monospace);letter-spacing:-1px}}
.mgpu td.s{{color:{LINE};color:color-mix(in srgb,currentColor {SHARE}%,{LINE})}}
.mgpu{{container-type:inline-size}}
@container (max-width:900px){{.mgpu .m{{display:none}}}}
@container (max-width:700px){{.mgpu .o{{display:none}}}}
@container (max-width:620px){{.mgpu .s{{display:none}}.mgpu [role=img]{{max-width:80px}}}}
.mgpu [role=img]{{gap:1px;align-items:center;box-sizing:border-box;vertical-align:-1px}}
.mgpu [role=img] div{{min-width:2px}}
.mgpu .q{{color:color-mix(in srgb,currentColor 75%,transparent)}}
.mgpu .e{{color:{ERROR};color:color-mix(in srgb,currentColor {SHARE}%,{ERROR})}}
</style>"""


_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;"})


class Html(str):
    """Text that is HTML already, and is not escaped again."""

    __slots__ = ()


def escape(text: object, most: int = 200) -> Html:
    """HTML that shows a text on one line, whatever is in it; `Html` comes back as it is.

    Parameters
    ----------
    text
        Anything; `str` of it is shown.
    most
        Characters, of which the last is an ellipsis if the text is longer.
    """
    if isinstance(text, Html):
        return text
    shown = str(text)
    if len(shown) > most:
        shown = shown[: most - 1] + "…"
    # Cc: control, Cf: format (right-to-left overrides among them), Cs: halves of surrogate pairs.
    plain = "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in shown)
    return Html(plain.translate(_ENTITIES))


def line(text: object, kind: str = "", most: int = 400) -> Html:
    """A line of text; `kind` is ``"q"`` for secondary text, ``"e"`` for errors."""
    return Html(
        f'<div class="{kind}">{escape(text, most)}</div>' if kind else f"<div>{escape(text, most)}</div>"
    )


def block(*parts: Html) -> Html:
    """The parts, one below the other, with the style sheet that they need: the output of a cell."""
    return Html(f'{STYLE}<div class="mgpu">{"".join(parts)}</div>')


def table(
    head: Sequence[tuple[str, str]],
    rows: Iterable[Sequence[object]],
    label: str,
    *,
    live: bool = False,
    title: str = "",
) -> Html:
    """A table, to be put within a `block`.

    Parameters
    ----------
    head
        Heading and class of each column: ``"n"`` numbers, to the right; ``"t"`` long text, cut off at 24 em; ``"s"``
        sparklines; ``"m"`` left out on a page of less than 900 pixels, ``"o"`` of less than 620; ``""`` other text.
        Several are separated by spaces.
    rows
        Cells, as many as there are headings. Text is escaped, `Html` is not.
    label
        Name of the table for screen readers.
    live
        Whether it is shown in a widget, where the style sheet always applies. A static table states the alignment in
        every cell: pages that drop style sheets keep it, and JupyterLab's own style of tables would override a class.
    title
        Caption shown above it.
    """
    marks = [
        f'class="{kind}"' if live else f'class="{kind}" style="text-align:{_side(kind)}"' for _, kind in head
    ]
    cells = "".join(
        f'<th {mark} scope="col">{escape(name)}</th>' for (name, _), mark in zip(head, marks, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td {mark}>{escape(cell)}</td>" for mark, cell in zip(marks, row, strict=True))
        + "</tr>"
        for row in rows
    )
    above = f'<caption style="text-align:left">{escape(title)}</caption>' if title else ""
    return Html(
        f'<table aria-label="{escape(label)}">{above}<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>'
    )


MOST_ROWS = 60  # that are shown of a table
FIRST_ROWS = 40  # of those, the others are the last
MOST_PLAIN = 60  # characters of a cell in a terminal


class Table:
    """A table of text with lines above it: aligned columns in a terminal, HTML in a notebook.

    Of more than 60 rows the first and the last are shown, and how many there are between; `rows` has all.

    Parameters
    ----------
    head
        Heading and class of each column, see `table`.
    rows
        Cells.
    label
        Name of the table for screen readers.
    above
        Lines above it.
    """

    def __init__(
        self,
        head: Sequence[tuple[str, str]],
        rows: Iterable[Sequence[object]],
        label: str,
        above: Iterable[str] = (),
    ) -> None:
        self.head = tuple(head)
        self.rows = [tuple(row) for row in rows]
        self.label = label
        self.above = tuple(above)

    def _shown(self) -> list[tuple[object, ...]]:
        more = len(self.rows) - MOST_ROWS
        if more <= 0:
            return self.rows
        last = MOST_ROWS - FIRST_ROWS
        return [*self.rows[:FIRST_ROWS], gap(more, "more", len(self.head)), *self.rows[-last:]]

    def __str__(self) -> str:
        texts = [[clean(name) for name, _ in self.head]]
        for cells in self._shown():
            texts += map(list, zip_longest(*map(_lines, cells), fillvalue=""))
        widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
        sides = [_side(kind) for _, kind in self.head]
        lines = [safe(each) for each in self.above]
        for row in texts:
            placed = zip(row, widths, sides, strict=True)
            lines.append("  ".join(c.rjust(w) if s == "right" else c.ljust(w) for c, w, s in placed).rstrip())
        return "\n".join(lines)

    __repr__ = __str__

    def fitted(self, width: int) -> str:
        """Text for a terminal of so many columns: if it is wider, without what a narrow page leaves out, too."""
        text = str(self)
        for left_out in ({"m"}, {"m", "o"}):
            if max(map(len, text.splitlines()[len(self.above) :])) <= width:
                break
            kept = [n for n, (_, kind) in enumerate(self.head) if not left_out & set(kind.split())]
            rows = [[row[n] for n in kept] for row in self.rows]
            text = str(Table([self.head[n] for n in kept], rows, self.label, self.above))
        return text

    def parts(self) -> list[Html]:
        """The lines above it and the table, to be put within a `block`."""
        return [*map(line, self.above), table(self.head, self._shown(), self.label)]

    def to_html(self) -> Html:
        """The table as HTML that stands by itself."""
        return block(*self.parts())

    def _repr_html_(self) -> str:
        return self.to_html()


class Document:
    """Lines and tables below each other: text in a terminal, HTML in a notebook. What a report is displayed as."""

    def _content(self) -> Iterable[str | Table]:
        """Its lines and tables."""
        raise NotImplementedError

    def __str__(self) -> str:
        texts: list[str] = []
        for part in self._content():
            texts += ["", str(part), ""] if isinstance(part, Table) else [part]
        return safe(re.sub(r"\n{3,}", "\n\n", "\n".join(texts)).strip("\n"))

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        parts = ([line(part)] if isinstance(part, str) else part.parts() for part in self._content())
        return block(*(piece for some in parts for piece in some))


def gap(count: int, words: str, columns: int) -> tuple[object, ...]:
    """Row that stands for `count` rows which are not shown."""
    return (Html(f'<span class="q">… {count:,} {escape(words)} …</span>'), *[""] * (columns - 1))


def gib(size: float | None, digits: int = 1) -> str:
    """Bytes in GiB, without the unit; empty if unknown."""
    return "" if size is None else f"{size / 2**30:.{digits}f}"


def number(value: float | None, unit: str = "") -> str:
    """A number without decimals, with its unit; empty if unknown."""
    return "" if value is None else f"{value:.0f}{unit}"


def _side(kind: str) -> str:
    return "right" if "n" in kind.split() else "left"


def _lines(cell: object) -> list[str]:
    """Text of a cell; of HTML a line for each that ``<br>`` ends."""
    if not isinstance(cell, Html):
        return [_plain(cell)]
    import html  # 2 ms, and few tables have cells of HTML

    return [_plain(html.unescape(re.sub(r"<[^>]*>", "", part))) for part in cell.split("<br>")]


def _plain(cell: object) -> str:
    first, more = str(cell).partition("\n")[::2]
    first = clean(first)
    return first[: MOST_PLAIN - 1] + "…" if more or len(first) > MOST_PLAIN else first
