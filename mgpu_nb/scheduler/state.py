"""What the scheduler knows of each slot, of the slots that share memory, and of each worker process."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Literal

from ..engines.base import Environment, TaskMeta, WorkerHandle
from ..hardware.slots import Slot
from ..output import clean
from ..tasks import Status
from .job import Job
from .loop import Timer
from .outcome import Location

__all__ = ["Entry", "Group", "SlotState", "WorkerProcess"]

TAIL = 8192  # bytes of output that are kept for messages
KEPT = 2**16  # bytes of output of plain calls that are kept for each slot


class SlotState:
    """A slot: free, or taken by a process; with `warm` if a worker waits there for the next job."""

    __slots__ = (
        "again_at", "draining", "faults", "gone", "group", "lost_since", "lost_starts", "output", "position", "resting",
        "retired", "slot", "taken_by", "used", "warm", "was_free", "was_idle",
    )  # fmt: skip

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.position = slot.index  # in the order of the pool
        self.draining = ""  # why it will be gone soon, and no job begins here any more
        self.gone = False
        self.warm: WorkerProcess | None = None
        self.taken_by: WorkerProcess | None = None
        self.used = 0.0  # when it came, a worker was set up, or the last job there ended
        self.retired = ""  # why no worker starts here any more
        self.again_at = 0.0  # when a worker may be tried again at a retired slot
        self.resting = ""  # why it waits until the next worker is tried
        self.lost_starts = 0  # in a row
        self.lost_since = 0.0
        self.faults = 0  # weight of those that the next start will hardly do better than; see `starts`
        self.output = (
            0,
            b"",
        )  # bytes that plain calls and setup wrote here, and the last of them; replaced as one
        self.was_free = self.was_idle = False  # as admission counted it
        self.group = slot.group

    @property
    def free(self) -> bool:
        """Whether a job may be assigned to it."""
        return self.taken_by is None and not self.out_of_use

    @property
    def out_of_use(self) -> bool:
        """Whether no worker may start here now."""
        return bool(self.retired or self.resting or self.draining or self.gone)

    @property
    def starts(self) -> bool:
        """Whether a warm worker is being set up here."""
        return self.warm is not None and self.warm.state == "starting"

    @property
    def ready(self) -> bool:
        """Whether a warm worker waits here."""
        return self.free and self.warm is not None and self.warm.state == "ready"


class Group:
    """Slots that share memory: those of a GPU, or all virtual devices of a host."""

    __slots__ = ("alone", "entry", "free", "host", "idle", "order", "slots", "taken")

    def __init__(self, order: int, host: str) -> None:
        self.order = order
        self.host = host
        self.slots: list[SlotState] = []
        self.idle: list[
            tuple[int, SlotState]
        ] = []  # heap of slots that can take a job, with some that no longer can
        self.free = 0
        self.taken = 0
        self.alone = 0  # jobs that have the device for themselves
        self.entry: Entry | None = None  # where it stands in the order of groups

    def first_idle(self, can_take: Callable[[SlotState], bool]) -> SlotState | None:
        """The first slot that can take a job."""
        while self.idle and not can_take(self.idle[0][1]):
            heapq.heappop(self.idle)
        return self.idle[0][1] if self.idle else None

    def drop(self, gone: set[SlotState]) -> None:
        """Forget slots; another may come at the place of each."""
        self.slots = [slot for slot in self.slots if slot not in gone]
        self.idle = [entry for entry in self.idle if entry[1] not in gone]
        heapq.heapify(self.idle)


Entry = tuple[
    int, int, int, Group
]  # tasks, place of the group, number of the entry; all but the last are ordered


class WorkerProcess:
    """A worker process at one slot, or at the several that its job takes."""

    __slots__ = (
        "ahead", "alone", "asked", "began", "begun", "broken", "done", "environment", "job", "kill_reason", "last",
        "quick", "sent", "setup_error", "setup_raised", "slots", "start_timer", "state", "tail", "timer",
        "unfit", "worker",
    )  # fmt: skip

    def __init__(self, worker: WorkerHandle, slots: tuple[SlotState, ...], environment: Environment) -> None:
        self.worker = worker
        self.slots = slots
        self.environment = environment  # that the process has taken over
        self.job: Job | None = None
        self.alone: tuple[Group, ...] = ()  # slots that are for it alone
        self.state: Literal["starting", "ready", "busy", "ending"] = "starting"
        self.kill_reason: tuple[Status, str] | None = None  # why we end it, if we do
        self.setup_error: BaseException | None = None
        self.setup_raised = False  # and will whenever it is called
        self.unfit = False  # it has not begun its job and will not
        self.broken = False  # what it sends cannot be read: nothing of it counts any more
        self.last = 0  # number of the last job that it ended
        self.done = 0
        self.ahead: deque[Job] = deque()  # prefetched
        self.asked: Job | None = None  # the last of these, if it was asked back and did not come at once
        self.quick = False  # its last task took next to nothing
        self.sent = 0.0
        self.began = self.begun = 0.0  # by the clock, and by one that nobody sets
        self.tail = b""
        self.start_timer: Timer | None = None
        self.timer: Timer | None = None  # of its job's timeout, or of the grace before it is killed

    def __str__(self) -> str:
        return f"worker {self.worker.number} of slot {'+'.join(str(slot.slot.index) for slot in self.slots)}"

    @property
    def location(self) -> Location:
        """Where it works."""
        slot = self.slots[0].slot
        return Location(slot.index, slot.label, slot.gpu_id, slot.uuid, self.worker.pid, slot.host)

    @property
    def may_prefetch(self) -> bool:
        """Whether it is busy with plain calls so short that it may be given the next before it is done."""
        job = self.job
        return (
            job is not None
            and self.quick
            and self.state == "busy"
            and not self.slots[0].draining
            and not job.recorded
            and self.worker.prefetches
        )

    def send(self, job: Job) -> None:
        """Send it a job, with the environment to be taken over if that is another than it has."""
        meta = job.meta(self.slots[0].slot.host)
        if self.environment is not job.environment:
            self.environment = job.environment
            meta = (meta or TaskMeta())._replace(environment=job.environment)
        self.worker.assign(job.ident, meta, job.payload)

    def keep_output(self, data: bytes) -> None:
        """Keep the end of what the process writes, and pass all of it to its job, or to its slot for a plain call."""
        self.tail = (self.tail + data)[-TAIL:]
        if self.job is not None and self.job.recorded:
            self.job.write(data)
        else:
            written, last = self.slots[0].output
            self.slots[0].output = written + len(data), (last + data)[-KEPT:]

    @property
    def last_output(self) -> str:
        """End of the output, for a message: its last lines, safe to show."""
        lines = self.tail.split(b"\n")
        if len(self.tail) == TAIL:
            del lines[0]  # a part of one
        return "\n".join(map(clean, lines)).strip()

    def cancel_timers(self) -> None:
        """Cancel its timers."""
        for timer in (self.start_timer, self.timer):
            if timer is not None:
                timer.cancel()
        self.start_timer = self.timer = None
