"""A call on its way through the pool."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any

from ..engines.payload import Payload
from ..engines.protocol import Environment, TaskMeta
from .outcome import Outcome

if TYPE_CHECKING:
    from .state import Seat

__all__ = ["FutureJob", "Gang", "Job"]

_numbers = itertools.count(1)


class Gang:
    """Jobs that start at once, each at a seat of its own, and end together when one of them fails.

    Attributes
    ----------
    members
        In order; the first of them stands for all in the queue.
    seats
        Where they work, by the number of the job, once they have started.
    apart
        Whether each needs a device of its own.
    started, broken
        Whether they were given seats; whether one of them has failed.
    """

    def __init__(self, members: Sequence[Job], apart: bool = False) -> None:
        self.members = tuple(members)
        self.apart = apart
        self.seats: dict[int, Seat] = {}
        self.started = False
        self.broken = False


class Job(ABC):
    """A call to be run. The dispatcher's thread alone changes it after `GPUPool` has handed it over.

    Attributes
    ----------
    ident
        Its number, the same in every attempt.
    batch
        Number of the batch it came with; earlier batches go first, the costliest of a batch first.
    alone
        Whether it needs its device for itself: it ran out of memory beside others.
    attempt, deaths
        How often it was begun, and how often its process ended under it.
    peak
        Bytes it used at the most, as far as measured: on a GPU by NVML and torch, on a CPU resident.
    unwanted
        Whether it was cancelled while it ran, and so gets no other attempt.
    """

    name = ""
    cost: float | None = None
    devices = 1
    memory: int | None = None
    timeout: float | None = None
    retries = 0
    retry_alone = False
    kind = ""
    measured = False
    gang: Gang | None = None

    def __init__(self, payload: Payload, environment: Environment, batch: int) -> None:
        self.ident = next(_numbers)
        self.payload = payload
        self.environment = environment
        self.batch = batch
        self.attempt = 0
        self.deaths = 0
        self.alone = False
        self.notes: list[str] = []
        self.peak: int | None = None
        self.unwanted = False

    @property
    def run(self) -> str:
        """Folder of the run it belongs to; empty for a plain call."""
        return ""

    @abstractmethod
    def begin(self) -> bool:
        """Note that an attempt begins; False where nobody wants the job any more."""

    def meta(self) -> TaskMeta | None:
        """Return what a worker is told beside the call; None for nothing."""
        return None

    def report(self, values: dict[str, Any]) -> None:  # noqa: B027 - a plain call has no use for it
        """Take what the task reported."""

    def write(self, data: bytes) -> None:  # noqa: B027 - a plain call keeps no log
        """Take what the task's process wrote."""

    @abstractmethod
    def finish(self, outcome: Outcome) -> None:
        """Take the end of the job; called once."""


class FutureJob(Job):
    """A job of `GPUPool.submit`: its end is a future's."""

    def __init__(self, payload: Payload, environment: Environment, batch: int) -> None:
        super().__init__(payload, environment, batch)
        self.future: Future[Any] = Future()
        self._begun = False
        self._dropped = False  # cancelled before it began

    def begin(self) -> bool:
        """Note that the future runs; False where it was cancelled."""
        if not self._begun:
            self._begun = True
            self._dropped = not self.future.set_running_or_notify_cancel()
        return not self._dropped

    def finish(self, outcome: Outcome) -> None:
        """Settle the future."""
        self.payload.release()
        if outcome.status == "ok":
            self.future.set_result(outcome.value)
        elif not self._begun:
            self.future.cancel()
            self.future.set_running_or_notify_cancel()
        elif not self._dropped:
            self.future.set_exception(outcome.exception or CancelledError(outcome.error))
