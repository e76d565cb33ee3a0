"""Speed-up studies: the same work on ever more slots, measured, and predicted from the measured task times."""

from __future__ import annotations

import importlib
import statistics
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..hardware import host
from ..hardware.slots import GpuIds, resolve_slots
from ..options import NonEmpty, PositiveInt, check_arguments
from ..pool import GPUPool
from ..runs.run import Run
from ..tasks import Task, busy_time
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
    """Run the same work on each number of slots and say what it gained.

    The start of workers, their setup and a first pass over a few tasks are not part of what is measured.

    Parameters
    ----------
    work
        Tasks, or the config of a workload.
    slots
        Numbers of slots to measure.
    repeats
        Runs per number.
    gpu_ids
        Ids for the largest number of slots; smaller numbers take the first of them. By default what `GPUPool` takes.
    folder
        Keeps the folders of all runs; by default they go.
    **pool
        More for `GPUPool`: isolation, setup, env, ...

    Raises
    ------
    ValueError
        If an argument is invalid, `gpu_ids` are fewer than `slots`, or there are no tasks.
    Exception
        Of the first task that fails: a study of work that fails says nothing.
    """
    tasks = _tasks(work)
    slots, repeats, gpu_ids = check_arguments(speedup, slots=slots, repeats=repeats, gpu_ids=gpu_ids)
    counts = sorted(set(slots))
    if gpu_ids is not None and counts[-1] > len(gpu_ids):
        raise ValueError(f"slots={counts}: gpu_ids names {len(gpu_ids)}; give an id for each slot")
    if len(counts) == 1:
        warnings.warn("a study of one count has nothing to compare: give several, [1, 2] say", stacklevel=2)
    notes = ["Warm-up (start of workers, setup, a first pass over a few tasks) is not counted."]
    kinds = {slot.kind for slot in resolve_slots(gpu_ids, None if gpu_ids else max(counts))}
    if kinds == {"cpu"} and max(counts) > host.cores():
        notes.append(
            f"{max(counts)} slots share {host.cores()} cores: what tasks compute on a CPU cannot gain beyond "
            f"{host.cores()} slots, so these figures say little about GPUs."
        )
    if folder is not None:
        for n in counts:
            if any(_folder(Path(folder), n, repeat).exists() for repeat in range(repeats)):
                raise FileExistsError(
                    f"{folder} holds an earlier study, which would be resumed: give a new folder"
                )
    measured = []
    with tempfile.TemporaryDirectory(prefix="mgpu_nb-") as temporary:
        place = Path(folder) if folder is not None else Path(temporary)
        for n in counts:
            ids = None if gpu_ids is None else list(gpu_ids)[:n]
            with GPUPool(ids, None if ids else n, **pool) as executor:
                warm_up = sorted(tasks, key=lambda task: task.cost or 0.0)[: 2 * n]
                free = [
                    Task(t.fn, *t.args, **t.kwargs, seed=t.seed)
                    for t in warm_up
                    if not t.after and t.devices == 1
                ]
                with tempfile.TemporaryDirectory(prefix="mgpu_nb-") as unwanted:
                    if free:
                        executor.run(free, name="warm-up", folder=unwanted).results()
                for repeat in range(repeats):
                    run = executor.run(tasks, name="speedup", folder=_folder(place, n, repeat))
                    run.results()
                    measured.append(_measured(run, n, repeat))
    return Study(measured, notes)


def _tasks(work: Any) -> list[Task]:
    if not isinstance(work, (list, tuple)) and hasattr(type(work), "__dataclass_fields__"):
        package = importlib.import_module(type(work).__module__.rpartition(".")[0] or type(work).__module__)
        if not callable(make := getattr(package, "tasks", None)):
            raise TypeError(
                f"{type(work).__name__} is no config of a workload: {package.__name__} has no tasks()"
            )
        work = make(work)
    tasks = list(work)
    if not tasks:
        raise ValueError("no tasks: give at least one Task")
    return tasks


def _folder(place: Path, slots: int, repeat: int) -> Path:
    return place / f"slots-{slots}-repeat-{repeat}"


def _measured(run: Run, slots: int, repeat: int) -> Measurement:
    records = run.records
    end = max(record.finished or 0.0 for record in records)
    begin = min(record.queued or 0.0 for record in records)
    return Measurement(slots, repeat, end - begin, tuple(record.seconds or 0.0 for record in records))


def compare(runs: Iterable[Run | str | Path]) -> pd.DataFrame:
    """Return a table of several runs, a row each; folders are opened.

    Columns: run, tasks, ok, failed, slots (that ran something), wall (s, in which a task ran), busy (share of
    the slots' time that tasks ran), mean, longest (s of a task), peak_memory (bytes, the largest of a task).

    Raises
    ------
    ValueError
        Where there is no run, or one in which nothing ran.
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
