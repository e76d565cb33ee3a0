"""Pictures of a training: its curves, live and still, and what it predicts."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...views.markup import OURS, bar, escape, table
from ...views.palette import COLOURS, NEUTRAL, colour_of, drawing, literal, style, whole_ticks
from .files import LOSSES

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from ...runs.run import Run

__all__ = ["curves", "losses_html", "predicted_against_true", "show", "time_per_iteration"]

VALIDATION = COLOURS[1]
_WIDTH, _HEIGHT = 460, 150  # pixels of the live curves
_STILL = 12  # epochs that the still panel lists


def show(run: Run) -> None:
    """Display a training: the panel of its run, with the curves of loss and validation below it.

    Parameters
    ----------
    run
        What `start` returned, or a training's run read back.
    """
    from ...views.run_panel import show as show_run

    show_run(run._ledger, lambda live: losses_html(_losses(run.folder), live=live))


def _losses(folder: Path) -> list[tuple[int, float, float]]:
    """(epoch from 1, loss, validation) of the epochs so far."""
    try:
        with (folder / LOSSES).open(newline="", encoding="utf-8") as file:
            return [
                (int(r["epoch"]) + 1, float(r["loss"]), float(r["validation"])) for r in csv.DictReader(file)
            ]
    except (OSError, KeyError, ValueError):  # not yet there
        return []


def losses_html(losses: Sequence[tuple[int, float, float]], *, live: bool) -> str:
    """Loss and validation by epoch: live as curves, else as a table with bars, which every page keeps.

    Parameters
    ----------
    losses
        (epoch, loss, validation) of each epoch.
    live
        Whether the page shows SVG.
    """
    if not losses:
        return '<div class="mgpu"><span class="q">no epoch has ended yet</span></div>' if live else ""
    epoch, loss, validation = losses[-1]
    best = min(losses, key=lambda row: row[2])
    words = (
        f"epoch {epoch}: loss {loss:.4f}, validation {validation:.4f}; best {best[2]:.4f} in epoch {best[0]}"
    )
    if live:
        return f'<div class="mgpu"><div>{escape(words)}</div>{_svg(losses, words)}</div>'
    step = -(-len(losses) // _STILL)
    shown = [row for row in losses if (row[0] - epoch) % step == 0]
    top = max(row[2] for row in losses)
    rows = [
        [str(n), f"{a:.4f}", f"{b:.4f}", bar(b / top if top else 0, OURS, f"validation {b:.4f}")]
        for n, a, b in shown
    ]
    head = [("epoch", "n"), ("loss", "n"), ("validation", "n"), (f"validation, a full bar is {top:.3g}", "")]
    return f'<div class="mgpu"><div>{escape(words)}</div>{table(head, rows, "losses by epoch", live=False)}</div>'


def _svg(losses: Sequence[tuple[int, float, float]], words: str) -> str:
    top = max(max(row[1:]) for row in losses) or 1.0
    last = max(losses[-1][0], 2)

    def line(column: int) -> str:
        return " ".join(
            f"{40 + (_WIDTH - 140) * (row[0] - 1) / (last - 1):.1f},{8 + (_HEIGHT - 30) * (1 - row[column] / top):.1f}"
            for row in losses
        )

    text = 'fill="currentColor" font-size="11"'
    parts = []
    for place, (column, colour, name, dashes) in enumerate(
        ((1, OURS, "loss", ""), (2, VALIDATION, "validation", ' stroke-dasharray="5 2"'))
    ):
        parts.append(
            f'<polyline points="{line(column)}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>'
        )
        y = 20 + 18 * place
        parts.append(f'<line x1="{_WIDTH - 90}" x2="{_WIDTH - 70}" y1="{y - 4}" y2="{y - 4}" stroke="{colour}" '
                     f'stroke-width="2"{dashes}/><text x="{_WIDTH - 64}" y="{y}" {text}>{name}</text>')  # fmt: skip
    base = _HEIGHT - 22
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{escape(words)}">'
        f'<line x1="40" x2="{_WIDTH - 100}" y1="{base}" y2="{base}" stroke="currentColor" stroke-opacity="0.4"/>'
        f'<text x="36" y="14" text-anchor="end" {text}>{top:.3g}</text>'
        f'<text x="36" y="{base}" text-anchor="end" {text}>0</text>'
        f'<text x="40" y="{_HEIGHT - 6}" {text}>epoch 1</text>'
        f'<text x="{_WIDTH - 100}" y="{_HEIGHT - 6}" text-anchor="end" {text}>{last}</text>{"".join(parts)}</svg>'
    )


def curves(frames: Mapping[str, pd.DataFrame], baseline: float | None = None, ax: Axes | None = None) -> Axes:
    """Draw loss (solid) and validation (dashed) over epochs, one colour per training.

    Parameters
    ----------
    frames
        Of each training what `Report.frame` returns, by its label. Later ones are drawn thinner, so that curves that
        lie over each other are both seen.
    baseline
        Validation loss of the mean predictor, drawn as a line.
    ax
        Where to draw; a new figure by default.
    """
    with drawing(ax) as ax:
        for n, (label, frame) in enumerate(frames.items()):
            width = max(1.2, 5.0 - 3.4 * n) if len(frames) > 1 else 2.0
            said = f"{literal(label)}: " if label else ""
            epochs = frame.index + 1
            ax.plot(epochs, frame["loss"], color=colour_of(n), lw=width, label=f"{said}training")
            ax.plot(
                epochs, frame["validation"], color=colour_of(n), lw=width, ls="--", label=f"{said}validation"
            )
        if baseline is not None:
            ax.axhline(baseline, color=NEUTRAL, lw=1, ls=":", label="mean predictor")
        whole_ticks(ax.xaxis)
        ax.set_xlabel("epoch")
        ax.set_ylabel("loss (mean square, in standard deviations)")
        ax.set_ylim(0, None)
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def predicted_against_true(
    predictions: Mapping[str, npt.NDArray[Any]], axes: Sequence[Axes] | None = None
) -> Sequence[Axes]:
    """Draw the carbon of each pool in held-out columns, predicted against true, with the share of variance explained.

    Parameters
    ----------
    predictions
        ``matrix`` and ``true_matrix`` [n, 3, 18, 10] in kg/m2.
    axes
        Three, where to draw; a new figure by default.
    """
    import matplotlib.pyplot as plt

    from .land import POOLS

    if axes is None:
        with style():
            _, made = plt.subplots(1, len(POOLS), figsize=(9, 3.1), layout="constrained")
        axes = list(made)
    for n, (name, ax) in enumerate(zip(POOLS, axes, strict=True)):
        true, found = (predictions[key][:, n].sum((1, 2)) for key in ("true_matrix", "matrix"))
        top = 1.05 * max(true.max(), found.max())
        ax.plot([0, top], [0, top], color=NEUTRAL, lw=1, ls="--")
        ax.scatter(true, found, s=12, color=colour_of(n), linewidths=0)
        spread = np.square(true - true.mean()).sum()
        explained = 1 - np.square(true - found).sum() / spread if spread > 0 else np.nan
        ax.set_title(f"{name} carbon, R² = {explained:.2f}")
        ax.set_xlabel("simulated (kg/m²)")
        ax.set_xlim(0, top)
        ax.set_ylim(0, top)
        ax.set_aspect("equal")
    axes[0].set_ylabel("emulated (kg/m²)")
    return axes


def time_per_iteration(seconds: Sequence[float], ax: Axes | None = None) -> Axes:
    """Draw the seconds per iteration of a check, a bar per rank: one that is slow holds up the others.

    Parameters
    ----------
    seconds
        Of each rank.
    ax
        Where to draw; a new figure by default.
    """
    with drawing(ax, (5, 2.8)) as ax:
        ax.bar(range(len(seconds)), [1e3 * s for s in seconds], color=COLOURS[0])
        ax.set_xticks(range(len(seconds)))
        ax.set_xlabel("rank")
        ax.set_ylabel("milliseconds per iteration")
    return ax
