"""The thread between the kernel and its workers: decides which job goes where and when.

It waits on all channels, logs and sessions at once and wakes for nothing else: an idle pool costs nothing.
Everything it does is short; what user code may do slowly (pickling, setup, tasks) happens elsewhere.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from ..engines.local import LocalEngine
from ..errors import OutOfMemory, TaskError
from ..hardware import slots as device
from ..hardware.slots import Slot
from ..telemetry import sampler
from ..telemetry.samples import WorkerState
from .admission import Admission
from .job import Gang, Job
from .loop import Loop
from .outcome import Outcome
from .queue import ReadyQueue
from .state import Post, Seat
from .workers import Crew, Terms

__all__ = ["Dispatcher"]

log = logging.getLogger("mgpu_nb")

_numbers = itertools.count(1)
MAX_DEATHS = 3  # a task that ends its process as often is not tried again
AHEAD = 16  # so many very short tasks a worker is given before it asks
SAMPLE_EVERY = 0.5  # seconds between looks at what tasks use on GPUs


class Dispatcher:
    """Runs the jobs of one pool. `submit`, `cancel` and `close` may be called from any thread."""

    def __init__(
        self, slots: tuple[Slot, ...], engine: LocalEngine, terms: Terms, memory_timeout: float
    ) -> None:
        self.number = next(_numbers)
        self.seats = tuple(Seat(slot) for slot in slots)
        self.loop = Loop()
        self.crew = Crew(self.loop, engine, self.seats, terms, self._attempted, self._return)
        self._sends_ahead = not terms.isolated and terms.max_tasks is None
        self._memory_timeout = memory_timeout
        self._queue = ReadyQueue()
        self._admission = Admission(self.seats, terms.isolated)
        self._attempts: deque[tuple[Job, Outcome]] = deque()  # that ended, and what follows is not decided
        self._sampling = False
        self._memory_since: dict[int, float] = {}
        self._looks_again = False
        self._closing = False
        self._lock = threading.Lock()
        self.thread = threading.Thread(target=self._run, name="mgpu_nb-dispatcher", daemon=True)

    # Called from any thread.

    def start(self) -> None:
        """Start the thread, the server and, unless every task has its own, the workers."""
        sampler.shared.add_pool(self)
        self.loop.tell(self.crew.warm_up)
        self.thread.start()

    def submit(self, *jobs: Job) -> None:
        """Queue jobs.

        Raises
        ------
        RuntimeError
            Where the pool is closed.
        """
        with self._lock:
            if self._closing:
                raise RuntimeError("cannot give tasks to a pool after shutdown; make a new GPUPool")
            self.loop.tell(lambda: self._enqueue(jobs))

    def follow(self, jobs: Sequence[Job]) -> None:
        """Queue jobs that belong to a batch already taken: also while the pool closes."""
        self.loop.tell(lambda: self._enqueue(jobs))

    def cancel(self, chosen: Callable[[Job], bool]) -> None:
        """Cancel the queued jobs that are chosen and end the running ones."""
        self.loop.tell(lambda: self._cancel(chosen))

    def close(self, *, cancel_queued: bool = False, cancel_running: bool = False) -> None:
        """Take no more jobs; end when those there are have ended."""
        with self._lock:
            self._closing = True
        if cancel_running:
            self.cancel(lambda job: True)
        elif cancel_queued:
            self.loop.tell(lambda: self._cancel_queued(lambda job: True))
        else:
            self.loop.tell(lambda: None)

    def workers(self) -> list[WorkerState]:
        """Return what is known of the workers now, one state for each device that one works on."""
        return [state for post in list(self.crew.posts.values()) for state in self._states(post)]

    def _states(self, post: Post) -> Iterator[WorkerState]:
        job, (allocated, reserved) = post.job, post.reported or (None, None)
        shared = len({seat.slot.uuid for seat in post.seats}) > 1  # torch's figures are sums over the devices
        for slot in {seat.slot.uuid: seat.slot for seat in reversed(post.seats)}.values():
            yield WorkerState(
                pool=self.number,
                slot=slot.index,
                label=slot.label,
                uuid=slot.uuid,
                kind=slot.kind,
                pid=post.worker.pid,
                task="" if job is None else job.name,
                run="" if job is None else job.run,
                began=None if job is None else post.began,
                allocated=None if shared else allocated,
                reserved=None if shared else reserved,
            )

    # The thread.

    def _run(self) -> None:
        try:
            while self._step():
                self.loop.turn()
        except BaseException as error:  # a fault of ours must not become a hang of theirs
            log.exception("the dispatcher failed; every task that is left ends with this error")
            self._fail_all(error)
        finally:
            self.crew.close()
            with self._lock:
                self._closing = True
                self.loop.close()

    def _step(self) -> bool:
        """Do what can be done now. Return whether there is more to come."""
        self.loop.listen()
        self._assign()
        if self._attempts:  # only now: the workers have their next jobs while these are recorded
            while self._attempts:
                self._settle(*self._attempts[0])
                self._attempts.popleft()
            self.loop.listen()
            self._assign()
        if self._closing and not self.loop.told and not self._queue and not self.crew.working:
            if not self.crew.posts:
                return False
            self.crew.dismiss_all()
        return True

    # Jobs.

    def _enqueue(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._queue.push(job)

    def _assign(self) -> None:
        """Give out jobs for as long as there are seats for them."""
        waiting: list[Job] = []  # for memory; others may pass them
        try:
            self._give_out(waiting)
        finally:
            for job in waiting:
                self._wait_for_memory(job)
        if self._queue:
            self._send_ahead()
        elif self._take_back():
            self._assign()

    def _give_out(self, waiting: list[Job]) -> None:
        while self._queue and any(seat.free for seat in self.seats):
            job = self._queue.pop()
            if reason := self._admission.impossible(job):
                self._refuse(job, reason)
                continue
            seats = self._admission.choose(job)
            if seats is None:  # it waits for slots, and none may pass it or it might wait for ever
                self._queue.push(job)
                break
            if not seats:
                waiting.append(job)
            elif job.gang is not None:
                self._give_gang(job, job.gang, seats)
            elif job.begin():
                self._memory_since.pop(job.ident, None)
                try:
                    self.crew.give(job, seats)
                except BaseException:  # no descriptor left, say: the job ends with the others
                    self._queue.push(job)
                    raise
                self._watch_memory(job, seats)
            else:
                job.finish(Outcome("cancelled"))
        if self._queue and all(seat.retired for seat in self.seats):
            for job in self._queue.remove(lambda job: True):
                self._refuse(job, "every slot is out of use")

    def _give_gang(self, job: Job, gang: Gang, seats: tuple[Seat, ...]) -> None:
        """Start all jobs of a gang; or one again, whose process ended before it began."""
        members = (job,) if gang.started else gang.members
        gang.started, job.devices = True, 1
        gang.seats.update({member.ident: seat for member, seat in zip(members, seats, strict=True)})
        for member, seat in zip(members, seats, strict=True):
            if member.begin():
                self.crew.give(member, (seat,))
                self._watch_memory(member, (seat,))

    def _disband(self, gang: Gang, cause: Job, outcome: Outcome) -> None:
        """End the jobs of a gang of which one has failed: they would wait for it."""
        if gang.broken:
            return
        gang.broken = True
        words = f"{cause.name!r} ended {outcome.status}" + (f": {outcome.error}" if outcome.error else "")
        for post in list(self.crew.posts.values()):
            if post.job is not None and post.job is not cause and post.job.gang is gang:
                post.job.unwanted = True
                self.crew.end(post, "cancelled", words)
        for job in self._queue.remove(lambda job: job.gang is gang):
            job.finish(Outcome("cancelled", error=words))

    def _send_ahead(self) -> None:
        """Give workers with very short tasks the next ones before they ask: a turn takes longer than the task.

        Only of plain calls, which no record or timeout watches. Should the present task turn out long, what
        waits behind it is taken back as soon as another worker is free.
        """
        if self._sends_ahead:
            for post in self.crew.posts.values():
                if post.takes_ahead and len(post.ahead) <= AHEAD // 2 and (jobs := self._next_for(post)):
                    self.crew.give_ahead(post, jobs)

    def _next_for(self, post: Post) -> list[Job]:
        jobs: list[Job] = []
        while len(post.ahead) + len(jobs) < AHEAD and (job := self._queue.first()) is not None:
            if job.measured or job.payload.segment is not None or post.environment is not job.environment:
                break
            self._queue.pop()
            if job.begin():
                jobs.append(job)
            else:
                job.finish(Outcome("cancelled"))
        return jobs

    def _take_back(self) -> bool:
        """Take back tasks that wait behind another while a worker is free. Return whether there were any."""
        if not any(seat.ready for seat in self.seats):
            return False
        return any(self.crew.take_back(post) for post in self.crew.posts.values())

    def _attempted(self, job: Job, outcome: Outcome) -> None:
        """Take the end of an attempt; what it needed is known to the jobs that are given out next."""
        measured, place = outcome.measured, outcome.place
        if measured is not None and place is not None:
            seen = measured.peak_rss if place.gpu_id is None else measured.peak_reserved
            job.peak = max((peak for peak in (job.peak, seen) if peak is not None), default=None)
            self._admission.learn(job, job.peak)
        if job.gang is not None and outcome.status != "ok":
            self._disband(job.gang, job, outcome)
        self._attempts.append((job, outcome))

    def _settle(self, job: Job, outcome: Outcome) -> None:
        """Give a job another attempt where it has one left, else end it."""
        again = outcome.status in ("error", "killed", "timeout", "out-of-memory") and not job.unwanted
        if again and outcome.status == "out-of-memory" and job.retry_alone and not job.alone:
            job.alone = True
            job.notes.append(f"attempt {job.attempt} ran out of memory, the next was alone on its device")
            self._queue.push(job)
        elif again and job.attempt <= job.retries and job.deaths < MAX_DEATHS:
            job.notes.append(f"attempt {job.attempt}: {outcome.status}: {outcome.error}")
            self._queue.push(job)
        else:
            if again and job.attempt <= job.retries:
                job.notes.append(f"it ended its process {job.deaths} times and was not tried again")
            job.finish(outcome)

    def _return(self, job: Job) -> None:
        """Queue a job again that was given to a worker and never begun."""
        job.attempt -= 1
        if job.unwanted or (job.gang is not None and job.gang.broken):
            job.finish(Outcome("cancelled", error="cancelled before it began"))
        else:
            self._queue.push(job)

    def _refuse(self, job: Job, reason: str) -> None:
        said = f"{f'task {job.name!r}' if job.name else 'the task'}: {reason}"
        error = self.crew.setup_error or TaskError(said)
        if job.begin():
            text = "".join(traceback.format_exception(error))
            job.finish(Outcome("error", None, error, str(error), text))
        else:
            job.finish(Outcome("cancelled"))

    def _cancel(self, chosen: Callable[[Job], bool]) -> None:
        self._cancel_queued(chosen)
        for post in list(self.crew.posts.values()):
            for job in filter(chosen, post.ahead):
                job.unwanted = True
            if post.job is not None and chosen(post.job):
                post.job.unwanted = True
                self.crew.end(post, "cancelled", "cancelled while it ran")

    def _cancel_queued(self, chosen: Callable[[Job], bool]) -> None:
        for job in self._queue.remove(chosen):
            job.finish(Outcome("cancelled", error="cancelled before it began"))

    # Memory.

    def _wait_for_memory(self, job: Job) -> None:
        """Look again in a second; give up where none of our own tasks could free what is missing."""
        now = time.monotonic()
        since = self._memory_since.setdefault(job.ident, now)
        if self.crew.working or now - since < self._memory_timeout:
            if self.crew.working:
                self._memory_since[job.ident] = now
            self._queue.push(job)
            if not self._looks_again:
                self._looks_again = True
                self.loop.after(1.0, self._look_again)
            return
        words = (
            f"waited {self._memory_timeout:g} s for {job.memory or 0:,} bytes of free memory, held by other programs "
            "(memory_timeout of the pool)"
        )
        job.begin()
        job.finish(Outcome("out-of-memory", None, OutOfMemory(f"task {job.name!r}: {words}"), words))

    def _look_again(self) -> None:
        self._looks_again = False

    def _watch_memory(self, job: Job, seats: tuple[Seat, ...]) -> None:
        if job.measured and seats[0].slot.kind == "cuda" and not self._sampling:
            self._sampling = True
            self.loop.after(SAMPLE_EVERY, self._sample)

    def _sample(self) -> None:
        """Note what tasks use on GPUs, as the driver sees it. Runs only while such tasks do."""
        self._sampling = False
        for post in self.crew.posts.values():
            if (job := post.job) is not None and job.measured and post.seats[0].slot.kind == "cuda":
                uuids = dict.fromkeys(seat.slot.uuid for seat in post.seats)
                seen = [device.used_by(uuid).get(post.worker.pid or 0) for uuid in uuids]
                if known := [used for used in seen if used is not None]:
                    job.peak = max(sum(known), job.peak or 0)
                self._sampling = True
        if self._sampling:
            self.loop.after(SAMPLE_EVERY, self._sample)

    # The end.

    def _fail_all(self, error: BaseException) -> None:
        with self._lock:
            self._closing = True
        jobs = []
        while self._attempts:
            job, outcome = self._attempts.popleft()
            try:
                self._settle(job, outcome)
            except Exception:
                jobs.append(job)
        with contextlib.suppress(Exception):
            self.loop.listen()
        for post in self.crew.posts.values():
            jobs += [job for job in (post.job, *post.ahead) if job is not None]
        for job in [*jobs, *self._queue.remove(lambda job: True)]:
            with contextlib.suppress(Exception):
                failed = TaskError(f"the pool failed: {type(error).__name__}: {error}")
                failed.__cause__ = error
                job.payload.read = False  # by a worker that is still there
                if job.begin():
                    job.finish(Outcome("error", None, failed, str(failed), traceback.format_exc()))
