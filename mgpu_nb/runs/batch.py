"""The tasks of a run under way: started in the order of ``after``, each ended in one record."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from ..engines.base import Environment, Payload, Reported, TaskMeta
from ..engines.payload import dumps
from ..errors import TaskSkipped
from ..scheduler.job import Job
from ..scheduler.outcome import Outcome
from ..store.files import file_stem
from ..store.journal import RunFolder
from ..store.values import load_value, not_kept, store_value, unwritten
from ..store.writer import FolderWriter, LogFile
from ..summary import short
from ..tasks import Record, Task
from .fingerprint import durations
from .graph import Barrier, Graph

if TYPE_CHECKING:
    from ..scheduler.dispatcher import Dispatcher

__all__ = ["Batch", "Observer", "RecordedJob"]

log = logging.getLogger("mgpu_nb")

_SCALARS = frozenset({type(None), bool, int, float})


class Observer(Protocol):
    """What is told of a batch, by the thread of the dispatcher: the ledger of the run."""

    @property
    def name(self) -> str:
        """Name of the run."""

    @property
    def began(self) -> float:
        """Start of the run, Unix time in seconds."""

    def started(self, job: RecordedJob) -> None:
        """Hear that an attempt at a task began."""

    def again(self, tasks: Collection[str]) -> None:
        """Hear which tasks will run, before any does: what an earlier run has left of them is void."""

    def reported(self, lines: bytes) -> None:
        """Hear of points that a task reported, as lines of the file of metrics."""

    def ended(self, record: Record) -> None:
        """Hear that a task ended."""

    def finished(self) -> None:
        """Hear that all have."""


def _no_value(task: str) -> Payload:
    return dumps(
        (False, ValueError(f"the task asks for the value of {task!r}, which is not among its arguments"))
    )


class RecordedJob(Job):
    """A job of `GPUPool.run`: its end is a record."""

    recorded = True

    def __init__(
        self,
        name: str,
        index: int,
        task: Task,
        seed: int,
        payload: Payload,
        environment: Environment,
        batch: int,
    ):
        super().__init__(payload, environment, batch)
        self.name, self.index, self.task, self.seed = name, index, task, seed
        self.kind = task.kind
        self.devices, self.memory, self.timeout, self.retries = (
            task.devices,
            task.memory,
            task.timeout,
            task.retries,
        )
        self.fingerprint = ""  # set when those of the tasks that it waits for are known
        self.asks = tuple(dict.fromkeys(payload.asks))
        self.after = tuple(dict.fromkeys((*task.after, *self.asks)))
        self.arguments = {name: short(value) for name, value in task.arguments.items()}
        self.queued = 0.0
        self._stem = file_stem(index, name)
        self.metrics: dict[str, Any] = {}
        self._last_points = b""  # of the attempt, not told to the owner yet
        self.owner: Batch
        self._log: LogFile | None = None
        self._answers: list[Payload] = []  # what its worker asked for
        self._keeps = False  # no worker has written its value
        self._over = False

    @property
    def run(self) -> str:
        """Folder of its run."""
        return str(self.owner.store.path)

    @property
    def run_name(self) -> str:
        """Name of its run."""
        return self.owner.observer.name

    @property
    def run_began(self) -> float:
        """Start of its run, Unix time in seconds."""
        return self.owner.observer.began

    @property
    def log_begins(self) -> int | None:
        """Byte at which its output begins in its log, which an earlier run may have begun; None before it writes."""
        return None if self._log is None else self._log.begins

    def begin(self) -> bool:
        """Note that the task runs."""
        if self.attempt:  # the share done is that of an attempt
            self._tell_last_points()
            self.metrics.pop("progress", None)
        self.owner.observer.started(self)
        return True

    def meta(self, host: str) -> TaskMeta:
        """Metadata for its worker: name, place, seed, attempt, where its value goes and those it is given are."""
        folder, token = str(self.owner.store.path), self.owner.token(host)
        values = tuple((name, self.owner.stored(name)) for name in self.asks)
        return TaskMeta(
            None, self.name, self.index, self.seed, self.attempt, folder, self._stem, values, token
        )

    def answer(self, task: str, send: Callable[[Payload], None]) -> None:
        """Have the value of a task read, by the thread that writes the folder, and sent."""

        def read() -> None:
            payload = self.owner.answer(task) if task in self.asks else _no_value(task)
            self._answers.append(payload)  # until it has been read
            send(payload)

        self.owner.writer.call(read)

    def keep(self, outcome: Outcome, kept: Callable[[], None]) -> bool:
        """Have the value written in place of a worker that has not the folder."""
        measured, owner = outcome.measured, self.owner
        if measured is None or not owner.store.token or self._keeps:
            return False
        if measured.without_folder and outcome.location is not None:
            owner.is_without(outcome.location.host)
        if outcome.status != "ok" or measured.stored:
            return False
        self._keeps = True
        if type(outcome.value) in _SCALARS:  # in no file
            text = store_value(owner.store.path, self._stem, outcome.value)
            outcome.measured = measured._replace(stored=text)
            return False

        def done(text: str) -> None:
            owner.kept(self.name, text)
            outcome.measured = measured._replace(stored=text)
            kept()

        owner.writer.keep(self.index, self.name, outcome.value, done)
        return True

    def report(self, report: Reported) -> None:
        """Keep the last value of each name, and pass the points on."""
        self.metrics.update(report.values)
        self._last_points = report.last
        if report.lines:
            self.owner.observer.reported(report.lines)

    def _tell_last_points(self) -> None:
        """Pass on the last points of an attempt that has ended: until now there might have come later ones."""
        if self._last_points:
            self.owner.observer.reported(self._last_points)
            self._last_points = b""

    def write(self, data: bytes) -> None:
        """Append to the task's log."""
        if self._log is None:
            self._log = self.owner.writer.log(self.owner.store.log_file(self.index, self.name))
        self._log.write(data)

    def finish(self, outcome: Outcome) -> None:
        """Make the record, the only one: where something fails in here the pool may try again."""
        if self._over:
            return
        self.payload.release()
        self._tell_last_points()
        if self._log is not None:
            self._log.close()
        measured, place = outcome.measured, outcome.location
        log_file = f"{self._stem}.log"
        peaks = [p for p in (self.peak, measured.peak_reserved if measured else None) if p is not None]
        record = Record(
            name=self.name,
            index=self.index,
            kind=self.kind,
            arguments=self.arguments,
            status=outcome.status,
            value=outcome.value,
            error=outcome.error,
            traceback=outcome.traceback,
            exception=outcome.exception,
            slot=place.slot if place else None,
            device=place.device if place else "",
            gpu_id=place.gpu_id if place else None,
            uuid=place.uuid if place else "",
            pid=place.pid if place else None,
            host=place.host if place else "",
            attempt=self.attempt,
            queued=self.queued,
            started=measured.started if measured else None,
            finished=measured.started + measured.seconds if measured else None,
            seconds=measured.seconds if measured else None,
            peak_memory=max(peaks, default=None),
            peak_allocated=measured.peak_allocated if measured else None,
            peak_reserved=measured.peak_reserved if measured else None,
            metrics=dict(self.metrics),
            notes=self.notes,
            log=f"logs/{log_file}" if self._log is not None or log_file in self.owner.store.logs else "",
            fingerprint=self.fingerprint,
        )
        if record.ok and record.seconds is not None:
            durations.learn(self.fingerprint, record.seconds, self.kind)
        self._over = True
        for answer in self._answers:
            answer.close()
        text = measured.stored if measured else ""
        self.owner.ended(record, None if self._keeps and not text else text, by_worker=not self._keeps)
        if self.gang is not None and not self.gang.started:  # it stood for the others in the queue
            self.gang.started = True
            for member in self.gang.members[1:]:
                member.finish(outcome)


