"""The HTML of a run's panel, from plain data."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..hardware.slots import Slot
from ..places import elsewhere
from ..tasks import Record, busy_time
from ..telemetry.samples import PoolActivity, SlotActivity, Snapshot
from .activity import doing, reason_to_wait
from .lists import ShownRun
from .markup import (
    OURS,
    Html,
    block,
    duration,
    escape,
    gib,
    line,
    shown_path,
    sparkline,
    status_bar,
    table,
)
from .metrics import Chart

__all__ = ["ObservedRun", "ObservedTask", "Row", "RunState", "run_html", "state_of"]

MOST_ROWS = 12  # slots that are shown, the others are counted: a frame stays below 10 KB
FAILURES = 5  # tasks that failed last
PAST = 240  # snapshots of the sampler, one each half second, that a sparkline shows
_WIDTH = 24  # characters of a sparkline
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


class ObservedRun(ShownRun, Protocol):
    """What a view may ask of a run, so that views know neither runs nor the scheduler; a `Ledger` is one."""

    @property
    def tasks(self) -> Sequence[str]:
        """Names of its tasks, in order of submission."""

    @property
    def after(self) -> Mapping[str, Sequence[str]]:
        """Names of the tasks that each task waits for."""

    @property
    def states(self) -> Mapping[str, str]:
        """Status of each task, or that it runs or waits, see `views.graph`."""

    @property
    def pool(self) -> int:
        """Number of its pool in this process; 0 if it was read from its folder."""

    @property
    def slots(self) -> Sequence[Slot]:
        """Slots of its pool that are there; none if it was read from its folder."""

    @property
    def ended_at(self) -> float | None:
        """Unix time of its end, seconds; None before."""

    @property
    def share(self) -> float:
        """Share of it that is done, 0 to 1, with what running tasks report."""

    @property
    def time_left(self) -> float | None:
        """Estimated seconds until its end; None if unknown."""

    @property
    def activity(self) -> PoolActivity | None:
        """What its pool does now; None if it has ended or has no pool here."""

    @property
    def waits_for(self) -> Sequence[tuple[str, str]]:
        """Some tasks that have not begun, each with the running task that it waits for."""

    @property
    def others(self) -> Sequence[ObservedRun]:
        """Other runs under way: on its pool, or left by an earlier execution of its cell."""

    @property
    def writer(self) -> str:
        """Process or job that has it under way, if that is another."""

    @property
    def can_be_cancelled(self) -> bool:
        """Whether `cancel` works here."""

    @property
    def state_words(self) -> str:
        """Who has it under way if another process has, or how many tasks were never recorded; empty else."""

    @property
    def left_words(self) -> Sequence[str]:
        """What an earlier execution of its cell left under way."""

    @property
    def peak(self) -> int | None:
        """Largest memory of any of its tasks so far, bytes; None if unknown."""

    @property
    def running(self) -> Sequence[ObservedTask]:
        """Tasks that run now."""

    @property
    def records(self) -> Sequence[Record]:
        """Records so far, in order of submission."""

    @property
    def failures(self) -> Sequence[Record]:
        """Records of the tasks that failed, the newest last."""

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
    """A slot and what it does: seconds, fraction done, bytes; None if unknown."""

    slot: int
    device: str
    task: str = ""
    """Task of this run that runs there."""
    does: str = ""
    """What it does else."""
    elapsed: float | None = None
    progress: float | None = None
    attempt: int = 1
    memory: int | None = None
    unknown: str = ""
    """What stands for its memory where that is not known."""
    peak: int | None = None
    total: int | None = None
    past: tuple[int | None, ...] = ()
    said: tuple[tuple[str, object], ...] = ()
    """Values that the task reported, without its progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Content of a run's panel: times in seconds, sizes in bytes.

    Attributes
    ----------
    shares
        Fraction done of each running task; None if it reported none.
    share
        Fraction done of the run, if a running task reported any.
    more
        What the slots do that have no row, by state.
    top
        Memory of a full block of the sparklines.
    failures, failed
        (task, status, first line of the error) of those that failed last, and the number of all that failed.
    notices
        What else a reader should know at once.
    """

    name: str
    folder: str
    at: float
    total: int
    counts: dict[str, int]
    running: int
    done: bool
    elapsed: float | None = None
    left: float | None = None
    shares: tuple[float | None, ...] = ()
    share: float | None = None
    rows: tuple[Row, ...] = ()
    more: tuple[tuple[str, int], ...] = ()
    top: int | None = None
    failures: tuple[tuple[str, str, str], ...] = ()
    failed: int = 0
    notices: tuple[str, ...] = ()
    note: str = ""


def state_of(run: ObservedRun, history: Sequence[Snapshot] = ()) -> RunState:
    """The current state of a run, with memory from the sampler's snapshots (oldest first)."""
    progress, done, running = run.progress, run.done, run.running
    now = time.time()
    failures = run.failures
    ended = run.ended_at if run.ended_at is not None else now
    activity = None if done else run.activity
    reason = reason_to_wait(activity, str(run.folder), run.waits_for)
    shares = tuple(_share(job) for job in running)
    waits = activity is not None and progress.done < progress.total and not running and reason
    more = activity.slots[MOST_ROWS:] if activity is not None else ()
    return RunState(
        name=run.name,
        folder=shown_path(run.folder),
        at=now,
        total=progress.total,
        counts=progress.counts,
        running=progress.running,
        done=done,
        elapsed=ended - run.began if run.pool or (run.writer and not done) else _span(run),
        left=run.time_left,
        shares=shares,
        share=run.share if any(share is not None for share in shares) else None,
        rows=() if activity is None else tuple(_rows(run, activity, reason, running, history, now)),
        more=tuple(Counter(slot.state for slot in more).items()),
        top=run.peak,
        failures=tuple(
            (r.name, _WORDS.get(r.status, r.status), r.error.partition("\n")[0])
            for r in reversed(failures[-FAILURES:])
        ),
        failed=len(failures),
        notices=(
            *_state(run),
            *run.left_words,
            *([f"its tasks wait: {reason}"] if waits else ()),
            *_of_nodes(activity, reason if waits else "", history),
        ),
        note=history[-1].note if history and not done else "",
    )


