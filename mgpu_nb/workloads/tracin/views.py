"""Pictures of an influence analysis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...views.palette import COLOURS, FAILURE, INK, NEUTRAL, drawing, literal, whole_ticks

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["filtered_triples", "neighbourhood", "self_influence_curve"]

_STATUS = {
    "successful": COLOURS[0],
    "failed_filtering": COLOURS[3],
    "failed_tracin": FAILURE,
    "skipped": NEUTRAL,
    "cancelled": NEUTRAL,
}
_FOR, _AGAINST, _TEST = COLOURS[0], COLOURS[1], INK


def self_influence_curve(
    selves: npt.NDArray[Any], planted: npt.NDArray[np.int64], ax: Axes | None = None
) -> Axes:
    """Draw self-influences [n], the largest first, and how many of the planted errors stand among the first so many.

    Parameters
    ----------
    selves
        Of all training triples.
    planted
        Numbers of those that are known to be wrong; where there are none, the self-influences are drawn alone.
    ax
        Where to draw; a new figure by default.
    """
    order = np.argsort(-selves, kind="stable")
    ranks = np.arange(1, len(order) + 1)
    with drawing(ax) as ax:
        if len(planted):
            found = np.isin(order, planted).cumsum() / len(planted)
            ax.plot(ranks, found, color=_FOR, lw=2, label="by self-influence")
            perfect = np.minimum(1.0, ranks / len(planted))
            ax.plot(ranks, perfect, color=NEUTRAL, lw=1, ls=":", label="perfect")
            ax.plot(ranks, ranks / len(ranks), color=NEUTRAL, lw=1, ls="--", label="chance")
            ax.set_ylabel(f"share of {len(planted)} planted errors found")
            ax.set_ylim(0, 1.02)
            ax.legend(loc="lower right")
        else:
            ax.semilogy(ranks, np.maximum(selves[order], np.finfo(np.float32).tiny), color=_FOR, lw=2)
            ax.set_ylabel("self-influence (change of the loss)")
        ax.set_xlabel("training triples looked at, largest self-influence first")
        ax.set_xlim(0, len(order))
    return ax


def neighbourhood(
    triple: tuple[str, str, str], proponents: pd.DataFrame, opponents: pd.DataFrame, ax: Axes | None = None
) -> Axes:
    """Draw a test triple and the training triples that spoke for and against it, as a graph of their entities.

    The test triple's head and tail stand left and right of the middle, all other entities around them; the stronger an
    influence, the wider its line.

    Parameters
    ----------
    triple
        Names of head, relation and tail.
    proponents, opponents
        With columns head, relation, tail, influence.
    ax
        Where to draw; a new figure by default.
    """
    from matplotlib.lines import Line2D

    head, relation, tail = triple
    places: dict[str, tuple[float, float]] = {head: (-0.45, 0.0), tail: (0.45, 0.0)}
    groups = ((proponents, _FOR), (opponents, _AGAINST))
    others = [name for frame, _ in groups for name in (*frame["head"], *frame["tail"]) if name not in places]
    around = list(dict.fromkeys(others))
    for n, name in enumerate(around):
        angle = 2 * np.pi * (n + 0.5) / len(around)
        places[name] = (1.25 * np.cos(angle), np.sin(angle))
    strongest = max([abs(v) for frame, _ in groups for v in frame["influence"]], default=1.0)
    with drawing(ax, (8, 5.5)) as ax:
        for frame, colour in groups:
            for n, row in enumerate(frame.itertuples()):
                width = 0.6 + 4.4 * abs(float(row.influence)) / strongest  # type: ignore[arg-type]
                _arrow(ax, places[str(row.head)], places[str(row.tail)], colour, width, 0.12 + 0.06 * (n % 3))
        _arrow(ax, places[head], places[tail], _TEST, 2.0, 0.0)
        ax.text(0, 0.04, literal(relation), ha="center", va="bottom", color=_TEST)
        for name, (x, y) in places.items():
            mine = name in (head, tail)
            # A name hides no line below it: the box would have to be of the page's colour, which nobody knows here.
            ax.text(
                x, y, literal(name), ha="center", va="center", fontweight="bold" if mine else None, zorder=3
            )
        handles = [
            Line2D([], [], color=_TEST, lw=2, label="test triple"),
            Line2D([], [], color=_FOR, lw=2, label=f"{len(proponents)} proponents"),
            Line2D([], [], color=_AGAINST, lw=2, label=f"{len(opponents)} opponents"),
        ]
        ax.legend(handles=handles, loc="upper left", title="wider: stronger influence")
        ax.set_xlim(-1.6, 1.6)
        ax.set_ylim(-1.25, 1.25)
        ax.set_axis_off()
    return ax


def filtered_triples(results: Sequence[dict[str, Any]], ax: Axes | None = None) -> Axes:
    """Draw how many training triples are near each test triple of a batch analysis, a bar each.

    Parameters
    ----------
    results
        ``index``, ``status`` and ``num_filtered`` of each test triple; one without a number has no bar.
    ax
        Axes to draw on; new ones by default.
    """
    with drawing(ax) as ax:
        for status in dict.fromkeys(entry["status"] for entry in results):
            some = [entry for entry in results if entry["status"] == status]
            heights = [entry["num_filtered"] or 0 for entry in some]
            places = [entry["index"] for entry in some]
            ax.bar(places, heights, color=_STATUS[status], label=status.replace("_", " "))
        whole_ticks(ax.xaxis)
        ax.set_xlabel("number of the test triple")
        ax.set_ylabel("training triples near it")
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def _arrow(
    ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, width: float, bend: float
) -> None:
    if start == end:  # an entity related to itself
        start, bend = (start[0] - 0.08, start[1] + 0.1), -1.5
    style = {"arrowstyle": "-|>", "color": colour, "lw": width, "alpha": 0.75, "shrinkA": 20, "shrinkB": 20}
    ax.annotate(
        "", xy=end, xytext=start, arrowprops={**style, "connectionstyle": f"arc3,rad={bend}"}, zorder=1
    )
