"""What a worker keeps after its tasks: caches that are meant to stay, or growth that goes on."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Mapping

from .. import context
from .memory import Memory

__all__ = ["Growth"]

UNBOUNDED = 4  # times that a cache without bound may grow so much
WORTH_A_LOOK = 2e-4  # seconds of tasks; a system fills 2 MB in that time
AGAIN = 4  # times at most that a function may keep so much because it has cost a worker before


class Growth:
    """Judges what is kept, once it is more than the pool allows.

    What `context.cached` functions hold never counts. Beyond that these are no growth: what a function with
    `functools.lru_cache` of the tasks' own modules has just cached, and what a function for which a worker was
    replaced before keeps again, as often as that happened, at most `AGAIN` times: each worker would load it anew, for
    ever. What comes on top of it counts, so that a leak is bounded, and a model is loaded twice at the most.

    Parameters
    ----------
    memory
        What is measured.
    allowed
        Bytes that may be kept; None for any.
    replaced
        How often a worker was replaced for each function.
    """

    def __init__(self, memory: Memory, allowed: int | None, replaced: Mapping[str, int]) -> None:
        self._memory = memory
        self._allowed = allowed
        self._left = {name: min(times, AGAIN) for name, times in replaced.items()}  # what each may keep
        self._accepted = 0  # bytes
        self._unbounded = UNBOUNDED
        self._cached = (0, 0)
        self._unseen = 0.0  # seconds of tasks since the last look
        self._known = frozenset(sys.modules) - {"__main__"}  # of libraries that were there before any task

    def _now(self) -> int:
        return self._memory.growth() - context.cached_bytes() - self._accepted

    def held(self, function: str, seconds: float) -> int:
        """Bytes kept beyond what is allowed and meant to be kept, after a task of this function; 0 for none.

        `seconds` that it took: in so short a time none fills much of the host's memory, and a look takes as long.
        """
        if self._allowed is None:
            return 0
        self._unseen += seconds
        if self._unseen < WORTH_A_LOOK and not self._memory.uses_gpu:
            return 0
        self._unseen = 0.0
        if self._now() <= self._allowed:
            return 0
        gc.collect()
        self._memory.trim()
        held = self._now()
        if held <= self._allowed:
            return 0
        if self._is_kept_on_purpose() or self._may_keep(function):
            self._accepted += held
            return 0
        return held

    def _may_keep(self, function: str) -> bool:
        left = self._left.get(function, 0)
        self._left[function] = left - 1
        return left > 0

    def _is_kept_on_purpose(self) -> bool:
        """Whether a cache of the tasks' modules has taken something since this was asked."""
        (bounded, unbounded), before = self._entries(), self._cached
        self._cached = bounded, unbounded
        if bounded > before[0]:
            return True
        if unbounded > before[1] and self._unbounded:
            self._unbounded -= 1
            return True
        return False

    def _entries(self) -> tuple[int, int]:
        """Entries of caches with a bound, and of those without."""
        counts = [0, 0]
        for found in gc.get_objects():
            if type(found) is functools._lru_cache_wrapper and found.__module__ not in self._known:
                info = found.cache_info()
                counts[info.maxsize is None] += info.currsize
        return counts[0], counts[1]
