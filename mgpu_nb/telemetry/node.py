"""A node of a cluster as its readings show it, and the nodes' part of a snapshot."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..hardware import nodes
from ..hardware.device import Device
from ..hardware.slots import Memory, Slot
from ..output import clean
from .node_reading import NodeReading
from .samples import DeviceSample, Snapshot, WorkerSample, WorkerState

__all__ = ["Node", "with_nodes"]

MOST_NAMES = 6  # of silent nodes in a line


class Node:
    """A node that sends readings: see `nodes.add`. One thread updates it, any may ask.

    Parameters
    ----------
    name
        The `Slot.host` of its slots.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._last: tuple[NodeReading, float] | None = None  # replaced as one

    def update(self, data: bytes, clock_offset: float = 0.0) -> None:
        """Take a reading, as `read_node` has written it on the node.

        Raises
        ------
        ValueError
            If it cannot be read; the last one stays. See `NodeReading.unpack`, also for the parameters.
        """
        self._last = NodeReading.unpack(data, self.name, clock_offset), time.monotonic()

    @property
    def reading(self) -> NodeReading | None:
        """Its last reading; None before the first."""
        return None if self._last is None else self._last[0]

    @property
    def seen(self) -> float | None:
        """When that came: seconds of ``time.monotonic``; None before."""
        return None if self._last is None else self._last[1]

    @property
    def devices(self) -> tuple[Device, ...]:
        """Its devices as of that; none before."""
        return () if self._last is None else self._last[0].devices

    def memory(self, slot: Slot) -> Memory:
        """Memory of a slot's device by its last reading; what is free is unknown where that is older than 10 s."""
        if (reading := self.reading) is None:
            return Memory(None, None)
        found = reading.memory(slot)
        return Memory(found.total, None) if nodes.is_silent(self) else found

    def held(self, pid: int | None, slot: Slot) -> int | None:
        """Bytes that a worker holds on a slot's device by its last reading; None if unknown, or older than 10 s."""
        reading = self.reading
        return None if reading is None or nodes.is_silent(self) else reading.held(pid, slot)


def with_nodes(here: Snapshot, states: Iterable[WorkerState]) -> Snapshot:
    """A snapshot of this machine, and what the last readings say of all nodes and of the workers on them.

    Of a node that is silent nothing is known but what its devices are.

    Parameters
    ----------
    here
        The snapshot.
    states
        Workers on other machines.
    """
    found: dict[str, list[Node]] = {}
    for node in nodes.all_nodes():
        if isinstance(node, Node):
            found.setdefault(node.name, []).append(node)
    readings = {
        name: [node.reading for node in own if node.reading is not None and not nodes.is_silent(node)]
        for name, own in found.items()
    }
    devices = [
        sample for name, own in found.items() for sample in _devices(readings[name]) or _of_silent(own[0])
    ]
    workers = [_worker(state, readings.get(state.host, ())) for state in states]
    notices = [*map(str, nodes.losses()), *_silent([own[0] for own in found.values()])]
    return replace(
        here,
        devices=(*here.devices, *devices),
        workers=(*here.workers, *workers),
        note=here.note or next((r.note for own in found.values() if (r := own[0].reading) and r.note), ""),
        notices=tuple(notices),
    )


def _devices(readings: Sequence[NodeReading]) -> list[DeviceSample]:
    """Devices of a machine, as the agents there have read them: of several pools each has one."""
    samples: dict[str, list[DeviceSample]] = {}
    for reading in readings:
        for sample in reading.samples:
            samples.setdefault(sample.uuid or sample.label, []).append(sample)  # one that fails may tell none
    pids = {pid for reading in readings for pid, _ in reading.workers}
    return [same[0] if len(same) == 1 else _joined(same, pids) for same in samples.values()]


def _joined(same: Sequence[DeviceSample], pids: set[int]) -> DeviceSample:
    """One device, which several pools have workers on: to each those of the others are strangers."""
    first, ours = max(same, key=lambda sample: sample.ours), sum(sample.ours for sample in same)
    return replace(
        first,
        ours=ours,
        others=None if first.used is None else max(0, first.used - ours),
        holders=tuple(holder for holder in first.holders if holder.pid not in pids),
    )


def _of_silent(node: Node) -> list[DeviceSample]:
    """Devices of a node, without what is not known any more."""
    last, words = node.reading, nodes.silent_words(node)
    return [_unknown(sample, words) for sample in last.samples] if last is not None else []


def _unknown(sample: DeviceSample, why: str) -> DeviceSample:
    return DeviceSample(
        uuid=sample.uuid,
        label=sample.label,
        name=sample.name,
        kind=sample.kind,
        total=sample.total,
        problem=sample.problem or why,
        host=sample.host,
    )


def _worker(state: WorkerState, readings: Sequence[NodeReading]) -> WorkerSample:
    """A worker on a node with what it holds; unknown if the node has not told of it lately."""
    for reading in readings:
        if (found := reading.worker(state)) is not None:
            return found
    return WorkerSample(state, None, "")


def _silent(found: Sequence[Node]) -> list[str]:
    """A line that names the nodes whose last reading says nothing of the present."""
    names = [clean(node.name) for node in found if nodes.is_silent(node)]
    if not names:
        return []
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    listed = ", ".join(names[:MOST_NAMES])
    return [f"not heard of for {nodes.STALE:g} s or more: {listed}{more}; what is in use there is not known"]
