"""A storm: tasks with faults of their own on workers that are struck, and the account of what became of each."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import TaskError
from ..pool import GPUPool
from ..runs.run import Run
from ..tasks import Record, Status, Task, derive_seed
from ..value_of import ValueOf
from .faults import FAULTS, SOUND, Kind, chain, double, fill, rank
from .strikes import Strikes
from .traces import PATIENCE, Traces, alive, private_temporary_folder

if TYPE_CHECKING:
    from ..hardware.slots import GpuIds

__all__ = ["Isolation", "Outcome", "storm"]

Isolation = Literal["worker", "task"]

FAULTY = 0.3  # share of tasks with a fault of their own
CHAINED = 0.1  # share of tasks that take the value of another
PAUSE = 0.1  # mean seconds between two strikes
TASKS_PER_SERVER = 500  # for each so many one server may be killed
GANGS, RANKS = 6, 2  # most runs of a gang beside the tasks, and the tasks of each
TASKS_PER_GANG = 20
CALLS = 4  # threads that submit
AFTER = 60.0  # seconds that calls may take when the storm is over


@dataclass
class Outcome:
    """What a storm came to.

    Attributes
    ----------
    seed, isolation, tasks
        The storm.
    seconds
        Its duration.
    statuses
        Number of tasks by status.
    strikes
        Number of strikes from outside by kind.
    calls, calls_lost
        Number of plain calls, and of those that the death of a worker cost.
    findings
        What is not as promised, in words; empty if all is.
    """

    seed: int
    isolation: Isolation
    tasks: int
    seconds: float = 0.0
    statuses: Counter[Status] = field(default_factory=Counter)
    strikes: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    calls_lost: int = 0
    findings: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Seed and isolation."""
        return f"seed {self.seed}, isolation {self.isolation}"

    def __str__(self) -> str:
        came = "every promise held" if not self.findings else f"{len(self.findings)} promises broken"
        return f"{self.name}: {self.tasks} tasks in {self.seconds:.1f} s, {came}"


@dataclass(frozen=True)
class Planned:
    """A task of a storm: its kind, its number, and the task whose value it takes."""

    name: str
    kind: Kind | None
    number: int
    before: str | None = None


def dice_of(seed: int, use: int) -> random.Random:
    """Random numbers of a storm for one of their uses."""
    return random.Random(derive_seed(seed, use))  # noqa: S311 - nothing secret


def plan(seed: int, tasks: int, slots: int) -> list[Planned]:
    """Tasks of a storm, by its seed; those that take several devices only where there are as many slots."""
    dice = dice_of(seed, 0)
    sound = [kind for kind in SOUND if kind.devices <= slots]
    planned: list[Planned] = []
    for number in range(tasks):
        drawn = dice.random()
        if drawn < CHAINED and planned:
            before = dice.choice(planned[-20:])
            if before.kind is None or (before.kind in SOUND and before.kind.fn is not fill):
                planned.append(Planned(f"{number}-chain", None, number, before.name))
                continue
        kinds = FAULTS if drawn > 1 - FAULTY else sound
        (kind,) = dice.choices(kinds, [each.weight for each in kinds])
        planned.append(Planned(f"{number}-{kind.name}", kind, number))
    return planned


def storm(
    seed: int,
    *,
    folder: Path,
    tasks: int = 2000,
    slots: int | None = 4,
    gpu_ids: GpuIds | Literal["cpu"] | None = None,
    isolation: Isolation = "worker",
    limit: float = 600.0,
) -> Outcome:
    """Run a storm and check every promise of the pool; `Outcome.findings` are those that it broke.

    Parameters
    ----------
    seed
        Chooses tasks, faults and pauses.
    folder
        An empty folder for the run and its temporary files.
    tasks
        Number of tasks of the run.
    slots, gpu_ids, isolation
        Of the pool.
    limit
        Seconds until all must be over.
    """
    outcome = Outcome(seed, isolation, tasks)
    began = time.monotonic()
    with private_temporary_folder(folder / "tmp"):
        with GPUPool(
            gpu_ids, slots, grace=0.3
        ) as pool:  # what stays: the server, modules, threads of libraries
            pool.run([Task(double, 1)], folder=folder / "first").wait(limit)
        before = Traces.now()
        pids = _blow(outcome, folder, gpu_ids, slots, limit)
        outcome.findings += before.left(pids)
    outcome.findings += _programs_left(folder)
    outcome.seconds = time.monotonic() - began
    return outcome


