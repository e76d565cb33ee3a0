"""Speed-up studies: the same work on ever more slots, measured, and predicted from the measured task times."""

from __future__ import annotations

import statistics
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..hardware import host
from ..hardware.slots import GpuIds, resolve_slots
from ..options import NonEmpty, PositiveInt, check_arguments
from ..pool import GPUPool
from ..runs.run import Run
from ..tasks import Task, busy_time
from ..workloads.base import pool_options, workload_of
from .study import Measurement, Study

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["compare", "speedup"]


def speedup(
    work: Iterable[Task] | Any,
    slots: Annotated[Iterable[PositiveInt], NonEmpty()] = (1, 2, 4),
    *,
    repeats: PositiveInt = 3,
    gpu_ids: GpuIds | None = None,
    folder: str | Path | None = None,
    **pool: Any,
) -> Study:
    """Study of the same work on each number of slots.

    The start of workers, their setup and a first pass over a few tasks are not part of what is measured.

    Parameters
    ----------
    work
        Tasks, or the config of a workload. Of a gang each number of slots is a world size.
    slots
        Numbers of slots to measure.
    repeats
        Runs per number.
    gpu_ids
        Ids for the largest number of slots; smaller numbers take the first of them. By default what `GPUPool` takes.
    folder
        Keeps the folders of all runs; by default they go.
    **pool
        More for `GPUPool`: isolation, setup, env, ...; by default what the workload needs.

    Raises
    ------
    ValueError
        If an argument is invalid, `gpu_ids` are fewer than `slots`, or there are no tasks.
    Exception
        Of the first task that fails: a study of work that fails says nothing.
    """
    slots, repeats, gpu_ids = check_arguments(speedup, slots=slots, repeats=repeats, gpu_ids=gpu_ids)
    counts = sorted(set(slots))
    workload, make, wanted = None, None, None
    if not isinstance(work, (list, tuple)) and hasattr(type(work), "__dataclass_fields__"):
        workload = workload_of(work)
        make = workload.tasks
        options = pool_options(workload, work)
        chosen, wanted = options.pop("gpu_ids"), options.pop("slots")
        gpu_ids, pool = chosen if gpu_ids is None else gpu_ids, options | pool
    ids = None if isinstance(gpu_ids, str) else gpu_ids
    if ids is not None and counts[-1] > len(ids):
        raise ValueError(f"slots={counts}: gpu_ids names {len(ids)}; give an id for each slot")
    if len(counts) == 1:
        warnings.warn("a study of one count has nothing to compare: give several, [1, 2] say", stacklevel=2)
    notes = _notes(gpu_ids, counts[-1])
    if folder is not None:
        for n in counts:
            if any(_folder(Path(folder), n, repeat).exists() for repeat in range(repeats)):
                raise FileExistsError(
                    f"{folder} holds an earlier study, which would be resumed: give a new folder"
                )
    gang = workload is not None and workload.launch is not None
    tasks: list[Task] = []
    if gang:
        notes[0] = (
            "A gang: measured from when its first rank began to when its last one ended; the start of its processes "
            "is not counted, making the process group and reading the data are."
        )
    else:
        tasks = list(work if make is None else make(work, wanted or max(counts)))
        if not tasks:
            raise ValueError("no tasks: give at least one Task")
    measured = []
    with tempfile.TemporaryDirectory(prefix="mgpu_nb-") as temporary:
        place = Path(folder) if folder is not None else Path(temporary)
        for n in counts:
            with GPUPool(gpu_ids if ids is None else list(ids)[:n], None if ids else n, **pool) as executor:
                if not gang:
                    _warm_up(executor, tasks, n)
                for repeat in range(repeats):
                    path = _folder(place, n, repeat)
                    if workload is not None and workload.launch is not None:
                        run = workload.launch(_of_world(work, n, path), executor, path)
                    else:
                        run = executor.run(tasks, name="speedup", folder=path)
                    run.results()
                    measured.append(_measured(run, n, repeat, gang))
    return Study(measured, notes, gang=gang)


def _notes(gpu_ids: GpuIds, most: int) -> list[str]:
    notes = ["Warm-up (start of workers, setup, a first pass over a few tasks) is not counted."]
    kinds = {slot.kind for slot in resolve_slots(gpu_ids, most if gpu_ids in (None, "cpu") else None)}
    if kinds == {"cpu"} and most > host.cores():
        notes.append(
            f"{most} slots share {host.cores()} cores: what tasks compute on a CPU cannot gain beyond "
            f"{host.cores()} slots, so these figures say little about GPUs."
        )
    return notes


def _warm_up(executor: GPUPool, tasks: list[Task], slots: int) -> None:
    """Start the workers, and run the cheapest tasks once."""
    some = sorted(tasks, key=lambda task: task.cost or 0.0)[: 2 * slots]
    free = [
        Task(t.fn, args=t.args, kwargs=t.kwargs, seed=t.seed) for t in some if not t.after and t.devices == 1
    ]
    with tempfile.TemporaryDirectory(prefix="mgpu_nb-") as unwanted:
        if free:
            executor.run(free, name="warm-up", folder=unwanted).results()


def _of_world(config: Any, world: int, folder: Path) -> Any:
    """Config of a gang of so many ranks, with its files in a folder."""
    options = {"world_size": world, "gpu_ids": None, "output_dir": str(folder)}
    return replace(config, **{name: value for name, value in options.items() if hasattr(config, name)})


def _folder(place: Path, slots: int, repeat: int) -> Path:
    return place / f"slots-{slots}-repeat-{repeat}"


def _measured(run: Run, slots: int, repeat: int, gang: bool) -> Measurement:
    records = run.records
    end = max(record.finished or 0.0 for record in records)
    begin = min((record.started if gang else record.queued) or 0.0 for record in records)
    return Measurement(slots, repeat, end - begin, tuple(record.seconds or 0.0 for record in records))


def compare(runs: Iterable[Run | str | Path]) -> pd.DataFrame:
    """Table of several runs, a row each; folders are opened.

    Columns: run, tasks, ok, failed, slots (that ran something), wall (s, in which a task ran), busy (share of
    the slots' time that tasks ran), mean, longest (s of a task), peak_memory (bytes, the largest of a task).

    Raises
    ------
    ValueError
        If there is no run, or one in which nothing ran.
    """
    import pandas as pd

    rows = []
    for item in runs:
        run = item if isinstance(item, Run) else Run.open(item)
        ran = [r for r in run.records if r.started is not None and r.seconds is not None]
        if not ran:
            raise ValueError(f"run {run.name!r}: no task has run yet; wait for it, or leave it out")
        seconds = [r.seconds or 0.0 for r in ran]
        wall = busy_time(ran)
        used = len({r.slot for r in ran})
        peaks = [r.peak_memory for r in ran if r.peak_memory is not None]
        rows.append(
            {
                "run": run.name,
                "tasks": len(run.tasks),
                "ok": sum(r.ok for r in run.records),
                "failed": sum(not r.ok for r in run.records),
                "slots": used,
                "wall": wall,
                "busy": sum(seconds) / (used * wall) if wall > 0 else 1.0,
                "mean": statistics.fmean(seconds),
                "longest": max(seconds),
                "peak_memory": max(peaks, default=None),
            }
        )
    if not rows:
        raise ValueError("no runs: give at least one")
    return pd.DataFrame(rows).astype({"peak_memory": "Int64"})
