"""The HTML of a run's panel, from plain data."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..hardware.slots import Slot
from ..tasks import Progress, Record, busy_time
from ..telemetry.samples import Snapshot
from .markup import (
    DONE,
    FAILED,
    OURS,
    RUNNING,
    Html,
    bar,
    block,
    duration,
    escape,
    gib,
    line,
    shown_path,
    sparkline,
    stacked_bar,
    table,
)
from .metrics import Chart

__all__ = ["ObservedRun", "ObservedTask", "Row", "RunState", "run_html", "state_of"]

_SLOTS = [
    ("slot", ""), ("task", "t"), ("time", "n"), ("progress", "n"), ("memory", ""), ("GiB", "n"), ("peak", "n"),
    ("last minutes", "s"), ("reported", "t"),
]  # fmt: skip
_WORDS = {"out-of-memory": "out of memory"}


class ObservedTask(Protocol):
    """What a view may ask of a running task."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def attempt(self) -> int:
        """Number of the attempt, from 1."""

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Last value of everything it reported."""


class ObservedRun(Protocol):
    """What a view may ask of a run, so that views know neither runs nor the scheduler; `mgpu_nb.Run` is one."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def folder(self) -> Path:
        """Folder of its journal, logs and values."""

    @property
    def tasks(self) -> Sequence[str]:
        """Names of its tasks, in order of submission."""

    @property
    def slots(self) -> Sequence[Slot]:
        """Slots of its pool; none if the run was read from its folder."""

    @property
    def began(self) -> float:
        """Unix time of its start, seconds."""

    @property
    def ended_at(self) -> float | None:
        """Unix time of its end, seconds; None before."""

    @property
    def progress(self) -> Progress:
        """Numbers of tasks, ended and running."""

    @property
    def done(self) -> bool:
        """Whether no further record will come."""

    @property
    def share(self) -> float:
        """Share of it that is done, 0 to 1, with what running tasks report."""

    @property
    def time_left(self) -> float | None:
        """Estimated seconds until its end; None if unknown."""

    @property
    def running(self) -> Sequence[ObservedTask]:
        """Tasks that run now."""

    @property
    def records(self) -> Sequence[Record]:
        """Records so far, in order of submission."""

    @property
    def failures(self) -> Sequence[Record]:
        """Latest records that are not ok, the newest last."""

    def charts(self) -> tuple[Sequence[Chart], Sequence[str]]:
        """Metrics that its tasks have reported over time, and the names of those beyond the first."""

    def peak_of(self, task: str) -> int | None:
        """Peak memory of a running task so far, bytes; None if unknown."""

    def log_file(self, name: str) -> Path:
        """Path of a task's log, whether or not it exists yet."""

    def cancel(self) -> None:
        """Cancel pending tasks and end running ones."""

    def when_done(self, follower: Callable[[], None]) -> None:
        """Register a callback for the end of the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A slot and its running task: seconds, fraction done, bytes; None if unknown."""

    slot: int
    device: str
    task: str = ""
    elapsed: float | None = None
    progress: float | None = None
    attempt: int = 1
    memory: int | None = None
    peak: int | None = None
    total: int | None = None
    past: tuple[int | None, ...] = ()
    said: tuple[tuple[str, object], ...] = ()
    """Values that the task reported, without its progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Content of a run's panel. Times in seconds; `failures` holds (task, status, first line of the error)."""

    name: str
    folder: str
    at: float
    total: int
    counts: dict[str, int]
    running: int
    done: bool
    elapsed: float | None = None
    left: float | None = None
    rows: tuple[Row, ...] = ()
    failures: tuple[tuple[str, str, str], ...] = ()
    note: str = ""


def state_of(run: ObservedRun, history: Sequence[Snapshot] = ()) -> RunState:
    """The current state of a run, with memory from the sampler's snapshots (oldest first)."""
    progress = run.progress
    now = time.time()
    failures = [
        (r.name, _WORDS.get(r.status, r.status), r.error.partition("\n")[0]) for r in reversed(run.failures)
    ]
    ended = run.ended_at if run.ended_at is not None else now
    return RunState(
        name=run.name,
        folder=shown_path(run.folder),
        at=now,
        total=progress.total,
        counts=progress.counts,
        running=progress.running,
        done=run.done,
        elapsed=ended - run.began if run.slots else _span(run),
        left=run.time_left,
        rows=() if run.done else tuple(_rows(run, history, now)),
        failures=tuple(failures),
        note=history[-1].note if history and not run.done else "",
    )


