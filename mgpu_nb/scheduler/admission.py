"""Which slots a job may take: how many, which are free, where its memory fits."""

from __future__ import annotations

import heapq
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

from ..engines.base import Memory, WorkerHandle
from ..hardware.slots import Slot
from .job import Job
from .state import SlotState, WorkerProcess

__all__ = ["Admission", "Group", "Promise"]


class Group:
    """Slots that share memory: those of a GPU, or all virtual devices of a host."""

    __slots__ = ("alone", "entry", "free", "idle", "order", "slots", "taken")

    def __init__(self, order: int) -> None:
        self.order = order
        self.slots: list[SlotState] = []
        self.idle: list[
            tuple[int, SlotState]
        ] = []  # heap of slots that can take a job, with some that no longer can
        self.free = 0
        self.taken = 0
        self.alone = 0  # jobs that have the device for themselves
        self.entry: _Entry | None = None  # where it stands in the order of groups

    def first_idle(self, can_take: Callable[[SlotState], bool]) -> SlotState | None:
        """The first slot that can take a job."""
        while self.idle and not can_take(self.idle[0][1]):
            heapq.heappop(self.idle)
        return self.idle[0][1] if self.idle else None


_everywhere = threading.Lock()  # over a look at the memory and the promise that follows from it
_admissions: weakref.WeakSet[Admission] = weakref.WeakSet()  # of all pools of this process


def _after_fork() -> None:
    # The parent's pools are not the child's, and a lock held by another thread would stay locked.
    global _everywhere, _admissions
    _everywhere, _admissions = threading.Lock(), weakref.WeakSet()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


_Entry = tuple[
    int, int, int, Group
]  # tasks, number of the group, number of the entry; all but the last are ordered


@dataclass(frozen=True, slots=True)
class Promise:
    """Bytes that a task may take, and whose; the worker that has taken some of them already."""

    size: int
    worker: WorkerHandle | None = None
    slot: Slot | None = None
    held: Callable[[WorkerHandle, Slot], int | None] | None = None

    def outstanding(self) -> int:
        """Bytes that it has not taken yet."""
        if not self.size or self.worker is None or self.slot is None or self.held is None:
            return self.size
        return max(0, self.size - (self.held(self.worker, self.slot) or 0))


