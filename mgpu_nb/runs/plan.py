"""What is checked of a batch of tasks before any of it starts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Literal

from ..engines import payload
from ..engines.base import Environment, Memory, Payload
from ..errors import add_note
from ..hardware.slots import Slot
from ..scheduler.job import Gang
from ..tasks import Task, derive_seed, import_path
from .batch import RecordedJob
from .fingerprint import durations
from .graph import Graph

__all__ = ["names_of", "plan", "run_folder"]


def plan(
    tasks: Sequence[Task],
    slots: tuple[Slot, ...],
    environment: Environment,
    memory: Callable[[Slot], Memory],
    *,
    batch: int,
    seed: int,
    retry_alone: bool,
    gang: bool | Literal["devices"] = False,
    kept: Collection[str] = (),
) -> list[RecordedJob]:
    """Jobs, one for each task that is not `kept`: named, seeded, pickled, with its cost if it is known or learnt.

    Raises
    ------
    ValueError, TypeError
        If there are no tasks, names twice, cycles, or more devices or memory are asked for than there are.
    Exception
        What pickling a call raised, with a note that names the task.
    """
    __tracebackhide__ = True
    names = names_of(tasks)
    Graph({name: task.after for name, task in zip(names, tasks, strict=True)})
    stated = any(task.cost is not None for task in tasks)
    jobs = []
    for index, (name, task) in enumerate(zip(names, tasks, strict=True)):
        if name in kept:
            continue
        _check_fits(name, task, slots, memory)
        own = task.seed if task.seed is not None else derive_seed(seed, index)
        job = RecordedJob(name, index, task, own, _pickled(name, task), environment, batch)
        job.retry_alone = retry_alone
        job.cost = task.cost if stated else durations(job.fingerprint)
        jobs.append(job)
    if gang:
        _check_gang(tasks, slots)
        together = Gang(jobs, apart=gang == "devices")
        for job in jobs:
            job.gang = together
        jobs[0].devices = len(jobs)  # what it stands for in the queue
    return jobs


def _check_gang(tasks: Sequence[Task], slots: tuple[Slot, ...]) -> None:
    if len(tasks) > len(slots):
        raise ValueError(f"a gang of {len(tasks)} tasks needs as many slots, the pool has {len(slots)}")
    for task in tasks:
        if task.after or task.retries or task.devices > 1:
            raise ValueError("the tasks of a gang start at once: without after, retries and devices")
    uuids = {slot.uuid for slot in slots}
    if len(tasks) > 1 and len(uuids) > 1 and any(uuid.startswith("MIG-") for uuid in uuids):
        raise ValueError(
            "a gang cannot work on several MIG instances, CUDA shows a process one: take whole GPUs"
        )


def run_folder(folder: str | os.PathLike[str] | None, name: str, below: str | Path = "runs") -> Path:
    """Absolute path of a run's folder: the one given, or a new one in `below`, named after run and time.

    Raises
    ------
    NotADirectoryError
        If it is a file.
    """
    if folder is None:
        path = Path(below) / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        stem, number = path.name, 2
        while path.exists():
            path, number = path.with_name(f"{stem}+{number}"), number + 1
    else:
        if not isinstance(folder, (str, os.PathLike)):
            raise TypeError(f"folder must be a path, got {folder!r}")
        path = Path(folder)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"folder={str(path)!r} is a file; give a folder for the run")
    return path.expanduser().absolute()


def _check_fits(name: str, task: Task, slots: tuple[Slot, ...], memory: Callable[[Slot], Memory]) -> None:
    __tracebackhide__ = True
    if isinstance(task.fn, str):
        import_path(task.fn)
    if task.devices > len(slots):
        raise ValueError(
            f"task {name!r} takes {task.devices} slots, the pool has {len(slots)}: give it more slots"
        )
    uuids = {slot.uuid for slot in slots}
    if task.devices > 1 and len(uuids) > 1 and any(uuid.startswith("MIG-") for uuid in uuids):
        raise ValueError(
            f"task {name!r} takes {task.devices} slots, and CUDA shows a process no more than one MIG instance: "
            "give the pool whole GPUs"
        )
    if task.memory is not None:
        sizes = {slot.label: memory(slot).total for slot in slots}
        if all(size is not None and size < task.memory for size in sizes.values()):
            have = ", ".join(f"{label} {size:,}" for label, size in sizes.items())
            raise ValueError(f"task {name!r} needs {task.memory:,} bytes, no device has as much ({have})")


def _pickled(name: str, task: Task) -> Payload:
    __tracebackhide__ = True
    try:
        return payload.dumps_call(task.fn, task.args, task.kwargs)
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
        stem = task.kind.rpartition(":")[2].rpartition(".")[2].strip("<>")
        names.append(task.name if task.name is not None else f"{stem}-{index}")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"two tasks are named {name!r}: names must be unique within a run")
        seen.add(name)
    return names