def _span(run: ObservedRun) -> float | None:
    """Seconds in which any task ran, for a run read from its folder; it may have been interrupted and resumed."""
    return busy_time(run.records) or None


def _rows(run: ObservedRun, history: Sequence[Snapshot], now: float) -> list[Row]:
    folder = str(run.folder)
    latest = {w.state.slot: w for w in history[-1].workers if w.state.run == folder} if history else {}
    totals = {d.uuid if d.kind == "cuda" else "cpu": d.total for d in history[-1].devices} if history else {}
    jobs = {job.name: job for job in run.running}
    past: dict[int, list[int | None]] = {slot.index: [] for slot in run.slots}
    for snapshot in history:
        seen = {w.state.slot: w.memory for w in snapshot.workers if w.state.run == folder}
        for index, values in past.items():
            values.append(seen.get(index))
    rows = []
    for slot in run.slots:
        worker = latest.get(slot.index)
        job = jobs.get(worker.state.task) if worker is not None else None
        row = Row(slot=slot.index, device=slot.label)
        if worker is not None and job is not None:
            progress = job.metrics.get("progress")
            began = worker.state.began
            row = Row(
                slot=slot.index,
                device=slot.label,
                task=job.name,
                elapsed=None if began is None else now - began,
                progress=float(progress) if isinstance(progress, (int, float)) else None,
                attempt=job.attempt,
                memory=worker.memory,
                peak=run.peak_of(job.name),
                total=totals.get(slot.uuid if slot.kind == "cuda" else "cpu"),
                past=tuple(past[slot.index]),
                said=tuple((name, value) for name, value in job.metrics.items() if name != "progress"),
            )
        rows.append(row)
    return rows


def run_html(state: RunState, *, live: bool) -> Html:
    """The panel of a run: progress and counts, a row per slot while it runs, the last failures."""
    ended = sum(state.counts.values())
    ok = state.counts.get("ok", 0)
    words = [f"{ended} of {state.total} done"]
    words += [f"{count} {_WORDS.get(s, s)}" for s, count in state.counts.items() if s != "ok"]
    words += [f"{state.running} running"] if state.running else []
    whole = stacked_bar(
        [(ok, DONE), (ended - ok, FAILED), (state.running, RUNNING)], state.total, ", ".join(words), 320
    )
    times = [f"{duration(state.elapsed)} elapsed"] if state.elapsed is not None else []
    times += [f"about {duration(state.left)} left"] if state.left is not None else []
    if not state.done and not live:
        times.append("the panel has stopped, the run may go on")
    head = f"<b>{escape(state.name)}</b> {whole} {' · '.join(words + times)}"
    parts = [line(Html(head))]
    if state.rows:
        rows = [_cells(row) for row in state.rows]
        kept = [i for i in range(len(_SLOTS)) if i < 2 or any(row[i].strip() for row in rows)]
        parts.append(
            table(
                [_SLOTS[i] for i in kept],
                [[row[i] for i in kept] for row in rows],
                "slots of the run",
                live=live,
            )
        )
    if state.failures:
        rows = [
            [escape(task, 60), Html(f'<span class="e">{escape(status)}</span>'), escape(error, 140)]
            for task, status, error in state.failures
        ]
        head_of = [("last that failed", "t"), ("", ""), ("", "")]
        parts.append(table(head_of, rows, "tasks that failed last", live=live))
    clock = time.strftime("%H:%M:%S", time.localtime(state.at))
    parts.append(line(Html(f"{escape(state.folder, 300)} · as of {clock}"), "q"))
    if state.note:
        parts.append(line(state.note, "q"))
    return block(*parts)


def _cells(row: Row) -> list[str]:
    name = f"{row.slot} ({row.device})" if row.device else str(row.slot)
    if not row.task:
        return [name, Html('<span class="q">idle</span>'), *[""] * (len(_SLOTS) - 2)]
    task = escape(row.task, 60)
    if row.attempt > 1:
        task = Html(f'{task} <span class="q">(attempt {row.attempt})</span>')
    memory = ""
    if row.memory is not None and row.total:
        label = f"{gib(row.memory, 2)} of {gib(row.total)} GiB"
        memory = bar(row.memory / row.total, OURS, label, 90)
    done = "" if row.progress is None else f"{100 * row.progress:.0f} %"
    said = escape(", ".join(f"{name} {_short(value)}" for name, value in row.said), 120)
    return [
        name, task, duration(row.elapsed), done, memory, gib(row.memory, 2), gib(row.peak, 2),
        sparkline(row.past, None), Html(f'<span title="{said}">{said}</span>') if said else "",
    ]  # fmt: skip


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
