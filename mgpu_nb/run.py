"""`Run`: the handle on a batch of tasks."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .batch import Batch, TaskJob
from .device import Slot, total_memory
from .engines import payload
from .engines.payload import Payload
from .engines.protocol import Context
from .errors import TaskError
from .graph import Graph
from .identity import durations
from .store import NOT_STORED, RunFolder, export, read_journal
from .tasks import STATUSES, Record, Task, check_name, derive_seed, import_path
from .values import file_stem

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from .dispatcher import Dispatcher

__all__ = ["Progress", "Run"]

log = logging.getLogger("mgpu_nb")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: tasks in all, ended, running, and ended by status."""

    total: int
    done: int
    running: int
    counts: dict[str, int]

    def __str__(self) -> str:
        parts = [f"{self.done} of {self.total} done"]
        parts += [f"{count} {status}" for status, count in self.counts.items() if count and status != "ok"]
        return ", ".join([*parts, f"{self.running} running"] if self.running else parts)


class Run:
    """A batch of tasks under way, ended, or read back from its folder.

    Made by `GPUPool.run` and `Run.open`.

    Attributes
    ----------
    name
        Its name.
    folder
        Where its journal, tables, logs and values are.
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
        self._running: dict[str, TaskJob] = {}
        self._jobs: dict[str, TaskJob] = {}
        self._dispatcher: Dispatcher | None = None
        self._interrupts = 0
        self._exported = threading.Event()
        self.problem = ""
        """What went wrong with the folder, where something did; the records in memory are whole."""

    # Beginnings.

    @classmethod
    def start(
        cls,
        dispatcher: Dispatcher,
        tasks: list[Task],
        *,
        name: str,
        folder: Path | None,
        seed: int,
        retry_alone: bool,
        slots: tuple[Slot, ...],
        context: Context,
        batch: int,
    ) -> Run:
        """Check the tasks, open the folder and hand over to the dispatcher; see `GPUPool.run`."""
        check_name(name)
        names = _names(tasks)
        graph = Graph({n: task.after for n, task in zip(names, tasks, strict=True)})
        _check_folder(folder)
        jobs = []
        for index, (task_name, task) in enumerate(zip(names, tasks, strict=True)):
            _check_fits(task_name, task, slots)
            task_seed = task.seed if task.seed is not None else derive_seed(seed, index)
            jobs.append(TaskJob(task_name, index, task, task_seed, _pickled(task_name, task), context, batch))
        if folder is None:
            folder = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
            number = 2
            while folder.exists():
                folder = folder.with_name(f"{folder.name.partition('+')[0]}+{number}")
                number += 1
        folder = folder.expanduser().absolute()
        store = RunFolder(folder, name, seed, [(job.name, job.kind, job.fingerprint) for job in jobs])
        run = cls(name, folder, names)
        costs_stated = any(task.cost is not None for task in tasks)
        for job in jobs:
            job.retry_alone = retry_alone
            job.cost = job.task.cost if costs_stated else durations(job.fingerprint)
        run._dispatcher = dispatcher
        run._jobs = {job.name: job for job in jobs}
        batch_of_run = Batch(run, dispatcher, graph, store, run._jobs)
        try:
            batch_of_run.begin()
        except BaseException:
            store.close()
            raise
        return run

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """Return the run of a folder as far as its journal tells: ended, broken, or under way elsewhere.

        Raises
        ------
        FileNotFoundError
            Where there is no journal.
        ValueError
            Where the journal is not one of ours.
        """
        path = Path(folder).expanduser().absolute()
        journal = read_journal(path)
        run = cls(journal.header["name"], path, [task["name"] for task in journal.header["tasks"]])
        for name in run.tasks:
            if name in journal.records:
                run.ended(journal.record(path, name))
        run._exported.set()
        return run

    # What it is doing.

    @property
    def records(self) -> list[Record]:
        """Records of the tasks that have ended, in order of submission."""
        with self._changed:
            return [self._records[name] for name in self.tasks if name in self._records]

    @property
    def progress(self) -> Progress:
        """How far it is."""
        with self._changed:
            counts = dict.fromkeys(STATUSES, 0)
            for record in self._records.values():
                counts[record.status] += 1
            return Progress(
                len(self.tasks),
                len(self._records),
                len(self._running),
                {k: v for k, v in counts.items() if v},
            )

    @property
    def done(self) -> bool:
        """Whether every task has its record, or nobody in this process will write the rest."""
        return self._dispatcher is None or len(self._records) == len(self.tasks)

    def wait(self, timeout: float | None = None, *, progress: bool = False) -> Run:
        """Wait until every task has ended; return the run.

        Parameters
        ----------
        timeout
            Seconds; None for as long as it takes.
        progress
            Whether to print a progress bar.

        Raises
        ------
        TimeoutError
            Where tasks are left after `timeout`; they go on.
        KeyboardInterrupt
            On an interrupt: the waiting ends, the tasks go on. A second interrupt cancels the run.
        """
        with self._interruptible(), _bar(self, progress) as update:
            self._wait_for(lambda: self.done, timeout, update)
            if self._dispatcher is not None:
                self._exported.wait(60)
        if self.problem:
            warnings.warn(f"run {self.name!r}: {self.problem}", stacklevel=2)
        return self

    def as_completed(self, timeout: float | None = None) -> Iterator[Record]:
        """Records as the tasks end, those that have ended first.

        Raises
        ------
        TimeoutError
            Where tasks are left `timeout` seconds after this call.
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
        """Cancel what has not begun, and end what runs. Returns at once; `wait` for the records."""
        if self._dispatcher is not None:
            self._dispatcher.cancel(lambda job: self._jobs.get(job.name) is job)

    # What came of it.

    def results(self, timeout: float | None = None) -> list[Any]:
        """Wait; return the values in order of submission.

        Raises
        ------
        Exception
            The first error in that order: the task's own exception with the remote traceback as cause, or a
            `TaskError` that says how it ended.
        """
        self.wait(timeout)
        by_name = {record.name: record for record in self.records}
        values = []
        for name in self.tasks:
            record = by_name.get(name)
            if record is None:
                raise TaskError(
                    f"task {name!r} has no record: the run was broken off. Run its tasks into {self.folder} again"
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
        return values

    def frame(self) -> pd.DataFrame:
        """Return a table, a row per task in order of submission, ended or not.

        Columns: name, status, device, gpu_id, pid, attempt, queued, started, finished (UTC), seconds, peak_memory
        (bytes), error, notes, then what the tasks reported.
        """
        import pandas as pd

        records = {record.name: record for record in self.records}
        rows = []
        for name in self.tasks:
            record = records.get(name) or self._unfinished(name)
            row = {key: getattr(record, key) for key in _COLUMNS}
            row["notes"] = "; ".join(record.notes)
            row.update({key: value for key, value in record.metrics.items() if key not in row})
            rows.append(row)
        frame = pd.DataFrame(rows)
        for column in ("queued", "started", "finished"):
            frame[column] = pd.to_datetime(frame[column].astype("float64"), unit="s", utc=True)
        for column in ("gpu_id", "pid", "attempt", "peak_memory"):
            frame[column] = frame[column].astype("Int64")
        return frame

    def _unfinished(self, name: str) -> _Unfinished:
        running = self._running.get(name)
        job = running or self._jobs.get(name)
        return _Unfinished(name, "running" if running else "queued", dict(job.metrics) if job else {})

    def logs(self, task: str | int) -> str:
        """Return what the task's process wrote while the task ran, all attempts.

        Raises
        ------
        KeyError
            Where there is no such task.
        """
        name = self.tasks[task] if isinstance(task, int) else task
        if name not in self.tasks:
            raise KeyError(
                f"no task {task!r} in run {self.name!r}; its tasks are {', '.join(self.tasks[:10])}"
            )
        file = self.folder / "logs" / f"{file_stem(self.tasks.index(name), name)}.log"
        return file.read_text(encoding="utf-8", errors="backslashreplace") if file.exists() else ""

    def plot_timeline(self, ax: Axes | None = None) -> Axes:
        """Draw what every slot did when; see `views.timeline.timeline`."""
        from .views.timeline import timeline

        return timeline(self.records, ax)

    def __repr__(self) -> str:
        return f"Run({self.name!r}: {self.progress}; {str(self.folder)!r})"

    # Changes, from the dispatcher's thread.

    def started(self, job: TaskJob) -> None:
        """Note that an attempt at a task began."""
        with self._changed:
            self._running[job.name] = job

    def finished(self, problem: str) -> None:
        """Have the tables written once every task has its record; the pool need not wait for that."""
        threading.Thread(target=self._export, args=(problem,), name="mgpu_nb-export").start()

    def _export(self, problem: str) -> None:
        try:
            export(self.folder, self.records, self.frame())
        except Exception as error:
            problem = problem or f"its tables could not be written ({type(error).__name__}: {error})"
            log.exception("run %r: %s", self.name, problem)
        self.problem = problem
        self._exported.set()

    def ended(self, record: Record) -> None:
        """Take a record."""
        with self._changed:
            self._records[record.name] = record
            self._order.append(record)
            self._running.pop(record.name, None)
            self._changed.notify_all()

    # Waiting.

    def _wait_for(
        self, what: Callable[[], bool], timeout: float | None, update: Callable[[], None] | None
    ) -> None:
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not what():
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(f"run {self.name!r} after {timeout:g} s: {self.progress}; it goes on")
                self._changed.wait(left)
                if update is not None:
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
                f"stopped waiting; run {self.name!r} goes on ({self.progress}). run.wait() waits again, "
                "run.cancel() or another interrupt of a wait ends it"
            ) from None


