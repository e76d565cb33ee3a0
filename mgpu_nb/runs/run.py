"""`Run`: the handle of a batch of tasks."""

from __future__ import annotations

import contextlib
import time
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload

from ..errors import Interrupted, add_note
from ..hardware.slots import Slot
from ..interrupts import uninterrupted
from ..listeners import Listener
from ..options import check_arguments, check_choice
from ..store.journal import read_journal
from ..tasks import Progress, Record
from ..telemetry.recorder import load
from ..views.waiting import PERIOD, Waiting, waiting
from .feed import check_listeners
from .follow import follow
from .frame import best_row, sort_frame, task_frame
from .ledger import Ledger, registry
from .metrics import curves_of, metrics_frame
from .retry import Origin, to_retry
from .stream import LogStream
from .submitted import submitted_job
from .values import values_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from ..tables import Table

__all__ = ["Run"]

LOGS = 10.0  # seconds that a slow disk has to take what was printed
ENDS = 10.0  # seconds that an interrupt waits for the end of a run that nobody has


class RetryPool(Protocol):
    """What a retry asks of a pool."""

    def _run(
        self,
        origin: Origin,
        name: str,
        folder: Path,
        kept: Mapping[str, Record] | None = None,
        after: Mapping[str, tuple[str, ...]] | None = None,
    ) -> Run:
        """Start the tasks that are not kept."""


