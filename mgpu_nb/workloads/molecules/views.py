"""Pictures of molecules: metrics against guidance scale, forces along the way, the molecules themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...views.palette import (
    COLOURS,
    FAILURE,
    INK,
    NEUTRAL,
    colour_of,
    drawing,
    drawings,
    literal,
    plain_ticks,
    style,
)
from .bonds import bond_orders, unmet
from .molecule import NUMBERS, Molecule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .intervals import Estimate

__all__ = [
    "ELEMENTS", "PANELS", "draw_molecule", "draw_molecules", "metric_picture", "metrics_picture", "trajectory_picture",
    "widest",
]  # fmt: skip

Floats = NDArray[np.float64]

PANELS = {
    "molecule_stability": "stable molecules",
    "atom_stability": "stable atoms",
    "validity": "valid molecules",
    "force_rms": "median force RMS (eV/Å)",
}
"""Metrics that are drawn, a panel each, with the label of its axis; all but the forces are better if higher."""

SHARES = (
    "molecule_stability", "atom_stability", "validity", "uniqueness", "novelty", "judge_failures", "guide_failures",
)  # fmt: skip
"""Metrics that are from 0 to 1."""

ELEMENTS = {"H": "#949494", "C": "#686868", "N": "#3D5BF5", "O": "#E8262A", "F": "#3A9A2C"}
"""Colours of the elements, those of plastic models (Corey, Pauling and Koltun) made to stand out from both pages."""
_RADII = {"H": 0.26, "C": 0.38, "N": 0.37, "O": 0.36, "F": 0.35}  # in angstrom, of the drawn atoms
_SYMBOLS = {number: symbol for symbol, number in NUMBERS.items()}
_APART = 0.16  # angstrom between the lines of a double bond


def metrics_picture(
    metrics: Mapping[str, Mapping[str, Estimate]],
    scales: Mapping[str, float],
    steps: int | None = None,
    axes: Sequence[Axes] | None = None,
) -> Sequence[Axes]:
    """Draw metrics against guidance scale, a panel for each of `PANELS`, with their intervals of 95 %.

    Parameters
    ----------
    metrics, scales, steps
        As `metric_picture` takes them.
    axes
        Four axes to draw on; new ones by default.
    """
    with drawings(axes, len(PANELS), (11.0, 3.0)) as axes:
        for ax, metric in zip(axes, PANELS, strict=True):
            _panel(ax, metric, metrics, scales, steps)
        if axes[-1].get_legend_handles_labels()[1]:
            axes[-1].legend(loc="best")
    return axes


def metric_picture(
    metric: str,
    metrics: Mapping[str, Mapping[str, Estimate]],
    scales: Mapping[str, float],
    steps: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw one metric against guidance scale, with its intervals of 95 %.

    Parameters
    ----------
    metric
        Name of the metric, of `metrics.METRICS`.
    metrics
        Metrics of each set by its name, what `summarise` returns.
    scales
        Guidance scales by name of the set. A set that has none, the baseline or relaxed samples, is a line across.
    steps
        Steps of the sampler, T: the axis then has scale times T as well.
    ax
        Axes to draw on; new ones by default.
    """
    with drawing(ax, (6.4, 3.6)) as ax:
        _panel(ax, metric, metrics, scales, steps)
        if ax.get_legend_handles_labels()[1]:
            ax.legend(loc="best")
    return ax


