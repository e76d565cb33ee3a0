"""The state of a run: what runs, what has ended and how, for whoever shows it or waits for it."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ..hardware.slots import Slot
from ..listeners import Listener
from ..notebook import cell, cell_number
from ..store.export import export
from ..store.files import file_stem, former_stem
from ..store.journal import Journal
from ..store.metrics import History
from ..store.writer import FolderWriter
from ..tasks import STATUSES, Progress, Record
from ..telemetry import sampler
from ..telemetry.recorder import Recorder
from ..telemetry.samples import PoolActivity
from ..views.activity import clock
from ..views.graph import RUNS, WAITS
from ..views.metrics import Chart
from .batch import RecordedJob
from .feed import Feed
from .frame import Rows, task_rows
from .metrics import charts_of, last_values
from .registry import Registry
from .retry import Origin
from .submitted import SubmittedJob

__all__ = ["Ledger", "registry"]

log = logging.getLogger("mgpu_nb")

registry: Registry[Ledger] = Registry()
AGAIN = 10.0  # seconds that a wait takes at most to write again what could not be written
SET = 1.0  # seconds by which a clock that is set jumps at least
LISTENERS = 30.0  # seconds that a run waits for its listeners to take its end


class Ledger:
    """State of a run; thread-safe. A `Batch` reports to it, or what reads the journal of a run that is not ours.

    Views are given this and not the `Run`, which is the handle for users.

    Parameters
    ----------
    name, folder, tasks
        The run, its folder, the names of its tasks in order of submission.
    slots
        Gives the slots of its pool that are there; none if it was read from its folder.
    jobs
        Its jobs by name; none if it was read from its folder.
    cancel
        Cancels pending tasks and ends running ones.
    pool
        Number of its pool in this process; 0 if it has none here.
    observe
        What that pool does now.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        tasks: Sequence[str],
        *,
        slots: Callable[[], tuple[Slot, ...]] = tuple,
        jobs: dict[str, RecordedJob] | None = None,
        cancel: Callable[[], None] = lambda: None,
        pool: int = 0,
        observe: Callable[[], PoolActivity] | None = None,
    ) -> None:
        self.name = name
        self.folder = folder
        self.tasks = tuple(tasks)
        self._slots = slots
        self.cancel = cancel
        self.pool = pool
        self.cell, self.execution = cell()
        self.cell_number = cell_number()
        self.handle: weakref.ref[Any] | None = None
        """The `Run` that a user has of it."""
        self.writer = ""
        """Process or job that has it under way, if that is another."""
        self.job: SubmittedJob | None = None
        """Job of a cluster that it was given to."""
        self.origin: Origin | None = None
        """What it was made of; None if it was read from its folder."""
        self.after: Mapping[str, Sequence[str]] = {}
        """Names of the tasks that each task waits for."""
        self._observe = observe
        self._left: list[weakref.ref[Ledger]] = []
        self._began = time.time()
        self._clocks = time.time(), time.monotonic()
        self.ended_at: float | None = None
        self._problem = ""  # of its tables
        self._writer: FolderWriter | None = None
        self._journal: Callable[[], Journal | None] = lambda: None
        self.earlier: Journal | None = None
        """Journal of the folder before this run, if its tables show the tasks of that as well."""
        self.of_journal: dict[str, dict[str, Any]] = {}
        """Arguments by task, of a run that was read from its folder."""
        self.recorder: Recorder | None = None
        self.history = History(folder, self.tasks)
        """What its tasks reported over time."""
        self._jobs = jobs or {}
        self._records: dict[str, Record] = {}
        self._order: list[Record] = []  # as they ended
        self._running: dict[str, RecordedJob] = {}
        self._begun: dict[str, float] = {}  # when each of these began, by the monotonic clock
        self._counts: dict[str, int] = dict.fromkeys(STATUSES, 0)
        self._busy, self._ran = 0.0, 0  # seconds and number of the tasks that ended here
        self._closed = False  # no further record will come
        # Held by who adds to it, which is never the main thread: an interrupt there could leave it locked. Who reads
        # takes copies, each of which is made in one step.
        self._lock = threading.Lock()
        self._exported, self._settled = threading.Event(), threading.Event()
        self._feeds: list[Feed] = []
        self._followers: list[Callable[[], None]] = []
        self._watchers: list[Callable[[], None]] = []

    # What views and waits ask.

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Slots of its pool that are there; none if it was read from its folder."""
        return self._slots()

    @property
    def began(self) -> float:
        """Its start, Unix time in seconds, by the clock as it is set now: a clock may be set while it goes on."""
        if self.ended_at is None:
            (at, since), now = self._clocks, (time.time(), time.monotonic())
            shift = (now[0] - at) - (now[1] - since)
            if abs(shift) > SET:
                self._began, self._clocks = self._began + shift, now
        return self._began

    @property
    def records(self) -> list[Record]:
        """Records of the tasks that have ended, in order of submission."""
        records = self._records.copy()
        return [records[name] for name in self.tasks if name in records]

    @property
    def states(self) -> dict[str, str]:
        """What has become of each task: its status, or whether it is running or waiting."""
        running = self._running.copy()
        ended = {name: record.status for name, record in self._records.copy().items()}
        return {name: ended.get(name, RUNS if name in running else WAITS) for name in self.tasks}

    @property
    def failures(self) -> list[Record]:
        """Records that failed, in the order in which they ended."""
        return [record for record in self._order.copy() if record.failed]

    @property
    def progress(self) -> Progress:
        """Numbers of tasks, ended and running."""
        running = len(self._running)
        counts = {status: count for status, count in self._counts.copy().items() if count}
        return Progress(len(self.tasks), sum(counts.values()), running, counts)

    @property
    def done(self) -> bool:
        """Whether no further record will come."""
        return self._closed or len(self._records) == len(self.tasks)

    @property
    def running(self) -> list[RecordedJob]:
        """Jobs of the tasks that run now."""
        return list(self._running.values())

    @property
    def share(self) -> float:
        """Share of it that is done, 0 to 1: the tasks that have ended, and of those that run what they report."""
        if not self.tasks:
            return 1.0
        running = self.running
        return (len(self._records) + sum(map(_share, running))) / len(self.tasks)

    @property
    def time_left(self) -> float | None:
        """Estimated seconds until its end; None if unknown.

        By what running tasks report, by the mean of those that ended for the others, and by the number of slots.
        """
        now = time.monotonic()
        begun = self._begun.copy()
        running = [(_share(job), now - begun.get(job.name, now)) for job in self.running]
        waiting = max(0, len(self.tasks) - len(self._records) - len(running))
        mean = self._busy / self._ran if self._ran else None
        return _seconds_left(running, waiting, mean, len(self.slots))

    @property
    def activity(self) -> PoolActivity | None:
        """What its pool does now; None if it has ended or has no pool here."""
        return None if self._observe is None or self.done else self._observe()

    @property
    def waits_for(self) -> list[tuple[str, str]]:
        """Some tasks that have not begun, each with the running task that it waits for; the first three."""
        if self.done or not self._jobs:
            return []
        batch = next(iter(self._jobs.values())).owner
        return list(itertools.islice(batch.held_back([job.name for job in self.running]), 3))

    @property
    def others(self) -> list[Ledger]:
        """Other runs under way that matter here: on the same pool, or left by an earlier execution of the cell."""
        if self.done:
            return []
        same = [run for run in registry.under_way if run is not self and self.pool and run.pool == self.pool]
        return same + [run for run in self.left_behind if run not in same]

    def written_by(self, pid: int, host: str, at: float) -> None:
        """Note that another process writes it since a Unix time."""
        self._began = at
        self.writer = f"process {pid} on {host}"

        def cancel() -> None:
            if self.done:
                return
            raise RuntimeError(
                f"run {self.name!r} is under way in {self.writer}: cancel it there, by run.cancel() or "
                "mgpu_nb.pools() of that notebook, or end that process"
            )

        self.cancel = cancel

    def written_in(self, job: SubmittedJob, at: float) -> None:
        """Note that it was given to a job at a Unix time."""
        self._began = at
        self.writer, self.job = job.name, job

        def cancel() -> None:
            if not self.done:
                job.cancel()

        self.cancel = cancel

    @property
    def can_be_cancelled(self) -> bool:
        """Whether `cancel` works here."""
        return not self.writer or self.job is not None

    @property
    def state_words(self) -> str:
        """Who has it under way if another process has, or how many tasks were never recorded; empty else."""
        missing = len(self.tasks) - len(self._records)
        if self._closed and missing:
            tasks = "1 task has" if missing == 1 else f"{missing} tasks have"
            return f"interrupted: {tasks} no record{f'; {self.job}' if self.job is not None else ''}"
        if self.job is not None and not self.done:
            return f"{self.job}; it outlives this process, run.cancel() ends it"
        if self.writer and not self.done:
            return f"under way in {self.writer} since {clock(self.began)}"
        return ""

    def leave(self, earlier: Sequence[Ledger]) -> None:
        """Note the runs that an earlier execution of this run's cell left under way."""
        self._left = [weakref.ref(run) for run in earlier]

    @property
    def left_behind(self) -> list[Ledger]:
        """Those of them that are still under way."""
        runs = (ref() for ref in self._left)
        return [run for run in runs if run is not None and not run.done]

    @property
    def left_words(self) -> list[str]:
        """Those of them in words."""
        return [
            f"an earlier execution of this cell left run {run.name!r} ({run.progress}) under way"
            for run in self.left_behind
        ]

    def has(self, task: str) -> bool:
        """Whether it has a task of that name."""
        return task in self._places

    def record(self, task: str) -> Record | None:
        """Record of a task; None while it has not ended."""
        return self._records.get(task)

    def ended_since(self, seen: int) -> list[Record]:
        """Records in the order in which tasks ended, without the first `seen`."""
        return self._order[seen:]

    @property
    def peak(self) -> int | None:
        """Largest memory of any of its tasks so far, bytes; None if unknown."""
        return None if self.recorder is None else max(list(self.recorder.peaks.values()), default=None)

    def peak_of(self, task: str) -> int | None:
        """Peak memory of a running task so far, bytes; None if unknown."""
        return None if self.recorder is None else self.recorder.peaks.get(task)

    def log_file(self, name: str) -> Path:
        """Path of a task's log, whether or not it exists."""
        record = self._records.get(name)
        if record is not None and record.log:  # of an earlier run, in which its number may have been another
            return self.folder / record.log
        index, logs = self.tasks.index(name), self.folder / "logs"
        file, former = (logs / f"{stem(index, name)}.log" for stem in (file_stem, former_stem))
        # Another process may be of an earlier version; where it has ended the task, its record names the log.
        others = record is None and not self._jobs
        return former if others and former.exists() and not file.exists() else file

    def log_begins(self, name: str) -> int | None:
        """Byte of a task's log at which the output of this run begins; None if there is none of it."""
        job = self._jobs.get(name)
        return job.log_begins if job is not None else None if self._jobs else 0

    def rows(self, earlier: Journal | None = None) -> Rows:
        """Rows of `Run.frame`; with an earlier journal of the folder, of the tasks as well that it alone has."""
        records, tasks = self.records, self.tasks
        if earlier is not None:
            tasks = tuple(dict.fromkeys((*earlier.tasks, *self.tasks)))
            records += [
                earlier.brief(name) for name in tasks if not self.has(name) and name in earlier.records
            ]
        # Copies, because the dispatcher's thread adds to them.
        pending = {name: job for name, job in self._jobs.items() if name not in self._records}
        metrics = {name: dict(job.metrics) for name, job in pending.items()}
        arguments = self.of_journal | {name: job.arguments for name, job in pending.items()}
        running, waits = set(self._running), "queued"
        missing = {name for name in self.tasks if name not in self._records}
        if missing and (self.writer or self._closed):
            # Of a run that was opened, only what tasks reported tells which have begun.
            metrics = last_values(self.history, missing)
            running, waits = (set(), "no record") if self._closed else (set(metrics), "not ended")
        return task_rows(tasks, records, running, metrics, arguments, waits)

    def arguments(self) -> dict[str, dict[str, Any]]:
        """Arguments of the tasks by the names of the parameters; of a run that was opened, of those it has."""
        found = self.of_journal | {name: job.arguments for name, job in self._jobs.items()}
        return found | {record.name: record.arguments for record in self.records}

    def arguments_of(self, task: str) -> dict[str, Any]:
        """Arguments of a task by the names of the parameters; none if they are not known."""
        if (record := self._records.get(task)) is not None and record.arguments:
            return record.arguments
        return self._jobs[task].arguments if task in self._jobs else self.of_journal.get(task, {})

    def listen(self, listeners: Sequence[Listener]) -> None:
        """Tell listeners all of it, in a thread of their own; of a run that is over, before this returns."""
        feed = Feed(self, listeners)
        feed.start()
        self._feeds.append(feed)
        if self._exported.is_set():
            self._join(feed)

    def _join(self, feed: Feed) -> None:
        if not feed.join(LISTENERS):
            log.warning(
                "run %r: a listener takes longer than %g s to end and is left alone", self.name, LISTENERS
            )

    def charts(self) -> tuple[list[Chart], list[str]]:
        """Metrics for the panel, and the names of others."""
        running = {job.name: job.attempt for job in self.running}
        return charts_of(self.history, self._places, running, ended=self.done)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.tasks)}

    def wait_for(
        self,
        what: Callable[[], bool],
        timeout: float | None = None,
        update: Callable[[], None] | None = None,
        period: float | None = None,
    ) -> None:
        """Wait until `what` is true; `update` is called at each change, and every `period` seconds.

        Raises
        ------
        TimeoutError
            If it is not after `timeout` seconds.
        """
        __tracebackhide__ = True
        end = None if timeout is None else time.monotonic() + timeout
        changed = _Wakeup()

        def look() -> None:
            if update is not None or what():  # else it would be awake for each record of thousands
                changed.set()

        self.watch(look)
        try:
            while not what():
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(
                        f"run {self.name!r} after {timeout:g} s: {self.progress}; it continues"
                    )
                changed.wait(min((t for t in (left, period) if t is not None), default=None))
                if update is not None:
                    update()
        finally:
            self.unwatch(look)

    def settle(self, timeout: float = 60.0) -> None:
        """Wait until records and tables of a run that has ended are written, and call who wants to know again.

        nbconvert records only the output of the running cell, not that of our thread.
        """
        if self._settled.wait(timeout):
            if self._writer is not None and self.problem:
                self._writer.try_again(AGAIN)
            self._call_followers()

    def written_with(self, writer: FolderWriter, journal: Callable[[], Journal | None]) -> None:
        """Have its folder written by a thread; `journal` is what its journal says."""
        self._writer, self._journal = writer, journal
        self.history.later = writer.call

    def release(self) -> None:
        """Give the folder of a run that has ended to another, whether or not all could be written."""
        self.settle()
        if self._writer is not None:
            self._writer.leave(60)

    @property
    def problem(self) -> str:
        """What of it could not be written to its folder, and why; the records in memory are complete."""
        writer = "" if self._writer is None else self._writer.problem
        metrics = self.history.problem
        return "; ".join(
            filter(None, (writer, self._problem, metrics and f"its metrics are incomplete ({metrics})"))
        )

    def flush_logs(self, timeout: float) -> bool:
        """Wait until what tasks have written is in their logs; False if that takes longer than some seconds."""
        return self._writer is None or self._writer.flush_logs(timeout)

    @property
    def settled(self) -> bool:
        """Whether records and tables of a run that has ended are written, and who wanted to know was called."""
        return self._settled.is_set()

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call `watcher` at each change, from the thread that makes it, until `unwatch`; it must not wait."""
        self._watchers.append(watcher)

    def unwatch(self, watcher: Callable[[], None]) -> None:
        """Call `watcher` no more."""
        self._watchers.remove(watcher)

    def _tell(self) -> None:
        for watcher in tuple(self._watchers):
            watcher()

    def when_done(self, follower: Callable[[], None]) -> None:
        """Register a callback for when all records and tables are written: called then, and again by `settle`."""
        self._followers.append(follower)
        if self._exported.is_set():
            self._call(follower)

    def _call_followers(self) -> None:
        for follower in self._followers:
            self._call(follower)

    def _call(self, follower: Callable[[], None]) -> None:
        try:
            follower()
        except Exception:  # else nobody would hear that the run is over
            log.exception("run %r: a callback for its end failed", self.name)

    # What a batch tells, from the dispatcher's thread, and a reader of journals.

    def started(self, job: RecordedJob) -> None:
        """Register an attempt that has begun."""
        with self._lock:
            self._begun[job.name] = time.monotonic()
            self._running[job.name] = job

    def again(self, tasks: Collection[str]) -> None:
        """Forget the metrics that an earlier run has left of tasks that run now."""
        self.history.forget(tasks)

    def reported(self, lines: bytes) -> None:
        """Add points that a task reported."""
        self.history.add(lines)

    def ended(self, record: Record) -> None:
        """Add a record."""
        with self._lock:
            before = self._records.get(record.name)
            if before is not None:  # followed: that one was of an earlier run
                self._counts[before.status] -= 1
            self._records[record.name] = record
            self._order.append(record)
            self._counts[record.status] += 1
            if record.name in self._begun:  # not one that was taken over
                self._busy += record.seconds or 0.0
                self._ran += 1
            if len(self._records) == len(self.tasks) and self.ended_at is None:
                self.ended_at = max(self.began, time.time())
            self._running.pop(record.name, None)
            self._begun.pop(record.name, None)
        self._tell()

    def finished(self) -> None:
        """Have the rest written, in the thread that writes its folder: the pool need not wait for that."""
        assert self._writer is not None  # noqa: S101 (a batch has one)
        self._writer.finish(self._export, self._settle)

    def close(self) -> None:
        """Note that no further record will come and that nothing is left to write."""
        self._closed = True
        registry.end(self)
        self._exported.set()
        self._call_followers()
        self._settled.set()
        self._tell()

    def _export(self) -> bool:
        """Write metrics and tables; whether that worked."""
        if self.recorder is not None:
            sampler.shared.leave(self.recorder)
        self.history.flush()
        try:
            export(self.folder, self.records, self.rows(self.earlier), self._journal())
        except Exception as error:
            problem = f"its tables could not be written ({type(error).__name__}: {error})"
            if not self._problem:
                log.warning("run %r: %s", self.name, problem, exc_info=not isinstance(error, OSError))
            self._problem = problem
            return not isinstance(error, OSError)  # else it would fail again
        self._problem = ""
        return not self.history.problem

    def _settle(self, written: bool) -> None:
        """Tell that it has ended; it is kept, with its records, until all of it is written."""
        if written:
            registry.end(self)
        if self._settled.is_set():
            return
        self._exported.set()
        self._call_followers()
        for feed in self._feeds:
            self._join(feed)
        self._settled.set()
        self._tell()


class _Wakeup:
    """Wakes a thread that waits. `threading.Event` has a lock that an interrupt could leave locked."""

    def __init__(self) -> None:
        self._asleep = threading.Lock()
        self._asleep.acquire()

    def set(self) -> None:
        """Wake it, or have it not go to sleep."""
        with contextlib.suppress(RuntimeError):  # it is awake
            self._asleep.release()

    def wait(self, seconds: float | None) -> None:
        """Wait until it is set, at most some seconds."""
        self._asleep.acquire(timeout=-1 if seconds is None else min(seconds, threading.TIMEOUT_MAX))


def _share(job: RecordedJob) -> float:
    """Share of a task that is done, 0 to 1, as it reports; 0 if it does not."""
    progress = job.metrics.get("progress")
    if not isinstance(progress, (int, float)) or math.isnan(progress):
        return 0.0
    return min(1.0, max(0.0, progress))


def _seconds_left(
    running: Sequence[tuple[float, float]], waiting: int, mean: float | None, slots: int
) -> float | None:
    """Estimated seconds until the end of tasks; None if unknown.

    Parameters
    ----------
    running
        Share done and seconds so far of each that runs.
    waiting
        Number of those that have not begun.
    mean
        Mean seconds of those that have ended; None without any.
    slots
        Number of slots.
    """
    projected = [seconds / share for share, seconds in running if share > 0]
    if mean is None and projected:
        mean = sum(projected) / len(projected)
    if mean is None or not slots:
        return None
    left = [s * (1 - share) / share if share > 0 else max(0.0, mean - s) for share, s in running]
    total = sum(left) + waiting * mean
    if total <= 0:  # nothing is left, or what runs takes longer than what ended
        return None
    return max(*left, total / min(len(left) + waiting, slots)) if left else total / min(waiting, slots)
