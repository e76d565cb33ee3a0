"""Pictures of protein runs. Every function takes ``ax`` and returns the axes it drew on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_methods", "plot_scores", "plot_structure"]

Trace = npt.NDArray[np.float64]

# Paul Tol's muted colours: they stay apart for colour-blind eyes; markers tell the methods apart as well.
_STYLES = {
    "standard": ("#555555", "*"),
    "best_of_n": ("#88CCEE", "o"),
    "sde_path_exploration": ("#CC6677", "s"),
    "divergence_free_ode": ("#117733", "^"),
    "random_search_divfree": ("#DDCC77", "D"),
    "noise_search": ("#332288", "v"),
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
    ax = _axes(ax)
    for method, (colour, marker) in _STYLES.items():
        points = sorted((r for r in results if r["method"] == method), key=lambda r: r["nfe"])
        if not points:
            continue
        error = [r["std_score"] / r["num_samples"] ** 0.5 for r in points]
        ax.errorbar(
            [r["nfe"] for r in points], [r["mean_score"] for r in points], yerr=error, label=method,
            color=colour, marker=marker, markersize=9 if marker == "*" else 5, linewidth=1.4,
            elinewidth=0.8, capsize=2,
        )  # fmt: skip
    for baseline in (r for r in results if r["method"] == "standard"):
        ax.axhline(baseline["mean_score"], color=_STYLES["standard"][0], linewidth=0.8, linestyle=":")
    if results:
        ax.set_xscale("log")
        ax.legend(frameon=False, fontsize="small")
    ax.set(xlabel="network evaluations per sample", ylabel=f"mean {_label(results)}")
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
    ax = _axes(ax)
    drawn, gains = [result for result, _ in improvements], [gain for _, gain in improvements]
    names = [f"{r['method']}, {r['num_branches']}" for r in drawn]
    colours = [_STYLES[r["method"]][0] for r in drawn]
    bars = ax.barh(range(len(drawn)), gains, color=colours)
    ax.bar_label(bars, [f"{r['mean_score']:.3f}" for r in drawn], padding=3, fontsize="small")
    ax.set_yticks(range(len(drawn)), names)
    ax.invert_yaxis()
    ax.axvline(0, color="#555555", linewidth=0.8)
    ax.margins(x=0.15)
    ax.set_xlabel(f"improvement of mean {_label(drawn)} over standard")
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
    ax = plt.figure(figsize=(5.2, 4.6)).add_subplot(projection="3d") if ax is None else ax
    if ax.name != "3d":
        raise ValueError("a structure needs 3D axes: plt.figure().add_subplot(projection='3d')")
    solid: Any = ax
    solid.plot(*reference.T, color="#BBBBBB", linewidth=4, solid_capstyle="round", label=f"reference: {name}")
    solid.plot(
        *trace.T,
        color=_STYLES["sde_path_exploration"][0],
        linewidth=1.8,
        marker="o",
        markersize=2.5,
        label="sample",
    )
    solid.scatter(*trace[0], color="#332288", s=28, label="first residue")
    both = np.concatenate([trace, reference])
    middle, reach = (both.max(axis=0) + both.min(axis=0)) / 2, np.ptp(both, axis=0).max() / 2
    for axis, centre in zip("xyz", middle, strict=True):
        getattr(solid, f"set_{axis}lim")(centre - reach, centre + reach)
        getattr(solid, f"set_{axis}label")(f"{axis} (Å)")
    solid.set_box_aspect((1, 1, 1))
    solid.locator_params(nbins=5)
    score = result["scores"][result["best_sample"]]
    ax.set_title(f"{result['name']}, {_LABELS[result['scoring_function']]} {score:.3f}", fontsize="medium")
    ax.legend(frameon=False, fontsize="small")
    return ax


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    ax = plt.subplots(figsize=(6.4, 4.0), layout="constrained")[1]
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _label(results: Sequence[dict[str, Any]]) -> str:
    return _LABELS[results[0]["scoring_function"]] if results else "score"