def _state(run: ObservedRun) -> list[str]:
    """Where it is under way, or how to go on with it."""
    words = run.state_words
    if not words:
        return []
    if run.done:
        return [f"{words}; run its tasks into the folder again, those that are ok are kept"]
    return [f"{words}; which of its tasks run is not known here"]


def _of_nodes(activity: PoolActivity | None, said: str, history: Sequence[Snapshot]) -> list[str]:
    """What a pool on other machines waits for, unless that is `said`; which were given back, and are lost or silent."""
    if activity is None:
        return []
    there = not activity.slots or any(elsewhere(slot.host) for slot in activity.slots)
    waits = activity.waits_for if activity.waits_for not in said else ""
    return [
        *([f"the pool waits for {waits}"] if waits else ()),
        *([activity.given_back] if activity.given_back else ()),
        *(history[-1].notices if there and history else ()),
    ]


def _span(run: ObservedRun) -> float | None:
    """Seconds in which any task ran, for a run read from its folder; it may have been interrupted and resumed."""
    return busy_time(run.records) or None


def _share(job: ObservedTask) -> float | None:
    progress = job.metrics.get("progress")
    return float(progress) if isinstance(progress, (int, float)) else None


def _rows(
    run: ObservedRun,
    activity: PoolActivity,
    reason: str,
    running: Sequence[ObservedTask],
    history: Sequence[Snapshot],
    now: float,
) -> list[Row]:
    folder = str(run.folder)
    slots = activity.slots[:MOST_ROWS]
    latest = {w.state.slot: w for w in history[-1].workers if w.state.run == folder} if history else {}
    totals = {device.key: device.total for device in history[-1].devices} if history else {}
    jobs = {job.name: job for job in running}
    past: dict[int, list[int | None]] = {slot.slot: [] for slot in slots}
    for snapshot in history[-PAST::2]:  # once a second is as many as a sparkline has room for, and more
        seen = {w.state.slot: w.memory for w in snapshot.workers if w.state.run == folder}
        for index, values in past.items():
            values.append(seen.get(index))
    rows = []
    for slot in slots:
        job = jobs.get(slot.task) if slot.run == folder and slot.state == "busy" else None
        if job is None:
            rows.append(_other_row(slot, folder, reason, past[slot.slot], now))
            continue
        worker = latest.get(slot.slot)
        memory = worker.memory if worker is not None and worker.state.task == job.name else None
        rows.append(
            Row(
                slot=slot.slot,
                device=slot.place,
                task=job.name,
                elapsed=None if slot.since is None else now - slot.since,
                progress=_share(job),
                attempt=job.attempt,
                memory=memory,
                unknown="-" if elsewhere(slot.host) else "",  # its node has not told of it, or not lately
                peak=run.peak_of(job.name),
                total=None if worker is None else totals.get(worker.state.device),
                past=tuple(past[slot.slot]),
                said=tuple((name, value) for name, value in job.metrics.items() if name != "progress"),
            )
        )
    return rows


