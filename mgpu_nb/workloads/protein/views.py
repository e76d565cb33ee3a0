"""Pictures of protein runs. Every function takes ``ax`` and returns the axes it drew on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .report import Report

__all__ = ["plot_methods", "plot_scores", "plot_structure"]

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


def plot_scores(report: Report, ax: Axes | None = None) -> Axes:
    """Draw mean score against network evaluations per sample, a line per method, with its standard error."""
    ax = _axes(ax)
    results = report.succeeded
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
    if report.baseline is not None:
        ax.axhline(report.baseline["mean_score"], color=_STYLES["standard"][0], linewidth=0.8, linestyle=":")
    if results:
        ax.set_xscale("log")
        ax.legend(frameon=False, fontsize="small")
    ax.set(xlabel="network evaluations per sample", ylabel=f"mean {_label(results)}")
    return ax


def plot_methods(report: Report, ax: Axes | None = None) -> Axes:
    """Draw the improvement over the baseline, a bar per experiment, with its score written beside it."""
    ax = _axes(ax)
    drawn = [r for r in report.succeeded if report.improvement(r) is not None and r is not report.baseline]
    gains = [report.improvement(r) or 0.0 for r in drawn]
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


def plot_structure(report: Report, ax: Axes | None = None) -> Axes:
    """Draw the best sample of all as a C-alpha trace, superposed on its nearest reference fold.

    Parameters
    ----------
    report
        The run.
    ax
        3D axes to draw on; new ones by default.

    Raises
    ------
    ValueError
        Where no experiment succeeded, or `ax` is flat.
    """
    from .report import best_structure

    trace, reference, name, result = best_structure(report)
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


def _label(results: list[dict[str, Any]]) -> str:
    return _LABELS[results[0]["scoring_function"]] if results else "score"
