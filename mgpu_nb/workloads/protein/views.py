"""Pictures of protein runs. Every function takes ``ax`` and returns the axes it drew on."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...views.palette import COLOURS, NEUTRAL, drawing, literal
from .comparison import SURE, AtEqualWork, curve
from .config import Config

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_equal_work", "plot_methods", "plot_scores", "plot_structure"]

Trace = npt.NDArray[np.float64]

# Of a method, in all pictures: markers tell the methods apart as well as colours.
_STYLES = {
    "standard": (NEUTRAL, "*"),
    "best_of_n": (COLOURS[0], "o"),
    "sde_path_exploration": (COLOURS[1], "s"),
    "divergence_free_ode": (COLOURS[2], "^"),
    "random_search_divfree": (COLOURS[3], "D"),
    "noise_search": (COLOURS[5], "v"),
}
_LABELS = {
    "tm_score": "TM-score to nearest fold",
    "rmsd": "RMSD to nearest fold (Å)",
    "mean_l2": "mean distance to nearest fold (Å)",
    "geometric": "geometric score",
}


def plot_scores(results: Sequence[dict[str, Any]], ax: Axes | None = None) -> Axes:
    """Draw mean score against network calls per sample, with its standard error: what a method gains at equal work.

    best_of_n is a line through every number of starts up to the most that were run; a method above it is worth its
    calls.

    Parameters
    ----------
    results
        Of the experiments that succeeded, what `run_experiment` returned.
    ax
        Axes to draw on; new ones by default.
    """
    with drawing(ax, (6.4, 4.0)) as ax:
        for method, (colour, marker) in _STYLES.items():
            points = sorted((r for r in results if r["method"] == method), key=lambda r: r["nfe"])
            if not points:
                continue
            longest = max(points, key=lambda r: len(curve(r)))
            if len(by_starts := curve(longest)) > 1:
                _draw_curve(ax, by_starts, int(longest["config"].get("steps", Config.steps)), colour)
                points = points[:-1] if len(points) > 1 else points
            ax.errorbar(
                [r["nfe"] for r in points], [r["mean_score"] for r in points], yerr=[_error(r) for r in points],
                label=method, color=colour, marker=marker, markersize=9 if marker == "*" else 5,
                linestyle="" if len(by_starts) > 1 else "-", linewidth=1.2, elinewidth=0.8, capsize=2,
            )  # fmt: skip
        if results:
            ax.set_xscale("log")
            _whole_numbers(ax, {r["nfe"] for r in results})
            legend = ax.legend(title="bars, band: standard error", loc="upper left", bbox_to_anchor=(1, 1))
            legend.get_title().set_fontsize("small")
        ax.set(xlabel="network calls (NFE) per sample", ylabel=f"mean {_label(results)}")
    return ax


def plot_equal_work(equal: Sequence[AtEqualWork], ax: Axes | None = None) -> Axes:
    """Draw how much better each search is than best_of_n with as many network calls, with two standard errors.

    Parameters
    ----------
    equal
        Searches beside best_of_n.
    ax
        Axes to draw on; new ones by default.
    """
    with drawing(ax, (6.4, 1.4 + 0.28 * len(equal))) as ax:
        for row, each in enumerate(equal):
            colour, marker = _STYLES[each.result["method"]]
            error = SURE * each.error if math.isfinite(each.error) else 0.0
            ax.errorbar(
                each.difference, row, xerr=error, color=colour, marker=marker, markersize=6,
                linestyle="", elinewidth=1.6, capsize=3,
            )  # fmt: skip
        names = [
            f"{e.result['method']}, {e.result['num_branches']} ({e.result['nfe']:,.0f} calls)" for e in equal
        ]
        ax.set_yticks(range(len(equal)), names)
        ax.invert_yaxis()
        ax.axvline(0, color=NEUTRAL, linewidth=1.0)
        ax.margins(x=0.1, y=0.08)
        what = _label([each.result for each in equal])
        ax.set_xlabel(
            f"gain in mean {what}\nover best_of_n with as many network calls (bars: two standard errors)"
        )
    return ax


def plot_methods(improvements: Sequence[tuple[dict[str, Any], float]], ax: Axes | None = None) -> Axes:
    """Draw the improvement over the baseline, a bar per experiment, with its score written beside it.

    Parameters
    ----------
    improvements
        Result of each experiment but the baseline, and how much better its mean score is.
    ax
        Axes to draw on; new ones by default.
    """
    drawn, gains = [result for result, _ in improvements], [gain for _, gain in improvements]
    # A row per experiment: with 15 of them the labels of a fixed height would touch.
    with drawing(ax, (6.4, 1.2 + 0.28 * len(drawn))) as ax:
        bars = ax.barh(range(len(drawn)), gains, color=[_STYLES[r["method"]][0] for r in drawn])
        ax.bar_label(bars, [f"{r['mean_score']:.3f}" for r in drawn], padding=3, fontsize="small")
        names = [f"{r['method']}, {r['num_branches']}" for r in drawn]
        ax.set_yticks(range(len(drawn)), names)
        ax.invert_yaxis()
        ax.axvline(0, color=NEUTRAL, linewidth=0.8)
        ax.margins(x=0.15)
        ax.set_xlabel(f"gain in mean {_label(drawn)}\nover the standard method (beside each bar: the mean)")
    return ax


def plot_structure(
    trace: Trace, reference: Trace, name: str, result: dict[str, Any], ax: Axes | None = None
) -> Axes:
    """Draw a sample as a C-alpha trace, superposed on its nearest reference fold.

    Parameters
    ----------
    trace, reference
        [L, 3] positions of the sample and of the fold, in angstrom.
    name
        Name of the fold.
    result
        Result of the sample's experiment.
    ax
        3D axes to draw on; new ones by default.

    Raises
    ------
    ValueError
        If `ax` is not 3D.
    """
    if ax is not None and ax.name != "3d":
        raise ValueError("a structure needs 3D axes: plt.figure().add_subplot(projection='3d')")
    with drawing(ax, (5.2, 4.6), projection="3d") as ax:
        solid: Any = ax
        solid.plot(
            *reference.T, color=NEUTRAL, alpha=0.6, linewidth=4, solid_capstyle="round",
            label=f"nearest reference fold: {literal(name)}",
        )  # fmt: skip
        colour = _STYLES[result["method"]][0]
        solid.plot(
            *trace.T, color=colour, linewidth=1.8, marker="o", markersize=2.5,
            label=f"sample of {result['method']}",
        )  # fmt: skip
        solid.scatter(*trace[0], color=COLOURS[4], s=36, label="first residue", depthshade=False)
        both = np.concatenate([trace, reference])
        middle, reach = (both.max(axis=0) + both.min(axis=0)) / 2, np.ptp(both, axis=0).max() / 2
        for axis, centre in zip("xyz", middle, strict=True):
            getattr(solid, f"set_{axis}lim")(centre - reach, centre + reach)
            getattr(solid, f"set_{axis}label")(f"{axis} (Å)")
            getattr(solid, f"{axis}axis").set_pane_color((0.5, 0.5, 0.5, 0.08))
        solid.set_box_aspect((1, 1, 1), zoom=0.85)
        solid.locator_params(nbins=5)
        score = result["scores"][result["best_sample"]]
        ax.set_title(f"{literal(result['name'])}, {_named(result['scoring_function'])} {score:.3f}")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=1)
    return ax


def _draw_curve(ax: Axes, by_starts: Trace, steps: int, colour: str) -> None:
    """best_of_n with 1 ... n starts [n, S]: mean over the samples, and its standard error as a band."""
    calls, mean = steps * np.arange(1, len(by_starts) + 1), by_starts.mean(axis=1)
    ax.plot(calls, mean, color=colour, linewidth=1.6)
    if by_starts.shape[1] > 1:
        error = by_starts.std(axis=1, ddof=1) / by_starts.shape[1] ** 0.5
        ax.fill_between(calls, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)


def _error(result: dict[str, Any]) -> float:
    """Standard error of the mean, from the standard deviation of the population: n - 1 in place of n."""
    return float(result["std_score"] / max(1, result["num_samples"] - 1) ** 0.5)


def _whole_numbers(ax: Axes, counts: Collection[float]) -> None:
    """Ticks at the numbers themselves, as far as they fit: a logarithmic axis would have powers of ten only."""
    ticks: list[float] = []
    least = (max(counts) / min(counts)) ** 0.1  # a tenth of the axis
    for count in sorted(counts):
        if not ticks or count >= least * ticks[-1]:
            ticks.append(count)
    ax.set_xticks(ticks, [f"{count:,.0f}" for count in ticks])
    ax.minorticks_off()


def _label(results: Sequence[dict[str, Any]]) -> str:
    return _named(results[0]["scoring_function"]) if results else "score"


def _named(score: str) -> str:
    """What a score is called: one of the user's by the name of its function."""
    return _LABELS.get(score, literal(score.rpartition(":")[2]))
