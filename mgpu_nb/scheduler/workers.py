"""The worker processes of a pool: started at slots, given jobs, ended, replaced."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from ..engines.base import (
    Begin,
    Engine,
    Environment,
    Failure,
    Logged,
    Measured,
    Payload,
    Received,
    Reported,
    WorkerHandle,
)
from ..errors import SetupError
from ..hardware.slots import Slot
from ..places import device_name
from ..tasks import Status
from . import starts
from .admission import Admission
from .job import Job
from .logs import LogForwarder
from .loop import Loop
from .outcome import (
    Outcome,
    describe_exit,
    exit_reason,
    outcome_of_exit,
    outcome_of_failure,
    outcome_of_value,
)
from .state import SlotState, WorkerProcess

__all__ = ["PoolOptions", "WorkerSet"]

log = logging.getLogger("mgpu_nb")

MOST_UNFIT = 10  # a module may be edited that often while a task waits
REST = 1.0  # seconds that a slot rests whose worker was lost, if it has not left by then
QUICK = 0.002  # seconds; a worker with tasks as short gets the next before it is done


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """What a pool's workers are started with; see `GPUPool` for each."""

    setup: Payload
    environment: Environment
    pins: dict[str, str]
    isolated: bool
    max_tasks: int | None
    memory_growth: int | None
    start_timeout: float
    grace: float
    forward_logs: bool = False


