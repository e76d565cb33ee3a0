"""Seats and posts: a slot as the dispatcher sees it, and a process that works there."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from typing import Literal

from ..engines.local import LocalWorker
from ..engines.protocol import Environment
from ..hardware.slots import Slot
from ..tasks import Status
from .job import Job
from .outcome import Location

__all__ = ["Post", "Seat"]

TAIL = 8192  # bytes of output that are kept for messages


class Seat:
    """A slot: free, or taken by a post; with `warm` where a worker waits there for the next job."""

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.warm: Post | None = None
        self.taken_by: Post | None = None
        self.retired = ""  # why no worker starts here any more
        self.failed_starts = 0

    @property
    def free(self) -> bool:
        """Whether a job may be given to it."""
        return self.taken_by is None and not self.retired

    @property
    def ready(self) -> bool:
        """Whether a warm worker waits here."""
        return self.free and self.warm is not None and self.warm.state == "ready"


class Post:
    """A worker process at one seat, or at the several that its job takes."""

    def __init__(self, worker: LocalWorker, seats: tuple[Seat, ...], job: Job | None) -> None:
        self.worker = worker
        self.seats = seats
        self.job = job
        self.state: Literal["starting", "ready", "busy", "ending"] = "starting"
        self.environment: Environment = worker.begin.environment
        self.verdict: tuple[Status, str] | None = None  # why we end it, where we do
        self.setup_error: BaseException | None = None
        self.outdated = False
        self.done = 0
        self.ahead: deque[Job] = deque()  # wait in the worker's channel behind its job
        self.passing = 0  # so many were taken back, and the worker has not come to them yet
        self.quick = False  # its last task took next to nothing
        self.sent = 0.0
        self.began = time.time()
        self.tail = b""
        self.reported: tuple[int, int] | None = None  # bytes allocated and reserved by torch on its GPUs

    @property
    def place(self) -> Location:
        """Where it works."""
        slot = self.seats[0].slot
        return Location(slot.index, slot.label, slot.gpu_id, slot.uuid, self.worker.pid)

    @property
    def takes_ahead(self) -> bool:
        """Whether it is busy with plain calls so short that it may be given the next before it is done."""
        return (
            self.job is not None
            and not self.job.measured
            and self.state == "busy"
            and self.quick
            and not self.passing
        )

    def read_log(self) -> bool:
        """Take what the process has written; False at the end of it."""
        for _ in range(4):  # more than a pipe holds; who writes without pause must not keep us
            try:
                data = os.read(self.worker.log, 2**16)
            except BlockingIOError:
                return True
            if not data:
                return False
            self.tail = (self.tail + data)[-TAIL:]
            if self.job is not None:
                self.job.write(data)
        return True

    def last_words(self) -> str:
        """End of the output, for a message."""
        return self.tail.decode(errors="replace").strip()

    def release(self) -> None:
        """Ask the process to end: it does when its channel has no more to say."""
        self.state = "ending"
        with contextlib.suppress(OSError):
            self.worker.channel.shut()
