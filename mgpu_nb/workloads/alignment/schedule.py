"""How long tasks of known durations take on some slots: with a barrier between rounds, and without."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping

from ...runs.graph import Barrier, Graph

__all__ = ["bound", "makespan"]


def makespan(
    seconds: Mapping[str, float],
    after: Mapping[str, Iterable[str]],
    slots: int,
    rounds: Mapping[str, int] | None = None,
) -> float:
    """Seconds from the first start to the last end, if a free slot takes what has the longest chain behind it.

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
    now = 0.0
    while ready or running:
        while ready and len(running) < slots:
            _, name = heapq.heappop(ready)
            heapq.heappush(running, (now + seconds[name], name))
        now, done = heapq.heappop(running)
        for name in (*barrier.let_pass(graph.done(done)), *barrier.ended(done)):
            heapq.heappush(ready, (-rest[name], name))
    return now


def bound(seconds: Mapping[str, float], after: Mapping[str, Iterable[str]], slots: int) -> float:
    """Seconds that no order can do with less: the longest chain, and the work shared evenly."""
    chain = max(Graph(after).rest(seconds).values(), default=0.0)
    return max(chain, sum(seconds.values()) / slots)
