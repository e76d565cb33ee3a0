"""Tasks by slot over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..tasks import Record
from .palette import COLOURS, literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["timeline"]


def timeline(records: Sequence[Record], ax: Axes | None = None) -> Axes:
    """Draw a bar per task, a row per slot; failed tasks are hatched, gaps are idle time.

    Parameters
    ----------
    records
        Records of a run; tasks that never started are left out.
    ax
        Axes to draw on; a new figure by default.

    Raises
    ------
    ValueError
        If no task has started.
    """
    import matplotlib.pyplot as plt

    ran = [r for r in records if r.started is not None and r.seconds is not None and r.slot is not None]
    if not ran:
        raise ValueError("no task has started yet: wait for the run, then draw its timeline")
    rows = {r.slot: r.device for r in sorted(ran, key=lambda r: r.slot or 0)}
    if ax is None:
        _, ax = plt.subplots(figsize=(8, 0.8 + 0.45 * len(rows)), layout="constrained")
    start = min(r.started for r in ran if r.started is not None)
    groups = list(dict.fromkeys(r.name.rpartition("-")[0] or r.name for r in ran))
    for record in ran:
        assert record.started is not None  # noqa: S101 - filtered above
        group = groups.index(record.name.rpartition("-")[0] or record.name)
        ax.barh(
            list(rows).index(record.slot),
            record.seconds or 0.0,
            left=record.started - start,
            height=0.7,
            color=COLOURS[group % len(COLOURS)],
            edgecolor="white",
            hatch=None if record.ok else "///",
            label=literal(groups[group]),
        )
    if failed := [r for r in ran if not r.ok]:  # a bar may be too short to show its hatching
        middles = [(r.started or 0.0) + (r.seconds or 0.0) / 2 - start for r in failed]
        at = [list(rows).index(r.slot) for r in failed]
        ax.plot(middles, at, "X", color="#D55E00", markeredgecolor="white", markersize=9, label="failed")
    ax.set_yticks(range(len(rows)), [f"slot {slot} ({device})" for slot, device in rows.items()])
    ax.invert_yaxis()
    ax.set_xlabel("seconds since the first task began")
    ax.spines[["top", "right"]].set_visible(False)
    handles, labels = ax.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    ax.legend(
        unique.values(), unique.keys(), loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8
    )
    return ax
