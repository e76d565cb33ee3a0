"""The one thread of a process that samples its devices: twice a second, while somebody listens.

A thousand workers take it tens of milliseconds, which would be a tenth of the processor that gives them their tasks:
the more a sample costs, the fewer there are.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from ..places import elsewhere
from .node import with_nodes
from .reading import read
from .samples import Snapshot, WorkerState

__all__ = ["PERIOD", "Pool", "Sampler", "shared"]

log = logging.getLogger("mgpu_nb")

PERIOD = 0.5  # seconds
SHARE = 0.05  # of a processor that sampling may take, by longer periods
KEPT = 600  # snapshots: five minutes
MOST_SAMPLES = (
    60_000  # of devices and workers in them; of a cluster of many nodes it is less than five minutes
)


class Pool(Protocol):
    """What the sampler asks of a pool."""

    def states(self) -> Iterable[WorkerState]:
        """States of its workers now; called from the sampler's thread."""


class Sampler:
    """Takes snapshots and hands each to its listeners. Without listeners there is no thread."""

    def __init__(self, period: float = PERIOD) -> None:
        self.period = period
        self.history: deque[Snapshot] = deque(maxlen=KEPT)
        self._pools: weakref.WeakSet[Pool] = weakref.WeakSet()
        self._listeners: list[Callable[[Snapshot], None]] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._spent = 0.0  # seconds of the processor for the last sample

    def add_pool(self, pool: Pool) -> None:
        """Sample the workers of a pool, too, for as long as it lives."""
        self._pools.add(pool)

    def listen(self, listener: Callable[[Snapshot], None]) -> None:
        """Call `listener` with every snapshot, from the sampler's thread, until `leave`."""
        with self._changed:
            self._listeners.append(listener)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="mgpu_nb-sampler", daemon=True)
                self._thread.start()

    def leave(self, listener: Callable[[Snapshot], None]) -> None:
        """Call `listener` no more."""
        with self._changed:
            if listener in self._listeners:
                self._listeners.remove(listener)
            self._changed.notify_all()

    @property
    def running(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None

    def take(self) -> Snapshot:
        """Take a snapshot now."""
        states = [state for pool in list(self._pools) for state in pool.states()]
        snapshot = with_nodes(read(states), [state for state in states if elsewhere(state.host)])
        size = len(snapshot.devices) + len(snapshot.workers)
        while self.history and (len(self.history) + 1) * size > MOST_SAMPLES:
            self.history.popleft()
        self.history.append(snapshot)
        return snapshot

    def _run(self) -> None:
        while True:
            began, spent = time.monotonic(), time.thread_time()
            try:
                snapshot = self.take()
            except Exception:
                log.exception("the devices could not be looked at; trying again")
            else:
                for listener in list(self._listeners):
                    self._call(listener, snapshot)
            due = began + self._period_after(time.thread_time() - spent)
            with self._changed:
                while self._listeners and (left := due - time.monotonic()) > 0:
                    self._changed.wait(left)
                if not self._listeners:
                    self._thread = None
                    return

    def _period_after(self, spent: float) -> float:
        """Seconds from one sample to the next, after so many of the processor; the first loads what it needs."""
        least, self._spent = min(spent, self._spent), spent
        return max(self.period, least / SHARE)

    def _call(self, listener: Callable[[Snapshot], None], snapshot: Snapshot) -> None:
        try:
            listener(snapshot)
        except Exception:
            log.exception("a view of the devices failed and is not updated any more")
            self.leave(listener)


shared = Sampler()


def _after_fork() -> None:
    # The thread is the parent's, and so are the listeners.
    global shared
    shared = Sampler()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
