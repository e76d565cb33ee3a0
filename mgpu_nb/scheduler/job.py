"""A call on its way through the pool."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

from ..context import Members
from ..engines.base import Environment, Payload, Reported, TaskMeta
from ..errors import add_note
from .outcome import Outcome

__all__ = ["FutureJob", "Gang", "Job"]

_numbers = itertools.count(1)


class Gang:
    """Jobs that start together, each at a slot of its own, and end together when one of them fails.

    Attributes
    ----------
    members
        In order; the first of them stands for all in the queue.
    devices
        Host and UUID of the device that each works on, by the number of the job, once they have started.
    apart
        Whether each needs a device of its own.
    places
        Where they are, as each of them is told; None until they have started.
    started, returned, broken
        Whether they were given slots; whether one of them has returned; whether one has failed.
    lost
        How often it was tried again because a node was lost.
    gathered, reason
        Those that have ended of a gang that is tried again once all have, and why it is; else None.
    """

    def __init__(self, members: Sequence[Job], apart: bool = False) -> None:
        self.members = tuple(members)
        self.apart = apart
        self.devices: dict[int, tuple[str, str]] = {}
        self.places: Members | None = None
        self.started = False
        self.returned = False
        self.broken = False
        self.lost = 0
        self.gathered: list[Job] | None = None
        self.reason = ""

    def host_of(self, job: Job) -> str | None:
        """Machine where a job of it works, and must when its process is started anew; None for any."""
        return self.devices[job.ident][0] if self.started and job.ident in self.devices else None


class Job(ABC):
    """A call to be run. The scheduler's thread alone changes it after `GPUPool` has handed it over.

    Attributes
    ----------
    ident
        Its number, the same in every attempt.
    batch
        Number of the batch it came with; earlier batches go first, the costliest of a batch first.
    recorded
        Whether it is a task of a run: measured, with a log and a record.
    alone
        Whether it needs its device for itself: it ran out of memory beside others.
    exhausts_host
        Whether what ran out was the memory of the host: then it needs all of that for itself.
    attempt, deaths, lost
        How often it was begun, how often its process ended under it, and how often its node was lost.
    avoids
        Machines that lack what it needs, as one attempt on each has shown.
    notes
        What the record should say beside the outcome.
    peak
        Largest number of bytes seen in use: on a GPU by NVML and torch, on a CPU resident.
    unwanted
        Whether it was cancelled while it ran, and so gets no other attempt.
    leads
        Whether other jobs wait for its end.
    """

    __slots__ = (
        "alone", "attempt", "avoids", "batch", "cost", "deaths", "devices", "environment", "exhausts_host", "gang",
        "ident", "lost", "notes", "payload",
        "peak", "unwanted",
    )  # fmt: skip

    name = ""
    memory: int | None = None
    timeout: float | None = None
    retries = 0
    retry_alone = False
    kind = ""
    recorded = False
    leads = False

    def __init__(self, payload: Payload, environment: Environment, batch: int) -> None:
        self.ident = next(_numbers)
        self.payload = payload
        self.environment = environment
        self.batch = batch
        self.cost: float | None = None
        self.devices = 1
        self.gang: Gang | None = None
        self.attempt = 0
        self.deaths = 0
        self.lost = 0
        self.avoids: tuple[str, ...] = ()
        self.alone = False
        self.exhausts_host = False
        self.notes: tuple[str, ...] = ()
        self.peak: int | None = None
        self.unwanted = False

    @property
    def run(self) -> str:
        """Folder of the run it belongs to; empty for a plain call."""
        return ""

    @property
    def run_name(self) -> str:
        """Name of that run."""
        return ""

    @property
    def run_began(self) -> float | None:
        """Start of that run, Unix time in seconds; None for a plain call."""
        return None

    @property
    def label(self) -> str:
        """What to call it in a view."""
        return self.name

    def note(self, text: str) -> None:
        """Add a note for the record."""
        self.notes = (*self.notes, text)

    @abstractmethod
    def begin(self) -> bool:
        """Note that an attempt begins; False if nobody wants the job any more."""

    def meta(self, host: str) -> TaskMeta | None:  # noqa: ARG002
        """Metadata that its worker, on a host, gets beside the call; None for nothing."""
        return None

    def answer(self, task: str, send: Callable[[Payload], None]) -> None:  # noqa: B027 - a plain call asks for nothing
        """Have `send` called, by any thread, with the value of a task that its worker asks for, see `WorkerHandle`."""

    def report(self, report: Reported) -> None:  # noqa: B027 - a plain call has no use for them
        """Take metrics that the task reported."""

    def write(self, data: bytes) -> None:  # noqa: B027 - a plain call keeps no log
        """Take what the task's process wrote."""

    def keep(self, outcome: Outcome, kept: Callable[[], None]) -> bool:  # noqa: ARG002
        """Whether the value must be written before the job ends; `kept` is called then, by any thread."""
        return False

    @abstractmethod
    def finish(self, outcome: Outcome) -> None:
        """Take the end of the job; called once."""


class FutureJob(Job):
    """A job of `GPUPool.submit`: its end is a future's."""

    __slots__ = ("_begun", "_dropped", "_function", "future")

    def __init__(self, payload: Payload, environment: Environment, batch: int, function: str = "") -> None:
        super().__init__(payload, environment, batch)
        self._function = function  # its name
        self.future: Future[Any] = Future()
        self._begun = False
        self._dropped = False  # cancelled before it began

    @property
    def label(self) -> str:
        """What to call it in a view."""
        return f"a call of {self._function}" if self._function else "a call"

    def begin(self) -> bool:
        """Note that the future runs; False if it was cancelled."""
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
            error = outcome.exception or CancelledError(outcome.error)
            if outcome.output:
                add_note(error, f"Its worker's output ended with:\n{outcome.output}")
            if outcome.location is not None:
                add_note(error, f"the call of {self._function or 'a function'} on {outcome.location.place}")
            self.future.set_exception(error)
