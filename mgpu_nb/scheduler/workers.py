"""The worker processes of a pool: started at seats, given jobs, listened to, ended, replaced."""

from __future__ import annotations

import contextlib
import logging
import pickle
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ..engines.channel import Frame
from ..engines.local import LocalEngine, Session
from ..engines.payload import Payload
from ..engines.protocol import Begin, Environment, Measured, Message, TaskMeta
from ..errors import SetupError
from ..tasks import Status
from .job import Job
from .loop import Loop
from .outcome import Coroner, Outcome, describe_exit, died, revive, told
from .state import Post, Seat

__all__ = ["Crew", "Terms"]

log = logging.getLogger("mgpu_nb")

MAX_FAILED_STARTS = 3
QUICK = 0.002  # seconds; a worker with tasks as short gets the next before it is done


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On what terms workers are employed; see `GPUPool` for each."""

    setup: Payload
    environment: Environment
    pins: dict[str, str]
    isolated: bool
    max_tasks: int | None
    memory_growth: int | None
    start_timeout: float
    grace: float


class Crew:
    """Keeps a process at every seat, or starts one per job.

    Parameters
    ----------
    ended
        Called with a job and its outcome when an attempt at it is over.
    returned
        Called with a job that a worker was given and never began.
    """

    def __init__(
        self,
        loop: Loop,
        engine: LocalEngine,
        seats: tuple[Seat, ...],
        terms: Terms,
        ended: Callable[[Job, Outcome], None],
        returned: Callable[[Job], None],
    ) -> None:
        self.posts: dict[int, Post] = {}
        self.setup_error: BaseException | None = None
        self.dismissed = False
        self._loop = loop
        self._engine = engine
        self._seats = seats
        self._terms = terms
        self._ended_job = ended
        self._returned = returned
        self._sessions: list[Session] = []
        self._coroner = Coroner()

    @property
    def working(self) -> bool:
        """Whether a worker has a job."""
        return any(post.job is not None for post in self.posts.values())

    # Starts.

    def warm_up(self) -> None:
        """Have a server ready and, unless every task has its own, the workers."""
        self._engine.warm_up()
        self._watch_sessions()
        if not self._terms.isolated:
            for seat in self._seats:
                self._hire(seat)

    def _hire(self, seat: Seat) -> None:
        seat.warm = self._open((seat,), None)

    def _open(self, seats: tuple[Seat, ...], job: Job | None) -> Post:
        """Start a process for seats; it is pinned to their devices before it imports anything."""
        lead = seats[0].slot
        pins = {**self._terms.pins, **lead.environment}
        names: tuple[str, ...] = ("cpu",) * len(seats)
        if lead.kind == "cuda":
            seen = seats if job is None or job.gang is None else job.gang.seats.values()
            uuids = list(dict.fromkeys(seat.slot.uuid for seat in seen))
            pins["CUDA_VISIBLE_DEVICES"] = ",".join(uuids)
            names = tuple(f"cuda:{uuids.index(seat.slot.uuid)}" for seat in seats)
        begin = Begin(
            slot=lead.index,
            threads=sum(seat.slot.threads for seat in seats),
            gpu_id=lead.gpu_id,
            uuid=lead.uuid,
            devices=names,
            pins=pins,
            environment=job.environment if job is not None else self._terms.environment,
            memory_growth=self._terms.memory_growth,
        )
        worker = self._engine.start(begin, self._terms.setup)
        self._watch_sessions()
        post = self.posts[worker.number] = Post(worker, seats, job)
        self._listen(post)
        self._loop.watch(worker.log, partial(self._log, post))
        self._loop.after(self._terms.start_timeout, partial(self._start_timed_out, post))
        return post

    def _watch_sessions(self) -> None:
        for session in self._engine.sessions:
            if session not in self._sessions:
                self._sessions.append(session)
                self._loop.watch(session.channel, partial(self._session, session))

    def _start_timed_out(self, post: Post) -> None:
        if post.state == "starting" and post.worker.number in self.posts:
            seconds = self._terms.start_timeout
            words = f"not ready within {seconds:g} s (start_timeout of the pool); the server or setup hangs"
            post.setup_error = SetupError(f"the worker on {post.place.device} was {words}")
            self.kill(post)

    def _failed_start(self, post: Post, words: str) -> None:
        seat = post.seats[0]
        seat.failed_starts += 1
        if seat.failed_starts >= MAX_FAILED_STARTS:
            output = f" Its output ended with:\n{post.last_words()}" if post.tail else ""
            said = f"{seat.failed_starts} workers ended before they were set up: {words}.{output}"
            self._retire(post, SetupError(said))

    def _retire(self, post: Post, error: BaseException) -> None:
        """Start no more workers at this seat: the next would fail as well."""
        self.setup_error = error
        post.seats[0].retired = str(error)
        log.warning("slot %d is out of use: %s", post.seats[0].slot.index, error)

    # Jobs.

    def give(self, job: Job, seats: tuple[Seat, ...]) -> None:
        """Have a job run at seats: by the worker that waits there, or by a process of its own."""
        job.attempt += 1
        warm = seats[0].warm
        several = job.devices > 1 or job.gang is not None
        fresh = self._terms.isolated or several or warm is None or warm.state != "ready"
        post = self._open(seats, job) if fresh or warm is None else warm
        post.job, post.began, post.tail = job, time.time(), b""
        for seat in seats:
            seat.taken_by = post
        meta = job.meta()
        if post.environment is not job.environment:
            post.environment = job.environment
            meta = (meta or TaskMeta())._replace(environment=job.environment)
        with contextlib.suppress(OSError):  # it has just died; the server will say so
            packed = b"" if meta is None else pickle.dumps(meta)
            post.worker.channel.send(Message.TASK, job.ident, packed, job.payload.body, job.payload.fds)
        if post.worker.channel.pending:
            self._listen(post)
        if not fresh:
            post.state, post.sent = "busy", time.perf_counter()
            self._begin(post, job)

    def give_ahead(self, post: Post, jobs: list[Job]) -> None:
        """Send a worker jobs that it may begin when it is done with the present one, unless they are taken back."""
        for job in jobs:
            job.attempt += 1
        post.ahead.extend(jobs)
        post.worker.offer(len(jobs))
        with contextlib.suppress(OSError):
            frames = [(job.ident, job.payload.body) for job in jobs]
            post.worker.channel.send_many(Message.TASK_AHEAD, frames)
        if post.worker.channel.pending:
            self._listen(post)

    def take_back(self, post: Post) -> bool:
        """Take back what was sent ahead to a worker, as far as it has not begun; return whether there was any."""
        before = len(post.ahead)
        while post.ahead and post.worker.take_back():
            post.passing += 1
            self._returned(post.ahead.pop())
        return len(post.ahead) < before

    def _begin(self, post: Post, job: Job) -> None:
        """Start the clock of a job: its worker is ready for it."""
        post.began = time.time()
        if job.timeout is not None:
            attempt = job.attempt

            def strike() -> None:
                if post.job is job and job.attempt == attempt:
                    self.end(post, "timeout", f"ran longer than its timeout of {job.timeout:g} s")

            self._loop.after(job.timeout, strike)

    # What workers say.

    def _listen(self, post: Post) -> None:
        channel = post.worker.channel
        self._loop.watch(channel, partial(self._channel, post), writable=channel.pending)

    def _channel(self, post: Post) -> None:
        """Read what a worker sends, and send what it has not taken yet."""
        channel = post.worker.channel
        if channel.pending:
            with contextlib.suppress(OSError):
                if channel.flush():
                    self._listen(post)
        for frame in channel.receive():
            self._frame(post, frame)
        if channel.closed:  # its end is told by the server; until then there is no more to read
            self._loop.unwatch(channel)

    def _log(self, post: Post) -> None:
        if not post.read_log():
            self._loop.unwatch(post.worker.log)

    def _frame(self, post: Post, frame: Frame) -> None:
        job = post.job
        kind = frame.kind
        if kind in (Message.VALUE, Message.ERROR):
            if job is not None and job.ident == frame.ident:
                self._ended(post, job, told(frame))
        elif kind == Message.REPORT:
            if job is not None and job.ident == frame.ident:
                job.report(pickle.loads(frame.meta))
        elif kind == Message.MEMORY:
            post.reported = pickle.loads(frame.meta)
        elif kind == Message.PASSED:
            post.passing -= 1
        elif kind == Message.READY:
            post.worker.pid = frame.ident
            for seat in post.seats:
                seat.failed_starts = 0
            if post.state == "starting":
                post.state = "ready" if job is None else "busy"
                if job is not None:
                    self._begin(post, job)
        elif kind == Message.SETUP_FAILED:
            self._setup_failed(post, frame)
        elif kind in (Message.OUTDATED, Message.BAD_FORK):
            post.outdated = True
            post.state = "ending"
            if kind == Message.BAD_FORK:
                self._engine.bad_fork(post.worker)

    def _setup_failed(self, post: Post, frame: Frame) -> None:
        post.read_log()
        error, _ = revive(pickle.loads(frame.meta))
        output = f"\nIts output ended with:\n{post.last_words()}" if post.tail else ""
        post.setup_error = SetupError(
            f"the pool's setup failed on {post.place.device} (slot {post.place.slot}): "
            f"{type(error).__name__}: {error}. Mend setup and make a new pool.{output}"
        )
        post.setup_error.__cause__ = error

    def _ended(self, post: Post, job: Job, outcome: Outcome) -> None:
        """A task came to its end and its worker lives."""
        if job.measured:
            post.read_log()
        post.job = None
        post.done += 1
        now = time.perf_counter()
        post.quick, post.sent = now - post.sent < QUICK, now
        measured, most = outcome.measured, self._terms.max_tasks
        held = measured.held if measured is not None else 0
        if held:
            job.notes.append(f"worker replaced: it kept {held / 2**20:.0f} MB after the task")
        over = post.verdict is not None  # a signal is on its way to it
        if over or post.seats[0].warm is not post or held or (most is not None and post.done >= most):
            self.dismiss(post)
        elif post.ahead:
            post.job = post.ahead.popleft()
        else:
            post.state = "ready"
            post.seats[0].taken_by = None
        outcome.place = post.place
        self._ended_job(job, outcome)

    # Ends.

    def _session(self, session: Session) -> None:
        for kind, worker, value in list(self._engine.events(session)):
            post = self.posts.get(worker.number)
            if post is not None and kind == "exited":
                self._exited(post, value)
        self._watch_sessions()
        if session.channel.closed:
            session.server.retired = True
            if not self.dismissed:
                log.error(
                    "the server of the workers ended: %s", session.server.last_words() or "it said nothing"
                )
        for idle in self._engine.idle_sessions():
            self._loop.unwatch(idle.channel)
            self._sessions.remove(idle)
            self._engine.close_session(idle)

    def _exited(self, post: Post, status: int | None) -> None:
        """A process ended: read its last words, then decide what that means for its job and its seats."""
        self._channel(post)
        post.read_log()
        job, post.job = post.job, None
        while post.ahead:
            self._returned(post.ahead.pop())
        self.forget(post)
        for seat in post.seats:
            if seat.taken_by is post:  # a job of several seats may have it
                seat.taken_by = None
            if seat.warm is post:
                seat.warm = None
        if job is not None and status is None:
            job.payload.read = False  # its server is gone, or it cannot be ended: it may yet come to read it
        never_began = post.state == "starting" and post.verdict is None
        if post.setup_error is not None:
            self._retire(post, post.setup_error)
        elif never_began and not self.dismissed:
            self._failed_start(post, describe_exit(status))
        if job is not None:
            if never_began or post.setup_error is not None or post.outdated:
                self._returned(job)
            else:
                self._ended_job(job, self._death(post, status, job))
        for seat in post.seats:
            if not self._terms.isolated and not self.dismissed and seat.warm is None and not seat.retired:
                self._hire(seat)

    def _death(self, post: Post, status: int | None, job: Job) -> Outcome:
        """Tell how a job ended whose process did."""
        if post.verdict is None:
            job.deaths += 1
        kind, words = post.verdict or self._coroner.cause(status)
        measured = Measured(post.began, time.time() - post.began)
        return died(job.name, kind, words, post.place, post.last_words(), measured)

    def end(self, post: Post, status: Status, words: str) -> None:
        """End a process: ask it to, then insist. Its job ends with this status."""
        if post.verdict is None:
            post.verdict = (status, words)
            self._engine.signal(post.worker, signal.SIGTERM)
            self._loop.after(self._terms.grace, partial(self.kill, post))

    def kill(self, post: Post) -> None:
        """Kill a process, if it still is there."""
        if post.worker.number in self.posts:
            self._engine.signal(post.worker, signal.SIGKILL)
            self._loop.after(self._terms.grace, partial(self._give_up, post))

    def _give_up(self, post: Post) -> None:
        """Go on without a process that not even SIGKILL ended: its driver call hangs, or its server does."""
        if post.worker.number in self.posts:
            log.error(
                "the process of slot %d (pid %s) cannot be ended", post.seats[0].slot.index, post.worker.pid
            )
            self._engine.disown(post.worker)
            self._exited(post, None)

    def dismiss(self, post: Post) -> None:
        """Let a process end that has no job; kill it where it does not."""
        if post.state != "ending":
            post.release()
            self._loop.after(self._terms.grace, partial(self.kill, post))

    def dismiss_all(self) -> None:
        """Let all end; none is replaced."""
        self.dismissed = True
        for post in self.posts.values():
            self.dismiss(post)

    def forget(self, post: Post) -> None:
        """Close what belongs to a process that has ended."""
        del self.posts[post.worker.number]
        for source in (post.worker.channel, post.worker.log):
            self._loop.unwatch(source)
        post.worker.close()

    def close(self) -> None:
        """Close everything; what still runs is killed by the server."""
        for post in list(self.posts.values()):
            self.forget(post)
        self._engine.close()
        self._terms.setup.close()
