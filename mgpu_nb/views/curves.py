"""A metric over steps or time: a line per task, or the mean of tasks with the same argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .metrics import extremes
from .palette import FAILURE, INK, NEUTRAL, colour_of, drawing, literal, plain_ticks

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from matplotlib.axes import Axes

__all__ = ["Curve", "curves"]

MOST_LINES = 10  # that have a colour and a name each
MOST_GREY = 500  # lines that are drawn of more tasks
POINTS = 60_000  # of all grey lines; 10 times as many take 10 seconds
WIDTH = 32  # characters of a name in the legend
GRID = 500  # places at which tasks are compared that reported at other ones
_DASHES = ("-", "--", ":", "-.")
_COLOURS = 6


class Curve(NamedTuple):
    """Values of a metric of one task, in the order in which it reported them."""

    task: str
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]


def curves(
    lines: Sequence[Curve],
    name: str,
    unit: str,
    *,
    by: str = "task",
    groups: Mapping[str, Any] | None = None,
    log: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Draw a metric of tasks.

    Of more than ten tasks each is a grey line, and three lines are named: the median of all, and those that end lowest
    and highest.

    Parameters
    ----------
    lines
        The tasks.
    name, unit
        Labels of the vertical and the horizontal axis.
    by
        What the lines are called by in the legend.
    groups
        Value of an argument of each task: one line for each value, the mean of its tasks, in a band from the lowest to
        the highest of them; more than ten are drawn like as many tasks. None for a line per task.
    log
        Whether the vertical axis is logarithmic.
    ax
        Axes to draw on; a new figure by default.

    Raises
    ------
    ValueError
        If the axis is logarithmic and no value is positive.
    """
    import numpy as np

    lines = [line._replace(y=np.where(np.isfinite(line.y), line.y, np.nan)) for line in lines]
    if log and not any((line.y > 0).any() for line in lines):
        raise ValueError(f"log=True: no value of {name!r} is positive")
    with drawing(ax) as ax:
        if groups is not None:
            _draw_groups(ax, lines, by, groups)
        elif len(lines) > MOST_LINES:
            _draw_many(ax, lines, "tasks")
        else:
            for place, line in enumerate(lines):
                ax.plot(line.x, line.y, label=_short(line.task), **_look(place, len(line.x)))
        _mark_ends(ax, lines if groups is None else ())
        if log:
            ax.set_yscale("log")
            plain_ticks(ax.yaxis)
        ax.set_xlabel(unit)
        ax.set_ylabel(literal(name))
        ax.margins(x=0.02)
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1), title=_title(by, groups))
    return ax


def _short(text: str) -> str:
    return literal(text if len(text) <= WIDTH else text[: WIDTH - 1] + "…")


def _title(by: str, groups: Mapping[str, Any] | None) -> str:
    return "task" if groups is None else f"mean by {literal(by)}\n(band: lowest to highest)"


def _look(place: int, points: int) -> dict[str, Any]:
    """Colour and dashes of a line; a single point needs a marker to be seen."""
    dashes = _DASHES[place // _COLOURS % len(_DASHES)]
    return {
        "color": colour_of(place),
        "ls": dashes,
        "lw": 1.5,
        "marker": "o" if points == 1 else None,
        "ms": 4,
    }


def _draw_many(ax: Axes, lines: Sequence[Curve], what: str) -> None:
    """Draw all lines in grey, and three of them that stand for all."""
    import numpy as np
    from matplotlib.collections import LineCollection

    shown = lines[:: -(-len(lines) // MOST_GREY)]
    paths = [np.column_stack(_thinned(line, POINTS // len(shown))) for line in shown]
    label = f"{'each' if len(shown) == len(lines) else f'{len(shown):,}'} of {len(lines):,} {what}"
    grey: dict[str, Any] = {"colors": NEUTRAL, "linewidths": 0.6, "alpha": 0.6}
    ax.add_collection(LineCollection(paths, label=literal(label), **grey))
    ends = {n: line.y[np.isfinite(line.y)][-1] for n, line in enumerate(lines) if np.isfinite(line.y).any()}
    if ends:
        lowest, highest = min(ends, key=lambda n: ends[n]), max(ends, key=lambda n: ends[n])
        grid, values = _on_grid(lines)
        ax.plot(grid, _over_tasks(np.nanmedian, values), color=INK, lw=2.5, label="median")
        for place, (n, word) in enumerate({highest: "ends highest", lowest: "ends lowest"}.items()):
            x, y = lines[n].x, lines[n].y
            ax.plot(x, y, label=f"{_short(lines[n].task)} ({word})", **_look(place, len(x)))
    ax.autoscale_view()


def _thinned(line: Curve, points: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    import numpy as np

    if len(line.x) <= points:
        return line.x, line.y
    places = extremes(line.y, np.isfinite(line.y), points)
    return line.x[places], line.y[places]


def _draw_groups(ax: Axes, lines: Sequence[Curve], by: str, groups: Mapping[str, Any]) -> None:
    """Draw the mean and the band of each group, those of numbers in their order."""
    import numpy as np

    members: dict[Any, list[Curve]] = {}
    for line in lines:
        value = groups.get(line.task)
        members.setdefault((type(value).__name__, value) if isinstance(value, bool) else value, []).append(
            line
        )
    numbers = all(isinstance(value, (int, float)) for value in members)
    found = []
    for value in sorted(members) if numbers else members:
        shown = value[1] if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else value
        label = _short(f"{by}={shown}" if value is not None else f"no {by}")
        found.append((label, len(members[value]), *_on_grid(members[value])))
    if len(found) > MOST_LINES:
        means = [Curve(label, grid, _over_tasks(np.nanmean, values)) for label, _, grid, values in found]
        _draw_many(ax, means, f"values of {by}")
        return
    for place, (label, tasks, grid, values) in enumerate(found):
        look, size = _look(place, len(grid)), f" ({tasks} task{'s' * (tasks > 1)})"
        ax.plot(grid, _over_tasks(np.nanmean, values), label=label + size, **look)
        if tasks > 1:
            low, high = _over_tasks(np.nanmin, values), _over_tasks(np.nanmax, values)
            ax.fill_between(grid, low, high, color=look["color"], alpha=0.2, lw=0)


def _mark_ends(ax: Axes, lines: Sequence[Curve]) -> None:
    """Mark where a line ends because what follows is NaN or infinite: it would look like a task that stopped there."""
    import numpy as np

    at = []
    for line in lines:
        finite = np.flatnonzero(np.isfinite(line.y))
        if len(finite) and finite[-1] + 1 < len(line.y):
            at.append((line.x[finite[-1]], line.y[finite[-1]]))
    if at:
        x, y = zip(*at, strict=True)
        ax.plot(x, y, "X", color=FAILURE, markeredgecolor="white", ms=8, label="NaN or infinite from here")


def _on_grid(lines: Sequence[Curve]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Values [task, place] at common places: those of all tasks if they are few; NaN where a task has none."""
    import numpy as np

    grid = np.unique(np.concatenate([line.x for line in lines]))
    if len(grid) > max(GRID, *(len(line.x) for line in lines)):
        grid = np.linspace(grid[0], grid[-1], GRID)
    values = np.full((len(lines), len(grid)), np.nan)
    for row, line in zip(values, lines, strict=True):
        order = np.argsort(line.x, kind="stable")
        row[:] = np.interp(grid, line.x[order], line.y[order], left=np.nan, right=np.nan)
    return grid, values


def _over_tasks(of: Any, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where no task has a value there is none
        found: npt.NDArray[np.float64] = of(values, axis=0)
    return found
