"""Tasks by slot over time."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..places import device_names
from ..tasks import Record
from .palette import COLOURS, FAILURE, NEUTRAL, drawing, literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection

__all__ = ["timeline"]

MOST_KINDS = 6  # in the legend; if there are more, the last is all others
OTHERS, CANCELLED = "others", "cancelled"
HEIGHT = 0.7  # of a bar, in rows
MOST_ROWS = 25  # that have a label of their own
PIXELS = 600  # of the picture's width; what is shorter than one is drawn pixel by pixel

# Without the colour of failures.
_COLOURS = tuple(colour for colour in COLOURS if colour != FAILURE)


def timeline(
    records: Sequence[Record], ax: Axes | None = None, *, by: Callable[[str], str] | None = None
) -> Axes:
    """Draw a bar per task, a row per slot; failed tasks are marked, cancelled ones grey, gaps are idle time.

    Tasks of one kind have one colour. The legend names the kinds that took the most time.

    Parameters
    ----------
    records
        Records of a run; tasks that never started are left out.
    ax
        Axes to draw on; a new figure by default.
    by
        Kind of a task of this name, as the legend has it. By default tasks whose names differ only after the last
        hyphen are of one kind.

    Raises
    ------
    ValueError
        If no task has started.
    """
    ran = [r for r in records if r.started is not None and r.seconds is not None and r.slot is not None]
    if not ran:
        raise ValueError("no task has started yet: wait for the run, then draw its timeline")
    ordered = sorted(ran, key=lambda r: r.slot or 0)
    names = device_names([(r.device, r.host) for r in ordered])
    devices = {r.slot: name for r, name in zip(ordered, names, strict=True)}
    rows = {slot: row for row, slot in enumerate(devices)}
    start = min(r.started or 0.0 for r in ran)
    end = max((r.started or 0.0) + (r.seconds or 0.0) for r in ran) - start
    of_task = {r.name: by(r.name) if by is not None else _kind(r.name) for r in ran}
    kinds = _kinds(ran, of_task)
    spans = [
        (
            rows[r.slot],
            (r.started or 0.0) - start,
            r.seconds or 0.0,
            kinds[of_task[r.name]] if r.ok or r.failed else CANCELLED,
        )
        for r in ran
    ]
    with drawing(ax, (8, 0.9 + min(8.0, 0.4 * len(rows)))) as ax:
        bars = _boxes(spans, (end or 1.0) / PIXELS)
        for kind in sorted(
            bars, key=lambda kind: kind in (OTHERS, CANCELLED)
        ):  # in the legend these are the last
            ax.add_collection(_collection(bars[kind], kind, [*dict.fromkeys(kinds.values())]))
        if failed := [r for r in ran if r.failed]:  # a mark, because a bar may be too short to be seen
            middles = [(r.started or 0.0) + (r.seconds or 0.0) / 2 - start for r in failed]
            ax.plot(
                middles, [rows[r.slot] for r in failed], "X", color=FAILURE, markeredgecolor="white", markersize=8,
                label=f"failed ({len(failed):,})",
            )  # fmt: skip
        labels = [
            (row, literal(f"slot {slot} ({device})")) for row, (slot, device) in enumerate(devices.items())
        ]
        labels = labels[:: -(-len(labels) // MOST_ROWS)]
        ax.set_yticks([row for row, _ in labels], [label for _, label in labels])
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set_xlim(0, 1.01 * end or 1.0)
        ax.set_xlabel("seconds since the first task began")
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def _kind(name: str) -> str:
    return name.rpartition("-")[0] or name


def _kinds(records: Iterable[Record], of_task: Mapping[str, str]) -> dict[str, str]:
    """What the legend calls each kind of task: those that took the most time by name, all others together."""
    took: defaultdict[str, float] = defaultdict(float)
    for record in records:
        took[of_task[record.name]] += record.seconds or 0.0
    if len(took) <= MOST_KINDS:
        return {kind: kind for kind in took}
    named = sorted(took, key=lambda kind: -took[kind])[: MOST_KINDS - 1]
    return {kind: kind if kind in named else OTHERS for kind in took}


def _boxes(
    spans: Iterable[tuple[int, float, float, str]], pixel: float
) -> dict[str, list[tuple[int, float, float]]]:
    """Row, left and right of the bars of each kind, from (row, began, seconds, kind) of each task.

    Tasks shorter than a pixel share it: it has the colour of the kind that had most of its time.
    """
    boxes: dict[str, list[tuple[int, float, float]]] = {}
    times: dict[tuple[int, int], Counter[str]] = {}
    for row, began, seconds, kind in spans:
        boxes.setdefault(kind, [])  # in order of the first task, which is that of the legend
        if seconds >= pixel:
            # The gap between two tasks that follow each other is the page.
            boxes[kind].append((row, began, began + seconds - min(pixel, seconds / 4)))
        else:
            share = times.setdefault((row, int(began / pixel)), Counter())
            share[kind] += seconds or pixel * 1e-6  # type: ignore[assignment]
    for (row, place), share in times.items():
        (kind, _) = share.most_common(1)[0]
        boxes[kind].append((row, place * pixel, (place + 1) * pixel))
    return boxes


def _collection(boxes: Iterable[tuple[int, float, float]], kind: str, kinds: Sequence[str]) -> PolyCollection:
    """One artist for all bars of a kind: thousands of them would take seconds."""
    from matplotlib.collections import PolyCollection

    grey = kind in (OTHERS, CANCELLED)
    colour = NEUTRAL if grey else _COLOURS[kinds.index(kind) % len(_COLOURS)]
    half = HEIGHT / 2 if kind != CANCELLED else HEIGHT / 4  # thin, because other kinds are grey as well
    corners = [
        [(left, row - half), (left, row + half), (right, row + half), (right, row - half)]
        for row, left, right in boxes
    ]
    # An edge of its own colour: a bar of one pixel would be seen through.
    return PolyCollection(corners, facecolors=colour, edgecolors=colour, linewidths=0.4, label=literal(kind))