def _other_row(slot: SlotActivity, run: str, reason: str, past: Sequence[int | None], now: float) -> Row:
    """Row of a slot where no task of this run is at work."""
    return Row(
        slot=slot.slot,
        device=slot.place,
        does=doing(slot, run, reason),
        elapsed=None if slot.since is None else now - slot.since,
        past=tuple(past),
    )


def run_html(state: RunState, *, live: bool) -> Html:
    """The panel of a run: progress and counts, a row per slot while it runs, the last failures."""
    words = _words(state)
    whole = status_bar(
        state.counts, state.total, ", ".join(words), running=state.shares or [None] * state.running, width=320
    )
    times = [f"{duration(state.elapsed)} elapsed"] if state.elapsed is not None else []
    times += [f"about {duration(state.left)} left"] if state.left is not None else []
    if not state.done and not live:
        times.append("the panel has stopped, the run may go on")
    head = f"<b>{escape(state.name)}</b> {whole} {' · '.join(words + times)}"
    parts = [line(Html(head)), *(line(notice) for notice in state.notices)]
    if state.rows:
        scale = f", full at {gib(state.top, 2)} GiB" if state.top else ""
        columns = [
            ("slot", ""), ("task", "t"), ("time", "n"), ("progress", "n"), ("memory", ""), ("GiB", "n"),
            ("peak", "n"), (f"memory, last 2 min{scale}", "s"), ("reported", "t"),
        ]  # fmt: skip
        rows = [_cells(row, state.top) for row in state.rows]
        parts.append(table(columns, rows, "slots of the run", live=live))
    if state.more:
        counts = ", ".join(f"{count} {what}" for what, count in state.more)
        parts.append(line(f"and {sum(count for _, count in state.more)} more slots: {counts}", "q"))
    if state.failures:
        rows = [
            [escape(task, 60), Html(f'<span class="e">{escape(status)}</span>'), escape(error, 140)]
            for task, status, error in state.failures
        ]
        most = len(state.failures) < state.failed
        title = f"failed, the last {len(state.failures)} of {state.failed}" if most else "failed"
        parts.append(table([(title, "t"), ("", ""), ("", "")], rows, "tasks that failed last", live=live))
    clock = time.strftime("%H:%M:%S", time.localtime(state.at))
    parts.append(line(Html(f"{escape(state.folder, 300)} · as of {clock}"), "q"))
    if state.note:
        parts.append(line(state.note, "q"))
    return block(*parts)


def _words(state: RunState) -> list[str]:
    """Numbers of tasks: how many have ended, how these did, how many run and how far the run is."""
    ended, ok = sum(state.counts.values()), state.counts.get("ok", 0)
    others = [f"{count} {_WORDS.get(s, s)}" for s, count in state.counts.items() if s != "ok" and count]
    if ended == state.total and others:  # what was cancelled is not done
        return [", ".join([f"{ok} ok", *others])]
    words = [f"{ended} of {state.total} done", *others]
    if state.running:
        share = "" if state.share is None else f", {int(100 * state.share)} %"
        words.append(f"{state.running} running{share}")
    return words


def _cells(row: Row, top: int | None) -> list[str]:
    name = f"{row.slot} ({row.device})" if row.device else str(row.slot)
    past = sparkline(row.past, top, min(_WIDTH, len(row.past))) if row.past else ""
    if not row.task:
        does = escape(row.does or "idle", 120)
        return [
            name, Html(f'<span class="q" title="{does}">{does}</span>'), duration(row.elapsed), "", "", "", "",
            past, "",
        ]  # fmt: skip
    task = escape(row.task, 60)
    if row.attempt > 1:
        task = Html(f'{task} <span class="q">(attempt {row.attempt})</span>')
    memory = ""
    if row.memory is not None and row.total:
        memory = _small_bar(row.memory / row.total)
    done = "" if row.progress is None else f"{100 * row.progress:.0f} %"
    said = escape(", ".join(f"{name} {_short(value)}" for name, value in row.said), 120)
    return [
        name, task, duration(row.elapsed), done, memory, gib(row.memory, 2) or row.unknown, gib(row.peak, 2), past,
        Html(f'<span title="{said}">{said}</span>') if len(said) > 40 else said,
    ]  # fmt: skip


def _small_bar(share: float) -> Html:
    """A bar whose value stands in text beside it; a frame has one for each slot."""
    full = int(100 * max(0.0, min(1.0, share)))
    return Html(
        f'<div aria-hidden="true" style="width:90px;height:8px;border:1px solid #808080"><div style="width:{full}%;'
        f'height:8px;background-color:{OURS}"></div></div>'
    )


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