def trajectory_picture(
    trajectories: Mapping[str, tuple[Floats, Floats]], ax: Axes | None = None, baseline: str = "baseline"
) -> Axes:
    """Draw force RMS along the way from noise to molecule: medians as lines, the middle half of the samples as bands.

    Parameters
    ----------
    trajectories
        Of each set by its name: steps made, shape [K], and lower quartile, median and upper quartile of the force RMS
        in eV/A, shape [3, K].
    ax
        Axes to draw on; new ones by default.
    baseline
        Name of the set without guidance.
    """
    with drawing(ax, (7.0, 3.6)) as ax:
        others = [name for name in trajectories if name != baseline]
        for name, (step, (low, middle, high)) in trajectories.items():
            colour = INK if name == baseline else colour_of(others.index(name))
            ax.fill_between(step, low, high, color=colour, alpha=0.15, linewidth=0)
            # The baseline above, in dashes: at scale 0 the guided line is the same.
            dashes: dict[str, Any] = {"linestyle": "--", "zorder": 3} if name == baseline else {}
            ax.plot(step, middle, color=colour, label=literal(_words(name)), **dashes)
        ax.set(xlabel="steps from noise to molecule", ylabel="force RMS (eV/Å)", yscale="log")
        plain_ticks(ax.yaxis)
        if trajectories:
            ax.legend(title="median; bands: the middle half", loc="best").get_title().set_fontsize("small")
    return ax


def draw_molecules(
    molecules: Sequence[Molecule], columns: int = 4, titles: Sequence[str] | None = None, cell: float = 1.9
) -> Figure:
    """Draw molecules beside each other, each seen from where it is widest; bonds are those of `bond_orders`.

    An atom that has not the valence of its element is ringed.

    Parameters
    ----------
    molecules
        At least one.
    columns
        Molecules per row at most.
    titles
        A text for each; none by default.
    cell
        Width and height of each, inches.

    Raises
    ------
    ValueError
        If there is no molecule, columns is below 1, or there are not as many titles as molecules.
    """
    from matplotlib.figure import Figure

    if not molecules or columns < 1:
        raise ValueError(f"needs at least one molecule and one column, got {len(molecules)} and {columns}")
    texts = [""] * len(molecules) if titles is None else list(titles)
    columns = min(columns, len(molecules))
    rows = math.ceil(len(molecules) / columns)
    head = 0.0 if titles is None else 0.25  # inches of a title
    width, height = columns * cell, rows * (cell + head) + 0.35
    with style():
        figure = Figure(figsize=(width, height))  # its own: no notebook shows it by itself
        ringed = False
        for n, (molecule, text) in enumerate(zip(molecules, texts, strict=True)):
            row, column = divmod(n, columns)
            top = height - row * (cell + head) - head
            ax = figure.add_axes((column / columns, (top - cell) / height, 1 / columns, cell / height))
            ax.set_axis_off()
            ringed |= _draw(ax, molecule)
            ax.set_title(literal(text), fontsize="small", pad=3)
        _legend(figure, {n for molecule in molecules for n in molecule.numbers.tolist()}, ringed)
    return figure


def _panel(
    ax: Axes,
    metric: str,
    metrics: Mapping[str, Mapping[str, Estimate]],
    scales: Mapping[str, float],
    steps: int | None,
) -> None:
    guided = sorted((name for name in metrics if name in scales), key=lambda name: scales[name])
    for name in metrics:
        if name not in scales:
            colour, line = (INK, "-") if name == "baseline" else (COLOURS[2], ":")
            _across(ax, metrics[name].get(metric), name, colour, line)
    _points(ax, [metrics[name].get(metric) for name in guided])
    size = "small" if len(guided) < 6 else "xx-small"
    ax.set_xticks(range(len(guided)), [_scale(scales[name], steps) for name in guided], fontsize=size)
    ax.set_xlim(-0.5, max(len(guided), 1) - 0.5)
    if metric in SHARES:
        ax.set_ylim(-0.03, 1.03)
    elif metric != "energy_per_atom":
        ax.set_ylim(bottom=0)
    ax.set_title(PANELS.get(metric, _words(metric)))
    ax.set_xlabel("guidance scale" if steps is None else "guidance scale, scale × T", fontsize="small")


def _scale(scale: float, steps: int | None) -> str:
    return f"{scale:g}" if steps is None else f"{scale:g}\n{scale * steps:.3g}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _across(ax: Axes, found: Estimate | None, name: str, colour: str, line: str) -> None:
    """A line across the panel, with its interval as a band."""
    if found is None or found.value is None:
        return
    ax.axhline(found.value, color=colour, linewidth=1.2, linestyle=line, label=literal(_words(name)))
    if found.low is not None and found.high is not None:
        ax.axhspan(found.low, found.high, color=colour, alpha=0.15, linewidth=0)


