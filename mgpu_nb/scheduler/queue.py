"""The jobs that may start now, in the order in which they should."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from .job import Job

__all__ = ["ReadyQueue"]


class ReadyQueue:
    """Earlier batches first; of a batch the costliest first, then those of unknown cost as they came.

    Longest first is the list schedule of Graham (1969): at most 4/3 of the best makespan.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, float, int, Job]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, job: Job) -> None:
        """Add a job; one that comes back after a failed attempt goes to the place it had."""
        rank = -job.cost if job.cost is not None else 1.0
        heapq.heappush(self._heap, (job.batch, rank, job.ident, job))

    def first(self) -> Job | None:
        """Return the first without taking it; None where there is none."""
        return self._heap[0][3] if self._heap else None

    def pop(self) -> Job:
        """Take the first."""
        return heapq.heappop(self._heap)[3]

    def remove(self, unwanted: Callable[[Job], bool]) -> list[Job]:
        """Take out and return all that are unwanted."""
        out = [entry[3] for entry in self._heap if unwanted(entry[3])]
        self._heap = [entry for entry in self._heap if not unwanted(entry[3])]
        heapq.heapify(self._heap)
        return sorted(out, key=lambda job: job.ident)
