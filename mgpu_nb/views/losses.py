"""The loss of a training by step or epoch, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .palette import COLOURS, drawing, plain_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["losses"]


def losses(values: Mapping[int, float], unit: str, ax: Axes | None = None, *, quantity: str = "loss") -> Axes:
    """Draw a loss over steps or epochs.

    Parameters
    ----------
    values
        Loss by step or epoch.
    unit
        Label of the horizontal axis, ``step`` or ``epoch``.
    ax
        Axes to draw on; new ones by default.
    quantity
        Label of the vertical axis, with the unit of the loss.
    """
    with drawing(ax, (6.4, 3.4)) as ax:
        ax.semilogy([*values], [*values.values()], color=COLOURS[0], lw=1.5)
        plain_ticks(ax.yaxis)
        ax.set(xlabel=unit, ylabel=quantity)
    return ax
