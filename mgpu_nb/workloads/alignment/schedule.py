"""How long tasks of known durations take on some slots: with a barrier between rounds, and without."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ...runs.graph import Barrier, Graph

__all__ = ["Placed", "bound", "makespan", "placements"]


class Placed(NamedTuple):
    """Where and when a task runs.

    Attributes
    ----------
    slot
        Number of the slot.
    start, end
        Seconds since the first start.
    """

    slot: int
    start: float
    end: float


def placements(
    seconds: Mapping[str, float],
    after: Mapping[str, Iterable[str]],
    slots: int,
    rounds: Mapping[str, int] | None = None,
) -> dict[str, Placed]:
    """Where and when each task runs, if a free slot takes what has the longest chain behind it.

    Parameters
    ----------
    seconds
        Duration of each task.
    after
        Names of the tasks that each task waits for.
    slots
        Number of slots.
    rounds
        Round of each task, which begins when all of the one before has ended; None for no barrier.
    """
    graph = Graph(after)
    rest = graph.rest(seconds)
    barrier = Barrier({name: (rounds or {}).get(name, 0) for name in after})
    ready = [(-rest[name], name) for name in barrier.let_pass(graph.ready())]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    free = list(range(slots))  # from the lowest, which is a heap
    found: dict[str, Placed] = {}
    now = 0.0
    while ready or running:
        while ready and free:
            _, name = heapq.heappop(ready)
            found[name] = Placed(heapq.heappop(free), now, now + seconds[name])
            heapq.heappush(running, (found[name].end, name))
        now, done = heapq.heappop(running)
        heapq.heappush(free, found[done].slot)
        for name in (*barrier.let_pass(graph.done(done)), *barrier.ended(done)):
            heapq.heappush(ready, (-rest[name], name))
    return found


def makespan(
    seconds: Mapping[str, float],
    after: Mapping[str, Iterable[str]],
    slots: int,
    rounds: Mapping[str, int] | None = None,
) -> float:
    """Seconds from the first start to the last end of these tasks; see `placements`."""
    return max((place.end for place in placements(seconds, after, slots, rounds).values()), default=0.0)


def bound(seconds: Mapping[str, float], after: Mapping[str, Iterable[str]], slots: int) -> float:
    """Seconds that no order can do with less: the longest chain, and the work shared evenly."""
    chain = max(Graph(after).rest(seconds).values(), default=0.0)
    return max(chain, sum(seconds.values()) / slots)
