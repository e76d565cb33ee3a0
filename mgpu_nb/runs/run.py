"""`Run`: the handle of a batch of tasks."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import TaskError
from ..hardware.slots import Slot
from ..store.files import file_stem
from ..store.journal import NOT_STORED, RunFolder, export, read_journal
from ..tasks import STATUSES, Progress, Record
from ..telemetry import sampler
from ..telemetry.recorder import Recorder, load
from .batch import Batch, RecordedJob
from .frame import task_frame, task_rows

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from ..scheduler.dispatcher import Dispatcher
    from ..tables import Table

__all__ = ["Run"]

log = logging.getLogger("mgpu_nb")

FAILURES = 5  # that a panel shows
_OF_OTHERS = ("cancelled", "skipped")  # statuses that another task's failure may have caused


class Run:
    """A batch of tasks: running, ended, or read from its folder.

    Made by `GPUPool.run` and `Run.open`.

    Attributes
    ----------
    name
        Its name.
    folder
        Folder of its journal, tables, logs and values.
    tasks
        Names of its tasks, in order of submission.
    """

    def __init__(self, name: str, folder: Path, tasks: Sequence[str]) -> None:
        self.name = name
        self.folder = folder
        self.tasks = tuple(tasks)
        self._records: dict[str, Record] = {}
        self._order: list[Record] = []  # as they ended
        self._changed = threading.Condition()
        self._running: dict[str, RecordedJob] = {}
        self._counts: dict[str, int] = dict.fromkeys(STATUSES, 0)
        self._failures: deque[Record] = deque(maxlen=FAILURES)
        self._busy, self._ran = 0.0, 0  # seconds and number of the tasks that ended here
        self._recorder: Recorder | None = None
        self._jobs: dict[str, RecordedJob] = {}
        self._dispatcher: Dispatcher | None = None
        self._interrupts = 0
        self._exported, self._settled = threading.Event(), threading.Event()
        self._followers: list[Callable[[], None]] = []
        self.began = time.time()
        self.ended_at: float | None = None
        self.slots: tuple[Slot, ...] = ()
        """Slots of its pool; none if it was read from its folder."""
        self.problem = ""
        """Error while writing the folder, or empty; the records in memory are complete."""

    # Creation.

    @classmethod
    def start(
        cls, dispatcher: Dispatcher, jobs: list[RecordedJob], *, name: str, folder: Path, seed: int
    ) -> Run:
        """Open the folder and submit the jobs of `plan` to the dispatcher; see `GPUPool.run`."""
        store = RunFolder(folder, name, seed, [(job.name, job.kind, job.fingerprint) for job in jobs])
        run = cls(name, folder, [job.name for job in jobs])
        run._dispatcher = dispatcher
        run._jobs = {job.name: job for job in jobs}
        run.slots = tuple(slot.slot for slot in dispatcher.slots)
        run._recorder = Recorder(folder)
        sampler.shared.listen(run._recorder)
        try:
            Batch(run, dispatcher, store, run._jobs).begin()
        except BaseException:
            sampler.shared.leave(run._recorder)
            store.close()
            raise
        return run

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """The run of a folder, as its journal records it: ended, interrupted, or running in another process.

        Raises
        ------
        FileNotFoundError
            If there is no journal.
        ValueError
            If the journal is not one of ours.
        """
        path = Path(folder).expanduser().absolute()
        journal = read_journal(path)
        run = cls(journal.header["name"], path, [task["name"] for task in journal.header["tasks"]])
        for name in run.tasks:
            if name in journal.records:
                run.ended(journal.record(path, name))
        run._exported.set()
        run._settled.set()
        return run

    # State.

    @property
    def records(self) -> list[Record]:
        """Records of the tasks that have ended, in order of submission."""
        with self._changed:
            return [self._records[name] for name in self.tasks if name in self._records]

    @property
    def progress(self) -> Progress:
        """Numbers of tasks, ended and running."""
        with self._changed:
            counts = {status: count for status, count in self._counts.items() if count}
            return Progress(len(self.tasks), len(self._records), len(self._running), counts)

    @property
    def done(self) -> bool:
        """Whether every task has its record, or the rest will not be written by this process."""
        return self._dispatcher is None or len(self._records) == len(self.tasks)

    @property
    def running(self) -> list[RecordedJob]:
        """Jobs of the tasks that run now."""
        with self._changed:
            return list(self._running.values())

    def peak_of(self, task: str) -> int | None:
        """Peak memory of a running task so far, bytes; None if unknown."""
        return None if self._recorder is None else self._recorder.peaks.get(task)

    @property
    def failures(self) -> list[Record]:
        """Latest records that are not ok, the newest last; `records` has all."""
        with self._changed:
            return list(self._failures)

    @property
    def time_left(self) -> float | None:
        """Estimated seconds until its end, by the mean of its tasks so far and the number of slots; None if unknown."""
        with self._changed:
            left, ran = len(self.tasks) - len(self._records), self._ran
        if not left or not ran or not self.slots:
            return None
        return left * self._busy / ran / min(left, len(self.slots))

    def wait(self, timeout: float | None = None, *, progress: bool | None = None) -> Run:
        """Wait until every task has ended; returns the run.

        Parameters
        ----------
        timeout
            Seconds; None for no limit.
        progress
            Whether to print a progress bar; by default if the output is a terminal.

        Raises
        ------
        TimeoutError
            If tasks are left after `timeout`; they continue.
        KeyboardInterrupt
            On an interrupt: the wait ends, the tasks continue. A second interrupt cancels the run.
        """
        from ..views.progress import bar

        with self._interruptible(), bar(self, progress) as update:
            self._wait_for(lambda: self.done, timeout, update)
            if self._dispatcher is not None:
                self._settled.wait(60)
                for follower in self._followers:
                    follower()
        if self.problem:
            warnings.warn(f"run {self.name!r}: {self.problem}", stacklevel=2)
        return self

    def as_completed(self, timeout: float | None = None) -> Iterator[Record]:
        """Records in the order in which tasks end.

        Raises
        ------
        TimeoutError
            If tasks are left `timeout` seconds after this call.
        """
        end = None if timeout is None else time.monotonic() + timeout
        seen = 0
        while True:
            with self._interruptible():
                left = None if end is None else max(0.0, end - time.monotonic())
                self._wait_for(partial(self._more_than, seen), left, None)
                with self._changed:
                    new = self._order[seen:]
            if not new:
                return
            seen += len(new)
            yield from new

    def _more_than(self, seen: int) -> bool:
        return self.done or len(self._order) > seen

    def cancel(self) -> None:
        """Cancel pending tasks and end running ones. Returns at once; `wait` for the records."""
        if self._dispatcher is not None:
            next(iter(self._jobs.values())).owner.cancel()
            self._dispatcher.cancel(lambda job: self._jobs.get(job.name) is job)

    # Results.

    def results(self, timeout: float | None = None) -> list[Any]:
        """Values in order of submission, once all tasks have ended.

        Raises
        ------
        Exception
            The first error in that order: the task's own exception with the remote traceback as cause, or a
            `TaskError` with its exit reason.
        """
        self.wait(timeout)
        by_name = {record.name: record for record in self.records}
        values = []
        # The cause comes before the tasks that were cancelled or skipped because of it.
        causes = [n for n in self.tasks if n in by_name and by_name[n].status not in _OF_OTHERS]
        for name in [*causes, *self.tasks]:
            record = by_name.get(name)
            if record is None:
                raise TaskError(
                    f"task {name!r} has no record: the run was interrupted. Run its tasks into {self.folder} again"
                )
            if record.status != "ok":
                raise record.exception or TaskError(
                    f"task {name!r} ended {record.status}: {record.error}\n{record.traceback}"
                )
            if any(note.startswith(NOT_STORED) for note in record.notes):
                raise TaskError(
                    f"task {name!r} was ok, but {'; '.join(record.notes)}. Run its tasks into {self.folder} again"
                )
            values.append(record.value)
        return values[len(causes) :]

    def frame(self) -> pd.DataFrame:
        """A row per task in order of submission, ended or not.

        Columns: name, status, device, gpu_id, pid, attempt, queued, started, finished (UTC), seconds, peak_memory
        (bytes), error, notes, then the metrics that tasks reported.
        """
        return task_frame(self._rows())

    def _rows(self) -> list[dict[str, Any]]:
        records = self.records
        # Copies, because the dispatcher's thread adds to them.
        metrics = {name: dict(job.metrics) for name, job in self._jobs.items() if name not in self._records}
        return task_rows(self.tasks, records, self._running, metrics)

    def logs(self, task: str | int) -> str:
        """Output of the task's process while the task ran, all attempts.

        Raises
        ------
        KeyError
            If there is no such task.
        """
        name = self.tasks[task] if isinstance(task, int) else task
        if name not in self.tasks:
            raise KeyError(
                f"no task {task!r} in run {self.name!r}; its tasks are {', '.join(self.tasks[:10])}"
            )
        file = self.log_file(name)
        return file.read_text(encoding="utf-8", errors="backslashreplace") if file.exists() else ""

    def log_file(self, name: str) -> Path:
        """Path of a task's log, whether or not it exists."""
        record = self._records.get(name)
        if record is not None and record.log:  # of an earlier run, in which its number may have been another
            return self.folder / record.log
        return self.folder / "logs" / f"{file_stem(self.tasks.index(name), name)}.log"

    def plot_timeline(self, ax: Axes | None = None) -> Axes:
        """Draw the tasks of every slot over time; see `views.timeline.timeline`."""
        from ..views.timeline import timeline

        return timeline(self.records, ax)

    def plot_memory(self, ax: Axes | None = None) -> Axes:
        """Draw the memory of every device over time, with labelled peaks; see `views.memory.memory`."""
        from ..views.memory import memory

        return memory(self.samples(), ax)

    def samples(self) -> pd.DataFrame:
        """Samples of devices and tasks, a row per device and per busy slot at each time.

        Columns: at (UTC), kind (``device`` or ``task``), device, uuid, slot, task, pid, used, total, ours (bytes),
        utilisation (%), temperature (degrees Celsius), power (W).

        Raises
        ------
        FileNotFoundError
            If the folder has none.
        """
        return load(self.folder)

    def table(self) -> Table:
        """`frame` for display: times and sizes in one unit, failures marked in words."""
        from ..views.table import run_table

        return run_table(self.frame())

    def _ipython_display_(self) -> None:
        from ..views.run_panel import show

        show(self)

    def __repr__(self) -> str:
        return f"Run({self.name!r}: {self.progress}; {str(self.folder)!r})"

    # Callbacks, from the dispatcher's thread.

    def started(self, job: RecordedJob) -> None:
        """Register an attempt that has begun."""
        with self._changed:
            self._running[job.name] = job

    def finished(self, problem: str) -> None:
        """Write the tables, in a thread of its own: the pool need not wait for that."""
        threading.Thread(target=self._export, args=(problem,), name="mgpu_nb-export").start()

    def _export(self, problem: str) -> None:
        if self._recorder is not None:
            sampler.shared.leave(self._recorder)
        try:
            export(self.folder, self.records, self._rows())
        except Exception as error:
            problem = problem or f"its tables could not be written ({type(error).__name__}: {error})"
            log.exception("run %r: %s", self.name, problem)
        self.problem = problem
        with self._changed:
            self._exported.set()
        for follower in self._followers:
            follower()
        self._settled.set()

    def when_done(self, follower: Callable[[], None]) -> None:
        """Register a callback for when all records and tables are written: called then, and again by `wait`.

        nbconvert records only the output of the running cell, not that of our thread.
        """
        with self._changed:
            if not self._exported.is_set():
                self._followers.append(follower)
                return
        follower()

    def ended(self, record: Record) -> None:
        """Add a record."""
        with self._changed:
            self._records[record.name] = record
            self._order.append(record)
            self._counts[record.status] += 1
            if not record.ok:
                self._failures.append(record)
            if record.started is not None and record.started >= self.began:
                self._busy += record.seconds or 0.0
                self._ran += 1
            if len(self._records) == len(self.tasks):
                self.ended_at = time.time()
            self._running.pop(record.name, None)
            self._changed.notify_all()

    # Waiting.

    def _wait_for(
        self, what: Callable[[], bool], timeout: float | None, update: Callable[[], None] | None
    ) -> None:
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            with self._changed:
                if what():
                    return
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(
                        f"run {self.name!r} after {timeout:g} s: {self.progress}; it continues"
                    )
                self._changed.wait(left)
            if update is not None:  # without the lock: a stopped terminal must not stop the run
                update()

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            self._interrupts += 1
            if self._interrupts > 1:
                self.cancel()
                raise KeyboardInterrupt(
                    f"interrupted again: run {self.name!r} is being cancelled ({self.progress})"
                ) from None
            raise KeyboardInterrupt(
                f"stopped waiting; run {self.name!r} continues ({self.progress}). run.wait() waits again, "
                "run.cancel() or another interrupt cancels it"
            ) from None
