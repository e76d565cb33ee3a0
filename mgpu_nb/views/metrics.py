"""The metrics of a run in its panel: a small chart for each, and at the end a table of the last values."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from .markup import Html, escape, line, sparkline, table
from .palette import COLOURS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["MOST_CHARTS", "MOST_TRACES", "Chart", "Trace", "extremes", "metrics_html"]

MOST_CHARTS = 4
MOST_TRACES = 12  # lines of a chart
POINTS = 120  # of a line
_LINES = (24, 16, 8, 4)  # of all charts: at best, and in a panel that is crowded
_BYTES = 6.5  # of a point
_WIDTH, _HEIGHT = 220, 64  # pixels of a chart
_LOGARITHMIC = 100.0  # ratio of highest to lowest value from which the axis is logarithmic
_BLOCKS = 16  # characters of a curve in the table


class Trace(NamedTuple):
    """A metric of one task: steps and values in the order in which they were reported; `place` is that of the task.

    Lines of tasks that have ended are thin while others are `running`.
    """

    task: str
    place: int
    running: bool
    steps: Sequence[float]
    values: Sequence[float]


class Chart(NamedTuple):
    """A metric of a run: some of its tasks, how many reported it, and if known the last value of each (value, task)."""

    name: str
    tasks: int
    traces: tuple[Trace, ...]
    ends: tuple[tuple[float, str], ...] = ()


class _Scale(NamedTuple):
    """Ranges of a chart's axes."""

    first: float
    last: float
    low: float
    high: float
    log: bool

    def height(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Shares of the axis, 0 to 1, of finite values."""
        import numpy as np

        low, high = self.low, self.high
        if self.log:
            values, low, high = np.log(values), math.log(low), math.log(high)
        # By halves: the difference of the largest values is infinite.
        return (values / 2 - low / 2) / ((high / 2 - low / 2) or 1.0)


class _Line(NamedTuple):
    """A trace as arrays."""

    trace: Trace
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    finite: npt.NDArray[np.bool_]


def metrics_html(
    charts: Sequence[Chart], *, live: bool, budget: int | None = None, more: Sequence[str] = ()
) -> Html:
    """Charts of the metrics; at the end also a table, for pages that strip pictures.

    Parameters
    ----------
    charts
        The metrics.
    live
        Whether the page is updated.
    budget
        Bytes that it may take: fewer lines and points are drawn then, or nothing.
    more
        Names of metrics that are not among the charts.
    """
    if not charts:
        return Html("")
    for lines in _LINES:
        cut = [chart._replace(traces=chart.traces[: max(1, lines // len(charts))]) for chart in charts]
        drawn = sum(len(chart.traces) for chart in cut)
        points = POINTS
        if budget is not None:
            legend = 90 * max(len(chart.traces) for chart in cut)
            left = budget - 480 * len(cut) - legend - 60 * drawn - min(200, len(", ".join(more))) - 120
            points = min(POINTS, int(left / _BYTES / drawn))
        if points >= POINTS // 12 or lines == _LINES[-1]:
            found = _drawn(cut, max(8, points), live, more)
            if budget is None or len(found.encode()) <= budget:
                return found
    return Html("")


def _drawn(charts: Sequence[Chart], points: int, live: bool, more: Sequence[str]) -> Html:
    single = [chart for chart in charts if _is_single(chart)]
    charts = [chart for chart in charts if not _is_single(chart)]
    lines = [[_line_of(trace) for trace in chart.traces] for chart in charts]
    scales = [_scale(own) for own in lines]
    parts = [_chart_html(*of, points) for of in zip(charts, lines, scales, strict=True)]
    below = [line(_summary(chart)) for chart in single]
    if charts:
        below += [Html(f"<div>{''.join(parts)}</div>"), _legend(charts)]
    if more:
        below.append(line(f"and {', '.join(more)}", "q", 200))
    if not live:
        below += [line(_summary(chart)) for chart in charts if len(chart.ends) > len(chart.traces)]
        if charts:
            below.append(_last_values(charts, lines, scales))
    return Html(f'<div class="mgpu">{"".join(below)}</div>')


def _is_single(chart: Chart) -> bool:
    """Whether its tasks reported it once each, and not all fit: some dots say less than words on all of them."""
    return chart.tasks > len(chart.traces) and all(len(trace.values) == 1 for trace in chart.traces)


def _line_of(trace: Trace) -> _Line:
    import numpy as np

    values = np.asarray(trace.values, dtype=float)
    return _Line(trace, np.asarray(trace.steps, dtype=float), values, np.isfinite(values))


def _scale(lines: Sequence[_Line]) -> _Scale:
    import numpy as np

    x = np.concatenate([line.x for line in lines])
    y = np.concatenate([line.y[line.finite] for line in lines])
    low, high = (float(y.min()), float(y.max())) if len(y) else (0.0, 0.0)
    return _Scale(float(x.min()), float(x.max()), low, high, low > 0 and high / low >= _LOGARITHMIC)


def _chart_html(chart: Chart, lines: Sequence[_Line], scale: _Scale, points: int) -> str:
    """A chart under a line of words. It has no text of its own: a page that strips it would leave that behind."""
    span = _span(scale.low, scale.high) + (" (log)" if scale.log else "")
    steps = f"step {_span(scale.first, scale.last)}"
    paths = "".join(_path(line, scale, points) for line in lines)
    said = f"{chart.name} of {chart.tasks} task{'s' * (chart.tasks != 1)}, {span}, {steps}"
    return (
        '<div style="display:inline-block;margin:4px 16px 2px 0">'
        f'<div><b>{escape(chart.name, 40)}</b> <span class="q">{span} · {steps}</span></div>'
        f'<svg role="img" aria-label="{escape(said)}" width="{_WIDTH}" height="{_HEIGHT}" style="max-width:none" '
        f'fill="none" stroke-width="1.5" stroke-linecap="round"><path d="M1 0v{_HEIGHT - 1}h{_WIDTH}" '
        f'stroke="currentColor" stroke-opacity=".4" stroke-width="1"/>{paths}</svg></div>'
    )


def _look(trace: Trace) -> tuple[str, bool]:
    """Colour of a task, the same in every chart, and whether its line is dashed."""
    return COLOURS[trace.place % len(COLOURS)], bool(trace.place // len(COLOURS) % 2)


def _path(line: _Line, scale: _Scale, points: int) -> str:
    """A line as a path of whole pixels, relative from point to point; broken where a value is not finite."""
    import numpy as np

    x, y, finite = line.x, line.y, line.finite
    if len(y) > points:
        places = extremes(y, finite, points)
        x, y, finite = x[places], y[places], finite[places]
    x = 3 + (_WIDTH - 6) * ((x - scale.first) / ((scale.last - scale.first) or 1.0))
    y = 2 + (_HEIGHT - 6) * (1 - scale.height(np.where(finite, y, scale.high)))
    words: list[str] = []
    at: tuple[int, int] | None = None
    pixels = zip(x.round().astype(int).tolist(), y.round().astype(int).tolist(), finite.tolist(), strict=True)
    for left, top, known in pixels:
        if not known:
            at = None
        elif at is None:
            words.append(f"M{left} {top}h0")  # a point that stands alone is seen, too
            at = left, top
        elif at != (left, top):
            words.append(f"l{left - at[0]} {top - at[1]}")
            at = left, top
    colour, dashed = _look(line.trace)
    width = "5" if len(words) == 1 else "" if line.trace.running else "1"
    form = f' stroke-width="{width}"' if width else ""
    form += ' stroke-dasharray="4 2"' if dashed else ""
    return f'<path d="{"".join(words)}" stroke="{colour}"{form}/>'


def extremes(
    values: npt.NDArray[np.float64], finite: npt.NDArray[np.bool_], points: int
) -> npt.NDArray[np.intp]:
    """Places of at most so many values: the lowest and the highest of each stretch, so that no spike is lost."""
    import numpy as np

    size = -(-len(values) // max(1, points // 2 - 1))
    starts = np.arange(0, len(values), size)
    whole = len(values) // size * size
    found = [np.array([0, len(values) - 1])]
    for fill, choose in ((np.inf, np.argmin), (-np.inf, np.argmax)):
        filled = np.where(finite, values, fill)
        found.append(choose(filled[:whole].reshape(-1, size), axis=1) + starts[: whole // size])
        if whole < len(values):
            found.append(choose(filled[whole:], keepdims=True) + whole)
    return np.unique(np.concatenate(found))


def _legend(charts: Sequence[Chart]) -> Html:
    """Names of the lines, in their colours."""
    tasks = {trace.task: trace for chart in charts for trace in chart.traces}
    shown = sorted(tasks.values(), key=lambda trace: trace.place)
    names = []
    for trace in shown:
        colour, dashed = _look(trace)
        names.append(f'<span style="color:{colour}">{"╍" if dashed else "━"}</span> {escape(trace.task, 24)}')
    total = max(chart.tasks for chart in charts)
    if total > len(shown):
        names.append(f'<span class="q">of {total:,} tasks</span>')
    return Html(f"<div>{' &nbsp;'.join(names)}</div>")


def _summary(chart: Chart) -> str:
    """Last values of all tasks in words."""
    ends = chart.ends or [(trace.values[-1], trace.task) for trace in chart.traces]
    finite = [end for end in ends if math.isfinite(end[0])]
    if not finite:
        return f"{chart.name}: no last value is finite"
    low, high = min(finite), max(finite)
    middle = statistics.median(value for value, _ in finite)
    span = f"{_short(low[0])} ({low[1]}) to {_short(high[0])} ({high[1]})"
    known = f"{len(ends):,} of {chart.tasks:,}" if len(ends) < chart.tasks else f"{chart.tasks:,}"
    words = f"last {chart.name} of {known} tasks: {span}, median {_short(middle)}"
    lost = len(ends) - len(finite)
    return words + (f", {lost} not finite" if lost else "")


def _last_values(charts: Sequence[Chart], lines: Sequence[Sequence[_Line]], scales: Sequence[_Scale]) -> Html:
    """A row per task: the last value of each metric, and its curve in block characters."""
    head = [("task", "t")]
    traces = {trace.task: trace for chart in charts for trace in chart.traces}
    tasks = sorted(traces, key=lambda name: traces[name].place)
    rows: list[list[object]] = [[escape(task, 60)] for task in tasks]
    for chart, own, scale in zip(charts, lines, scales, strict=True):
        head += [(f"last {chart.name}", "n"), ("by step", "s")]
        by_task = {line.trace.task: line for line in own}
        for task, cells in zip(tasks, rows, strict=True):
            if task not in by_task:
                cells += ["", ""]
                continue
            line = by_task[task]
            heights = iter(scale.height(line.y[line.finite]).tolist())
            known = [next(heights) if finite else None for finite in line.finite.tolist()]
            cells += [_short(line.trace.values[-1]), sparkline(known, 1.0, _BLOCKS).strip()]
    return table(head, rows, "last values of the metrics")


def _span(low: float, high: float) -> str:
    return _short(low) if low == high else f"{_short(low)} to {_short(high)}"


def _short(value: float) -> str:
    whole = float(value).is_integer() and abs(value) < 10**7
    return f"{value:,.0f}" if whole else f"{value:.4g}"
