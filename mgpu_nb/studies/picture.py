"""The picture of a study: speed-up against slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..views.palette import COLOURS, NEUTRAL, drawing
from .figures import Figures, slots_text
from .prediction import serial_fraction

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
__all__ = ["draw"]

MEASURED, PREDICTED, AMDAHL, OTHERS = COLOURS[:4]
LOGARITHMIC = 16  # times as many slots as the smallest number, above which both axes double at each step


def draw(
    rows: Sequence[Figures],
    ax: Axes | None,
    predict: list[int],
    ahead: pd.DataFrame | None,
    published: Mapping[str, Mapping[int, float]],
) -> Axes:
    """Axes with measured speed-ups and their intervals, the ideal, Amdahl's fit, predictions and those of others.

    `ahead` is the prediction for the measured counts and those to `predict`, so that its band is whole.
    """
    with drawing(ax, (7.0, 4.2)) as axes:
        legend = _draw_all(axes, rows, predict, ahead, published)
        below: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (-0.02, -0.14), "ncols": 2}
        where = below if ax is None else {"loc": "best"}  # axes of the caller may have no room below
        axes.legend([*legend.values()], [*legend], frameon=False, fontsize=9, **where)
    return axes


def _draw_all(
    ax: Axes,
    rows: Sequence[Figures],
    predict: list[int],
    ahead: pd.DataFrame | None,
    published: Mapping[str, Mapping[int, float]],
) -> dict[str, Any]:
    """Draw everything but the legend; returns what that shows, by its words."""
    import numpy as np

    counts = [row.slots for row in rows]
    base, last = counts[0], counts[-1]
    stated = {n: gain for figures in published.values() for n, gain in figures.items()}
    least, top = min([base, *predict, *stated]), max([last, *predict, *stated])
    line = np.geomspace(least, top, 200)
    legend: dict[str, Any] = {}
    known = all(row.interval.known for row in rows)
    legend["measured (dots: repeats, bars: 95 % interval)" if known else "measured"] = _draw_measured(
        ax, rows
    )
    legend["ideal: linear"] = ax.plot(line, line / base, color=NEUTRAL, lw=1, label="ideal")[0]
    if (serial := serial_fraction(rows)) is not None:
        label = f"Amdahl's law, {serial:.1%} serial"
        gains = 1 / (serial + (1 - serial) * base / line)
        legend[label] = ax.plot(line, gains, ":", color=AMDAHL, lw=1.5, label=label)[0]
    heights = [least / base, top / base, *stated.values(), *(row.speed_up for row in rows)]
    if ahead is not None:
        shown, more = _draw_prediction(ax, ahead, [last, *predict])  # from where the measured line ends
        legend["predicted" if len(shown) == 1 else "predicted, with its interval"] = shown
        heights += more
    for (whose, figures), marker in zip(published.items(), "x+1234" * len(published), strict=False):
        legend[whose] = ax.plot([*figures], [*figures.values()], marker, color=OTHERS, mew=2, label=whose)[0]
    ax.set_xlabel("slots")
    ax.set_ylabel(f"speed-up over {slots_text(base)}")
    _set_scales(ax, sorted({*counts, *predict}), least, top, heights)
    return legend


def _set_scales(ax: Axes, ticks: list[int], least: int, top: int, heights: list[float]) -> None:
    low, high = min(heights), 1.08 * max(heights)  # the interval of a figure that is noise may go beyond
    if top / least > LOGARITHMIC:
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=2)
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set_ylim(0.8 * low, high)
    else:
        ax.set_ylim(0, high)
    ax.set_xticks(ticks, [str(n) for n in ticks])
    ax.minorticks_off()


def _draw_measured(ax: Axes, rows: Sequence[Figures]) -> Any:
    """Points with the intervals of their speed-ups, the repeats as dots, and a word at what is noise."""
    counts, gains = [row.slots for row in rows], [row.speed_up for row in rows]
    bars: Any = None
    if all(row.interval.known for row in rows):
        low = [max(0.0, row.speed_up - row.interval.lower) for row in rows]
        bars = [low, [max(0.0, row.interval.upper - row.speed_up) for row in rows]]
    repeats = [(row.slots, rows[0].wall / wall) for row in rows for wall in row.walls]
    ax.plot(*zip(*repeats, strict=True), "o", color=MEASURED, ms=4, alpha=0.4, ls="none", label="repeats")
    for row in rows:
        if row.noise:
            ax.annotate("noise", (row.slots, row.speed_up), (8, -10), textcoords="offset points", fontsize=9)
    return ax.errorbar(counts, gains, bars, fmt="o-", color=MEASURED, capsize=4, label="measured", zorder=3)


def _draw_prediction(ax: Axes, ahead: pd.DataFrame, points: list[int]) -> tuple[tuple[Any, ...], list[float]]:
    """Points of a prediction, and its interval as a band; returns what the legend shows, and the heights it needs."""
    shown = ahead[ahead["slots"].isin(points)]
    (drawn,) = ax.plot(
        shown["slots"], shown["speed_up"], "s--", color=PREDICTED, mfc="none", label="predicted"
    )
    if shown["speed_up_lower"].isna().any():
        return (drawn,), list(shown["speed_up"])
    slots, low, high = (ahead[name].to_numpy() for name in ("slots", "speed_up_lower", "speed_up_upper"))
    band = ax.fill_between(
        slots, low, high, color=PREDICTED, alpha=0.15, lw=0, label="interval of the prediction"
    )
    return (drawn, band), [*low, *high]