_COLUMNS = (
    "name",
    "status",
    "device",
    "gpu_id",
    "pid",
    "attempt",
    "queued",
    "started",
    "finished",
    "seconds",
    "peak_memory",
    "error",
)


class _Unfinished:
    """Stands in the table for a task without a record."""

    notes: tuple[str, ...] = ()

    def __init__(self, name: str, status: str, metrics: dict[str, Any]) -> None:
        self.name, self.status, self.metrics = name, status, metrics

    def __getattr__(self, name: str) -> None:
        return None


def _names(tasks: Sequence[Task]) -> list[str]:
    """Names of the tasks: their own, or made of function and place."""
    if not tasks:
        raise ValueError("no tasks: give at least one Task")
    names = []
    for index, task in enumerate(tasks):
        if not isinstance(task, Task):
            raise TypeError(f"tasks[{index}] is a {type(task).__name__}; wrap the call: Task(fn, *args)")
        stem = task.kind.rpartition(":")[2].rpartition(".")[2].strip("<>")
        names.append(task.name if task.name is not None else f"{stem}-{index}")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"two tasks are named {name!r}: names must be unique within a run")
        seen.add(name)
    return names


def _check_folder(folder: Path | None) -> None:
    if folder is not None and folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"folder={str(folder)!r} is a file; give a folder for the run")


