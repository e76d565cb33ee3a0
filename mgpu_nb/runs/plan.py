"""What is checked of a batch of tasks before any of it starts."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..engines.base import Environment, Memory, Payload
from ..engines.shared import SharedCalls
from ..errors import add_note
from ..hardware.slots import Slot, memory_bound
from ..scheduler.job import Gang
from ..store.files import PRIVATE
from ..tasks import Record, Task, derive_seed, import_path
from .batch import RecordedJob
from .fingerprint import Digests, durations, fingerprint
from .graph import Barrier, Graph
from .retry import Origin

__all__ = ["Plan", "names_of", "plan", "run_folder", "values_asked"]


@dataclass(frozen=True)
class Plan:
    """What is to be done of a run.

    Attributes
    ----------
    jobs
        One for each task that is not kept: named, seeded, pickled, with its cost if it is known or learnt.
    after
        What each task waits for, of those that are kept too.
    graph
        The same as a graph, in which those that are kept are done.
    rounds
        Round of each task, where rounds wait for one another; else empty.
    """

    jobs: list[RecordedJob]
    graph: Graph
    after: dict[str, tuple[str, ...]]
    rounds: dict[str, int]


def plan(
    origin: Origin,
    slots: tuple[Slot, ...],
    environment: Environment,
    memory: Callable[[Slot], Memory],
    *,
    batch: int,
    expected: int | None,
    kept: Mapping[str, Record] | None = None,
    after: Mapping[str, tuple[str, ...]] | None = None,
    abroad: bool = False,
) -> Plan:
    """What is to be done of a run, checked.

    Parameters
    ----------
    origin
        What the run is made of.
    slots, environment, memory
        Those of the pool.
    batch
        Number of the batch in the pool.
    expected
        Number of its slots when all are there; None if that is not known.
    kept, after
        Of a retry the records of tasks that are not run again, and what each task waits for.
    abroad
        Whether import paths are for another interpreter, and need not be importable in this one.

    Raises
    ------
    ValueError, TypeError
        If there are no tasks, names twice, cycles, or more devices or memory are asked for than there are.
    Exception
        What pickling a call raised, with a note that names the task.
    """
    __tracebackhide__ = True
    kept, waits = kept or {}, dict(after or {})
    tasks = dict(zip(names_of(origin.tasks), origin.tasks, strict=True))
    jobs = []
    calls = SharedCalls()
    most = None if expected is None else max(expected, len(slots))  # some may be there that will leave
    if origin.gang:
        _check_gang([task for name, task in tasks.items() if name not in kept], slots, most)
    sizes = functools.cache(lambda: {slot.place: memory(slot).total for slot in slots})
    for index, (name, task) in enumerate(tasks.items()):
        if name in kept:
            continue
        if isinstance(task.fn, str) and not abroad:
            import_path(task.fn)
        _check_fits(name, task, slots, most, sizes)
        seed = task.seed if task.seed is not None else derive_seed(origin.seed, index)
        job = RecordedJob(name, index, task, seed, _pickled(name, task, calls), environment, batch)
        job.retry_alone = origin.retry_alone
        waits[name] = job.after
        jobs.append(job)
    calls.place()
    graph = Graph(waits)
    _set_fingerprints(jobs, graph, {name: record.fingerprint for name, record in kept.items()})
    _set_costs(jobs, graph, origin.tasks)
    if origin.gang:
        together = Gang(jobs, apart=origin.gang == "devices")
        for job in jobs:
            job.gang = together
        jobs[0].devices = len(jobs)  # what it stands for in the queue
    rounds = _rounds(origin.by_round, graph, waits)
    for name in kept:
        graph.done(name)
    return Plan(jobs, graph, waits, rounds)


def _rounds(
    by_round: bool | Mapping[str, int], graph: Graph, after: Mapping[str, Sequence[str]]
) -> dict[str, int]:
    if isinstance(by_round, bool):
        return graph.rounds() if by_round else {}
    Barrier.check(by_round, after)
    return dict(by_round)


def _set_fingerprints(jobs: Sequence[RecordedJob], graph: Graph, known: dict[str, str]) -> None:
    """Set the identity of each job, that of what it waits for included."""
    by_name = {job.name: job for job in jobs}
    digests = Digests()
    for name in graph.order():
        if (job := by_name.get(name)) is not None:
            job.fingerprint = known[name] = fingerprint(
                job.task, job.seed, [known[other] for other in job.after], digests
            )


def _set_costs(jobs: Sequence[RecordedJob], graph: Graph, tasks: Sequence[Task]) -> None:
    """Set the cost of each job: what its task states or, where none does, what was learnt in earlier runs.

    Where tasks wait for one another it is that of the longest chain from there on; for a task that is not known
    stands the mean of its kind, else of all that are.
    """
    stated = any(task.cost is not None for task in tasks)
    known = {job.name: job.task.cost if stated else durations(job.fingerprint) for job in jobs}
    if any(job.after for job in jobs):
        if not stated:
            for job in jobs:
                known[job.name] = known[job.name] or durations.of_kind(job.kind)
        told = [cost for cost in known.values() if cost is not None]
        usual = sum(told) / len(told) if told else 1.0
        costs = dict.fromkeys(graph.order(), 0.0)  # of what is kept nothing is left
        costs |= {name: usual if cost is None else cost for name, cost in known.items()}
        known |= graph.rest(costs)
    for job in jobs:
        job.cost = known[job.name]


def _check_gang(tasks: Sequence[Task], slots: tuple[Slot, ...], most: int | None) -> None:
    if most is not None and len(tasks) > most:
        raise ValueError(f"a gang of {len(tasks)} tasks needs as many slots, the pool has {most}")
    for task in tasks:
        if task.after or task.retries or task.devices > 1:
            raise ValueError("the tasks of a gang start at once: without after, retries and devices")
    devices = {slot.device for slot in slots}
    instances = {host for host, uuid in devices if uuid.startswith("MIG-")}  # machines that have one
    if (
        len(tasks) > 1
        and max(Counter(host for host, _ in devices if host in instances).values(), default=0) > 1
    ):
        raise ValueError(
            "a gang cannot work on several MIG instances, CUDA shows a process one: take whole GPUs"
        )


def run_folder(folder: str | os.PathLike[str] | None, name: str, below: str | Path = "runs") -> Path:
    """Absolute path of a run's folder: the one given, or a new one in `below`, named after run and time and made here.

    Raises
    ------
    NotADirectoryError
        If it is a file, or would be below one.
    OSError
        If a new one cannot be made.
    """
    if folder is None:
        path = _new_folder(Path(below), f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    else:
        if not isinstance(folder, (str, os.PathLike)):
            raise TypeError(f"folder must be a path, got {folder!r}")
        path = Path(folder)
    path = path.expanduser().absolute()
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            what = "is a file" if place == path else f"is below a file, {str(place)!r}"
            raise NotADirectoryError(f"folder={str(path)!r} {what}; give a folder for the run")
    return path


def _new_folder(below: Path, stem: str) -> Path:
    """Make a folder that nobody else has: the jobs of a SLURM array begin in one second."""
    below.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        path = below / (stem if number == 1 else f"{stem}+{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=PRIVATE)
            break
    return path


def _check_fits(
    name: str,
    task: Task,
    slots: tuple[Slot, ...],
    most: int | None,
    totals: Callable[[], Mapping[str, int | None]],
) -> None:
    """Refuse a task for which there are not enough slots, nor will be, or too little memory on those that are there."""
    __tracebackhide__ = True
    if most is not None and task.devices > most:
        raise ValueError(f"task {name!r} takes {task.devices} slots, the pool has {most}: give it more slots")
    if most is None or most > len(slots):
        return  # what is still to come may be large enough: the scheduler sees to it
    if task.devices > 1:
        if task.devices > (largest := max(Counter(slot.host for slot in slots).values())):
            raise ValueError(
                f"task {name!r} takes {task.devices} slots of one machine, the pool has {largest} on one: state fewer "
                "devices, or take larger machines"
            )
        uuids = {slot.uuid for slot in slots}
        if len(uuids) > 1 and any(uuid.startswith("MIG-") for uuid in uuids):
            raise ValueError(
                f"task {name!r} takes {task.devices} slots, and CUDA shows a process no more than one MIG instance: "
                "give the pool whole GPUs"
            )
    if task.memory is not None:
        sizes = totals()
        if all(size is not None and size < task.memory for size in sizes.values()):
            have = ", ".join(f"{label} {size:,}" for label, size in sizes.items())
            here = [slot for slot in slots if slot.host in ("", socket.gethostname())]
            bound = next(filter(None, map(memory_bound, here)), "")
            raise ValueError(
                f"task {name!r} needs {task.memory:,} bytes, no device has as much ({have}"
                f"{f': {bound}' if bound else ''}): state less memory, or run it where there is more"
            )


def values_asked(name: str, task: Task) -> tuple[str, ...]:
    """Names of the tasks whose values a task asks for, anywhere in its arguments."""
    return _pickled(name, task, SharedCalls()).asks


def _pickled(name: str, task: Task, calls: SharedCalls) -> Payload:
    __tracebackhide__ = True
    try:
        return calls.dumps_call(task.fn, task.args, task.kwargs)
    except Exception as error:
        add_note(error, f"task {name!r} cannot be sent to a worker; no task was started")
        raise


def names_of(tasks: Sequence[Task]) -> list[str]:
    """Names of the tasks: their own, or made of function and place."""
    if not tasks:
        raise ValueError("no tasks: give at least one Task")
    names = []
    for index, task in enumerate(tasks):
        if not isinstance(task, Task):
            raise TypeError(f"tasks[{index}] is a {type(task).__name__}; wrap the call: Task(fn, *args)")
        if task.name is not None:
            names.append(task.name)
        else:
            stem = task.kind.rpartition(":")[2].rpartition(".")[2].strip("<>")
            names.append(f"{stem}-{index}")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"two tasks are named {name!r}: names must be unique within a run")
        seen.add(name)
    return names
