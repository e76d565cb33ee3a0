"""The loss of a training by step or epoch, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["losses"]


def losses(values: Mapping[int, float], unit: str, ax: Axes | None = None) -> Axes:
    """Draw a loss over steps or epochs.

    Parameters
    ----------
    values
        Loss by step or epoch.
    unit
        Label of the horizontal axis, ``step`` or ``epoch``.
    ax
        Axes to draw on; new ones by default.
    """
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    ax.semilogy([*values], [*values.values()], color="#0072B2", lw=1.5)
    ax.set(xlabel=unit, ylabel="loss")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
