"""Tables of the runs and the nodes of a pool, and of the pools of a process."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from ..hardware.slots import Slot
from ..tables import Html, Table, block, line, table
from ..tasks import Progress
from ..telemetry.samples import PoolActivity
from .activity import clock, doing, reason_to_wait, waits_of
from .markup import duration, shown_path

__all__ = ["ListedNode", "ListedRun", "ShownRun", "nodes_table", "pool_html", "pools_table", "runs_table"]

MOST_SLOTS = 32  # rows of a pool; the others are counted


class ShownRun(Protocol):
    """What every view of a run may ask of it."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def folder(self) -> Path:
        """Folder of its journal, logs and values."""

    @property
    def began(self) -> float:
        """Unix time of its start, seconds."""

    @property
    def progress(self) -> Progress:
        """Numbers of tasks, ended and running."""

    @property
    def done(self) -> bool:
        """Whether no further record will come."""


class ListedRun(ShownRun, Protocol):
    """What a list shows of a run."""

    @property
    def cell_number(self) -> int | None:
        """Number of the cell that started it, as its prompt showed it."""


class ListedNode(Protocol):
    """What a list shows of a node."""

    @property
    def name(self) -> str:
        """Its name in the pool."""

    @property
    def machine(self) -> str:
        """Host name."""

    @property
    def pid(self) -> int:
        """Process id of the agent."""

    @property
    def slots(self) -> Sequence[Slot]:
        """Slots on it."""

    @property
    def state(self) -> str:
        """What becomes of it."""

    @property
    def why(self) -> str:
        """Why it ends, if it does."""


def runs_table(runs: Sequence[ListedRun]) -> Table:
    """Table of runs: name, start, progress, state, folder, cell."""
    head = [("run", "t"), ("began", ""), ("progress", ""), ("state", ""), ("cell", ""), ("folder", "t o")]
    rows = [
        (
            run.name, clock(run.began), str(run.progress), "ended" if run.done else "under way",
            "" if run.cell_number is None else f"[{run.cell_number}]", shown_path(run.folder),
        )
        for run in runs
    ]  # fmt: skip
    return Table(head, rows, "runs of the pool", [] if rows else ["no runs"])


def slots_table(activity: PoolActivity) -> Table:
    """Table of the slots of a pool and what each does."""
    now = time.time()
    idle = reason_to_wait(activity)
    rows = [
        (
            str(slot.slot),
            slot.place,
            doing(slot, idle=idle),
            "" if slot.since is None else duration(now - slot.since),
        )
        for slot in activity.slots[:MOST_SLOTS]
    ]
    if more := len(activity.slots) - MOST_SLOTS:
        rows += [("", "", f"and {more} more slots", "")] if more > 0 else []
    head = [("slot", ""), ("device", ""), ("does", "t"), ("for", "n")]
    return Table(head, rows, "slots of the pool")


def pool_html(title: str, activity: PoolActivity, runs: Sequence[ListedRun]) -> Html:
    """A pool: its slots and its runs."""
    slots, listed = slots_table(activity), runs_table(runs)
    parts = [line(title)]
    if slots.rows:
        parts.append(table(slots.head, slots.rows, slots.label))
    if listed.rows:
        parts.append(table(listed.head, listed.rows, listed.label))
    return block(*parts)


def pools_table(pools: Sequence[tuple[PoolActivity, str, Sequence[ListedRun]]]) -> Table:
    """Table of pools, each by what it does, the prompt of the cell that made it, and its runs."""
    rows = []
    for activity, cell, runs in pools:
        devices = _shortened([slot.place for slot in activity.slots])
        under_way = [run for run in runs if not run.done]
        words = ", ".join(f"{run.name!r} of {clock(run.began)} ({run.progress})" for run in under_way[:3])
        if len(under_way) > 3:
            words += f" and {len(under_way) - 3} more"
        rows.append(
            (str(activity.pool), str(len(activity.slots)), devices, _summary(activity), words or "none", cell)
        )
    head = [
        ("pool", ""),
        ("slots", "n"),
        ("devices", "t"),
        ("slots do", "t"),
        ("runs under way", "t"),
        ("cell", ""),
    ]
    return Table(head, rows, "pools of this process", [] if rows else ["no pools: GPUPool() makes one"])


def nodes_table(nodes: Iterable[ListedNode], waits: str, given_back: str = "") -> Table:
    """Table of the nodes of a pool, what it waits for, and what it gave back."""
    rows = []
    for node in nodes:
        devices = _shortened([slot.label for slot in node.slots])
        state = f"{node.state}: {node.why}" if node.why else node.state
        rows.append((node.name, node.machine, str(node.pid), str(len(node.slots)), devices, state))
    head = [
        ("node", ""),
        ("machine", ""),
        ("agent's pid", "n"),
        ("slots", "n"),
        ("devices", "t"),
        ("state", "t"),
    ]
    notes = [*([f"the pool waits for {waits}"] if waits else []), *([given_back] if given_back else [])]
    notes = notes or ([] if rows else ["no nodes"])
    return Table(head, rows, "nodes of the pool", notes)


def _summary(activity: PoolActivity) -> str:
    counts: dict[str, int] = {}
    for slot in activity.slots:
        counts[slot.state] = counts.get(slot.state, 0) + 1
    words = ", ".join(
        [
            *(f"{count} {state}" for state, count in counts.items()),
            *filter(None, [waits_of(activity), activity.given_back]),
        ]
    )
    return words + (f", {activity.queued} tasks queued" if activity.queued else "")


def _shortened(names: Sequence[str], most: int = 4) -> str:
    """Names of devices, the first few of them."""
    unique = list(dict.fromkeys(names))
    return ", ".join(unique[:most]) + (f" and {len(unique) - most} more" if len(unique) > most else "")