def _points(ax: Axes, found: Sequence[Estimate | None]) -> None:
    """A point for each guidance scale, with its interval where that is known."""
    known = [(x, e, e.value) for x, e in enumerate(found) if e is not None and e.value is not None]
    values = [value for _, _, value in known]
    ax.plot([x for x, *_ in known], values, color=COLOURS[0], marker="o", markersize=5, linewidth=1.2)
    for x, e, _ in known:
        if e.low is not None and e.high is not None:
            ax.plot([x, x], [e.low, e.high], color=COLOURS[0], linewidth=1.2, marker="_", markersize=6)


def widest(positions: Floats) -> Floats:
    """Positions [N, 3] turned so that they are widest to the right, then upward; the last axis is toward the reader."""
    centred = positions - positions.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=True)[2]
    if np.linalg.det(axes) < 0:  # a turn, not a mirror image
        axes[2] *= -1
    turned: Floats = centred @ axes.T
    return turned


def draw_molecule(molecule: Molecule, ax: Axes | None = None) -> Axes:
    """Draw one molecule, as `draw_molecules` does.

    Parameters
    ----------
    molecule
        The molecule.
    ax
        Axes to draw on; new ones by default.
    """
    with drawing(ax, (3.4, 3.4)) as ax:
        ax.set_axis_off()
        _draw(ax, molecule)
    return ax


def _draw(ax: Axes, molecule: Molecule) -> bool:
    """Draw one molecule; whether an atom of it is ringed."""
    from matplotlib.patches import Circle

    seen, orders = widest(molecule.positions), bond_orders(molecule)
    radii = [_RADII[_SYMBOLS[number]] for number in molecule.numbers.tolist()]
    for i, j in np.argwhere(np.triu(orders)).tolist():
        # From surface to surface, so that an atom covers what is behind it.
        along = seen[j] - seen[i]
        length = float(np.linalg.norm(along)) or 1.0
        ends = seen[[i, j]] + np.array([[1], [-1]]) * along / length * [[radii[i]], [radii[j]]]
        aside = np.array([-along[1], along[0]]) / (np.linalg.norm(along[:2]) or 1.0)
        for n in range(orders[i, j] if length > radii[i] + radii[j] else 0):
            line = ends[:, :2] + aside * _APART * (n - (orders[i, j] - 1) / 2)
            depth = _depth(ends[:, 2].mean())
            ax.plot(*line.T, color=NEUTRAL, linewidth=2.2, zorder=depth, solid_capstyle="round")
    wrong = unmet(molecule).tolist()
    for number, place, ringed in zip(molecule.numbers.tolist(), seen, wrong, strict=True):
        ax.add_patch(
            Circle(
                place[:2],
                _RADII[_SYMBOLS[number]],
                facecolor=ELEMENTS[_SYMBOLS[number]],
                edgecolor=FAILURE if ringed else NEUTRAL,
                linewidth=2.2 if ringed else 0.8,
                zorder=_depth(place[2]),
            )
        )
    reach = max(2.0, float(np.abs(seen[:, :2]).max()) + 0.5)
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    return any(wrong)


def _depth(z: float) -> float:
    return 2 + math.atan(z)  # nearer is drawn later


def _legend(figure: Figure, numbers: set[int], ringed: bool) -> None:
    from matplotlib.lines import Line2D

    def mark(colour: str, edge: str, label: str, width: float) -> Any:
        return Line2D(
            [], [], linestyle="", marker="o", markersize=8, label=label,
            markerfacecolor=colour, markeredgecolor=edge, markeredgewidth=width,
        )  # fmt: skip

    marks = [mark(c, NEUTRAL, s, 0.8) for s, c in ELEMENTS.items() if NUMBERS[s] in numbers]
    if ringed:
        marks.append(mark("none", FAILURE, "valence not met", 2.0))
    figure.legend(handles=marks, loc="lower center", ncols=len(marks), handletextpad=0.2, columnspacing=1.2)