def _blow(
    outcome: Outcome,
    folder: Path,
    gpu_ids: GpuIds | Literal["cpu"] | None,
    slots: int | None,
    limit: float,
) -> set[int]:
    """Run the tasks while strikes fall; check the run, the pool, what lives after it. Return the processes of tasks."""
    dice = dice_of(outcome.seed, 1)
    with GPUPool(gpu_ids, slots, outcome.isolation, grace=0.3) as pool:
        planned = plan(outcome.seed, outcome.tasks, len(pool.slots))
        starts = folder / "starts"
        starts.touch()
        end = time.monotonic() + limit
        run = pool.run(_tasks(planned, str(starts)), name="storm", folder=folder / "run")
        servers = 1 + outcome.tasks // TASKS_PER_SERVER
        with (
            Strikes(dice, PAUSE, servers, lambda: run.progress.done) as strikes,
            _calls(pool, outcome, end) as calls,
        ):
            gangs = _gangs(pool, folder, outcome, end)
            try:
                run.wait(max(1.0, end - time.monotonic()), progress=False)
            except TimeoutError:
                outcome.findings.append(f"hung: {len(run.running)} tasks run after {limit:.0f} s")
                outcome.findings += [f"hung: {name} runs" for name in run.running[:10]]
                run.cancel()
                with contextlib.suppress(TimeoutError):
                    run.wait(AFTER, progress=False)
        outcome.strikes.update(each.kind for each in strikes.struck)
        records = run.records
        outcome.statuses.update(record.status for record in records)
        outcome.findings += _wrong_records(planned, records, strikes)
        outcome.findings += _doubled(records, starts)
        outcome.findings += _wrong_journal(run.folder, records)
        for gang in gangs:
            outcome.findings += _wrong_gang(gang, strikes)
        lost = _lost_calls(calls, outcome)
        by_strikes = sum(r.status == "killed" for r in records) - _expected_deaths(planned, records)
        if lost + by_strikes > strikes.most_lost(len(pool.slots)):
            outcome.findings.append(
                f"{lost} calls and {by_strikes} tasks lost their worker, the strikes ended"
                f" {strikes.most_lost(len(pool.slots))} at most"
            )
        outcome.findings += _works(pool)
        pids = {record.pid for record in records if record.pid is not None}
    outcome.findings += _alive(pids, "worker")
    return pids


def _tasks(planned: list[Planned], starts: str) -> Iterator[Task]:
    for each in planned:
        if each.before is not None:
            yield Task(chain, starts, each.number, ValueOf(each.before), name=each.name)
        elif (kind := each.kind) is not None:
            options: dict[str, Any] = {
                "devices": kind.devices,
                "retries": kind.retries,
                "timeout": kind.timeout,
            }
            yield Task(kind.fn, args=(starts, each.number), name=each.name, **options)


def _wrong_records(planned: list[Planned], records: list[Record], strikes: Strikes) -> list[str]:
    """Tasks without exactly one record, with a wrong status or with a wrong value."""
    found: list[str] = []
    names = Counter(record.name for record in records)
    found += [f"{each.name} has {names[each.name]} records" for each in planned if names[each.name] != 1]
    found += [
        f"a record of {name}, which is no task" for name in names.keys() - {each.name for each in planned}
    ]
    by_name = {record.name: record for record in records}
    values: dict[str, int] = {}
    for each in planned:
        if (record := by_name.get(each.name)) is None:
            continue
        before = by_name.get(each.before or "")
        statuses: tuple[Status, ...] = ("ok",) if each.kind is None else each.kind.statuses
        if before is not None and not before.ok:
            statuses = ("skipped",)
        struck = strikes.may_have_ended(record.pid, record.started, record.finished)
        if record.status not in statuses and not (record.status == "killed" and struck):
            found.append(f"{each.name} is {record.status}, not {' or '.join(statuses)}: {record.error}")
        if not record.ok and not record.error:
            found.append(f"{each.name} is {record.status} and says no reason")
        if record.ok:
            number = each.number
            values[each.name] = (
                values.get(each.before or "", 0) + number if each.kind is None else double(number)
            )
            if each.kind is not None and each.kind.fn is fill:
                right = getattr(record.value, "shape", None) and bool((record.value == number).all())
            else:
                right = record.value == values[each.name]
            if not right:
                found.append(f"{each.name} has another task's value, or none")
    return found


def _expected_deaths(planned: list[Planned], records: list[Record]) -> int:
    """Number of tasks that were to end their worker, and did."""
    meant = {each.name for each in planned if each.kind is not None and "killed" in each.kind.statuses}
    return sum(record.status == "killed" and record.name in meant for record in records)


def _doubled(records: list[Record], starts: Path) -> list[str]:
    """Tasks that were begun more often than their records count attempts."""
    begun = Counter(line.split()[0] for line in starts.read_text().splitlines())
    by_attempt = Counter(tuple(line.split()[:2]) for line in starts.read_text().splitlines())
    found = [f"attempt {k[1]} of {k[0]} was begun {n} times" for k, n in by_attempt.items() if n > 1]
    for record in records:
        if begun[record.name] > record.attempt:
            found.append(f"{record.name} was begun {begun[record.name]} times in {record.attempt} attempts")
        if record.ok and not begun[record.name]:
            found.append(f"{record.name} is ok and was never begun")
    return found


