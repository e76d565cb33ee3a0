"""The thread between the kernel and its workers: gives jobs to seats, takes what comes back.

It waits on all channels, logs and sessions at once and wakes for nothing else: an idle pool costs nothing.
Everything it does is short; what user code may do slowly (pickling, setup, tasks) happens elsewhere.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import pickle
import selectors
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from . import device
from .admission import Admission
from .device import Slot
from .engines import payload
from .engines.channel import Frame
from .engines.local import LocalEngine, Session
from .engines.oom import oom_kills
from .engines.payload import Payload
from .engines.protocol import Begin, Context, Failure, Measured, Message, TaskMeta
from .errors import OutOfMemory, SetupError, TaskError, TaskTimeout, WorkerDied, exit_in_words, revive
from .job import Job, Outcome
from .ready import ReadyQueue
from .seat import Post, Seat
from .tasks import Status

__all__ = ["Dispatcher"]

log = logging.getLogger("mgpu_nb")

MAX_DEATHS = 3  # a task that ends its process as often is not tried again
MAX_FAILED_STARTS = 3
QUICK = 0.002  # seconds; a worker with tasks as short gets the next before it is done
AHEAD = 16  # as many of them
SAMPLE_EVERY = 0.5  # seconds between looks at what tasks use on GPUs


class Dispatcher:
    """Runs the jobs of one pool. `submit`, `cancel` and `close` may be called from any thread."""

    def __init__(
        self,
        slots: tuple[Slot, ...],
        engine: LocalEngine,
        setup: Payload,
        context: Context,
        *,
        isolation: Literal["worker", "task"],
        pins: dict[str, str],
        max_tasks: int | None,
        memory_growth: int | None,
        start_timeout: float,
        memory_timeout: float,
        grace: float,
    ) -> None:
        self.seats = tuple(Seat(slot) for slot in slots)
        self.setup_error: BaseException | None = None
        self.wakeups = 0
        self._engine = engine
        self._setup = setup
        self._context = context
        self._isolated = isolation == "task"
        self._pins = pins
        self._max_tasks = max_tasks
        self._memory_growth = memory_growth
        self._start_timeout = start_timeout
        self._memory_timeout = memory_timeout
        self._grace = grace
        self._queue = ReadyQueue()
        self._admission = Admission(self.seats, self._isolated)
        self._posts: dict[int, Post] = {}
        self._sessions: list[Session] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._sampling = False
        self._memory_since: dict[int, float] = {}
        self._oom_kills = oom_kills()
        self._inbox: deque[Callable[[], None]] = deque()
        self._closing = False
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._wake, self._waker = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self._waker, False)
        self._selector.register(self._wake, selectors.EVENT_READ, self._woken)
        self._awake = False
        self.thread = threading.Thread(target=self._run, name="mgpu_nb-dispatcher", daemon=True)

    # Called from any thread.

    def start(self) -> None:
        """Start the thread, the server and, unless every task has its own, the workers."""
        self._tell(self._warm_up)
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
            self._tell(lambda: self._enqueue(jobs))

    def follow(self, jobs: Sequence[Job]) -> None:
        """Queue jobs that belong to a batch already taken: also while the pool closes."""
        self._tell(lambda: self._enqueue(tuple(jobs)))

    def cancel(self, chosen: Callable[[Job], bool]) -> None:
        """Cancel the queued jobs that are chosen and end the running ones."""
        self._tell(lambda: self._cancel(chosen))

    def close(self, *, cancel_queued: bool = False, cancel_running: bool = False) -> None:
        """Take no more jobs; end when those there are have ended."""
        with self._lock:
            self._closing = True
        if cancel_running:
            self.cancel(lambda job: True)
        elif cancel_queued:
            self._tell(lambda: self._cancel_queued(lambda job: True))
        else:
            self._tell(lambda: None)

    def _tell(self, message: Callable[[], None]) -> None:
        self._inbox.append(message)
        if not self._awake:  # a thread that is at work looks into the inbox before it sleeps
            self._awake = True
            with contextlib.suppress(OSError):  # full: it will wake; closed: it is done
                os.write(self._waker, b"!")

    # The thread.

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except BaseException as error:  # a fault of ours must not become a hang of theirs
            log.exception("the dispatcher failed; every task that is left ends with this error")
            self._fail_all(error)
        finally:
            for post in list(self._posts.values()):
                self._forget(post)
            self._engine.close()
            self._setup.close()
            self._selector.close()
            os.close(self._wake)
            with self._lock:
                self._closing = True
                os.close(self._waker)
                self._waker = -1

    def _step(self) -> bool:
        """Wait for something to happen and deal with it. Return whether there is more to come."""
        while self._inbox:
            self._inbox.popleft()()
        self._assign()
        if self._closing and not self._inbox and not self._queue and not self._working():
            if not self._posts:
                return False
            self._dismiss_all()
        self._awake = False
        timeout = 0.0 if self._inbox else self._due()
        events = self._selector.select(timeout)
        self._awake = True
        self.wakeups += 1
        for key, _ in events:
            if key.fd in self._selector.get_map():  # else an event before this one ended it
                key.data()
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()
        return True

    def _due(self) -> float | None:
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), action))

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)

    def _working(self) -> bool:
        return any(post.job is not None for post in self._posts.values())

    # Workers.

    def _warm_up(self) -> None:
        self._engine.warm_up()
        self._watch_sessions()
        if not self._isolated:
            for seat in self.seats:
                self._hire(seat)

    def _hire(self, seat: Seat) -> None:
        """Start a warm worker at a seat."""
        seat.warm = self._post((seat,), None)

    def _post(self, seats: tuple[Seat, ...], job: Job | None) -> Post:
        lead = seats[0].slot
        pins = {**self._pins, **lead.environment}
        names: tuple[str, ...] = ("cpu",) * len(seats)
        if lead.kind == "cuda":
            uuids = list(dict.fromkeys(seat.slot.uuid for seat in seats))
            pins["CUDA_VISIBLE_DEVICES"] = ",".join(uuids)
            names = tuple(f"cuda:{uuids.index(seat.slot.uuid)}" for seat in seats)
        begin = Begin(
            slot=lead.index,
            threads=sum(seat.slot.threads for seat in seats),
            gpu_id=lead.gpu_id,
            uuid=lead.uuid,
            devices=names,
            pins=pins,
            context=job.context if job is not None else self._context,
            memory_growth=self._memory_growth,
        )
        worker = self._engine.start(begin, self._setup)
        self._watch_sessions()
        post = self._posts[worker.number] = Post(worker, seats, job)
        self._selector.register(worker.channel, selectors.EVENT_READ, lambda: self._channel(post))
        self._selector.register(worker.log, selectors.EVENT_READ, lambda: self._log(post))
        if worker.channel.pending:
            self._flush_later(post)
        self._after(self._start_timeout, lambda: self._start_timed_out(post))
        return post

    def _watch_sessions(self) -> None:
        for session in self._engine.sessions:
            if session not in self._sessions:
                self._sessions.append(session)
                self._selector.register(
                    session.channel, selectors.EVENT_READ, partial(self._session, session)
                )

    def _session(self, session: Session) -> None:
        for kind, worker, value in list(self._engine.events(session)):
            post = self._posts.get(worker.number)
            if post is not None and kind == "exited":
                self._exited(post, value)
        self._watch_sessions()
        if session.channel.closed:
            session.server.retired = True
            log.error("the server of the workers ended: %s", session.server.last_words() or "it said nothing")
        for idle in self._engine.idle_sessions():
            self._selector.unregister(idle.channel)
            self._sessions.remove(idle)
            self._engine.close_session(idle)

    def _channel(self, post: Post) -> None:
        """Read what a worker sends, and send what it has not taken yet."""
        channel = post.worker.channel
        if channel.pending:
            with contextlib.suppress(OSError):
                if channel.flush():
                    self._selector.modify(channel, selectors.EVENT_READ, lambda: self._channel(post))
        for frame in channel.receive():
            self._frame(post, frame)
        if channel.closed:  # its end is told by the server; until then there is no more to read
            self._selector.unregister(channel)

    def _flush_later(self, post: Post) -> None:
        both = selectors.EVENT_READ | selectors.EVENT_WRITE
        self._selector.modify(post.worker.channel, both, lambda: self._channel(post))

    def _log(self, post: Post) -> None:
        if not post.read_log():
            self._selector.unregister(post.worker.log)

    def _frame(self, post: Post, frame: Frame) -> None:
        job = post.job
        kind = frame.kind
        if kind in (Message.VALUE, Message.ERROR):
            if job is not None and job.ident == frame.ident:
                self._ended(post, job, self._outcome(frame), frame)
        elif kind == Message.REPORT:
            if job is not None and job.ident == frame.ident:
                job.report(pickle.loads(frame.meta))
        elif kind == Message.PASSED:
            post.passing -= 1
        elif kind == Message.READY:
            post.worker.pid = frame.ident
            for seat in post.seats:
                seat.failed_starts = 0
            if post.state == "starting":
                post.state = "ready" if job is None else "busy"
                if job is not None:
                    self._set_timeout(post, job)
        elif kind == Message.SETUP_FAILED:
            post.read_log()
            error, _ = revive(pickle.loads(frame.meta))
            output = f"\nIts output ended with:\n{post.last_words()}" if post.tail else ""
            post.setup_error = SetupError(
                f"the pool's setup failed on {post.place.device} (slot {post.place.slot}): "
                f"{type(error).__name__}: {error}. Mend setup and make a new pool.{output}"
            )
            post.setup_error.__cause__ = error
        elif kind == Message.OUTDATED:
            post.outdated = True
            post.state = "ending"
        elif kind == Message.BAD_FORK:
            post.outdated = True
            post.state = "ending"
            self._engine.bad_fork(post.worker)

    def _outcome(self, frame: Frame) -> Outcome:
        if frame.kind == Message.VALUE:
            told: Measured | None = pickle.loads(frame.meta) if frame.meta else None
            try:
                return Outcome("ok", payload.loads(frame.body, frame.fds), measured=told)
            except BaseException as broken:
                line = f"its value does not unpickle here: {type(broken).__name__}: {broken}"
                return Outcome("error", None, TaskError(line), line, traceback.format_exc(), measured=told)
        failure: Failure = pickle.loads(frame.meta)
        error, text = revive(failure)
        line = f"{failure.kind}: {failure.message}".strip().removesuffix(":")
        status: Literal["out-of-memory", "error"] = "out-of-memory" if failure.out_of_memory else "error"
        return Outcome(status, None, error, line, text, measured=failure.measured)

    def _ended(self, post: Post, job: Job, outcome: Outcome, frame: Frame) -> None:
        """A task came to its end and its worker lives."""
        if job.measured:
            post.read_log()
        post.job = None
        post.done += 1
        now = time.perf_counter()
        post.quick, post.sent = now - post.sent < QUICK, now
        told = outcome.measured
        if told is not None and told.held:
            job.notes.append(f"worker replaced: it kept {told.held / 2**20:.0f} MB after the task")
        worn_out = self._max_tasks is not None and post.done >= self._max_tasks
        if post.seats[0].warm is not post or (told is not None and told.held) or worn_out:
            post.release()
            self._after(self._grace, lambda: self._kill(post))
        elif post.ahead:
            post.job = post.ahead.popleft()
        else:
            post.state = "ready"
            post.seats[0].taken_by = None
        outcome.place = post.place
        self._settle(job, outcome)

    def _exited(self, post: Post, status: int | None) -> None:
        """A process ended: read its last words, then decide what that means for its job and its seats."""
        with contextlib.suppress(KeyError):
            self._channel(post)
        post.read_log()
        job, post.job = post.job, None
        while post.ahead:
            self._return(post.ahead.pop())
        self._forget(post)
        for seat in post.seats:
            seat.taken_by = None
            if seat.warm is post:
                seat.warm = None
        if post.setup_error is not None:
            self._retire(post, post.setup_error)
        elif post.state == "starting" and post.verdict is None and not self._closing:
            self._failed_start(post, exit_in_words(status))
        if job is not None:
            if (
                (post.state == "starting" and post.verdict is None)
                or post.setup_error is not None
                or post.outdated
            ):
                self._return(job)
            else:
                self._settle(job, self._death(post, status, job))
        for seat in post.seats:
            if not self._isolated and not self._closing and seat.warm is None and not seat.retired:
                self._hire(seat)

    def _death(self, post: Post, status: int | None, job: Job) -> Outcome:
        """Tell how a job ended whose process did."""
        where = f"on {post.place.device} (slot {post.place.slot}, pid {post.worker.pid})"
        text = post.last_words()
        kind: Any
        if post.verdict is not None:
            kind, words = post.verdict
        else:
            job.deaths += 1
            kind, words = "killed", exit_in_words(status)
            if status is not None and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
                kills = oom_kills()
                if kills is not None and kills > (self._oom_kills or 0):
                    kind, words = (
                        "out-of-memory",
                        "killed by the system: the memory limit of its cgroup was reached",
                    )
                self._oom_kills = kills
        errors = {"timeout": TaskTimeout, "out-of-memory": OutOfMemory, "killed": WorkerDied}
        said = f"task {job.name!r}" if job.name else "the task"
        error = errors.get(kind, TaskError)(f"{said} {where}: {words}")
        if text:
            error.add_note(f"Its output ended with:\n{text}")
        return Outcome(
            kind, None, error, words, text, post.place, Measured(post.began, time.time() - post.began)
        )

    def _settle(self, job: Job, outcome: Outcome) -> None:
        """Give a job another attempt where it has one left, else end it."""
        told, place = outcome.measured, outcome.place
        if told is not None and place is not None:
            seen = told.peak_rss if place.gpu_id is None else told.peak_reserved
            job.peak = max((peak for peak in (job.peak, seen) if peak is not None), default=None)
            self._admission.learn(job, job.peak)
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
        if job.unwanted:
            job.finish(Outcome("cancelled", error="cancelled before it began"))
        else:
            self._queue.push(job)

    # Jobs.

    def _enqueue(self, jobs: tuple[Job, ...]) -> None:
        for job in jobs:
            self._queue.push(job)

    def _assign(self) -> None:
        """Give out jobs for as long as there are seats for them."""
        waiting = []  # for memory; others may pass them
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
            elif job.begin():
                self._memory_since.pop(job.ident, None)
                self._give(job, seats)
            else:
                job.finish(Outcome("cancelled"))
        if self._queue and not any(not seat.retired for seat in self.seats):
            for job in self._queue.remove(lambda job: True):
                self._refuse(job, "every slot is out of use")
        for job in waiting:
            self._wait_for_memory(job)
        if self._queue:
            self._send_ahead()
        elif self._take_back():
            self._assign()

    def _send_ahead(self) -> None:
        """Give workers with very short tasks the next one before they ask: a turn takes longer than the task.

        Only of plain calls, which no record or timeout watches. Should the present task turn out long, the next
        is taken back as soon as another worker is free.
        """
        if self._isolated or self._max_tasks is not None:
            return
        for post in self._posts.values():
            idle = post.job is None or post.job.measured or post.state != "busy"
            if idle or not post.quick or post.passing or len(post.ahead) > AHEAD // 2:
                continue
            frames = []
            while len(post.ahead) < AHEAD and (job := self._queue.first()) is not None:
                if job.measured or job.payload.segment is not None or post.context is not job.context:
                    break
                self._queue.pop()
                if job.begin():
                    job.attempt += 1
                    post.ahead.append(job)
                    frames.append((job.ident, job.payload.body))
                else:
                    job.finish(Outcome("cancelled"))
            if frames:
                post.worker.offer(len(frames))
                with contextlib.suppress(OSError):
                    post.worker.channel.send_many(Message.TASK_AHEAD, frames)
                if post.worker.channel.pending:
                    self._flush_later(post)

    def _take_back(self) -> bool:
        """Take back a task that waits behind another while a worker is free. Return whether there was one."""
        if not any(seat.ready for seat in self.seats):
            return False
        taken = False
        for post in self._posts.values():
            while post.ahead and post.worker.take_back():
                post.passing += 1
                self._return(post.ahead.pop())
                taken = True
        return taken

    def _give(self, job: Job, seats: tuple[Seat, ...]) -> None:
        job.attempt += 1
        warm = seats[0].warm
        fresh = self._isolated or job.devices > 1 or warm is None or warm.state != "ready"
        post = self._post(seats, job) if fresh or warm is None else warm
        post.job, post.began = job, time.time()
        for seat in seats:
            seat.taken_by = post
        meta = job.meta()
        if post.context is not job.context:
            post.context = job.context
            meta = replace(meta or TaskMeta(), context=job.context)
        channel = post.worker.channel
        with contextlib.suppress(OSError):  # it has just died; the server will say so
            packed = b"" if meta is None else pickle.dumps(meta)
            channel.send(Message.TASK, job.ident, packed, job.payload.body, job.payload.fds)
        if channel.pending:
            self._flush_later(post)
        if not fresh:
            post.state, post.sent = "busy", time.perf_counter()
            self._set_timeout(post, job)
        if job.measured and seats[0].slot.kind == "cuda" and not self._sampling:
            self._sampling = True
            self._after(SAMPLE_EVERY, self._sample)

    def _refuse(self, job: Job, reason: str) -> None:
        error = self.setup_error or TaskError(f"{f'task {job.name!r}' if job.name else 'the task'}: {reason}")
        if job.begin():
            job.finish(Outcome("error", None, error, str(error), format_chain(error)))
        else:
            job.finish(Outcome("cancelled"))

    def _wait_for_memory(self, job: Job) -> None:
        """Look again in a second; give up where none of our own tasks could free what is missing."""
        since = self._memory_since.setdefault(job.ident, time.monotonic())
        if self._working() or time.monotonic() - since < self._memory_timeout:
            if self._working():
                self._memory_since[job.ident] = time.monotonic()
            self._queue.push(job)
            self._after(1.0, lambda: None)
            return
        words = (
            f"waited {self._memory_timeout:g} s for {job.memory or 0:,} bytes of free memory, held by other programs "
            "(memory_timeout of the pool)"
        )
        job.begin()
        job.finish(Outcome("out-of-memory", None, OutOfMemory(f"task {job.name!r}: {words}"), words))

    def _set_timeout(self, post: Post, job: Job) -> None:
        post.began = time.time()
        if job.timeout is not None:
            attempt = job.attempt

            def strike() -> None:
                if post.job is job and job.attempt == attempt:
                    self._end(post, "timeout", f"ran longer than its timeout of {job.timeout:g} s")

            self._after(job.timeout, strike)

    def _end(self, post: Post, status: Status, words: str) -> None:
        """End a process: ask it to, then insist."""
        if post.verdict is None:
            post.verdict = (status, words)
            self._engine.signal(post.worker, signal.SIGTERM)
            self._after(self._grace, lambda: self._kill(post))

    def _kill(self, post: Post) -> None:
        if post.worker.number in self._posts:
            self._engine.signal(post.worker, signal.SIGKILL)

    def _cancel(self, chosen: Callable[[Job], bool]) -> None:
        self._cancel_queued(chosen)
        for post in list(self._posts.values()):
            for job in filter(chosen, post.ahead):
                job.unwanted = True
            if post.job is not None and chosen(post.job):
                post.job.unwanted = True
                self._end(post, "cancelled", "cancelled while it ran")

    def _cancel_queued(self, chosen: Callable[[Job], bool]) -> None:
        for job in self._queue.remove(chosen):
            job.finish(Outcome("cancelled", error="cancelled before it began"))

    def _sample(self) -> None:
        """Note what tasks use on GPUs, as the driver sees it. Runs only while such tasks do."""
        self._sampling = False
        for post in self._posts.values():
            if (job := post.job) is not None and job.measured and post.seats[0].slot.kind == "cuda":
                uuids = dict.fromkeys(seat.slot.uuid for seat in post.seats)
                seen = [device.used_by(uuid).get(post.worker.pid or 0) for uuid in uuids]
                if known := [used for used in seen if used is not None]:
                    job.peak = max(sum(known), job.peak or 0)
                self._sampling = True
        if self._sampling:
            self._after(SAMPLE_EVERY, self._sample)

    # Ends.

    def _start_timed_out(self, post: Post) -> None:
        if post.state == "starting" and post.worker.number in self._posts:
            words = f"not ready within {self._start_timeout:g} s (start_timeout of the pool); the server or setup hangs"
            post.setup_error = SetupError(f"the worker on {post.place.device} was {words}")
            self._engine.signal(post.worker, signal.SIGKILL)

    def _failed_start(self, post: Post, words: str) -> None:
        seat = post.seats[0]
        seat.failed_starts += 1
        if seat.failed_starts >= MAX_FAILED_STARTS:
            output = f" Its output ended with:\n{post.last_words()}" if post.tail else ""
            self._retire(
                post,
                SetupError(f"{seat.failed_starts} workers ended before they were set up: {words}.{output}"),
            )

    def _retire(self, post: Post, error: BaseException) -> None:
        """Start no more workers at this seat: the next would fail as well."""
        self.setup_error = error
        for seat in post.seats[:1]:
            seat.retired = str(error)
        log.warning("slot %d is out of use: %s", post.seats[0].slot.index, error)

    def _dismiss_all(self) -> None:
        for post in self._posts.values():
            if post.state != "ending":
                post.release()
                self._after(self._grace, partial(self._kill, post))

    def _forget(self, post: Post) -> None:
        """Close what belongs to a process that has ended."""
        del self._posts[post.worker.number]
        for source in (post.worker.channel, post.worker.log):
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(source)
        post.worker.close()

    def _fail_all(self, error: BaseException) -> None:
        with self._lock:
            self._closing = True
        while self._inbox:
            with contextlib.suppress(Exception):
                self._inbox.popleft()()
        jobs = [job for post in self._posts.values() for job in (post.job, *post.ahead) if job is not None]
        for job in [*jobs, *self._queue.remove(lambda job: True)]:
            with contextlib.suppress(Exception):
                failed = TaskError(f"the pool failed: {type(error).__name__}: {error}")
                failed.__cause__ = error
                if job.begin():
                    job.finish(Outcome("error", None, failed, str(failed), traceback.format_exc()))


def format_chain(error: BaseException) -> str:
    """Return the traceback text of an error that was never raised here, with its causes."""
    return "".join(traceback.format_exception(error))