class Batch:
    """Hands tasks to the dispatcher as they become ready, and records to the journal as they arrive.

    Of the tasks whose records are `kept` there are no jobs: the others may wait for those of them that were ok.
    With `rounds`, the number of the round of each task, none begins before all of the earlier rounds have ended.
    """

    def __init__(
        self,
        observer: Observer,
        dispatcher: Dispatcher,
        store: RunFolder,
        writer: FolderWriter,
        jobs: dict[str, RecordedJob],
        graph: Graph,
        kept: Sequence[Record] = (),
        rounds: Mapping[str, int] | None = None,
    ) -> None:
        self.observer = observer
        self.store = store
        self.writer = writer
        self.jobs = jobs
        self._dispatcher = dispatcher
        self._kept = kept
        self._graph = graph
        self._without: set[str] = set()  # hosts that have not the folder
        self._described: set[str] = set()  # hosts whose interpreter the journal has
        self._needed = {name for job in jobs.values() for name in job.asks}
        self._stored: dict[str, str] = {}  # JSON text of the values that others need, by task
        self._barrier = Barrier({name: (rounds or {}).get(name, 0) for name in jobs})
        self._left = set(jobs)
        self._finished = False
        self._failed: list[Record] = []  # whose followers are not skipped yet
        self._cancelled = False
        self._lock = threading.RLock()
        for name, job in jobs.items():
            job.owner = self
            job.leads = bool(self._graph.followers(name))

    def begin(self) -> None:
        """Take over the records that are kept and the good ones of an earlier run, and start what is ready."""
        with self._lock:
            for kept in self._kept:
                self.observer.ended(kept)
            now = time.time()
            for job in self.jobs.values():
                job.queued = now
            ready = set(self._graph.ready())
            earlier = {name: self._earlier(job) for name, job in self.jobs.items()}
            gang = next(iter(self.jobs.values())).gang
            if gang is not None and None in earlier.values():  # all of it or nothing
                earlier = {}
            for name in self._graph.order():
                if (record := earlier.get(name)) is not None:
                    self.jobs[name].payload.release()
                    ready.discard(name)
                    self._left.discard(name)
                    ready.update(self._graph.done(name))
                    self.observer.ended(record)
                    self._barrier.ended(name)
            self.observer.again(self._left)
            free = set(self._barrier.let_pass(name for name in ready if name in self._left))
            jobs = [job for name, job in self.jobs.items() if name in free]
            if self._left:
                self._dispatcher.submit(*(jobs if gang is None else gang.members[:1]))
            else:
                self._finish()

    def token(self, host: str) -> str | None:
        """By what a worker of a host knows the folder, see `TaskMeta`."""
        return None if host in self._without else self.store.token

    def is_without(self, host: str) -> None:
        """Note that a host has not the folder: no other worker looks for it there."""
        if host not in self._without:
            self._without.add(host)
            log.info(
                "run %r: its folder %s is not on node %s: values of tasks there are written by this process",
                self.observer.name, self.store.path, host,
            )  # fmt: skip

    def kept(self, name: str, text: str) -> None:
        """Note the JSON text of a value that was written here; from any thread."""
        if name in self._needed:
            self._stored[name] = text

    def answer(self, name: str) -> Payload:
        """The value of a task that has ended ok, or why there is none, for `WorkerHandle.answer`; reads files."""
        try:
            return dumps((True, load_value(self.store.path, json.loads(self.stored(name)))))
        except Exception as error:
            return dumps((False, error))

    def stored(self, name: str) -> str:
        """JSON text of the value of a task that has ended ok, as the journal has it; empty if it is not written yet."""
        if name not in self._stored:
            entries = {} if self.store.earlier is None else self.store.earlier.records
            lost = {"value": {"$unstored": "unknown, the journal could not be written,"}}
            self._stored[name] = json.dumps(entries.get(name, lost).get("value"))
        return self._stored[name]

    def held_back(self, running: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Tasks that have not ended and wait for one of these, each with that one."""
        return (
            (name, other) for other in running for name in self._graph.followers(other) if name in self._left
        )

    def _earlier(self, job: RecordedJob) -> Record | None:
        record, reason = self.store.kept(job.name, job.fingerprint)
        if reason:
            job.note(reason)
        return None if record is None else replace(record, index=job.index)

    def ended(self, record: Record, value: str | None, *, by_worker: bool = True) -> None:
        """Journal a record, and start or skip what waited for its task.

        `value` is the JSON text of its value, None where a disk stands still that should take it; `by_worker` says who
        has written it.
        """
        with self._lock:
            self._describe(record.host)
            if value is not None and (kinds := not_kept(value)):
                note = (
                    f"its value lives in memory only, or a part of it: its kind is not kept on disk ({kinds})"
                )
                if reason := unwritten(value):
                    note = f"{'its worker' if by_worker else 'this process'} could not write its value ({reason})"
                record = replace(record, notes=(*record.notes, note))
            self.writer.record(record, value)
            self._left.discard(record.name)
            if record.name in self._needed and value is not None:
                self._stored[record.name] = value or "null"
            elif record.name in self._needed:
                self._stored.setdefault(record.name, "")
            self.observer.ended(record)
            self._follow(record)
            if not self._left and not self._finished:
                self._finish()

    def _describe(self, host: str) -> None:
        """Have the journal say what the first record of another machine was made with."""
        if (
            self.store.token
            and host
            and host not in self._described
            and (made := self._dispatcher.described(host))
        ):
            self._described.add(host)
            self.writer.node(host, made)

    def _follow(self, record: Record) -> None:
        """Start what waited for a task, or skip it."""
        freed = self._graph.done(record.name) if record.ok else ()
        passed = self._barrier.let_pass(name for name in freed if name in self._left)
        ready = [self.jobs[name] for name in (*passed, *self._barrier.ended(record.name))]
        if ready and self._cancelled:
            for job in ready:
                job.finish(Outcome("cancelled", error="cancelled before it began"))
        elif ready:
            self._dispatcher.follow(ready)
        if not record.ok:
            self._failed.append(record)
            if len(self._failed) == 1:  # else a call above goes on with it: a chain may be long
                for cause in self._failed:
                    for name in self._graph.followers(cause.name):
                        if name in self._left:
                            self._skip(self.jobs[name], cause)
                self._failed.clear()

    def cancel(self) -> None:
        """Start no task any more; from any thread."""
        self._cancelled = True

    def _skip(self, job: RecordedJob, cause: Record) -> None:
        words = f"it waits for {cause.name!r}, which ended {cause.status}"
        job.finish(Outcome("skipped", None, TaskSkipped(f"task {job.name!r}: {words}"), words))

    def _finish(self) -> None:
        self._finished = True
        self.observer.finished()