def _wrong_journal(folder: Path, records: list[Record]) -> list[str]:
    """What the journal says otherwise than the records."""
    found: list[str] = []
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_bytes().splitlines()]
    written = Counter(line["name"] for line in lines if line["event"] == "record")
    found += [f"the journal has {n} records of {name}" for name, n in written.items() if n != 1]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        kept = {record.name: record for record in Run.open(folder).records}
    found += [f"the journal is damaged: {each.message}" for each in told]
    if len(kept) != len(records):
        found.append(f"the journal has {len(kept)} records, the run {len(records)}")
    for record in records:
        other = kept.get(record.name)
        if other is None:
            continue
        same = (record.status, record.attempt, record.pid) == (other.status, other.attempt, other.pid)
        if not same or not _equal(record.value, other.value):
            found.append(f"the journal says {other!r}, the run {record!r}")
    found += [f"{path} is left" for path in folder.rglob("*.part")]
    return found


def _equal(one: Any, other: Any) -> bool:
    same = one == other
    return bool(same.all()) if hasattr(same, "all") else bool(same)


def _gangs(pool: GPUPool, folder: Path, outcome: Outcome, end: float) -> list[Run]:
    """Runs of gangs among the tasks, one after the other."""
    dice, runs = dice_of(outcome.seed, 2), []
    most = min(GANGS, -(-outcome.tasks // TASKS_PER_GANG))
    for number in range(most if len(pool.slots) >= RANKS else 0):
        ranks = [Task(rank, k, name=f"rank-{k}") for k in range(RANKS)]
        run = pool.run(ranks, name="gang", folder=folder / f"gang-{number}", gang=True)
        runs.append(run)
        with contextlib.suppress(TimeoutError):
            run.wait(max(1.0, end - time.monotonic()), progress=False)
        time.sleep(dice.uniform(0, 0.2))
    return runs


def _wrong_gang(run: Run, strikes: Strikes) -> list[str]:
    """What a gang came to otherwise than all or nothing."""
    name, records = run.folder.name, run.records
    if not run.done:
        run.cancel()
        return [f"{name} hung: {run.running} run"]
    if len(records) != RANKS:
        return [f"{name} has {len(records)} records of {RANKS} tasks"]
    if all(record.ok for record in records):
        wrong = [record.value for record in records] != [double(k) for k in range(RANKS)]
        return [f"{name} has wrong values"] if wrong else []
    struck = any(strikes.may_have_ended(r.pid, r.started, r.finished) for r in records)
    return [] if struck else [f"{name} failed, and nothing struck it: {records}"]


@contextlib.contextmanager
def _calls(pool: GPUPool, outcome: Outcome, end: float) -> Iterator[list[tuple[int, Future[int]]]]:
    """Calls that several threads submit while the block runs, about as many as there are tasks at most."""
    over = threading.Event()
    made: list[tuple[int, Future[int]]] = []
    dice = dice_of(outcome.seed, 3)
    first = [dice.randrange(10**6) for _ in range(CALLS)]

    def submit(number: int) -> None:
        while not over.wait(0.02) and len(made) < outcome.tasks and (left := end - time.monotonic()) > 0:
            some = [(number + k, pool.submit(double, number + k)) for k in range(5)]
            made.extend(some)
            futures.wait([future for _, future in some], left)
            number += 5

    threads = [threading.Thread(target=submit, args=(n,), name="mgpu_nb-calls", daemon=True) for n in first]
    for thread in threads:
        thread.start()
    try:
        yield made
    finally:
        over.set()
        for thread in threads:
            thread.join(AFTER)


def _lost_calls(calls: list[tuple[int, Future[int]]], outcome: Outcome) -> int:
    """Number of calls that have no value because a worker died; hung and wrong ones are findings."""
    lost, end = 0, time.monotonic() + AFTER
    for number, future in calls:
        try:
            if future.result(max(0.0, end - time.monotonic())) != double(number):
                outcome.findings.append(f"a call of {number} gave {future.result()}")
        except TimeoutError:
            outcome.findings.append(f"a call of {number} has no answer after {AFTER:.0f} s")
        except TaskError:
            lost += 1
    outcome.calls, outcome.calls_lost = len(calls), lost
    return lost


def _works(pool: GPUPool) -> list[str]:
    """What a pool does not do any more when the storm is over."""
    try:
        values = list(pool.map(double, range(2 * len(pool.slots)), timeout=AFTER, progress=False))
        if values != [double(number) for number in range(2 * len(pool.slots))]:
            return [f"afterwards the pool gives wrong values: {values}"]
        run = pool.run([Task(double, 1, devices=len(pool.slots))], name="all", folder=_beside(pool))
        if (value := run.results(AFTER, progress=False)) != [2]:
            return [f"afterwards a task on all slots gives {value}"]
    except Exception as error:
        return [f"afterwards the pool does not work: {type(error).__name__}: {error}"]
    return []


def _beside(pool: GPUPool) -> Path:
    return next(run.folder for run in pool.runs if run.folder is not None).with_name("all")


def _programs_left(folder: Path) -> list[str]:
    file = folder / "programs"
    pids = {int(pid) for pid in file.read_text().split()} if file.exists() else set()
    return _alive(pids, "program of a task")


def _alive(pids: set[int], what: str) -> list[str]:
    end = time.monotonic() + PATIENCE
    while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < end:
        time.sleep(0.05)
    return [f"{what} {pid} lives" for pid in left]
