"""The thread between the parent process and its workers: decides which job runs where and when.

It waits for its engine, for callbacks of other threads and for the clock at once, and wakes for nothing else: an idle
pool costs nothing. A step costs the same for ten slots and for a thousand. Everything it does is short; what user
code may do slowly (pickling, setup, tasks, unpickling) happens elsewhere.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from ..engines.base import AssignsFromAnyThread, DescribesNodes, Elastic, Engine, GivesBack
from ..errors import NoSlots, OutOfMemory, TaskError, out_of_host_memory
from ..hardware.slots import Slot
from ..places import elsewhere
from ..telemetry import sampler
from ..telemetry.samples import PoolActivity, WorkerState
from .activity import slot_activity, waits
from .admission import Admission
from .gangs import MAX_LOST, Gangs, places
from .handover import HandOver
from .idle import IdleMachines
from .job import Gang, Job
from .loop import Loop, Timer
from .outcome import Decoder, Outcome
from .queue import ReadyQueue
from .state import SlotState, WorkerProcess
from .workers import PoolOptions, WorkerSet

__all__ = ["Dispatcher"]

log = logging.getLogger("mgpu_nb")

_numbers = itertools.count(1)
MAX_DEATHS = 3  # a task that ends its process as often is not tried again
MAX_LACKING = 3  # machines that lack what a task needs, after which it is not tried on another
WARN_AFTER = 60.0  # seconds that a job has waited for nodes of which it is not known whether they will come
AHEAD = 16  # very short tasks that a worker is given before it asks
KEEPS = 10.0  # seconds that a disk has to take a value before its task ends without
SAMPLE_EVERY = 0.5  # seconds between looks at what tasks use on GPUs


class Dispatcher:
    """Runs the jobs of one pool. `submit`, `cancel` and `close` may be called from any thread."""

    def __init__(
        self, slots: tuple[Slot, ...], engine: Engine, options: PoolOptions, memory_timeout: float
    ) -> None:
        self.number = next(_numbers)
        self.loop = Loop(engine.clock, self._take_back)
        self._elastic = engine if isinstance(engine, Elastic) else None
        self._admission = Admission(
            [SlotState(slot) for slot in slots],
            options.isolated,
            engine.memory,
            engine.held,
            None if self._elastic is None else self._expected,
        )
        self.workers = WorkerSet(
            self.loop,
            engine,
            self._admission,
            options,
            self._attempted,
            self._return,
            self._slots_came_or_went,
        )
        self._engine = engine
        self._idle_machines = self._machines_to_give_back(engine)
        self._awaited: list[int] = []  # numbers of slots that threads wait for
        self._prefetches = not options.isolated and options.max_tasks is None
        self._hands_over = not options.isolated and isinstance(engine, AssignsFromAnyThread)
        self._hand_over = HandOver(engine.clock)
        self._memory_timeout = memory_timeout
        self._queue = ReadyQueue(self._admission.need_key)
        self._gangs = Gangs(self._queue, self.workers, self._watch_memory)
        self._attempts: deque[tuple[Job, Outcome]] = deque()  # that ended, and what follows is not decided
        self._decoding: dict[int, Job] = {}  # whose outcome is being unpickled, or its value written
        self._keeps: dict[int, Timer] = {}  # of those whose value is being written
        self._decoder = Decoder(self._decoded)
        self._sampling = False
        self._came_or_went = threading.Condition()  # notified of slots
        self._memory_since: dict[Hashable, float] = {}  # by need: since when no task of ours could free it
        self._memory_waits: dict[Hashable, Job] = {}  # by need: the first job that waits for memory
        self._slots_wait: Job | None = None  # the first job, if it waits for more slots than are idle
        self._more_wait: Job | None = None  # a job that waits for more than are there
        self._more_why = ""  # it does
        self._more_since = (0, 0.0)  # number of the last such job, and since when it is known
        self._looks_again = False
        self._closing = False
        self.ended = False
        """Whether its thread has done all."""
        self.thread = threading.Thread(target=self.run, name="mgpu_nb-dispatcher", daemon=True)

    # Called from any thread.

    @property
    def slots(self) -> tuple[SlotState, ...]:
        """Slots that are there now."""
        return self._admission.slots

    @property
    def expected_slots(self) -> int | None:
        """Number of slots when all are there; None if that is not known."""
        return len(self.slots) if self._elastic is None else self._expected()

    def _expected(self) -> int | None:
        return None if self._elastic is None else self._elastic.expected

    def _machines_to_give_back(self, engine: Engine) -> IdleMachines | None:
        if not isinstance(engine, GivesBack) or (seconds := engine.idle) is None:
            return None
        return IdleMachines(self.loop, engine, seconds, self._admission, self.workers, self._needs_all)

    def _needs_all(self) -> bool:
        """Whether no machine is given back: something waits for slots, or the next would not come."""
        return bool(self._queue or self.loop.pending or self._awaited or self.gave_up)

    @property
    def given_back(self) -> str:
        """What was given back as it had nothing to do, as a sentence; empty for nothing."""
        return "" if self._idle_machines is None or self.ended else self._idle_machines.given_back

    @property
    def waits_for(self) -> str:
        """What it waits for before all slots are there, as a clause; empty for nothing."""
        if self._elastic is None or self.ended or self.gave_up:
            return ""
        return self._elastic.waits_for()

    @property
    def gave_up(self) -> str:
        """Why no more slots will come, if none will."""
        return self._admission.gave_up

    def wait_for_slots(self, count: int | None, timeout: float | None) -> None:
        """Wait until so many slots are there; by default all that are expected, or one if that is not known.

        Raises
        ------
        TimeoutError
            If they are not in so many seconds.
        RuntimeError
            If they will not come any more, or the pool ends.
        """
        wanted = count if count is not None else self.expected_slots or 1
        try:
            self._awaited.append(wanted)
            self.loop.wake()  # what was given back is asked for again
            self._wait_for_slots(wanted, timeout)
        finally:
            with contextlib.suppress(ValueError):  # interrupted before
                self._awaited.remove(wanted)

    def _wait_for_slots(self, wanted: int, timeout: float | None) -> None:
        end = None if timeout is None else time.monotonic() + timeout
        with self._came_or_went:
            while True:
                there = sum(not slot.draining for slot in self.slots)
                if there >= wanted:
                    return
                missing = f"{there} of {wanted} slots are there"
                if self._admission.gave_up:
                    raise NoSlots(f"{missing}, and no more will come: {self._admission.gave_up}")
                if self.ended:
                    raise RuntimeError(f"{missing}, and the pool was shut down")
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    waits = self.waits_for
                    waited = f" after {timeout:g} s" if timeout else ""
                    raise TimeoutError(missing + waited + (f": the pool waits for {waits}" if waits else ""))
                self._came_or_went.wait(left)

    def _slots_came_or_went(self) -> None:
        self._gangs.slots_left({slot.slot.host for slot in self.slots})
        if self._idle_machines is not None:
            self._idle_machines.came_or_went()
        self._slots_changed()

    def _slots_changed(self) -> None:
        with self._came_or_went:
            self._came_or_went.notify_all()

    def start(self) -> None:
        """Start the thread, the engine and, unless every task has its own, the workers."""
        sampler.shared.add_pool(self)
        self.loop.call_soon_threadsafe(self.workers.warm_up)
        self.thread.start()

    def submit(self, *jobs: Job) -> None:
        """Queue jobs.

        Raises
        ------
        RuntimeError
            If the pool is closed.
        """
        if self._closing:
            raise RuntimeError("cannot give tasks to a pool after shutdown; make a new GPUPool")
        alone = len(jobs) == 1 and not jobs[0].recorded and not self.loop.pending
        if not alone or not self._hand_over.give(jobs[0]):
            self.follow(jobs)

    def follow(self, jobs: Sequence[Job]) -> None:
        """Queue jobs that belong to a batch already taken: also while the pool closes."""
        self.loop.call_soon_threadsafe(lambda: self._enqueue(jobs))
        if self.ended:  # meanwhile, by another thread's shutdown
            self._refuse_late()

    def cancel(self, chosen: Callable[[Job], bool], reason: str = "") -> None:
        """Cancel the queued jobs that are chosen and end the running ones; their records say why."""
        self.loop.call_soon_threadsafe(lambda: self._cancel(chosen, reason))

    def close(self, *, cancel_queued: bool = False, cancel_running: bool = False, reason: str = "") -> None:
        """Take no more jobs; end when those there are have ended."""
        self._closing = True
        if cancel_running:
            self.cancel(lambda job: True, reason)
        elif cancel_queued:
            self.loop.call_soon_threadsafe(lambda: self._cancel_queued(lambda job: True))
        else:
            self.loop.call_soon_threadsafe(lambda: None)

    def read_output(self, seconds: float = 1.0) -> None:
        """Wait until what workers have written so far was read, at most some seconds; a closed pool has read it."""
        read = threading.Event()

        def turn() -> None:  # reads what is there, then comes to its timers
            self.loop.call_later(0.0, read.set)

        self.loop.call_soon_threadsafe(turn)
        end = time.monotonic() + seconds
        while self.thread.is_alive() and time.monotonic() < end and not read.wait(0.05):
            pass

    @property
    def elsewhere(self) -> bool:
        """Whether its slots are on other machines."""
        return self._elastic is not None

    def described(self, host: str) -> Mapping[str, Any]:
        """What a run on a host is made with, as JSON; empty if that is this machine."""
        return self._engine.described(host) if isinstance(self._engine, DescribesNodes) else {}

    def states(self) -> list[WorkerState]:
        """State of the workers now, one for each device that one works on."""
        return [state for process in list(self.workers.processes.values()) for state in self._states(process)]

    def _states(self, process: WorkerProcess) -> Iterator[WorkerState]:
        job, (allocated, reserved) = process.job, process.worker.reported or (None, None)
        uuids = {slot.slot.uuid: slot.slot for slot in reversed(process.slots)}  # all of one machine
        shared = len(uuids) > 1  # torch's figures are sums over the devices
        for slot in uuids.values():
            yield WorkerState(
                pool=self.number,
                slot=slot.index,
                label=slot.label,
                uuid=slot.uuid,
                host=slot.host,
                kind=slot.kind,
                pid=process.worker.pid,
                task="" if job is None else job.name,
                run="" if job is None else job.run,
                run_name="" if job is None else job.run_name,
                began=None if job is None else process.began,
                allocated=None if shared else allocated,
                reserved=None if shared else reserved,
            )

    @property
    def closing(self) -> bool:
        """Whether it takes no more jobs."""
        return self._closing

    def activity(self) -> PoolActivity:
        """What every slot does now, and which jobs wait though slots are idle; costs as much as there are slots."""
        why = "" if self._slots_wait is not None else self._more_why
        waiting = list(self._memory_waits.values()), self._slots_wait or self._more_wait, why
        return PoolActivity(
            pool=self.number,
            slots=tuple(slot_activity(slot, closed=self.ended) for slot in self.slots),
            waits_for=self.waits_for,
            given_back=self.given_back,
            waits=waits(*waiting, self._admission.need),
            queued=len(self._queue),
        )

    # The thread.

    def run(self) -> None:
        """Run jobs until the pool is closed and all have ended."""
        try:
            while self._step():
                self._offer()
                self.loop.run_once()
        except BaseException as error:  # a fault of ours must not become a hang of theirs
            log.exception("the dispatcher failed; every task that is left ends with this error")
            self._fail_all(error)
        finally:
            self._admission.close()
            self.workers.close()
            self._decoder.close()
            self._closing = self.ended = True
            self.loop.close()
            self._slots_changed()
            self._refuse_late()

    def _step(self) -> bool:
        """Do what can be done now; whether there is more to come."""
        self.loop.run_pending()
        if any(job.leads for job, _ in self._attempts):  # what waits for it may be the first to begin
            self._settle_all()
        self._assign()
        if self._attempts:  # only now: the workers have their next jobs while these are recorded
            self._settle_all()
            self._assign()
        if self._closing and self._idle:
            if not self.workers.processes:
                return False
            self.workers.stop_all()
        return True

    @property
    def _idle(self) -> bool:
        jobs = self._queue or self.workers.busy or self._decoding
        return not jobs and not self.loop.pending

    # Calls that a submitting thread gives to a worker itself.

    def _offer(self) -> None:
        """Have the next call given by the thread that submits it, if a worker has nothing to do meanwhile."""
        if self._hands_over and not (self._queue or self._closing):
            slot = self._admission.first_idle()
            if slot is not None and slot.warm is not None:
                self._hand_over.offer(slot.warm)

    def _take_back(self) -> None:
        """Take note of the call that another thread gave to a worker while this one slept."""
        if (handed := self._hand_over.take_back()) is not None:
            process, job, sent = handed
            self.workers.occupy(process, job)
            if not sent:  # its submission raised, and nobody has its future
                job.unwanted = True
                self.workers.end(process, "cancelled", "interrupted while it was given to its worker")

    # Jobs.

    def _enqueue(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if self.ended:
                job.finish(Outcome("cancelled", error="the pool was shut down before it began"))
            else:
                self._queue.push(job)

    def _refuse_late(self) -> None:
        """Cancel the jobs that came while the thread ended; it and those that submit may all do so at once."""
        with contextlib.suppress(IndexError):  # another took the last
            self.loop.run_pending()

    def _assign(self) -> None:
        """Give out jobs for as long as there are slots for them."""
        if not (self._queue or self._awaited or self.workers.prefetched):
            self._slots_wait = self._more_wait = None
            self._admission.kept = ""
            return
        if self._admission.freed:
            self._admission.freed = False
            self._admission.kept = ""
            self._more_wait = None
            self._queue.unblock()
        self._give_out()
        # A worker that is idle now finds nothing in the queue that it could run, whatever waits there.
        if self.workers.prefetched and self._admission.idle and self.workers.unprefetch():
            self._give_out()
        if self._queue:
            self._prefetch()
        if self._idle_machines is not None and (self._queue or self._awaited):
            self._idle_machines.ask_again(self._lacking)  # what was given back

    @property
    def _lacking(self) -> int:
        """Number of slots that jobs and threads wait for beside those that are free: their workers may be starting."""
        wide = self._more_wait
        if (first := self._slots_wait) is not None and (first.devices > 1 or first.alone):
            wide = first
        first = wide or self._queue.first()
        jobs = len(self._queue) + (first.devices - 1 if first is not None else 0) - self._admission.free
        if wide is not None or self._memory_waits:  # those that are free will not do
            jobs = max(jobs, 1)
        return max(jobs, max(self._awaited, default=0) - self._admission.usable)

    def _give_out(self) -> None:
        self._slots_wait = None
        if self._admission.retired and self._queue:
            self.workers.try_retired()
        while self._admission.free and (job := self._queue.first()) is not None:
            if reason := self._admission.impossible(job):
                self._refuse(self._queue.pop(), reason)
                continue
            if lacks := self._admission.waits_for_more(job):  # others may pass it: these slots are not for it
                self._more_wait, self._more_why = job, lacks
                self._queue.block()
                if self._admission.missing is None:
                    self._warn_in_time(job, lacks)
                continue
            slots = self._admission.choose(job)
            if slots is None and self._others_may_pass(job):
                self._queue.block()
                continue
            if slots is None:  # it waits for slots, and none may pass it or it might wait for ever
                self._slots_wait = job
                break
            if slots:
                self._begin(self._queue.pop(), slots)
            else:
                self._wait_for_memory(job)
        if self._queue and not self._admission.usable:
            self._refuse_all()

    def _others_may_pass(self, job: Job) -> bool:
        """Whether others may begin before a job that waits for slots, and it does not wait for ever."""
        if job.devices == 1:
            return bool(job.avoids) or job.gang is not None  # the next slot of its machines is for it
        if job.gang is not None or job.alone or not self._admission.keep_host(job):
            return False
        self._more_wait, self._more_why = job, ""
        return True

    def _warn_in_time(self, job: Job, lacks: str) -> None:
        """Warn of a job once it has waited for a while for slots of which nobody has said that they will come."""
        now = self.loop.clock.monotonic()
        known, since = self._more_since
        if known != job.ident:
            self._more_since = job.ident, now
            self.loop.call_later(WARN_AFTER, self._queue.unblock)
        elif now - since >= WARN_AFTER:
            self._more_since = job.ident, math.inf
            log.warning(
                "%s waits for more nodes, and nobody has said how many will come: %s. Start more agents, or cancel it",
                f"task {job.name!r}" if job.name else job.label, lacks,
            )  # fmt: skip

    def _refuse_all(self) -> None:
        """Refuse all jobs, for no slot is in use, unless some may come."""
        gave_up, slots = self._admission.gave_up, self.slots
        if slots:
            reason = "every slot is out of use"
            refused = self._admission.retired == len(slots)
            if self._admission.missing:  # those may do better
                refused = refused and self.workers.hopeless
        else:
            reason = f"no slot is left, and no more will come: {gave_up}"
            refused = bool(gave_up)
        if refused:
            for job in self._queue.remove(lambda job: True):
                self._refuse(job, reason)

    def _begin(self, job: Job, slots: tuple[SlotState, ...]) -> None:
        if job.gang is not None:
            self._begin_gang(job, job.gang, slots)
        elif job.begin():
            if self._memory_since:
                self._waits_no_more(self._admission.need_key(job))
            try:
                self.workers.assign(job, slots)
            except BaseException:  # no descriptor left, say: the job ends with the others
                self._queue.push(job)
                raise
            self._watch_memory(job, slots)
        else:
            self._admission.withdraw()
            job.finish(Outcome("cancelled"))

    def _begin_gang(self, job: Job, gang: Gang, slots: tuple[SlotState, ...]) -> None:
        try:
            if not gang.started:
                gang.places = places(self._engine, [state.slot for state in slots])
        except OSError as error:
            self._admission.withdraw()
            self._refuse(job, str(error))
        else:
            self._gangs.begin(job, gang, slots)

    def _prefetch(self) -> None:
        """Give workers with very short tasks the next ones before they ask: a turn takes longer than the task.

        Only plain calls, which no record or timeout watches. Should the present task turn out long, what waits behind
        it is taken back as soon as another worker is free.
        """
        if not self._prefetches:
            return
        for process in list(self.workers.quick):
            if not process.may_prefetch:
                self.workers.quick.discard(process)
            elif self._admission.kept and process.slots[0].slot.host == self._admission.kept:
                continue
            elif len(process.ahead) <= AHEAD // 2:
                if not (jobs := self._next_for(process)):
                    break  # what comes first cannot be prefetched
                self.workers.prefetch(process, jobs)

    def _next_for(self, process: WorkerProcess) -> list[Job]:
        jobs: list[Job] = []
        while len(process.ahead) + len(jobs) < AHEAD and (job := self._queue.first()) is not None:
            plain = not (job.recorded or job.avoids) and job.payload.segment is None
            if not plain or process.environment is not job.environment:
                break
            self._queue.pop()
            if job.begin():
                jobs.append(job)
            else:
                job.finish(Outcome("cancelled"))
        return jobs

    def _attempted(self, job: Job, outcome: Outcome) -> None:
        """Take the end of an attempt; what it needed is known to the jobs that are given out next."""
        measured, location = outcome.measured, outcome.location
        if measured is not None and location is not None:
            seen = measured.peak_rss if location.gpu_id is None else measured.peak_reserved
            job.peak = max((peak for peak in (job.peak, seen) if peak is not None), default=None)
            self._admission.learn(job, job.peak)
        self.workers.logs.debug(job, "attempt %d: %s", job.attempt, outcome)
        if job.gang is None or not self._gangs.ended(job, job.gang, outcome):
            self._attempts.append((job, outcome))

    def _settle_all(self) -> None:
        while self._attempts:
            self._settle(*self._attempts[0])
            self._attempts.popleft()
        self.loop.run_pending()

    def _settle(self, job: Job, outcome: Outcome) -> None:
        """Give a job another attempt if it has one left, else end it."""
        if outcome.decode is not None:
            self._decoding[job.ident] = job
            self._decoder.submit(job, outcome)
            return
        if job.keep(outcome, partial(self._decoded, job, outcome)):
            self._decoding[job.ident] = job
            self._keeps[job.ident] = self.loop.call_later(KEEPS, partial(self._complete, job, outcome))
            return
        left = job.attempt - job.lost - len(job.avoids) <= job.retries
        again = outcome.status in ("error", "killed", "timeout", "out-of-memory") and not job.unwanted
        if again and outcome.status == "out-of-memory" and job.retry_alone and not job.alone:
            job.alone = True
            job.exhausts_host = job.exhausts_host or out_of_host_memory(outcome.exception)
            where = "its device and its machine" if job.exhausts_host else "its device"
            job.note(
                f"attempt {job.attempt} ran out of memory, the next was alone on {where}: {outcome.error}"
            )
            self._queue.push(job)
        elif again and outcome.lost and job.gang is None and job.lost <= MAX_LOST:
            job.note(f"attempt {job.attempt} was lost {outcome.lost}")
            self._queue.push(job)
        elif outcome.lost:
            if job.gang is None and again:
                job.note(f"it was lost with its node {job.lost} times and was not tried again")
            job.finish(outcome)
        elif again and outcome.lacking and self._goes_elsewhere(job, outcome):
            job.note(f"attempt {job.attempt} was on node {job.avoids[-1]}, which lacks {outcome.lacking}")
            self._queue.push(job)
        elif again and left and job.deaths < MAX_DEATHS:
            far = outcome.location is not None and elsewhere(outcome.location.host)
            where = f" on {outcome.location.place}" if outcome.location is not None and far else ""
            job.note(f"attempt {job.attempt}{where}: {outcome.status}: {outcome.error}")
            self._queue.push(job)
        else:
            if again and left:
                job.note(f"it ended its process {job.deaths} times and was not tried again")
            job.finish(outcome)

    def _goes_elsewhere(self, job: Job, outcome: Outcome) -> bool:
        """Have a job avoid the machine that lacks what it needs; False if there is no other for it, or were enough."""
        host = "" if outcome.location is None else outcome.location.host
        if job.gang is not None or host in job.avoids or len(job.avoids) >= MAX_LACKING:
            return False
        before, job.avoids = job.avoids, (*job.avoids, host)
        if not self._admission.has_other(job):
            job.avoids = before
        return job.avoids is not before

    def _decoded(self, job: Job, outcome: Outcome) -> None:
        """Go on with a job whose outcome is complete now; from any thread."""
        self.loop.call_soon_threadsafe(partial(self._complete, job, outcome))

    def _complete(self, job: Job, outcome: Outcome) -> None:
        if (timer := self._keeps.pop(job.ident, None)) is not None:
            timer.cancel()
        if self._decoding.pop(job.ident, None) is not None:
            self._settle(job, outcome)

    def _return(self, job: Job) -> None:
        """Queue a job again that was given to a worker and never begun."""
        job.attempt -= 1
        self.workers.logs.debug(job, "is queued again: its worker did not begin it")
        if job.gang is not None and self._gangs.returned(job, job.gang):
            return
        if job.unwanted or (job.gang is not None and job.gang.broken):
            job.finish(Outcome("cancelled", error="cancelled before it began"))
        else:
            self._queue.push(job)

    def _refuse(self, job: Job, reason: str) -> None:
        message = f"{f'task {job.name!r}' if job.name else 'the task'}: {reason}"
        setup = self.workers.setup_error if self._admission.retired else None
        error = setup or (NoSlots if self._admission.gave_up else TaskError)(message)
        if job.begin():
            text = "".join(traceback.format_exception(error))
            outcome = Outcome("error", None, error, str(error), text)
            job.finish(outcome)
            if job.gang is not None:
                self._gangs.disband(job.gang, job, outcome)
        else:
            job.finish(Outcome("cancelled"))

    def _cancel(self, chosen: Callable[[Job], bool], reason: str = "") -> None:
        self._cancel_queued(chosen, reason)
        self._gangs.cancel(chosen)
        for process in list(self.workers.processes.values()):
            for job in filter(chosen, process.ahead):
                job.unwanted = True
            if process.job is not None and chosen(process.job):
                process.job.unwanted = True
                self.workers.end(process, "cancelled", reason or "cancelled while it ran")
        for job in [job for job in self._decoding.values() if chosen(job)]:
            del self._decoding[job.ident]
            job.finish(Outcome("cancelled", error="cancelled while its value was being read or written"))

    def _cancel_queued(self, chosen: Callable[[Job], bool], reason: str = "") -> None:
        self._more_wait = None
        self._admission.freed = True  # a machine may have been kept for one of them
        for job in self._queue.remove(chosen):
            self._waits_no_more(self._admission.need_key(job))  # one that is left waits anew
            job.finish(Outcome("cancelled", error=reason or "cancelled before it began"))

    # Memory.

    def _wait_for_memory(self, job: Job) -> None:
        """Let others pass a job and those of the same need until memory may be free.

        They are given up if none of our own tasks could free it.
        """
        now = self.loop.clock.monotonic()
        need = self._admission.need_key(job)
        since = self._memory_since.setdefault(need, now)
        if self.workers.busy or self._admission.in_use_elsewhere():
            self._memory_since[need] = now
        elif now - since >= self._memory_timeout:
            self._waits_no_more(need)
            for waiting in self._queue.remove(lambda other: self._admission.need_key(other) == need):
                self._give_up(waiting)
            return
        logs = self.workers.logs
        if logs.asked and need not in self._memory_waits:  # to tell what is free takes a look at every device
            logs.debug(
                job,
                "waits for %s bytes of free memory: %s",
                self._admission.need(job),
                self._admission.told(),
            )
        self._memory_waits[need] = job
        self._queue.block()
        if not self._looks_again:
            self._looks_again = True
            self.loop.call_later(1.0, self._look_again)

    def _waits_no_more(self, need: Hashable) -> None:
        self._memory_since.pop(need, None)
        self._memory_waits.pop(need, None)

    def _give_up(self, job: Job) -> None:
        need = self._admission.need(job) or 0
        reason = (
            f"waited {self._memory_timeout:g} s (memory_timeout of the pool) for {need:,} bytes of free memory, held "
            f"by other programs: {self._admission.told()}. End those, or state less memory"
        )
        if job.begin():
            error = OutOfMemory(f"{f'task {job.name!r}' if job.name else 'the task'}: {reason}")
            job.finish(Outcome("out-of-memory", None, error, reason))
        else:
            job.finish(Outcome("cancelled"))

    def _look_again(self) -> None:
        self._looks_again = False
        self._queue.unblock()

    def _watch_memory(self, job: Job, slots: tuple[SlotState, ...]) -> None:
        if job.recorded and slots[0].slot.kind == "cuda" and not self._sampling:
            self._sampling = True
            self.loop.call_later(SAMPLE_EVERY, self._sample)

    def _sample(self) -> None:
        """Note what tasks use on GPUs, as the driver sees it. Runs only while such tasks do."""
        self._sampling = False
        for process in self.workers.processes.values():
            if (job := process.job) is not None and job.recorded and process.slots[0].slot.kind == "cuda":
                devices = {slot.slot.uuid: slot.slot for slot in process.slots}
                seen = [self._engine.held(process.worker, slot) for slot in devices.values()]
                if known := [used for used in seen if used is not None]:
                    job.peak = max(sum(known), job.peak or 0)
                self._sampling = True
        if self._sampling:
            self.loop.call_later(SAMPLE_EVERY, self._sample)

    # The end.

    def _fail_all(self, error: BaseException) -> None:
        self._closing = True
        jobs = []
        with contextlib.suppress(Exception):
            self._take_back()
        while self._attempts:
            job, outcome = self._attempts.popleft()
            try:
                self._settle(job, outcome)
            except Exception:
                jobs.append(job)
        with contextlib.suppress(Exception):
            self.loop.run_pending()
        for process in self.workers.processes.values():
            jobs += [job for job in (process.job, *process.ahead) if job is not None]
        jobs += self._decoding.values()
        jobs += [job for gang in self._gangs.gathering for job in gang.gathered or ()]
        self._decoding.clear()
        for job in [*jobs, *self._queue.remove(lambda job: True)]:
            with contextlib.suppress(Exception):
                failed = TaskError(f"the pool failed: {type(error).__name__}: {error}")
                failed.__cause__ = error
                job.payload.read = False  # by a worker that is still there
                if job.begin():
                    job.finish(Outcome("error", None, failed, str(failed), traceback.format_exc()))
