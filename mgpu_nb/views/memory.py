"""Memory over time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .palette import COLOURS, NEUTRAL, literal

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["memory"]

MOST_NAMED = 3  # peaks that are labelled with their task


def memory(samples: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the used memory of every device over time and the share of this run; the largest peaks labelled.

    Parameters
    ----------
    samples
        `Run.samples`.
    ax
        Axes to draw on; a new figure by default.

    Raises
    ------
    ValueError
        If there are no samples.
    """
    import matplotlib.pyplot as plt

    if samples.empty:
        raise ValueError("no samples: the run was over before the first was taken")
    if ax is None:
        _, ax = plt.subplots(figsize=(8, 3.2), layout="constrained")
    start = samples["at"].min()
    seconds = (samples["at"] - start).dt.total_seconds()
    gib = samples["used"].astype("float64") / 2**30
    tasks = samples["kind"] == "task"
    for n, (device, rows) in enumerate(samples[tasks].groupby("device", sort=True)):
        colour = COLOURS[n % len(COLOURS)]
        # An ended task holds no memory: the line falls to zero while its slots are idle.
        held = gib[rows.index].groupby(samples.loc[rows.index, "at"]).sum()
        moments = samples["at"].drop_duplicates().sort_values()
        held = held.reindex(moments, fill_value=0.0)
        at = (held.index - start).total_seconds()
        ax.plot(at, held.to_numpy(), color=colour, label=f"tasks on {device}", drawstyle="steps-post")
    for device, rows in samples[~tasks & (samples["device"] != "cpu")].groupby("device", sort=True):
        ax.plot(seconds[rows.index], gib[rows.index], color=NEUTRAL, lw=0.8, label=f"all of {device}")
    known = tasks & gib.notna()
    peaks = gib[known].groupby(samples.loc[known, "task"]).idxmax()
    for row in gib[peaks].nlargest(MOST_NAMED).index:
        ax.annotate(
            f"{literal(samples['task'][row])}: {gib[row]:.2f}",
            (seconds[row], gib[row]),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    ax.set_xlabel("seconds since the first sample")
    ax.set_ylabel("memory, GiB")
    ax.set_ylim(bottom=0)
    ax.margins(y=0.15)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)
    return ax
