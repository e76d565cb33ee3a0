"""Pictures of protein runs. Every function takes ``ax`` and returns the axes it drew on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...views.palette import COLOURS, NEUTRAL, drawing, literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_methods", "plot_scores", "plot_structure"]

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
    """Draw mean score against network evaluations per sample, a line per method, with its standard error.

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
            # Of the mean: from the standard deviation of the population, that is with n - 1 in place of n.
            error = [r["std_score"] / max(1, r["num_samples"] - 1) ** 0.5 for r in points]
            ax.errorbar(
                [r["nfe"] for r in points], [r["mean_score"] for r in points], yerr=error, label=method,
                color=colour, marker=marker, markersize=9 if marker == "*" else 5, linewidth=1.4,
                elinewidth=0.8, capsize=2,
            )  # fmt: skip
        for baseline in (r for r in results if r["method"] == "standard"):
            ax.axhline(baseline["mean_score"], color=NEUTRAL, linewidth=0.8, linestyle=":")
        if results:
            ax.set_xscale("log")
            _whole_numbers(ax, {r["nfe"] for r in results})
            legend = ax.legend(
                title="bars: standard error of the mean", loc="upper left", bbox_to_anchor=(1, 1)
            )
            legend.get_title().set_fontsize("small")
        ax.set(xlabel="network evaluations (NFE) per sample", ylabel=f"mean {_label(results)}")
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
        ax.set_title(f"{literal(result['name'])}, {_LABELS[result['scoring_function']]} {score:.3f}")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=1)
    return ax


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
    return _LABELS[results[0]["scoring_function"]] if results else "score"
