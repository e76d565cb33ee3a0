"""The graph of the tasks of a run: which waits for which, and what has become of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, Any

from ..tasks import count_failed
from .markup import CANCELLED, DONE, FAILED, RUNNING, Html, escape
from .palette import INK, NEUTRAL, drawing, literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MOST_NODES", "RUNS", "WAITS", "graph", "graph_html", "layout"]

WAITS, RUNS = "waiting", "running"
"""States of a task beside the statuses of records."""

MOST_NODES = 60  # of a panel
MOST_LABELS = 50  # of a picture
_NAMED = 16  # nodes of a panel that have their name beside them
_WIDTH, _ROW, _RADIUS = 640, 16, 4.5  # pixels of a panel
_LETTERS = 18
_CIRCLE: tuple[Any, float] = ("o", 60)
_FORMS: dict[str, tuple[Any, float]] = {
    "failed": ("X", 70), RUNS: ("D", 50), WAITS: ("o", 15), "cancelled or skipped": ("x", 40)
}  # fmt: skip
"""Marker and its area: the form says what the colour does."""
_ORDER = ("ok", RUNS, WAITS, "failed", "cancelled or skipped")


def graph(after: Mapping[str, Sequence[str]], states: Mapping[str, str], ax: Axes | None = None) -> Axes:
    """Draw the tasks of a run as a graph from left to right, in the colours of what has become of them.

    Parameters
    ----------
    after
        Names that each task waits for.
    states
        Status of each task that has ended, `RUNS` or `WAITS` of the others.
    ax
        Axes to draw on; a new figure by default.

    Raises
    ------
    ValueError
        If there is no task.
    """
    if not after:
        raise ValueError("a run that has no tasks has no graph")
    places = layout(after)
    heights = [y for _, y in places.values()]
    columns = 1 + max(x for x, _ in places.values())
    size = (max(6.0, 2.0 + 1.7 * columns), 1.2 + min(8.0, 0.36 * (max(heights) - min(heights) + 1)))
    with drawing(ax, size) as ax:
        from matplotlib.collections import LineCollection

        edges = [(places[other], places[name]) for name, others in after.items() for other in others]
        ax.add_collection(LineCollection(edges, colors=NEUTRAL, linewidths=0.8, alpha=0.6, zorder=1))
        kinds = {name: _kind(states[name]) for name in after}
        for kind in _ORDER:
            own = [places[name] for name in after if kinds[name] == kind]
            if own:
                form, area = _FORMS.get(kind, _CIRCLE)
                x, y = zip(*own, strict=True)
                label = f"{kind} ({len(own):,})"
                ax.scatter(x, y, s=area, c=_colour(kind), marker=form, label=label, zorder=2)
        if len(after) <= MOST_LABELS:
            for name, place in places.items():
                ax.annotate(literal(_short(name, 22)), place, (0, 7), textcoords="offset points", ha="center",
                            fontsize="x-small", color=INK)  # fmt: skip
        ax.set_axis_off()
        ax.margins(0.08, 0.15)
        ax.invert_yaxis()
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def graph_html(after: Mapping[str, Sequence[str]], states: Mapping[str, str]) -> Html:
    """The graph in a panel; nothing where no task waits for another."""
    if not any(after.values()):
        return Html("")
    places = layout(after)
    last = max(x for x, _ in places.values())
    low, high = min(y for _, y in places.values()), max(y for _, y in places.values())
    named = len(after) <= _NAMED
    row, edge = (_ROW + 10, 50) if named else (_ROW, 15)
    step = (_WIDTH - 2 * edge) / max(1, last)
    at = {name: (edge + x * step, (22 if named else 12) + (y - low) * row) for name, (x, y) in places.items()}
    parts = [
        f'<path d="{"".join(_edge(at[other], at[name]) for name, others in after.items() for other in others)}" '
        f'fill="none" stroke="{NEUTRAL}" stroke-opacity="0.6"/>'
    ]
    for name, (x, y) in at.items():
        title = f"<title>{escape(name, 60)}: {escape(states[name])}</title>"
        parts.append(_node(_kind(states[name]), x, y, title))
        if named:
            text = escape(_short(name, min(_LETTERS, int(step / 5))))
            parts.append(f'<text x="{x:.0f}" y="{y - 8:.0f}" text-anchor="middle">{text}</text>')
    counts = [f"{sum(_kind(state) == kind for state in states.values())} {kind}" for kind in _ORDER]
    label = f"graph of the tasks: {', '.join(text for text in counts if not text.startswith('0 '))}"
    height = (34 if named else 24) + (high - low) * row
    return Html(
        f'<svg role="img" aria-label="{label}" width="{_WIDTH}" height="{height:.0f}" font-size="9" fill="{INK}" '
        f'style="max-width:100%">{"".join(parts)}</svg>'
    )


def _edge(begin: tuple[float, float], end: tuple[float, float]) -> str:
    return f"M{begin[0]:.0f} {begin[1]:.0f}L{end[0]:.0f} {end[1]:.0f}"


def _node(kind: str, x: float, y: float, title: str) -> str:
    colour, r = _colour(kind), _RADIUS
    if kind in ("failed", "cancelled or skipped"):  # a cross
        arms = f"M{x - r:.1f} {y - r:.1f}l{2 * r} {2 * r}m0 {-2 * r}l{-2 * r} {2 * r}"
        return (
            f'<path d="{arms}" stroke="{colour}" stroke-width="{3 if kind == "failed" else 2}">{title}</path>'
        )
    if kind == RUNS:  # a square on its corner
        r += 1.5
        return f'<path d="M{x:.1f} {y - r:.1f}l{r} {r}l{-r} {r}l{-r} {-r}z" fill="{colour}">{title}</path>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r - 2 * (kind == WAITS)}" fill="{colour}">{title}</circle>'


def _kind(state: str) -> str:
    if state in ("ok", RUNS, WAITS):
        return state
    return "failed" if count_failed({state: 1}) else "cancelled or skipped"


def _colour(kind: str) -> str:
    return {"ok": DONE, RUNS: RUNNING, "failed": FAILED}.get(kind, CANCELLED)


def _short(name: str, letters: int) -> str:
    """A name without its middle if it is long: names of the same chain differ at the end."""
    return name if len(name) <= letters else f"{name[: letters // 3]}…{name[-(letters - letters // 3 - 1) :]}"


def layout(after: Mapping[str, Sequence[str]]) -> dict[str, tuple[float, float]]:
    """Place of each task: its column is the length of the longest chain before it, its row near what it waits for.

    Parameters
    ----------
    after
        Names that each task waits for, without cycles.
    """
    columns: dict[str, int] = {}
    for name in TopologicalSorter(after).static_order():
        columns[name] = 1 + max((columns[other] for other in after.get(name, ())), default=-1)
    rows: dict[str, float] = {}
    members: dict[int, list[str]] = {}
    for name in after:
        members.setdefault(columns[name], []).append(name)
    for column in sorted(members):
        wanted = {name: _near(after[name], rows, place) for place, name in enumerate(members[column])}
        ordered = sorted(members[column], key=lambda name: wanted[name])
        found: list[float] = []
        for name in ordered:  # no two nearer than a row
            found.append(max(wanted[name], found[-1] + 1) if found else wanted[name])
        shift = sum(found[i] - wanted[name] for i, name in enumerate(ordered)) / len(ordered)
        rows |= {name: row - shift for name, row in zip(ordered, found, strict=True)}
    return {name: (float(columns[name]), rows[name]) for name in after}


def _near(others: Sequence[str], rows: Mapping[str, float], place: int) -> float:
    """Row in the middle of what a task waits for; of one that waits for nothing its place among those."""
    known = [rows[other] for other in others if other in rows]
    return sum(known) / len(known) if known else float(place)