class Run:
    """A batch of tasks: running, ended, or read from its folder.

    Made by `GPUPool.run` and `Run.open`. ``await run`` gives its `results`, and ``async for record in run`` its records
    as tasks end, while the event loop goes on: cancelling what awaits it leaves the run.

    Attributes
    ----------
    name
        Its name.
    folder
        Folder of its journal, tables, logs and values.
    tasks
        Names of its tasks, in order of submission.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.name = ledger.name
        self.folder = ledger.folder
        self.tasks = ledger.tasks
        self._ledger = ledger
        ledger.handle = weakref.ref(self)
        self._interrupts = 0
        self._stream = LogStream(ledger)

    # Creation.

    @classmethod
    def _of(cls, ledger: Ledger) -> Run:
        """The handle that a user has of a run, or another."""
        handle = ledger.handle() if ledger.handle is not None else None
        return cls(ledger) if handle is None else handle

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """The run of a folder, as its journal records it: ended, interrupted, or under way.

        One that another process has under way is followed: `done`, `wait`, `results` and the panel see its records as
        they are written, and the process is named; which of its tasks run is not known here. If that process ends
        early, the run is interrupted: the rest of its tasks have no record. One of this process is the run itself.

        One that was given to a job of a cluster (``Slurm(detach=True)``) is followed from its submission on: the panel
        says what the job waits for or where it runs, `cancel` cancels it, and if the job ends early, the run is
        interrupted, and how the job has ended is said.

        Raises
        ------
        FileNotFoundError
            If there is no journal.
        ValueError
            If the journal is not one of ours.
        """
        path = Path(folder).expanduser().absolute()
        if own := registry.of_folder(path):
            return cls._of(own[0])
        if (live := uninterrupted(lambda: follow(path))) is not None:
            return cls(live)
        journal = read_journal(path)
        ledger = Ledger(journal.header["name"], path, [task["name"] for task in journal.header["tasks"]])
        ledger.of_journal, ledger.after = journal.arguments, journal.after
        for name in ledger.tasks:
            if name in journal.records:
                ledger.ended(journal.record(path, name))
        ledger.job = submitted_job(path)
        ledger.close()
        return cls(ledger)

    # State.

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Slots of its pool that are there; none if it was read from its folder."""
        return self._ledger.slots

    @property
    def records(self) -> list[Record]:
        """Records of the tasks that have ended, in order of submission."""
        return self._ledger.records

    @property
    def progress(self) -> Progress:
        """Numbers of tasks, ended and running."""
        return self._ledger.progress

    @property
    def done(self) -> bool:
        """Whether every task has its record, or the rest will not be written by this process."""
        return self._ledger.done

    @property
    def problem(self) -> str:
        """What could not be written to its folder, and why; empty if all is there.

        The records in memory are complete, and kept until they are written: while the run goes on, at each `wait`, and
        from time to time after it.
        """
        return self._ledger.problem

    @property
    def running(self) -> list[str]:
        """Names of the tasks that run now."""
        return [job.name for job in self._ledger.running]

    @property
    def failures(self) -> list[Record]:
        """Records of the tasks that failed, in the order in which they ended.

        What was cancelled, or skipped because a task that it waits for failed, is not among them.
        """
        return self._ledger.failures

    @property
    def time_left(self) -> float | None:
        """Estimated seconds until its end; None if unknown.

        By the progress that running tasks report, the mean of those that ended, and the number of slots.
        """
        return self._ledger.time_left

    def wait(
        self, timeout: float | None = None, *, progress: bool | None = None, stream: bool = False
    ) -> Run:
        """Wait until every task has ended; returns the run.

        Parameters
        ----------
        timeout
            Seconds; None for no limit.
        progress
            Whether to show it meanwhile: in a notebook its panel, on a terminal a bar on stderr. By default in the main
            thread, in a notebook once the wait takes longer than half a second, elsewhere if stderr is a terminal.
        stream
            Whether to print what tasks print, line by line as it comes, each line after the name of its task. A cell
            that is flooded leaves lines out, and says so; `logs` has them all.

        Raises
        ------
        TimeoutError
            If tasks are left after `timeout`; they continue.
        KeyboardInterrupt
            On an interrupt: the wait ends, the tasks continue. A second interrupt cancels the run.
        """
        __tracebackhide__ = True
        with self._interruptible(), waiting(self._ledger, progress) as shown:
            self._wait_for(lambda: self.done, timeout, shown, self._stream if stream else None)
            self._ledger.settle()
            if stream:  # what a slow disk took only now
                self._stream.pump(shown.write)
        self._warn()
        return self

    def _show_until_done(self, alive: Callable[[], bool]) -> None:
        """Show a run under way until it has ended, or its pool has: the pool waits for it."""

        def over() -> bool:
            return self.done or not alive()

        if not over():
            with waiting(self._ledger, None) as shown:
                self._ledger.wait_for(over, None, shown.update, shown.period or 1.0)

    def _wait_for(
        self, what: Callable[[], bool], timeout: float | None, shown: Waiting, stream: LogStream | None
    ) -> None:
        """Wait until `what` is true; what is shown is updated, what tasks print is printed meanwhile."""
        __tracebackhide__ = True
        if stream is None:
            self._ledger.wait_for(what, timeout, shown.update, shown.period)
            return
        due = 0.0

        def update() -> None:
            nonlocal due
            shown.update()
            if time.monotonic() >= due:  # not at each of a thousand records
                stream.pump(shown.write)
                due = time.monotonic() + PERIOD / 2

        update()
        self._ledger.wait_for(what, timeout, update, PERIOD)
        stream.pump(shown.write)

    def _warn(self) -> None:
        if self._ledger.problem:
            warnings.warn(f"run {self.name!r}: {self._ledger.problem}", stacklevel=3)

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
                self._ledger.wait_for(partial(self._more_than, seen), left)
                new = self._ledger.ended_since(seen)
            if not new:
                return
            seen += len(new)
            yield from new

    def _more_than(self, seen: int) -> bool:
        return self.done or bool(self._ledger.ended_since(seen))

    async def __aiter__(self) -> AsyncIterator[Record]:
        """Records in the order in which tasks end, those that have ended first."""
        from .changes import Changes

        seen = 0
        with Changes(self._ledger) as changes:
            while True:
                over = self.done
                for record in self._ledger.ended_since(seen):
                    seen += 1
                    yield record
                if over:
                    return
                await changes.wait()

    def __await__(self) -> Generator[Any, None, list[Any]]:
        """Values in order of submission; see `results`."""
        return self._awaited().__await__()

    async def _awaited(self) -> list[Any]:
        from .changes import Cancelled, Changes

        with Changes(self._ledger) as changes, waiting(self._ledger, None) as shown:
            while not self._ledger.settled:
                try:
                    await changes.wait(shown.period)
                except Cancelled:  # an interrupt of a cell is one, too
                    raise Cancelled(self._continues("run.cancel() cancels it")) from None
                shown.update()
            self._ledger.settle()
        self._warn()
        return values_of(self._ledger)

    def cancel(self) -> None:
        """Cancel pending tasks and end running ones. Returns at once; `wait` for the records.

        Of a run in a job of a cluster the job is told; one that has not begun leaves the queue without records.

        Raises
        ------
        RuntimeError
            If another process has the run under way; the message names it.
        OSError
            If the cluster does not answer.
        """
        self._ledger.cancel()

    def _abandon(self) -> None:
        """Cancel it and wait for its end: an interrupt came before anybody had it."""
        self.cancel()
        with contextlib.suppress(TimeoutError):
            self._ledger.wait_for(lambda: self.done, ENDS)
            self._ledger.settle(ENDS)

    def retry(self, pool: RetryPool | None = None, *, cancelled: bool = False) -> Run:
        """Run again what failed, and what was skipped because of that; return the run of all tasks at once.

        It has the same name, folder and seeds, and keeps the records of the other tasks. If nothing failed it is this
        run.

        Parameters
        ----------
        pool
            Where to run; by default the pool of this run.
        cancelled
            Whether what was cancelled is run as well.

        Raises
        ------
        ValueError
            If the run was read from its folder, which has no functions; if it is a gang; or if its pool is gone. The
            message says what to do.
        RuntimeError
            If tasks are left to end.
        """
        origin, records = self._ledger.origin, {record.name: record for record in self.records}
        if origin is None:
            raise ValueError(
                f"run {self.name!r} was read from its folder, which does not hold functions: give its tasks again, "
                f"pool.run(tasks, name={self.name!r}, folder={str(self.folder)!r}) runs those without a good record"
            )
        if origin.gang:
            raise ValueError("the tasks of a gang start together: start all of it again")
        if not self.done:
            raise RuntimeError(
                f"run {self.name!r} is under way ({self.progress}): run.wait() first, then run.retry()"
            )
        self._ledger.settle()
        after = {name: tuple(self._ledger.after[name]) for name in self.tasks}
        chosen = to_retry(after, records, cancelled)
        if not chosen:
            if left := [record for record in records.values() if not record.ok]:
                warnings.warn(
                    f"run {self.name!r}: nothing failed, and {len(left)} tasks were cancelled or skipped: "
                    "run.retry(cancelled=True) runs them",
                    stacklevel=2,
                )
            return self
        pool = origin.pool() if pool is None else pool
        if pool is None:
            raise ValueError(f"the pool of run {self.name!r} is gone: give another, run.retry(pool)")
        kept = {name: record for name, record in records.items() if name not in chosen}
        try:
            return pool._run(origin, self.name, self.folder, kept, after)
        except RuntimeError as error:  # it was shut down, or is another process's
            add_note(error, "run.retry(pool) takes another pool")
            raise

    def add_done_callback(self, fn: Callable[[Run], object]) -> None:
        """Call ``fn(run)`` once all records and tables are written, from another thread; at once if they are."""
        left = [fn]  # `settle` calls again

        def call() -> None:
            for once in (left.pop(),) if left else ():
                once(self)

        self._ledger.when_done(call)

    def listen(self, *listeners: Listener) -> Run:
        """Tell listeners of the run, from its beginning and as it goes on; returns the run.

        They are called from a thread of their own, within a second; `wait` returns when they have heard of the end.
        Of a run that has ended, or was opened, they hear all of it before this returns. Tasks whose records were taken
        over from an earlier run are told like the others.

        Parameters
        ----------
        *listeners
            `mgpu_nb.listeners.TensorBoard`, `mgpu_nb.listeners.WandB`, or your own `mgpu_nb.listeners.Listener`.

        Raises
        ------
        TypeError
            If one is not a listener.

        Examples
        --------
        >>> from mgpu_nb.listeners import TensorBoard
        >>> run = pool.run(tasks).listen(TensorBoard("runs/tensorboard"))  # doctest: +SKIP
        """
        check_listeners(listeners)
        self._ledger.listen(listeners)
        return self

    # Results.

    def results(
        self, timeout: float | None = None, *, progress: bool | None = None, stream: bool = False
    ) -> list[Any]:
        """Values in order of submission, once all tasks have ended.

        Parameters
        ----------
        timeout, progress, stream
            As `wait` takes them.

        Raises
        ------
        Exception
            The first error in that order: the task's own exception with the remote traceback as cause, or a
            `TaskError` with its exit reason.
        """
        __tracebackhide__ = True
        self.wait(timeout, progress=progress, stream=stream)
        return values_of(self._ledger)

    def frame(self, sort: str | None = None, *, ascending: bool = True) -> pd.DataFrame:
        """A row per task in order of submission, ended or not.

        Columns, in this order:

        - name, status: that of the record, ``running`` or ``queued``; without a record, of a run that another process
          has under way, ``running`` if the task has reported something, else ``not ended``, and of one that was
          interrupted ``no record``;
        - the arguments, by the names of the function's parameters: numbers and short texts, a short text for others;
        - the value: a dict with string keys, a dataclass or a named tuple with a scalar in it has a column per entry,
          any other value is the column ``value``, objects as they are;
        - the metrics that the task reported, the last value of each;
        - device, host (only of tasks on several machines), seconds, started, peak_memory (bytes), error, attempt,
          gpu_id (only with GPUs), pid, queued, finished, notes. Times are those of this machine's clock.

        Where two of these have one name, the later has a prefix: ``argument.name``, ``value.lr``, ``metric.loss``. An
        argument or metric called value always has one.

        Parameters
        ----------
        sort
            Column to sort by; missing values come last.
        ascending
            Whether the smallest comes first.

        Raises
        ------
        ValueError
            If there is no such column; the message names the nearest.
        """
        frame = task_frame(self._ledger.rows())
        return frame if sort is None else sort_frame(frame, sort, ascending)

    def best(self, metric: str, mode: Literal["max", "min"] = "max") -> Record:
        """Record of the task that was ok with the largest, or smallest, value of a column of `frame`.

        Parameters
        ----------
        metric
            Column with numbers: of the values, the metrics or any other.
        mode
            ``"max"``, or ``"min"`` for a loss. NaN is never best, and of equals it is the first.

        Raises
        ------
        ValueError
            If no task has a number there; the message lists the columns with numbers.
        """
        (mode,) = check_arguments(Run.best, mode=mode)
        record = self._ledger.record(best_row(self._ledger.rows(), metric, mode))
        assert record is not None  # noqa: S101 (its row is ok)
        return record

    def metrics(self, names: str | Sequence[str] | None = None) -> pd.DataFrame:
        """What tasks have reported over time, a row per number; while the run goes on, and of a run that was opened.

        Columns: task, attempt, step, time (seconds since the attempt began), name, value. `Worker.report` says which
        step a point has and which are kept of more than 10,000. Rows are in order of tasks, attempts and names; of a
        resumed run those of the earlier one are there for the tasks that were not run again.

        Parameters
        ----------
        names
            Metrics; all by default.

        Raises
        ------
        ValueError
            If something was reported, but nothing of one of these names.
        """
        return metrics_frame(self._ledger.history, self.tasks, names)

    @overload
    def logs(self, task: str | int, *, follow: Literal[False] = False) -> str: ...

    @overload
    def logs(self, task: str | int, *, follow: Literal[True]) -> None: ...

    def logs(self, task: str | int, *, follow: bool = False) -> str | None:
        """Output of the task's process while the task ran, all attempts.

        Parameters
        ----------
        task
            Name of the task, or its place in the run.
        follow
            Whether to print it instead, and what comes, line by line until the task ends. An interrupt stops that and
            leaves the run.

        Raises
        ------
        KeyError
            If there is no such task.
        KeyboardInterrupt
            On an interrupt while it is followed.
        """
        name = self.tasks[task] if isinstance(task, int) else task
        if name not in self.tasks:
            raise KeyError(
                f"no task {task!r} in run {self.name!r}; its tasks are {', '.join(self.tasks[:10])}"
            )
        if follow:
            stream = LogStream(self._ledger, name)
            try:
                self._wait_for(
                    lambda: self.done or self._ledger.record(name) is not None, None, Waiting(), stream
                )
            except KeyboardInterrupt:
                raise Interrupted(
                    f"stopped following the log of {name!r}; run {self.name!r} continues"
                ) from None
            return None
        self._ledger.flush_logs(LOGS)
        file = self.log_file(name)
        return file.read_text(encoding="utf-8", errors="backslashreplace") if file.exists() else ""

    def log_file(self, task: str) -> Path:
        """Path of a task's log, whether or not it exists."""
        return self._ledger.log_file(task)

    def plot(
        self,
        name: str,
        by: str | None = None,
        *,
        x: Literal["step", "time"] = "step",
        log: bool = False,
        ax: Axes | None = None,
    ) -> Axes:
        """Draw a metric that tasks have reported, a line for each; of several attempts the last.

        Parameters
        ----------
        name
            Name of the metric.
        by
            Name of an argument of the tasks: a line for each of its values, the mean of the tasks that have it, in a
            band from the lowest to the highest of them. ``"task"`` or None for a line per task; of more than ten the
            lines are grey, and the median and those that end lowest and highest are named.
        x
            ``"step"``, or ``"time"``: seconds since the task began.
        log
            Whether the vertical axis is logarithmic.
        ax
            Axes to draw on; a new figure by default.

        Raises
        ------
        ValueError
            If nothing of this name was reported, or no task has an argument `by`; the message names those there are.

        Examples
        --------
        >>> run.plot("loss", by="lr", log=True)  # doctest: +SKIP
        """
        from ..views.curves import curves

        check_choice(x, ("step", "time"), "x")
        lines = curves_of(self._ledger.history, self.tasks, name, x)
        groups = None
        if by not in (None, "task"):
            arguments = self._ledger.arguments()
            if not any(by in own for own in arguments.values()):
                known = sorted({key for own in arguments.values() for key in own})
                raise ValueError(
                    f"by={by!r}: no task has an argument of that name; there are {', '.join(['task', *known])}"
                )
            groups = {task: own.get(by) for task, own in arguments.items()}
        unit = "step" if x == "step" else "seconds since the task began"
        return curves(lines, name, unit, by=by or "task", groups=groups, log=log, ax=ax)

    @property
    def idle(self) -> float | None:
        """Share of its slots' time, from its first start to its last end, in which none of its tasks ran, 0 to 1.

        None before a task has run. Tasks of other runs on the same slots count as idle time.
        """
        ran = [record for record in self.records if record.started and record.finished]
        if not ran:
            return None
        origin = self._ledger.origin
        devices = (
            {}
            if origin is None
            else dict(zip(self.tasks, (task.devices for task in origin.tasks), strict=True))
        )
        first, last = min(r.started or 0.0 for r in ran), max(r.finished or 0.0 for r in ran)
        slots = len(self._ledger.slots) or len({record.slot for record in ran})
        busy = sum((record.seconds or 0.0) * devices.get(record.name, 1) for record in ran)
        return max(0.0, 1 - busy / (slots * (last - first))) if last > first else 0.0

    def plot_timeline(self, ax: Axes | None = None, *, by: Callable[[str], str] | None = None) -> Axes:
        """Draw the tasks of every slot over time.

        Parameters
        ----------
        ax
            Axes to draw on; a new figure by default.
        by
            Kind of a task of this name, which decides its colour. By default tasks whose names differ only after the
            last hyphen are of one kind.

        Raises
        ------
        ValueError
            If no task has started.
        """
        from ..views.timeline import timeline

        return timeline(self.records, ax, by=by)

    def plot_graph(self, ax: Axes | None = None) -> Axes:
        """Draw which task waits for which, from left to right, in the colours of what has become of them.

        While the run is under way its panel shows the same, of up to 60 tasks.

        Parameters
        ----------
        ax
            Axes to draw on; a new figure by default.
        """
        from ..views.graph import graph

        return graph({name: self._ledger.after.get(name, ()) for name in self.tasks}, self._ledger.states, ax)

    def plot_memory(self, ax: Axes | None = None, *, utilisation: bool = False) -> Axes:
        """Draw the memory of every device over time, with labelled peaks.

        Parameters
        ----------
        ax
            Axes to draw on; a new figure by default.
        utilisation
            Whether to draw the utilisation of the devices beside it, in per cent on an axis at the right.

        Raises
        ------
        FileNotFoundError
            If the folder has no samples.
        """
        from ..views.memory import memory

        return memory(self.samples(), ax, utilisation=utilisation)

    def samples(self) -> pd.DataFrame:
        """Samples of devices and tasks, a row per device and per busy slot at each time.

        Columns: at (UTC), kind (``device`` or ``task``), device, uuid, slot, task, pid, used, total, ours (bytes),
        utilisation (%), temperature (degrees Celsius), power (W), host (of another machine; empty for this one).

        Raises
        ------
        FileNotFoundError
            If the folder has none.
        """
        return load(self.folder)

    def table(self, sort: str | None = None, *, ascending: bool = True) -> Table:
        """`frame` for display: times and sizes in one unit, failures marked in words.

        Arguments that are the same for all tasks are left out.
        """
        from ..views.table import run_table

        return run_table(self.frame(sort, ascending=ascending))

    def _ipython_display_(self) -> None:
        from ..views.run_panel import show

        show(self._ledger)

    def __repr__(self) -> str:
        from ..views.run_panel import described

        return described(self._ledger)

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        __tracebackhide__ = True
        try:
            yield
        except KeyboardInterrupt:
            self._interrupts += 1
            if self._interrupts > 1 and not self._ledger.writer:
                self.cancel()
                raise Interrupted(
                    f"interrupted again: run {self.name!r} is being cancelled ({self.progress})"
                ) from None
            raise Interrupted(self._continues("run.cancel() or another interrupt cancels it")) from None

    def _continues(self, cancels: str) -> str:
        where = self._ledger.writer
        words = (
            f"stopped waiting; run {self.name!r} continues{f' in {where}' if where else ''} ({self.progress})"
        )
        return f"{words}. run.wait() waits again{'' if where else f', {cancels}'}"