class Admission:
    """Chooses slots for jobs, and learns how much memory the jobs of a kind need.

    What other programs use is not free; what the tasks of all pools of this process were promised and have not taken
    yet is not free either.

    A choice looks at the device with the fewest tasks and not at every slot, so that it costs the same for ten slots
    and for a thousand.

    Parameters
    ----------
    slots
        All slots of the pool.
    fresh
        Whether every job gets a process of its own, so that no warm worker need wait at its slot.
    memory
        Memory of a slot's device, see `Engine.memory`.
    held
        Memory that a worker holds on a slot's device, see `Engine.held`.
    """

    def __init__(
        self,
        slots: Sequence[SlotState],
        fresh: bool,
        memory: Callable[[Slot, int | None], Memory],
        held: Callable[[WorkerHandle, Slot], int | None],
    ) -> None:
        self._slots = slots
        self._can_take: Callable[[SlotState], bool] = (
            (lambda slot: slot.free) if fresh else (lambda slot: slot.ready)
        )
        self._memory = memory
        self._held = held
        self._peaks: dict[tuple[int, str], int] = {}
        self._groups: dict[str, Group] = {}
        for slot in slots:
            self._groups.setdefault(slot.group, Group(len(self._groups))).slots.append(slot)
        self._by_memory: dict[str, list[SlotState]] = {}
        for slot in slots:
            self._by_memory.setdefault(slot.slot.memory_of, []).append(slot)
        self._shared = len(self._by_memory) < len(slots)
        self._promised: list[
            tuple[str, int]
        ] = []  # whose memory, bytes: of the job that is about to take slots
        self._devices = len({slot.slot.uuid for slot in slots})
        self._order: list[_Entry] = []  # heap of groups with idle slots by tasks, with stale entries
        self.free = 0  # slots
        self.idle = 0  # free ones that can take a job at once
        self.retired = 0
        self._numbers = itertools.count()
        self.freed = False  # whether a slot was given back since this was reset
        for slot in slots:
            self.update(slot)
        with _everywhere:
            _admissions.add(self)

    # What changes.

    def update(self, slot: SlotState) -> None:
        """Take note of a slot that was taken or given back, that has a worker or none, or that was retired."""
        group = self._groups[slot.group]
        free, idle = slot.free, self._can_take(slot)
        self.free += free - slot.was_free
        group.free += free - slot.was_free
        self.idle += idle - slot.was_idle
        if idle and not slot.was_idle:
            heapq.heappush(group.idle, (slot.position, slot))
        slot.was_free, slot.was_idle = free, idle
        self._list(group)

    def _list(self, group: Group) -> None:
        """Have a group with idle slots stand in the order by its present number of tasks, once."""
        if group.idle and (group.entry is None or group.entry[0] != group.taken):
            group.entry = (group.taken, group.order, next(self._numbers), group)
            heapq.heappush(self._order, group.entry)

    def take(
        self, slots: Sequence[SlotState], process: WorkerProcess, alone: bool, on_host: bool = False
    ) -> None:
        """Let a process have slots; `alone` if nothing else may use their devices, or their hosts if `on_host`."""
        if alone:
            hosts = {slot.slot.host for slot in slots} if on_host else set()
            taken = {slot.group for slot in slots} | {s.group for s in self._slots if s.slot.host in hosts}
            process.alone = tuple(taken)
        for name in process.alone:
            self._groups[name].alone += 1
        for slot in slots:
            slot.taken_by = process
            self._groups[slot.group].taken += 1
            self.update(slot)
        self._promised = []  # it is the process's now

    def withdraw(self) -> None:
        """Forget the job that was to take slots and does not."""
        self._promised = []

    def give_back(self, slots: Sequence[SlotState], process: WorkerProcess) -> None:
        """Take slots back from a process."""
        self.freed = True
        for slot in slots:
            slot.taken_by = None
            self._groups[slot.group].taken -= 1
        if not any(slot.taken_by is process for slot in process.slots):
            for name in process.alone:
                self._groups[name].alone -= 1
            process.alone = ()
        for slot in slots:
            self.update(slot)

    def retire(self, slot: SlotState, reason: str) -> None:
        """Use a slot no more."""
        if not slot.retired:
            slot.retired = reason
            self.retired += 1
            self._devices = len({s.slot.uuid for s in self._slots if not s.retired})
            self.update(slot)

    def reinstate(self, slot: SlotState) -> None:
        """Use a retired slot again."""
        if slot.retired:
            slot.retired = ""
            self.retired -= 1
            self.freed = True
            self._devices = len({s.slot.uuid for s in self._slots if not s.retired})
            self.update(slot)

    def learn(self, job: Job, peak: int | None) -> None:
        """Remember the peak memory, in bytes, of a job of this batch and kind."""
        if peak is not None and job.kind:
            key = (job.batch, job.kind)
            self._peaks[key] = max(peak, self._peaks.get(key, 0))

    def need_key(self, job: Job) -> Hashable:
        """What a job needs, as a key: jobs of the same key get the same answer from `choose`."""
        alone = (job.alone, job.alone and job.exhausts_host)
        if job.memory is not None or not self._shared or not job.kind:
            return (job.memory, job.devices, *alone)
        return (job.batch, job.kind, job.devices, *alone)

    # What follows.

    def shares_device(self, slot: SlotState) -> bool:
        """Whether other slots of the pool are on the same device."""
        return len(self._groups[slot.group].slots) > 1

    def impossible(self, job: Job) -> str:
        """Reason why a job can never start; empty if it can."""
        usable = len(self._slots) - self.retired
        if job.devices > usable:
            retired = "; ".join(f"slot {s.slot.index}: {s.retired}" for s in self._slots if s.retired)
            return f"it takes {job.devices} slots, the pool has {usable} in use" + (
                f" ({retired})" if retired else ""
            )
        if job.gang is not None and job.gang.apart and job.devices > self._devices:
            return f"it takes {job.devices} devices, the pool has {self._devices} in use"
        return ""

    def choose(self, job: Job) -> tuple[SlotState, ...] | None:
        """Slots for the job, none if memory does not allow it yet, None if it must wait for slots."""
        self._promised = []
        chosen = self._choose(job)
        if not chosen:
            self._promised = []
        return chosen

    def _choose(self, job: Job) -> tuple[SlotState, ...] | None:
        if job.devices > self.free:
            return None
        if job.devices == 1 and not job.alone:
            return self._choose_one(job)
        groups = [group for group in self._groups.values() if group.free and not group.alone]
        if job.alone:
            groups = [group for group in groups if not group.taken]
            if job.exhausts_host:
                busy = {g.slots[0].slot.host for g in self._groups.values() if g.taken or g.alone}
                groups = [group for group in groups if group.slots[0].slot.host not in busy]
        slots = [slot for group in groups for slot in group.slots if slot.free]
        if len(slots) < job.devices:
            return None
        if (need := self.need(job)) is not None:
            groups = [group for group in groups if self._fits(group, need, stated=job.memory is not None)]
            slots = [slot for group in groups for slot in group.slots if slot.free]
        if len(slots) < job.devices:
            return ()
        slots.sort(key=lambda slot: slot.position)
        # One slot of each device, then the others: a gang is spread.
        spread = list({slot.slot.uuid: slot for slot in reversed(slots)}.values())
        if job.gang is not None and job.gang.apart and len(spread) < job.devices:
            return None
        return tuple(sorted(slots, key=lambda slot: (slot not in spread, slot.position))[: job.devices])

    def _choose_one(self, job: Job) -> tuple[SlotState, ...] | None:
        """Slot of the device with the fewest tasks."""
        need, stated = self.need(job), job.memory is not None
        refused: list[_Entry] = []
        try:
            for entry, slot in self._candidates():
                if need is None or self._fits(entry[-1], need, stated):
                    return (slot,)
                refused.append(heapq.heappop(self._order))
        finally:
            for entry in refused:
                heapq.heappush(self._order, entry)
        return () if refused else None

    def _candidates(self) -> Iterator[tuple[_Entry, SlotState]]:
        """Groups with an idle slot, those with the fewest tasks first; each stays on top until it is popped."""
        reserved = []
        try:
            while self._order:
                entry = self._order[0]
                group = entry[-1]
                if entry is not group.entry:  # it stands elsewhere by now
                    heapq.heappop(self._order)
                elif (slot := group.first_idle(self._can_take)) is None:
                    heapq.heappop(self._order)
                    group.entry = None
                elif group.alone:
                    reserved.append(heapq.heappop(self._order))
                else:
                    yield entry, slot
        finally:
            for entry in reserved:
                heapq.heappush(self._order, entry)

    def first_idle(self) -> SlotState | None:
        """The slot that a job which needs nothing special would take."""
        for _, slot in self._candidates():
            return slot
        return None

    def need(self, job: Job) -> int | None:
        """Bytes a job needs: what it states, else the largest peak of its kind if tasks share a device."""
        if job.memory is not None or not self._shared:
            return job.memory
        return self._peaks.get((job.batch, job.kind))

    def _fits(self, group: Group, need: int, stated: bool) -> bool:
        slot = group.slots[0].slot
        with _everywhere:
            promises = [p for each in _admissions for p in each.promises(slot.memory_of)]
            fits = (
                not promises if not stated else False
            )  # a guess: where nothing runs, waiting would free nothing
            if not fits:
                wanted = need + sum(promise.size for promise in promises)
                free = self._memory(slot, wanted).free
                # Unknown; or enough, whatever they have taken of it, which takes long to learn.
                fits = free is None or free >= wanted
                if free is not None and not fits:
                    # What running tasks were promised and have not taken yet is not free.
                    fits = free - sum(promise.outstanding() for promise in promises) >= need
            if fits:
                self._promised.append((slot.memory_of, need))
        return fits

    def promises(self, memory: str) -> list[Promise]:
        """What the running tasks of this pool were promised of a memory; may be called from any thread."""
        found = [Promise(size) for whose, size in self._promised if whose == memory]
        # A warm worker may have been given a call of which the scheduler has not taken note yet.
        slots = {slot.taken_by or slot.warm: slot.slot for slot in self._by_memory.get(memory, ())}
        for process, slot in slots.items():
            if process is not None and (job := process.job) is not None:
                found.append(Promise(self.need(job) or 0, process.worker, slot, self._held))
        return found

    def told(self) -> str:
        """Free and total memory of each device, for a message."""
        found = []
        for slots in list(self._by_memory.values())[:4]:
            total, free = self._memory(slots[0].slot, None)
            if total is not None and free is not None:
                found.append(f"{slots[0].slot.label} has {free:,} of {total:,} free")
        return ", ".join(found) or "how much is free is not known"

    def close(self) -> None:
        """Have other pools count no more what was promised here."""
        with _everywhere:
            _admissions.discard(self)

    def in_use_elsewhere(self) -> bool:
        """Whether tasks of other pools of this process run on the same devices, and may free memory."""
        with _everywhere:
            others = [each for each in _admissions if each is not self]
            return any(each.promises(memory) for each in others for memory in self._by_memory)
