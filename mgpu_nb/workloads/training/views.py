"""Pictures of a training: its curves, and what it predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...views.palette import COLOURS, NEUTRAL, colour_of, drawing, drawings, literal, whole_ticks
from .layout import TARGET

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from ...runs.run import Run
    from .land import Land
    from .layout import Column

__all__ = ["columns_of_land", "curves", "predicted_against_true", "show", "time_per_iteration"]

MOST_OUTPUTS = 6  # that are drawn


def show(run: Run) -> None:
    """Display a training: the panel of its run, with loss and validation by epoch."""
    from ...views.run_panel import show as show_run

    show_run(run._ledger)


def curves(
    frames: Mapping[str, pd.DataFrame],
    baseline: float | None = None,
    ax: Axes | None = None,
    *,
    quantity: str = "loss, squared std. deviations",
) -> Axes:
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
    quantity
        What the loss is, with its unit.
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
        ax.set_ylabel(quantity)
        low = min((frame[["loss", "validation"]].min().min() for frame in frames.values()), default=0.0)
        ax.set_ylim(min(0.0, low), None)  # a log-likelihood may be below zero
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def predicted_against_true(
    predictions: Mapping[str, npt.NDArray[Any]],
    axes: Sequence[Axes] | None = None,
    part: str = "matrix",
    columns: Sequence[Column] = (),
) -> Sequence[Axes]:
    """Draw outputs of held-out columns, predicted against true, with the share of variance explained.

    Parameters
    ----------
    predictions
        Arrays of `part` [n, m, ...], and the same with ``true_`` before its name; what is drawn are sums of cells.
    axes
        Where to draw, one for each output, at most `MOST_OUTPUTS`; a new figure by default.
    part
        Which of ``scalar``, ``vector`` and ``matrix``.
    columns
        Names and units of its outputs; by default those of the carbon pools of a generated land.
    """
    from .land import GENERATED

    columns = (columns or GENERATED.of("matrix"))[:MOST_OUTPUTS]
    with drawings(axes, len(columns), (3 * len(columns), 3.1)) as axes:
        for n, (column, ax) in enumerate(zip(columns, axes, strict=True)):
            true, found = (
                predictions[key][:, n].reshape(len(predictions[key]), -1).sum(1)
                for key in (f"true_{part}", part)
            )
            low = min(0.0, 1.05 * true.min(), 1.05 * found.min())
            top = 1.05 * max(true.max(), found.max()) or 1.0
            ax.plot([low, top], [low, top], color=NEUTRAL, lw=1, ls="--")
            ax.scatter(true, found, s=12, color=colour_of(n), linewidths=0)
            spread = np.square(true - true.mean()).sum()
            explained = 1 - np.square(true - found).sum() / spread if spread > 0 else np.nan
            name, unit = literal(column.name.removeprefix(TARGET)), f" ({column.unit})" if column.unit else ""
            ax.set_title(f"{name}, R² = {explained:.2f}")
            ax.set_xlabel(f"simulated{unit}")
            ax.set_xlim(low, top)
            ax.set_ylim(low, top)
            ax.set_aspect("equal")
        axes[0].set_ylabel("emulated")
    return axes


def columns_of_land(land: Land, axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
    """Draw what land is like: the temperature of two columns, what warmth produces, what the soil holds at the end.

    Parameters
    ----------
    land
        The columns.
    axes
        Three, where to draw; a new figure by default.
    """
    from .land import FREEZING, GENERATED, POOLS

    with drawings(axes, 3, (10, 2.9)) as axes:
        temperature, latitude = (
            land.series[:, :, GENERATED.names("series").index("TBOT")] - FREEZING,
            np.abs(land.static[:, 0]),
        )
        for n, column in enumerate((latitude.argmin(), latitude.argmax())):
            label = f"{land.static[column, 0]:.0f}° latitude"
            axes[0].plot(
                np.arange(temperature.shape[1]) / 12,
                temperature[column],
                color=colour_of(n),
                lw=0.8,
                label=label,
            )
        axes[0].set(title="two columns of land", xlabel="year", ylabel="temperature (°C)")
        axes[0].legend(loc="lower left", bbox_to_anchor=(0, 1.1), ncols=2)
        axes[1].scatter(temperature.mean(1), land.scalar[:, 0], s=8, color=COLOURS[2])
        axes[1].set(
            title="warmth makes carbon", xlabel="mean temperature (°C)", ylabel="produced carbon (kg/m²)"
        )
        soil = land.matrix.sum((2, 3))
        low, middle, high = np.quantile(soil, (0.05, 0.5, 0.95), axis=0)
        axes[2].errorbar(
            range(len(POOLS)), middle, [middle - low, high - middle], fmt="o", color=COLOURS[4], capsize=4,
            label="median, and 5 to 95 % of the columns",
        )  # fmt: skip
        axes[2].set(
            title="what the soil holds",
            xlabel="pool",
            ylabel="carbon (kg/m²)",
            yscale="log",
            xlim=(-0.5, 2.5),
        )
        axes[2].set_xticks(range(len(POOLS)), POOLS)
        axes[2].legend(loc="lower left", bbox_to_anchor=(0, 1.1))
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
