"""The jobs that may start now, in the order in which they should."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Hashable

from .job import Job

__all__ = ["ReadyQueue"]

_Entry = tuple[int, float, int, Job]


class _Bucket:
    """Jobs that need the same: where one has to wait for memory, all have to."""

    __slots__ = ("blocked", "heap")

    def __init__(self) -> None:
        self.heap: list[_Entry] = []
        self.blocked = False


class ReadyQueue:
    """Earlier batches first; of a batch the costliest first, then those of unknown cost as they came.

    Longest first is the list schedule of Graham (1969): at most 4/3 of the best makespan.

    Parameters
    ----------
    need_of
        What a job needs, as a key: jobs of one key are blocked together.
    """

    def __init__(self, need_of: Callable[[Job], Hashable] = lambda job: None) -> None:
        self._need_of = need_of
        self._buckets: dict[Hashable, _Bucket] = {}
        # Heap of the first of each bucket, with stale entries. Of a job that comes back there may be several: the count
        # before the bucket decides between these.
        self._first: list[tuple[int, float, int, int, _Bucket]] = []
        self._offers = itertools.count()
        self._blocked: list[_Bucket] = []
        self._size = 0

    def __len__(self) -> int:
        """Number of jobs, blocked ones too."""
        return self._size

    def push(self, job: Job) -> None:
        """Add a job; one that comes back after a failed attempt goes to the place it had."""
        rank = -job.cost if job.cost is not None else 1.0
        entry = (job.batch, rank, job.ident, job)
        key = self._need_of(job)
        if (bucket := self._buckets.get(key)) is None:
            bucket = self._add_bucket(key)
        heapq.heappush(bucket.heap, entry)
        self._size += 1
        if bucket.heap[0] is entry and not bucket.blocked:
            self._offer(bucket)

    def _add_bucket(self, key: Hashable) -> _Bucket:
        for other in [other for other, bucket in self._buckets.items() if not bucket.heap]:
            del self._buckets[other]
        bucket = self._buckets[key] = _Bucket()
        if len(self._buckets) == 1:
            self._first.clear()
        if len(self._buckets) == 2:  # one alone needs no order
            for each in self._buckets.values():
                if not each.blocked:
                    self._offer(each)
        return bucket

    def _offer(self, bucket: _Bucket) -> None:
        if bucket.heap and len(self._buckets) > 1:
            batch, rank, ident, _ = bucket.heap[0]
            heapq.heappush(self._first, (batch, rank, ident, next(self._offers), bucket))

    def _top(self) -> _Bucket | None:
        """Bucket of the first job that is not blocked."""
        if len(self._buckets) == 1:
            (bucket,) = self._buckets.values()
            return bucket if bucket.heap and not bucket.blocked else None
        while self._first:
            _, _, ident, _, bucket = self._first[0]
            if not bucket.blocked and bucket.heap and bucket.heap[0][2] == ident:
                return bucket
            heapq.heappop(self._first)
        return None

    def first(self) -> Job | None:
        """The first job that is not blocked, without taking it; None if there is none."""
        bucket = self._top()
        return bucket.heap[0][3] if bucket is not None else None

    def pop(self) -> Job:
        """Take the first job that is not blocked."""
        bucket = self._top()
        if bucket is None:
            raise IndexError("no job may start")
        job = heapq.heappop(bucket.heap)[3]
        self._size -= 1
        self._offer(bucket)
        return job

    def block(self) -> None:
        """Let others pass the first job, and all that need the same, until `unblock`."""
        bucket = self._top()
        if bucket is not None:
            bucket.blocked = True
            self._blocked.append(bucket)

    def unblock(self) -> None:
        """Consider all jobs again."""
        blocked, self._blocked = self._blocked, []
        for bucket in blocked:
            bucket.blocked = False
            self._offer(bucket)

    def remove(self, unwanted: Callable[[Job], bool]) -> list[Job]:
        """Take out and return all that are unwanted, blocked ones too."""
        out: list[Job] = []
        for bucket in self._buckets.values():
            gone = [entry for entry in bucket.heap if unwanted(entry[3])]
            if gone:
                dropped = {entry[2] for entry in gone}
                bucket.heap = [entry for entry in bucket.heap if entry[2] not in dropped]
                heapq.heapify(bucket.heap)
                out += [entry[3] for entry in gone]
                if not bucket.blocked:
                    self._offer(bucket)
        self._size -= len(out)
        return sorted(out, key=lambda job: job.ident)
