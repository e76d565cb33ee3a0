"""Which slots a job may take: how many, which are free, where its memory fits."""

from __future__ import annotations

import heapq
import itertools
import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ..engines.base import Memory, WorkerHandle
from ..hardware.slots import Slot
from .job import Job
from .state import Entry, Group, SlotState, WorkerProcess

__all__ = ["Admission", "Promise"]


_everywhere = threading.Lock()  # over a look at the memory and the promise that follows from it
_admissions: weakref.WeakSet[Admission] = weakref.WeakSet()  # of all pools of this process


def _after_fork() -> None:
    # The parent's pools are not the child's, and a lock held by another thread would stay locked.
    global _everywhere, _admissions
    _everywhere, _admissions = threading.Lock(), weakref.WeakSet()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Count(NamedTuple):
    """Slots that are not about to go; of those that are not out of use: slots, devices, slots of each host."""

    there: int
    slots: int
    devices: int
    hosts: Mapping[str, int]

    @property
    def largest(self) -> int:
        """Slots of the largest host."""
        return max(self.hosts.values(), default=0)


class Promise(NamedTuple):
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
        Slots that are there from the beginning.
    fresh
        Whether every job gets a process of its own, so that no warm worker need wait at its slot.
    memory
        Memory of a slot's device, see `Engine.memory`.
    held
        Memory that a worker holds on a slot's device, see `Engine.held`.
    expected
        Number of slots that there will be, see `Elastic`; left out where slots neither come nor go.
    """

    def __init__(
        self,
        slots: Sequence[SlotState],
        fresh: bool,
        memory: Callable[[Slot, int | None], Memory],
        held: Callable[[WorkerHandle, Slot], int | None],
        expected: Callable[[], int | None] | None = None,
    ) -> None:
        self.slots: tuple[SlotState, ...] = ()
        """Those that are there, in their order; replaced as one, for other threads read it."""
        self.gave_up = ""
        """Why no more slots will come, if none will."""
        self._can_take: Callable[[SlotState], bool] = (
            (lambda slot: slot.free) if fresh else (lambda slot: slot.ready)
        )
        self._memory = memory
        self._held = held
        self._expected = expected
        self._peaks: dict[tuple[int, str], int] = {}
        self._largest = 0  # bytes: nothing here was promised more
        self._groups: dict[str, Group] = {}
        self._by_memory: dict[str, list[SlotState]] = {}  # changed under the lock: other pools read it
        self._shared = expected is not None  # whether tasks share a device, or may
        self._promised: list[
            tuple[str, int]
        ] = []  # whose memory, bytes: of the job that is about to take slots
        self._counted: _Count | None = None
        self._most: int | None = None  # memory of the largest device, once it is known
        self._order: list[Entry] = []  # heap of groups with idle slots by tasks, with stale entries
        self.free = 0  # slots
        self.idle = 0  # free ones that can take a job at once
        self.retired = 0
        self._numbers = itertools.count()
        self.kept = ""
        """Machine that is kept for a job of several slots: others start elsewhere."""
        self.freed = False  # whether a slot was given back, came or went since this was reset
        self.join(slots)
        with _everywhere:
            _admissions.add(self)

    # What changes.

    def join(self, slots: Sequence[SlotState]) -> None:
        """Take slots that have come."""
        self.slots = tuple(sorted((*self.slots, *slots), key=lambda slot: slot.position))
        with _everywhere:
            for slot in slots:
                self._by_memory.setdefault(slot.slot.memory_of, []).append(slot)
        for slot in slots:
            group = self._groups.get(slot.group)
            if group is None:
                group = self._groups[slot.group] = Group(slot.position, slot.slot.host)
            group.slots.append(slot)
            self.update(slot)
        self._shared = self._expected is not None or len(self._by_memory) < len(self.slots)
        self._recount()

    def leave(self, slots: Iterable[SlotState]) -> None:
        """Forget slots, which no process has any more."""
        gone = set(slots)
        for slot in gone:
            slot.gone = True
            self.retired -= bool(slot.retired)
            self.update(slot)
        self.slots = tuple(slot for slot in self.slots if slot not in gone)
        with _everywhere:
            for memory in {slot.slot.memory_of for slot in gone}:
                self._by_memory[memory] = [slot for slot in self._by_memory[memory] if slot not in gone]
                if not self._by_memory[memory]:
                    del self._by_memory[memory]
        for name in {slot.group for slot in gone}:
            group = self._groups[name]
            group.drop(gone)
            if not group.slots:
                group.entry = None
                del self._groups[name]
        self._order = [entry for entry in self._order if entry is entry[-1].entry]
        heapq.heapify(self._order)
        self._recount()

    def drain(self, slot: SlotState, reason: str) -> None:
        """Have no job begin at a slot any more, which will be gone soon."""
        slot.draining = reason
        self.update(slot)
        self._recount()

    def give_up(self, reason: str) -> None:
        """Expect no more slots."""
        self.gave_up = reason
        self.freed = True

    def _recount(self) -> None:
        self._counted = self._most = None
        self.freed = True

    def update(self, slot: SlotState) -> None:
        """Take note of a slot that was taken or given back, that has a worker or none, or that was retired."""
        if slot.gone and not (slot.was_free or slot.was_idle):
            return
        group = self._groups[slot.group]
        free = slot.free
        idle = free and self._can_take(slot)
        if free != slot.was_free:
            slot.was_free = free
            self.free += 1 if free else -1
            group.free += 1 if free else -1
        if idle != slot.was_idle:
            slot.was_idle = idle
            self.idle += 1 if idle else -1
            if idle:
                heapq.heappush(group.idle, (slot.position, slot))
        # One with idle slots stands in the order by its present number of tasks, once.
        if group.idle and (group.entry is None or group.entry[0] != group.taken):
            group.entry = (group.taken, group.order, next(self._numbers), group)
            heapq.heappush(self._order, group.entry)

    def take(
        self, slots: Sequence[SlotState], process: WorkerProcess, alone: bool, on_host: bool = False
    ) -> None:
        """Let a process have slots; `alone` if nothing else may use their devices, or their hosts if `on_host`."""
        if alone:
            hosts = {slot.slot.host for slot in slots} if on_host else set()
            taken = {slot.group for slot in slots}
            taken |= {name for name, group in self._groups.items() if group.host in hosts}
            process.alone = tuple(self._groups[name] for name in taken)
        for group in process.alone:
            group.alone += 1
        for slot in slots:
            slot.taken_by = process
            self._groups[slot.group].taken += 1
            self.update(slot)
        if process.job is not None and process.job.memory is not None:
            self._largest = max(self._largest, process.job.memory)
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
            for group in process.alone:
                group.alone -= 1
            process.alone = ()
        for slot in slots:
            self.update(slot)

    def retire(self, slot: SlotState, reason: str) -> None:
        """Use a slot no more."""
        if not slot.retired:
            slot.retired = reason
            self.retired += 1
            self.update(slot)
            self._recount()

    def reinstate(self, slot: SlotState) -> None:
        """Use a retired slot again."""
        if slot.retired:
            slot.retired = ""
            self.retired -= 1
            self.update(slot)
            self._recount()

    def learn(self, job: Job, peak: int | None) -> None:
        """Remember the peak memory, in bytes, of a job of this batch and kind."""
        if peak is not None and job.kind:
            key = (job.batch, job.kind)
            self._largest = max(self._largest, peak)
            self._peaks[key] = max(peak, self._peaks.get(key, 0))

    def need_key(self, job: Job) -> Hashable:
        """What a job needs, as a key: jobs of the same key get the same answer from `choose`."""
        learnt = job.memory is None and self._shared and job.kind
        memory = (job.batch, job.kind) if learnt else job.memory
        if job.gang is None and not job.alone and not job.avoids:
            return (memory, job.devices)
        together = job.gang is not None and (job.gang.apart, job.gang.host_of(job))
        return (memory, job.devices, together, job.alone, job.alone and job.exhausts_host, job.avoids)

    # What follows.

    def shares_device(self, slot: SlotState) -> bool:
        """Whether other slots of the pool are on the same device."""
        return len(self._groups[slot.group].slots) > 1

    @property
    def usable(self) -> int:
        """Number of slots that are there, neither out of use nor about to go."""
        return self._count().slots

    @property
    def missing(self) -> int | None:
        """Number of slots that are not there yet and will be; None if that is not known."""
        if self._expected is None or self.gave_up:
            return 0
        expected = self._expected()
        return None if expected is None else max(0, expected - self._count().there)

    def _count(self) -> _Count:
        if self._counted is None:
            usable = [slot.slot for slot in self.slots if not (slot.retired or slot.draining)]
            hosts = Counter(slot.host for slot in usable)
            devices = len({slot.device for slot in usable})
            there = sum(not slot.draining for slot in self.slots)
            self._counted = _Count(there, len(usable), devices, hosts)
        return self._counted

    def impossible(self, job: Job) -> str:
        """Reason why a job can never start; empty if it can, perhaps with slots that are still to come."""
        lacking, reason = self._lacks(job)
        if not lacking:
            return self._homeless(job)
        missing = self.missing
        if missing is None or missing >= lacking:
            return ""
        return f"{reason}; no more will come: {self.gave_up}" if self.gave_up else reason

    def _homeless(self, job: Job) -> str:
        if job.gang is not None and (home := job.gang.host_of(job)) is not None:
            there = [slot.retired for slot in self.slots if slot.slot.host == home]
            if there and all(there):
                return (
                    f"every slot of {home or 'its machine'}, where its gang runs, is out of use: {there[0]}"
                )
        return ""

    def waits_for_more(self, job: Job) -> str:
        """Why a job that is not impossible can start only once more slots have come; empty if it can before."""
        lacking, reason = self._lacks(job)
        return reason if lacking else ""

    def _lacks(self, job: Job) -> tuple[int, str]:
        """How many slots a job lacks if all that are there were free, and why these will not do."""
        count = self._count()
        if job.devices > count.slots:
            retired = "; ".join(f"slot {s.slot.index}: {s.retired}" for s in self.slots if s.retired)
            return job.devices - count.slots, (
                f"it takes {job.devices} slots, the pool has {count.slots} in use"
                + (f" ({retired})" if retired else "")
            )
        if job.gang is not None:
            if job.gang.apart and job.devices > count.devices:
                reason = f"it takes {job.devices} devices, the pool has {count.devices} in use"
                return job.devices - count.devices, reason
        elif job.devices > 1 and job.devices > count.largest:
            reason = (
                f"it takes {job.devices} slots of one machine, the pool has {count.largest} in use on one"
            )
            return job.devices - count.largest, reason
        asked = self._expected is not None and job.memory is not None and self.missing is not None
        if asked and (most := self._most_memory()) is not None and (job.memory or 0) > most:
            reason = f"it needs {job.memory:,} bytes of memory, no device of the pool has more than {most:,}"
            return 1, reason
        return 0, ""

    def _most_memory(self) -> int | None:
        """Memory of the device that has most, bytes; None if one is not known."""
        if self._most is None:
            totals = [self._memory(slots[0].slot, None).total for slots in self._by_memory.values()]
            known = [total for total in totals if total is not None]
            if len(known) < len(totals):  # a node may not have told yet
                return None
            self._most = max(known, default=None)
        return self._most

    def has_other(self, job: Job) -> bool:
        """Whether a job can start on a machine that it does not avoid, if all slots that are there were free."""
        hosts = self._count().hosts
        return any(count >= job.devices for host, count in hosts.items() if host not in job.avoids)

    def keep_host(self, job: Job) -> bool:
        """Keep a machine for a job that waits for several slots of one, so that others may pass it; False for none.

        That of the most free slots, which become no fewer while it is kept: the job does not wait for ever.
        """
        avoids = job.avoids if job.avoids and self.has_other(job) else ()
        hosts = {
            host: 0
            for host, count in self._count().hosts.items()
            if count >= job.devices and host not in avoids
        }
        if self.kept or not hosts or len(self._count().hosts) < 2:
            return False
        for slot in self.slots:
            if slot.free and slot.slot.host in hosts:
                hosts[slot.slot.host] += 1
        self.kept = max(hosts, key=hosts.__getitem__)
        return True

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
        avoids = job.avoids if job.avoids and self.has_other(job) else ()
        avoids = (*avoids, self.kept) if self.kept else avoids
        groups = [g for g in self._groups.values() if g.free and not g.alone and g.host not in avoids]
        if job.alone:
            groups = [group for group in groups if not group.taken]
            if job.exhausts_host:
                busy = {g.host for g in self._groups.values() if g.taken or g.alone}
                groups = [group for group in groups if group.host not in busy]
        if (chosen := _placed(job, groups)) is None:
            return None
        if (need := self.need(job)) is not None:
            groups = [group for group in groups if self._fits(group, need, stated=job.memory is not None)]
            chosen = _placed(job, groups)
        return () if chosen is None else chosen

    def _choose_one(self, job: Job) -> tuple[SlotState, ...] | None:
        """Slot of the device with the fewest tasks."""
        need, stated = self.need(job), job.memory is not None
        home = None if job.gang is None else job.gang.host_of(job)
        avoids = job.avoids if job.avoids and self.has_other(job) else ()
        passed: list[Entry] = []
        refused = False
        try:
            for entry, slot in self._candidates():
                if entry[-1].host == home or (home is None and entry[-1].host not in avoids):
                    if need is None or self._fits(entry[-1], need, stated):
                        return (slot,)
                    refused = True
                passed.append(heapq.heappop(self._order))
        finally:
            for entry in passed:
                heapq.heappush(self._order, entry)
        return () if refused else None

    def _candidates(self) -> Iterator[tuple[Entry, SlotState]]:
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
                elif group.alone or (self.kept and group.host == self.kept):
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
            most = need + sum([each.most_promised(slot.memory_of) for each in _admissions])
            free = self._memory(slot, most).free
            fits = free is None or free >= most or _fits_now(slot.memory_of, free, need, stated)
            if fits:
                self._promised.append((slot.memory_of, need))
        return fits

    def most_promised(self, memory: str) -> int:
        """Bytes that all `promises` of a memory together do not exceed, at no cost; under the lock over all pools."""
        begins = sum([size for whose, size in self._promised if whose == memory]) if self._promised else 0
        return begins + self._largest * len(self._by_memory.get(memory, ()))

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
                found.append(f"{slots[0].slot.place} has {free:,} of {total:,} free")
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


def _fits_now(memory: str, free: int, need: int, stated: bool) -> bool:
    """Whether a need fits beside what all pools have promised of a memory; under their lock."""
    promises = [promise for each in _admissions for promise in each.promises(memory)]
    if not (promises or stated):  # a guess: where nothing runs, waiting would free nothing
        return True
    if free >= need + sum(promise.size for promise in promises):
        return True
    # What they have taken of it is not free already; that takes long to learn.
    return free >= need + sum(promise.outstanding() for promise in promises)


def _placed(job: Job, groups: Sequence[Group]) -> tuple[SlotState, ...] | None:
    """The slots that a job takes of groups: on one machine, or for a gang on as few as will do; None for too few.

    On each machine it takes one slot of each device first: a gang is spread. Its jobs on one machine are next to each
    other.
    """
    hosts: dict[str, list[SlotState]] = {}
    for slot in sorted((s for group in groups for s in group.slots if s.free), key=lambda s: s.position):
        hosts.setdefault(slot.slot.host, []).append(slot)
    offers = [_spread(slots, job.gang is not None and job.gang.apart) for slots in hosts.values()]
    chosen: list[list[SlotState]] = []
    left = job.devices
    while left > 0:
        enough = [offer for offer in offers if len(offer) >= left]
        if not offers or (job.gang is None and not enough):
            return None
        best = min(enough, key=len) if enough else max(offers, key=len)
        offers = [offer for offer in offers if offer is not best]
        chosen.append(best[:left])
        left -= len(best[:left])
    return tuple(slot for part in sorted(chosen, key=lambda part: part[0].position) for slot in part)


def _spread(slots: Sequence[SlotState], apart: bool) -> list[SlotState]:
    """One slot of each device, then, unless they must be apart, the others."""
    first = sorted(
        {slot.slot.device: slot for slot in reversed(slots)}.values(), key=lambda slot: slot.position
    )
    return first if apart else [*first, *(slot for slot in slots if slot not in first)]
