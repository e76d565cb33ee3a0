"""A warm worker that a submitting thread gives a call itself, while the scheduler's thread sleeps.

A call alone needs one wake-up less then: the scheduler takes note of it when something else wakes it, its value at the
latest. On a virtual machine a wake-up costs more than all the rest of a call.
"""

from __future__ import annotations

import sys
import threading
from typing import NamedTuple

from ..engines.base import Clock
from .job import Job
from .state import WorkerProcess

__all__ = ["HandOver", "Handed"]

LOOK = 0.05  # seconds between looks at whether a thread that has the lock is still at it


class Handed(NamedTuple):
    """A job that another thread gave to a worker; `sent` unless an interrupt or an error kept it from that."""

    process: WorkerProcess
    job: Job
    sent: bool


class HandOver:
    """One idle worker, offered to the thread that submits next.

    From `offer` to `take_back` the worker is that thread's; the scheduler takes it back when it wakes, before it looks
    at what woke it. So it has one owner at any time, and an interrupt of `give` at any line leaves a worker of which
    the scheduler knows what to think. What other threads show of it is true meanwhile: its job and when that began.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._offered: WorkerProcess | None = None
        self._sent = False

    def offer(self, process: WorkerProcess) -> None:
        """Have another thread give this worker, which has no job, the next call; by the scheduler's thread."""
        self._sent = False
        self._offered = process

    def give(self, job: Job) -> bool:
        """Give a plain call to the worker that is offered; False if there is none for it."""
        lock = self._lock
        if self._offered is None or not lock.acquire(blocking=False):
            return False
        try:
            process = self._offered
            if process is None or process.job is not None:
                return False
            process.began = self._clock.time()
            process.job = job  # from here on the scheduler sees to its end
            job.begin()
            process.send(job)
            self._sent = True
            return True
        finally:
            lock.release()

    def take_back(self) -> Handed | None:
        """End the offer; the job that was given meanwhile, if one was. By the scheduler's thread."""
        if self._offered is None:
            return None
        self._acquire()
        process, self._offered = self._offered, None
        self._lock.release()
        return None if process.job is None else Handed(process, process.job, self._sent)

    def _acquire(self) -> None:
        """Take the lock, also from a thread that an interrupt has thrown out of `give` before it released it."""
        while not self._lock.acquire(timeout=LOOK):
            if not self._is_given():
                self._lock = threading.Lock()

    def _is_given(self) -> bool:
        """Whether any thread is in `give`."""
        for frame in sys._current_frames().values():
            while frame is not None:
                if frame.f_code is HandOver.give.__code__ and frame.f_locals.get("self") is self:
                    return True
                frame = frame.f_back  # type: ignore[assignment]
        return False