class WorkerSet:
    """Keeps a process at every slot, or starts one per job.

    Parameters
    ----------
    ended
        Called with a job and its outcome when an attempt at it is over.
    returned
        Called with a job that a worker was given and never began.
    changed
        Called when slots have come or gone, or will come no more.
    """

    def __init__(
        self,
        loop: Loop,
        engine: Engine,
        admission: Admission,
        options: PoolOptions,
        ended: Callable[[Job, Outcome], None],
        returned: Callable[[Job], None],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.processes: dict[int, WorkerProcess] = {}
        self.busy = 0  # processes that have a job
        self.prefetched: set[WorkerProcess] = set()  # that have jobs ahead
        self.quick: set[WorkerProcess] = set()  # that may be given some
        self.setup_error: BaseException | None = None
        self._replaced: dict[
            str, int
        ] = {}  # times by function: the next worker lets it keep something as often
        self.stopped = False
        self._unfit: Counter[int] = Counter()  # by job: workers that ended before they began it
        self._hope = 0.0  # when a worker was ready, or slots came, the last time
        self._try_at = math.inf  # when a retired slot may be tried again
        self._loop = loop
        self._engine = engine
        self._admission = admission
        self._options = options
        self._ended = ended
        self._returned = returned
        self._changed = changed
        self.logs = LogForwarder()
        engine.connect(loop, self)

    # Starts.

    def warm_up(self) -> None:
        """Have the engine ready and, unless every task has its own process, the workers."""
        with contextlib.suppress(OSError):  # the starts that follow will tell
            self._engine.warm_up()
        if not self._options.isolated:
            for slot in self._admission.slots:
                self._start_warm(slot)

    def _start_warm(self, slot: SlotState) -> None:
        while slot.warm is None and not (self.stopped or slot.out_of_use):
            try:
                slot.warm = self._start((slot,), None)
            except OSError as error:
                self._failed_start(slot, *starts.reason_of(error))

    def _start(self, slots: tuple[SlotState, ...], job: Job | None) -> WorkerProcess:
        """Start a process at slots; it is pinned to their devices before it imports anything."""
        lead = slots[0].slot
        pins = {**self._options.pins, **lead.environment}
        names: tuple[str, ...] = ("cpu",) * len(slots)
        if lead.kind == "cuda":
            own = [slot.slot.uuid for slot in slots]
            gang = () if job is None or job.gang is None else job.gang.devices.values()
            uuids = list(dict.fromkeys([uuid for host, uuid in gang if host == lead.host] or own))
            pins["CUDA_VISIBLE_DEVICES"] = ",".join(uuids)
            names = tuple(f"cuda:{uuids.index(uuid)}" for uuid in own)
        environment = job.environment if job is not None else self._options.environment
        begin = Begin(
            slot=lead.index,
            threads=sum(slot.slot.threads for slot in slots),
            gpu_id=lead.gpu_id,
            uuid=lead.uuid,
            devices=names,
            pins=pins,
            environment=environment,
            memory_growth=self._options.memory_growth,
            replaced=dict(self._replaced),
            shared=self._admission.shares_device(slots[0]),
            forward_logs=self._options.forward_logs,
            members=None if job is None or job.gang is None else job.gang.places,
        )
        worker = self._engine.start(begin, self._options.setup)
        process = self.processes[worker.number] = WorkerProcess(worker, slots, environment)
        process.began, process.begun = self._loop.clock.time(), self._loop.clock.monotonic()
        process.start_timer = self._loop.call_later(
            self._options.start_timeout, partial(self._start_timed_out, process)
        )
        seen = f", CUDA_VISIBLE_DEVICES={pins['CUDA_VISIBLE_DEVICES']}" if lead.kind == "cuda" else ""
        on = device_name(", ".join(names), lead.host)
        self.logs.debug(process, "starts on %s, threads: %d%s", on, begin.threads, seen)
        return process

    def _start_timed_out(self, process: WorkerProcess) -> None:
        if process.state == "starting" and process.worker.number in self.processes:
            seconds = self._options.start_timeout
            reason = f"not ready within {seconds:g} s (start_timeout of the pool); the server or setup hangs"
            process.setup_error = SetupError(f"the worker on {process.location.place} was {reason}")
            self.kill(process)

    def _failed_start(self, slot: SlotState, reason: str, weight: int, output: str = "") -> None:
        """Have the slot rest before the next start, or try no more for now."""
        now = self._loop.clock.monotonic()
        slot.lost_since = slot.lost_since if slot.lost_starts else now
        slot.lost_starts += 1
        slot.faults += weight
        if slot.faults >= starts.MOST_FAULTS or now - slot.lost_since > self._options.start_timeout:
            said = f" Its output ended with:\n{output}" if output else ""
            count = f"{slot.lost_starts} workers ended" if slot.lost_starts > 1 else "a worker ended"
            self._retire(slot, SetupError(f"{count} before they were set up: {reason}.{said}"))
        elif pause := starts.pause(slot.lost_starts):
            slot.resting = (
                f"{slot.lost_starts} workers in a row did not start, the next is tried soon: {reason}"
            )
            self._admission.update(slot)
            self._loop.call_later(pause, partial(self._rested, slot))
            if pause >= 1.0:
                log.warning(
                    "slot %d: %d workers in a row did not start (%s); the next is tried in %g s",
                    slot.slot.index, slot.lost_starts, reason, pause,
                )  # fmt: skip

    def _rested(self, slot: SlotState) -> None:
        if slot.gone:
            return
        slot.resting = ""
        self._admission.update(slot)
        self._admission.freed = True
        if not self._options.isolated:
            self._start_warm(slot)

    def _retire(self, slot: SlotState, error: BaseException, *, for_good: bool = False) -> None:
        """Start no more workers at this slot for a while, or at all: the next would fail as well."""
        self.setup_error = error
        self._admission.retire(slot, str(error))
        slot.again_at = math.inf if for_good else self._loop.clock.monotonic() + starts.PAUSES[-1]
        if not for_good:
            self._try_at = min(self._try_at, slot.again_at)
            self._loop.call_later(
                starts.PAUSES[-1], lambda: None
            )  # a turn, in which tasks that wait are seen
        log.warning("slot %d is out of use: %s", slot.slot.index, error)

    @property
    def hopeless(self) -> bool:
        """Whether setup raises wherever there is a slot, or no worker has started anywhere for `start_timeout`."""
        long = self._loop.clock.monotonic() - self._hope > self._options.start_timeout
        return all(slot.retired and (long or slot.again_at == math.inf) for slot in self._admission.slots)

    def try_retired(self) -> None:
        """Use slots again whose workers did not start, if that is long enough ago: tasks wait."""
        now = self._loop.clock.monotonic()
        if now < self._try_at or self.stopped:
            return
        self._try_at = math.inf
        for slot in self._admission.slots:
            if slot.retired and slot.again_at <= now:
                slot.lost_starts = 0
                slot.faults = starts.MOST_FAULTS - 1  # one more is enough
                self._admission.reinstate(slot)
                if not self._options.isolated:
                    self._start_warm(slot)
            elif slot.retired:
                self._try_at = min(self._try_at, slot.again_at)

    # Jobs.

    def assign(self, job: Job, slots: tuple[SlotState, ...]) -> None:
        """Have a job run at slots: by the worker that waits there, or by a process of its own."""
        job.attempt += 1
        warm = slots[0].warm
        several = job.devices > 1 or job.gang is not None
        fresh = self._options.isolated or several or warm is None or warm.state != "ready"
        try:
            process = self._start(slots, job) if fresh or warm is None else warm
        except OSError as error:
            self._failed_start(slots[0], *starts.reason_of(error))
            self._returned(job)
            return
        self._take(process, job, slots)
        if not fresh:
            self._occupied(process, job)
        process.send(job)

    def occupy(self, process: WorkerProcess, job: Job) -> None:
        """Take note of a job that a warm worker was sent already."""
        job.attempt += 1
        self._take(process, job, process.slots)
        self._occupied(process, job)

    def _take(self, process: WorkerProcess, job: Job, slots: tuple[SlotState, ...]) -> None:
        process.job, process.tail = job, b""
        self.busy += 1
        self._admission.take(slots, process, job.alone, job.exhausts_host)

    def _occupied(self, process: WorkerProcess, job: Job) -> None:
        """Start the clock of a job of a warm worker."""
        process.state, process.sent = "busy", self._loop.clock.monotonic()
        self._begin(process, job)
        if process.may_prefetch:
            self.quick.add(process)

    def prefetch(self, process: WorkerProcess, jobs: list[Job]) -> None:
        """Send a worker jobs that it runs after the present one, unless they are taken back before."""
        for job in jobs:
            job.attempt += 1
        process.ahead.extend(jobs)
        self.prefetched.add(process)
        process.worker.prefetch([(job.ident, job.payload) for job in jobs])

    def unprefetch(self) -> bool:
        """Take back what was prefetched and not begun; whether there was any."""
        came = [self._unprefetch(process) for process in list(self.prefetched)]  # each is asked
        return any(came)

    def _unprefetch(self, process: WorkerProcess) -> bool:
        """Take back what a worker has not begun; what did not come back is not asked for again."""
        any_back = False
        while process.ahead and process.ahead[-1] is not process.asked:
            if not process.worker.unprefetch():
                process.asked = process.ahead[-1]
                break
            self._returned(process.ahead.pop())
            any_back = True
        if not process.ahead:
            self.prefetched.discard(process)
        return any_back

    def _begin(self, process: WorkerProcess, job: Job) -> None:
        """Start the clock of a job: its worker is ready for it."""
        process.began, process.begun = self._loop.clock.time(), self._loop.clock.monotonic()
        self.logs.debug(job, "attempt %d begins in %s", job.attempt, process)
        if job.timeout is not None:
            process.timer = self._loop.call_later(
                job.timeout,
                partial(self.end, process, "timeout", f"ran longer than its timeout of {job.timeout:g} s"),
            )

    # What workers do, as their engine reports.

    def ready(self, worker: WorkerHandle) -> None:
        """The process is set up."""
        if (process := self.processes.get(worker.number)) is None:
            return
        if process.state != "starting":
            if process.state != "ending":
                self.broken(worker, "it said twice that it is set up")
            return
        if process.start_timer is not None:
            process.start_timer.cancel()
        self._hope = self._loop.clock.monotonic()
        for slot in process.slots:
            slot.lost_starts = slot.faults = 0
            slot.used = self._hope
        self.logs.debug(
            process, "is set up, pid %s, after %.2f s",
            process.worker.pid, self._loop.clock.monotonic() - process.begun,
        )  # fmt: skip
        process.state = "ready" if process.job is None else "busy"
        if process.job is not None:
            self._begin(process, process.job)
        else:
            self._admission.update(process.slots[0])
            self._admission.freed = True  # for jobs that let others pass until there is a worker for them

    def setup_failed(self, worker: WorkerHandle, failure: Failure) -> None:
        """The pool's setup raised."""
        if (process := self.processes.get(worker.number)) is None:
            return
        if process.state != "starting":
            self.broken(worker, "it said that setup failed after it was set up")
            return
        outcome = outcome_of_failure(failure, "setup")
        if outcome.decode is not None:  # here: the pool has nothing else to do any more
            outcome.decode(outcome)
        error = outcome.exception
        output = f"\nIts output ended with:\n{process.last_output}" if process.tail else ""
        place = process.location
        process.setup_error = SetupError(
            f"the pool's setup failed on {place.place} (slot {place.slot}): "
            f"{failure.kind}: {failure.message}. Mend setup and make a new pool.{output}"
        )
        process.setup_error.__cause__ = error
        process.setup_raised = True
        self._insist(process)

    def unfit(self, worker: WorkerHandle) -> None:
        """The process is ending and has not begun its job."""
        if (process := self.processes.get(worker.number)) is not None:
            process.unfit = True
            process.state = "ending"
            self._insist(process)

    def value(self, worker: WorkerHandle, job: int, value: Received, measured: Measured | None) -> None:
        """A job returned."""
        if (process := self._running(worker, job)) is not None and process.job is not None:
            self._attempted(process, process.job, outcome_of_value(value, measured))

    def error(self, worker: WorkerHandle, job: int, failure: Failure, lacking: str = "") -> None:
        """A job raised."""
        if (process := self._running(worker, job)) is not None and process.job is not None:
            job_name = f"task {process.job.name!r}" if process.job.name else process.job.label
            outcome = outcome_of_failure(failure, job_name)
            outcome.lacking = lacking
            if not process.job.recorded:  # a task has a log
                outcome.output = process.last_output
            self._attempted(process, process.job, outcome)

    def report(self, worker: WorkerHandle, job: int, report: Reported) -> None:
        """A job reported metrics."""
        if (process := self._running(worker, job)) is not None and process.job is not None:
            process.job.report(report)

    def asks(self, worker: WorkerHandle, job: int, task: str) -> None:
        """A job needs the value of a task."""
        if (process := self._running(worker, job)) is None or (asking := process.job) is None:
            return

        def send(payload: Payload) -> None:
            self._loop.call_soon_threadsafe(partial(self._answer, process, asking, payload))

        asking.answer(task, send)

    def _answer(self, process: WorkerProcess, job: Job, payload: Payload) -> None:
        if process.job is job and process.worker.number in self.processes:
            process.worker.answer(job.ident, payload)

    def _running(self, worker: WorkerHandle, job: int) -> WorkerProcess | None:
        """Process that runs a job. One that tells of a job that it does not have is broken."""
        process = self.processes.get(worker.number)
        if process is None or process.broken:
            return None
        current = process.job is not None and process.job.ident == job
        if current and process.state != "starting" and not process.unfit:
            return process
        if job == process.last:
            process.unfit = True  # it was still at the job before: its next one, if it has one, has not begun
        self.broken(worker, "it told of a task that it does not run")
        return None

    def logged(self, worker: WorkerHandle, job: int, record: Logged) -> None:
        """A job, or setup, logged something."""
        process = self.processes.get(worker.number)
        if process is not None and not process.broken and self._options.forward_logs:
            own = process.job if process.job is not None and process.job.ident == job else None
            self.logs.put(record, process.location, own)

    def output(self, worker: WorkerHandle, data: bytes) -> None:
        """The process wrote something."""
        if (process := self.processes.get(worker.number)) is not None:
            process.keep_output(data)

    def broken(self, worker: WorkerHandle, reason: str) -> None:
        """What the process sends cannot be read: it ends, and its job has a record."""
        if (process := self.processes.get(worker.number)) is not None and not process.broken:
            process.broken = True
            if process.kill_reason is None:
                process.kill_reason = ("killed", reason)
            self.kill(process)

    def _attempted(self, process: WorkerProcess, job: Job, outcome: Outcome) -> None:
        """A task ended and its worker lives."""
        process.job, process.last = None, job.ident
        process.done += 1
        if process.timer is not None and process.kill_reason is None:
            process.timer.cancel()
            process.timer = None
        now = self._loop.clock.monotonic()
        process.quick, process.sent = now - process.sent < QUICK, now
        if self._replaces(process, job, outcome.measured):
            self.stop(process)
            self.busy -= 1
        elif process.ahead:
            process.job = process.ahead.popleft()
            if not process.ahead:
                self.prefetched.discard(process)
            if process.may_prefetch:
                self.quick.add(process)
        else:
            process.state = "ready"
            self.busy -= 1
            self._give_back(process.slots, process)
        if job.recorded or outcome.measured is not None:
            outcome.location = process.location
        self._ended(job, outcome)

    def _replaces(self, process: WorkerProcess, job: Job, measured: Measured | None) -> bool:
        """Whether a worker may run no other job; a note of this one says why."""
        unfit = False
        if measured is not None and measured.held:
            unfit = True
            self._replaced[measured.keeper] = self._replaced.get(measured.keeper, 0) + 1
            job.note(
                f"worker replaced: it kept {measured.held / 2**20:.0f} MB after the task (memory_growth of the pool; "
                "what is loaded by setup or kept by mgpu_nb.context.cached or a lru_cache does not count)"
            )
        if measured is not None and measured.cuda_broken:
            unfit = True
            job.note("worker replaced: its CUDA context was unusable after the error")
        most = self._options.max_tasks
        unfit |= bool(process.slots[0].draining and not process.ahead)
        ending = process.kill_reason is not None or process.state == "ending"
        own = process.slots[0].warm is not process  # a process for this job alone
        return unfit or ending or own or (most is not None and process.done >= most)

    # Slots that come and go, as their engine reports.

    def joined(self, slots: Sequence[Slot]) -> None:
        """There are more slots."""
        states = [SlotState(slot) for slot in slots]
        self._hope = self._loop.clock.monotonic()
        for state in states:
            state.used = self._hope
        self._admission.join(states)
        if not self._options.isolated:
            for state in states:
                self._start_warm(state)
        self._changed()

    def draining(self, slots: Sequence[Slot], reason: str) -> None:
        """Have no job begin at slots any more; their workers end when they have none."""
        for state in self._states(slots):
            self._admission.drain(state, reason)
            if (process := state.warm) is None:
                continue
            self.quick.discard(process)
            if process.job is None:
                self.stop(process)
            self._unprefetch(process)
        self._changed()

    def left(self, slots: Sequence[Slot], reason: str) -> None:
        """Forget slots, and what is still thought to run there."""
        states = self._states(slots)
        gone = set(states)
        for process in list(self.processes.values()):
            if not gone.isdisjoint(process.slots):
                self.lost(process.worker, reason)
        self._admission.leave(states)
        self._changed()

    def _states(self, slots: Sequence[Slot]) -> list[SlotState]:
        indexes = {slot.index for slot in slots}
        return [state for state in self._admission.slots if state.slot.index in indexes]

    def lost(self, worker: WorkerHandle, reason: str) -> None:
        """The machine of a worker is gone: its job is tried elsewhere."""
        if (process := self.processes.get(worker.number)) is None:
            return
        self.logs.debug(process, "was lost: %s", reason)
        began = process.state != "starting" and not process.unfit
        job = self._take_out(process)
        for slot in process.slots:  # which leave as well; should they not, there is another try
            if not slot.resting:
                slot.resting = f"its worker was lost: {reason}"
                self._admission.update(slot)
                self._loop.call_later(REST, partial(self._rested, slot))
        if job is not None:
            job.payload.read = False  # what reads it may be out of reach and alive
            if began or process.kill_reason is not None or job.gang is not None:
                self._ended(job, self._loss(process, reason, job))
            else:
                self._returned(job)

    def taken_back(self, worker: WorkerHandle, job: int) -> None:
        """The last prefetched job of a worker has come back, for which it was asked."""
        process = self.processes.get(worker.number)
        if process is not None and process.asked is not None and process.asked is process.job:
            if process.job.ident == job:
                self._never_began(process, process.job)
            return
        if process is None or not process.ahead or process.ahead[-1].ident != job:
            return
        process.asked = None
        self._returned(process.ahead.pop())
        if process.slots[0].draining:
            self._unprefetch(process)
        if not process.ahead:
            self.prefetched.discard(process)

    def _never_began(self, process: WorkerProcess, job: Job) -> None:
        """Queue a job again that was taken for the present one: the one before it ended while it was asked back."""
        process.job = process.asked = None
        self.quick.discard(process)
        self.busy -= 1
        if process.state == "busy":
            process.state = "ready"
        self._give_back(process.slots, process)
        self._returned(job)
        if process.slots[0].draining and process.kill_reason is None:
            self.stop(process)

    def gave_up(self, reason: str) -> None:
        """No slot will come any more."""
        self._admission.give_up(reason)
        self._changed()

    # Ends.

    def exited(self, worker: WorkerHandle, status: int | None, out_of_memory: bool | str = False) -> None:
        """A process ended: decide what that means for its job and its slots."""
        self._ended_process(worker, status, out_of_memory)

    def not_started(self, worker: WorkerHandle, reason: str, *, fault: bool) -> None:
        """There is no process."""
        self._ended_process(worker, None, lost=(reason, starts.FAULT if fault else 0))

    def _ended_process(
        self,
        worker: WorkerHandle,
        status: int | None,
        out_of_memory: bool | str = False,
        lost: tuple[str, int] | None = None,
    ) -> None:
        if (process := self.processes.get(worker.number)) is None:
            return
        how = (
            lost[0] if lost else describe_exit(status) if status or process.job is not None else "exit code 0"
        )
        self.logs.debug(process, "has ended: %s", how)
        job = self._take_out(process)
        if job is not None and status is None:
            job.payload.read = False  # its server is gone, or it cannot be ended: it may yet come to read it
        never_began = process.state == "starting" and (process.kill_reason is None or process.broken)
        if process.setup_error is not None:
            self._retire(process.slots[0], process.setup_error, for_good=process.setup_raised)
        elif never_began and not self.stopped:
            if process.broken and process.kill_reason is not None:
                lost = process.kill_reason[1], starts.FAULT
            reason, weight = lost or (describe_exit(status), starts.weight(status))
            self._failed_start(process.slots[0], reason, weight, process.last_output)
        if job is not None:
            if never_began or process.setup_error is not None or self._is_unfit(process, job):
                self._returned(job)
            else:
                self._ended(job, self._death(process, status, out_of_memory, job))
        if not self._options.isolated:
            for slot in process.slots:
                self._start_warm(slot)

    def _take_out(self, process: WorkerProcess) -> Job | None:
        """Forget a process that has ended or is out of reach; the job that it had."""
        del self.processes[process.worker.number]
        process.cancel_timers()
        job, process.job = process.job, None
        self.busy -= job is not None
        while process.ahead:
            self._returned(process.ahead.pop())
        self.prefetched.discard(process)
        self.quick.discard(process)
        process.worker.close()
        self._release_slots(process)
        return job

    def _is_unfit(self, process: WorkerProcess, job: Job) -> bool:
        """Whether a process has not begun its job, and it is not for ever that none does."""
        if process.unfit:
            self._unfit[job.ident] += 1
            if self._unfit[job.ident] <= MOST_UNFIT:
                return True
            del self._unfit[job.ident]
            process.kill_reason = (
                "killed",
                f"{MOST_UNFIT} workers in a row ended and said that they had not begun it",
            )
        return False

    def _release_slots(self, process: WorkerProcess) -> None:
        """Give back the slots of a process that has ended, but those that a job of several slots has taken."""
        for slot in process.slots:
            if slot.warm is process:
                slot.warm = None
        if taken := [slot for slot in process.slots if slot.taken_by is process]:
            self._give_back(taken, process)
        for slot in process.slots:
            self._admission.update(slot)

    def _give_back(self, slots: Sequence[SlotState], process: WorkerProcess) -> None:
        self._admission.give_back(slots, process)
        now = self._loop.clock.monotonic()
        for slot in slots:
            slot.used = now

    def _death(
        self, process: WorkerProcess, status: int | None, out_of_memory: bool | str, job: Job
    ) -> Outcome:
        """Outcome of a job whose process ended."""
        if process.kill_reason is None:
            job.deaths += 1
        kind, reason = process.kill_reason or exit_reason(status, bool(out_of_memory))
        if out_of_memory and process.kill_reason is None:
            job.exhausts_host = True
            reason += self._shortage(process, job, out_of_memory if isinstance(out_of_memory, str) else "")
        measured = Measured(process.began, self._loop.clock.monotonic() - process.begun)
        return outcome_of_exit(job.name, kind, reason, process.location, process.last_output, measured)

    def _loss(self, process: WorkerProcess, reason: str, job: Job) -> Outcome:
        """Outcome of a job whose machine is gone."""
        if process.kill_reason is not None:
            return self._death(process, None, False, job)
        job.lost += 1
        lost = f"with node {process.location.host}: {reason}"
        measured = Measured(process.began, self._loop.clock.monotonic() - process.begun)
        outcome = outcome_of_exit(
            job.name, "killed", f"it was lost {lost}", process.location, process.last_output, measured
        )
        outcome.lost = lost
        return outcome

    def _shortage(self, process: WorkerProcess, job: Job, there: str) -> str:
        """What was asked for when a process was killed for memory, what there is, and what to do."""
        need = self._admission.need(job)
        stated = f"it stated memory={job.memory:,}" if job.memory is not None else "it stated no memory"
        learnt = f" (its kind took {need:,})" if job.memory is None and need is not None else ""
        host = process.slots[0].slot.host
        others = sum(p.job is not None and p.slots[0].slot.host == host for p in self.processes.values())
        beside = f", {others} other task{'s' * (others != 1)} ran beside it" if others else ", it ran alone"
        asked = f"; {stated}{learnt}" + (f"; there are {there}" if there else "") + beside
        only = sum(slot.slot.host == host for slot in self._admission.slots) == 1
        if not others and (job.alone or only):
            return f"{asked}. Make it smaller, or give this process more memory"
        return f"{asked}. State memory=, use fewer slots, or retry_alone=True"

    def end(self, process: WorkerProcess, status: Status, reason: str) -> None:
        """End a process: ask it to, then insist. Its job ends with this status."""
        if process.kill_reason is None:
            process.kill_reason = (status, reason)
            self._engine.signal(process.worker, signal.SIGTERM)
            self._insist(process)

    def _insist(self, process: WorkerProcess) -> None:
        if process.timer is not None:
            process.timer.cancel()
        process.timer = self._loop.call_later(self._options.grace, partial(self.kill, process))

    def kill(self, process: WorkerProcess) -> None:
        """Kill a process, if it still exists."""
        if process.worker.number in self.processes:
            self._engine.signal(process.worker, signal.SIGKILL)
            if process.timer is not None:
                process.timer.cancel()
            process.timer = self._loop.call_later(self._options.grace, partial(self._abandon, process))

    def _abandon(self, process: WorkerProcess) -> None:
        """Go on without a process that not even SIGKILL ended: its driver call hangs, or its server does."""
        if process.worker.number in self.processes:
            log.error(
                "the process of slot %d (pid %s) cannot be ended",
                process.slots[0].slot.index,
                process.worker.pid,
            )
            self._engine.abandon(process.worker)
            self.exited(process.worker, None)

    def stop(self, process: WorkerProcess) -> None:
        """Let a process end that has no job; kill it if it does not."""
        if process.state != "ending":
            process.state = "ending"
            process.worker.stop()
            self._insist(process)

    def stop_all(self) -> None:
        """Let all end; none is replaced."""
        self.stopped = True
        self._engine.drain()
        for process in self.processes.values():
            self.stop(process)

    def close(self) -> None:
        """Close everything; what still runs is killed by its engine."""
        for process in list(self.processes.values()):
            process.cancel_timers()
            process.worker.close()
        self.processes.clear()
        self.logs.close()
        self._engine.close()
        self._options.setup.close()