def _check_fits(name: str, task: Task, slots: tuple[Slot, ...]) -> None:
    if isinstance(task.fn, str):
        import_path(task.fn)
    if task.devices > len(slots):
        raise ValueError(
            f"task {name!r} takes {task.devices} slots, the pool has {len(slots)}: give it more slots"
        )
    if task.memory is not None:
        sizes = {slot.label: total_memory(slot) for slot in slots}
        if all(size is not None and size < task.memory for size in sizes.values()):
            have = ", ".join(f"{label} {size:,}" for label, size in sizes.items())
            raise ValueError(f"task {name!r} needs {task.memory:,} bytes, no device has as much ({have})")


def _pickled(name: str, task: Task) -> Payload:
    try:
        return payload.dumps_call(task.fn, task.args, task.kwargs)
    except Exception as error:
        error.add_note(f"task {name!r} cannot be sent to a worker; no task was started")
        raise


@contextlib.contextmanager
def _bar(run: Run, wanted: bool) -> Iterator[Callable[[], None] | None]:
    if not wanted:
        yield None
        return
    import sys

    from tqdm import tqdm

    with tqdm(total=len(run.tasks), desc=run.name, file=sys.stdout, dynamic_ncols=True) as bar:

        def update() -> None:
            progress = run.progress
            bar.set_postfix_str(
                ", ".join(f"{n} {status}" for status, n in progress.counts.items()), refresh=False
            )
            bar.update(progress.done - bar.n)

        update()
        yield update
        update()
