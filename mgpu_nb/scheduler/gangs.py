"""Jobs that start together and end together: begun, ended, and tried again all at once where a node was lost."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

from ..context import Members
from ..engines.base import Engine, MeetingPoints
from ..hardware.slots import Slot
from .job import Gang, Job
from .outcome import Outcome
from .queue import ReadyQueue
from .state import SlotState
from .workers import WorkerSet

__all__ = ["MAX_LOST", "Gangs", "places"]

MAX_LOST = 3  # times that what was lost with its node is tried again


class Gangs:
    """The gangs of a pool.

    Parameters
    ----------
    began
        Called with a job and the slots that it was given.
    """

    def __init__(
        self, queue: ReadyQueue, workers: WorkerSet, began: Callable[[Job, tuple[SlotState, ...]], None]
    ) -> None:
        self._queue = queue
        self._workers = workers
        self._began = began
        self._alone: set[Job] = set()  # that wait for a slot while others of their gang have theirs
        self.gathering: list[Gang] = []
        """Gangs that will be tried again once all of each have ended."""

    def begin(self, job: Job, gang: Gang, slots: tuple[SlotState, ...]) -> None:
        """Start all jobs of a gang; or one again, whose process ended before it began."""
        members = (job,) if gang.started else gang.members
        gang.started, job.devices = True, 1
        self._alone.discard(job)
        gang.devices.update({m.ident: slot.slot.device for m, slot in zip(members, slots, strict=True)})
        for member, slot in zip(members, slots, strict=True):
            if member.begin():
                self._workers.assign(member, (slot,))
                self._began(member, (slot,))

    def ended(self, job: Job, gang: Gang, outcome: Outcome) -> bool:
        """Take the end of an attempt; whether the job has not ended with it, for its gang is tried again."""
        if gang.gathered is not None:
            self._gather(gang, job, f"attempt {job.attempt} was ended with its gang: {gang.reason}")
            return True
        if outcome.status == "ok":
            gang.returned = True
            return False
        if outcome.lost and not (gang.broken or any(member.unwanted for member in gang.members)):
            if gang.returned:
                job.note("its gang was not tried again: others of it had returned")
            elif gang.lost >= MAX_LOST:
                job.note(f"its gang was lost with a node {gang.lost + 1} times and was not tried again")
            else:
                note = f"attempt {job.attempt} was lost {outcome.lost}"
                self._try_again(gang, job, f"{job.name!r} was lost {outcome.lost}", note)
                return True
        self.disband(gang, job, outcome)
        return False

    def returned(self, job: Job, gang: Gang) -> bool:
        """Take a job that its worker never began; whether it waits for the others, to be tried again with them."""
        if gang.gathered is not None:
            self._gather(gang, job)
            return True
        if not (gang.broken or job.unwanted):
            self._alone.add(job)
        return False

    def slots_left(self, hosts: set[str]) -> None:
        """Try gangs again of which a job waits for a slot on a machine that is gone; `hosts` are those there."""
        if not self._alone:
            return
        waiting = self._queue.remove(lambda job: job in self._alone)
        self._alone = set(waiting)  # others were cancelled or refused
        for job in waiting:
            self._queue.push(job)
        for job in waiting:
            gang = job.gang
            if (
                gang is not None
                and gang.gathered is None
                and (home := gang.host_of(job)) not in (None, *hosts)
            ):
                self._try_again(gang, None, f"node {home} is gone, where {job.name!r} was to start")

    def disband(self, gang: Gang, cause: Job, outcome: Outcome) -> None:
        """End the jobs of a gang of which one has failed: they would wait for it."""
        if gang.broken:
            return
        gang.broken = True
        reason = f"{cause.name!r} ended {outcome.status}" + (f": {outcome.error}" if outcome.error else "")
        for job in self._end(gang, cause, reason, unwanted=True):
            job.finish(Outcome("cancelled", error=reason))

    def cancel(self, chosen: Callable[[Job], bool]) -> None:
        """Have jobs that are chosen not tried again."""
        for gang in self.gathering:
            for job in filter(chosen, gang.members):
                job.unwanted = True

    def _end(self, gang: Gang, cause: Job | None, reason: str, *, unwanted: bool) -> list[Job]:
        """End the processes of a gang, but that of one job; the jobs of it that were in the queue."""
        for process in list(self._workers.processes.values()):
            if process.job is not None and process.job is not cause and process.job.gang is gang:
                process.job.unwanted |= unwanted
                self._workers.end(process, "cancelled", reason)
        queued = self._queue.remove(lambda job: job.gang is gang)
        self._alone.difference_update(queued)
        return queued

    def _try_again(self, gang: Gang, cause: Job | None, reason: str, note: str = "") -> None:
        """End what is left of a gang, and queue all of it once that has ended."""
        gang.lost += 1
        gang.gathered, gang.reason = [], reason
        self.gathering.append(gang)
        queued = self._end(gang, cause, reason, unwanted=False)
        if cause is not None:
            self._gather(gang, cause, note)
        for job in queued:
            self._gather(gang, job)

    def _gather(self, gang: Gang, job: Job, note: str = "") -> None:
        if gang.gathered is None:
            return
        if note:
            job.note(note)
        gang.gathered.append(job)
        if len(gang.gathered) < len(gang.members):
            return
        self.gathering.remove(gang)
        gang.gathered = None
        gang.devices.clear()
        if any(member.unwanted for member in gang.members):
            for member in gang.members:
                member.finish(Outcome("cancelled", error="cancelled before its gang was tried again"))
            return
        attempt = max(member.attempt for member in gang.members)
        for member in gang.members:
            member.attempt, member.lost = attempt, gang.lost
        lead = gang.members[0]
        lead.devices, gang.started = len(gang.members), False
        self._queue.push(lead)


def places(engine: Engine, slots: Sequence[Slot]) -> Members:
    """What the jobs of a gang are told of the slots that they start at.

    Raises
    ------
    OSError
        If the machine of the first has no port at which the others could meet it.
    """
    return Members(
        hosts=tuple(slot.host for slot in slots),
        on_gpus=all(slot.kind == "cuda" for slot in slots),
        meeting_point=engine.meeting_point(slots[0]) if isinstance(engine, MeetingPoints) else None,
        start=secrets.token_hex(8),
    )
