"""Speed-up studies: the same work on ever more slots, measured, and predicted from the measured task times."""

from __future__ import annotations

import statistics
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..hardware import host
from ..hardware.slots import GpuIds, Slot
from ..options import NonEmpty, PositiveFloat, PositiveInt, Seconds, check_arguments
from ..pool import GPUPool
from ..runs.run import Run
from ..tasks import Task, busy_time
from ..views.progress import steps
from .figures import slots_text
from .rounds import Rounds
from .study import Study
from .work import Work, calls, is_config

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["compare", "speedup"]

Counts = Annotated[Iterable[PositiveInt], NonEmpty()]
COUNTS = (1, 2, 4)
REPEATS, UNTIL, LIMIT = 3, 0.05, 120.0


def speedup(
    work: Callable[..., Any] | str | Iterable[Task] | Any,
    inputs: Iterable[Any] | None = None,
    slots: Counts | None = None,
    *,
    repeats: PositiveInt | None = None,
    until: PositiveFloat | None = None,
    limit: Seconds | None = None,
    gpu_ids: GpuIds | None = None,
    folder: str | Path | None = None,
    progress: bool | None = None,
    **pool: Any,
) -> Study:
    """Study of the same work on each number of slots: ``speedup(fn, inputs)``, ``speedup(tasks)``, ``speedup(config)``.

    Nothing but the number of slots differs: every worker has the same number of threads. The numbers are measured in
    turn, there and back (1, 2, 4, 4, 2, 1, ...), so that a drift of the machine does not look like a speed-up. For
    that a pool is opened anew at nearly each turn; its start, the setup of its workers and a first pass over a few
    tasks cost time and are not part of what is measured. Pools for all numbers at once would hold each device, and a
    model in its memory, several times over.

    Parameters
    ----------
    work
        A function, called with each of `inputs`; tasks; or the config of a workload. Of a gang each number of slots is
        a world size.
    inputs
        Arguments of a function: one item for each call, which gets it as its only argument, as with `GPUPool.map`; a
        tuple is one argument, too. Without a function this is the place of `slots`: ``speedup(tasks, [1, 2])``.
    slots
        Numbers of slots to measure; by default 1, 2 and 4, or of `gpu_ids` one, two, four, ... and all.
    repeats
        Runs per number. Alone: exactly so many. With `until` or `limit`: at least so many, 3 by default.
    until
        Precision to reach: half of the 95 % interval of each wall, as a share of it (Student's t on the logarithms,
        see `mgpu_nb.studies.interval`). 0.05 by default, unless `repeats` is given alone.
    limit
        Seconds for the measurement, all in all: beyond the least number of repeats no round of them begins that would
        end later. 120 by default.
    gpu_ids
        Ids for the largest number of slots; smaller numbers take the first of them. By default what `GPUPool` takes.
    folder
        Keeps the folders of all runs; by default they go.
    progress
        Whether to show the progress; by default in the main thread, in a notebook or if stderr is a terminal.
    **pool
        More for `GPUPool`: isolation, setup, env, ...; by default what the workload needs. ``threads`` is by default
        the cores divided by the largest number of slots, for all numbers; the notes say how many that is.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, a ``cluster`` is given, `gpu_ids` are fewer than `slots`, there are no tasks, or a
        function has no inputs.
    FileExistsError
        If `folder` holds an earlier study.
    Exception
        Of the first task that fails: a study of work that fails says nothing.

    Examples
    --------
    >>> study = speedup(abs, range(8), slots=[1, 2], repeats=3)
    >>> study.counts
    [1, 2]
    """
    function = work if callable(work) or isinstance(work, str) else None
    if function is None and inputs is not None:
        if slots is not None:
            raise TypeError(
                "inputs go with a function, speedup(fn, inputs, slots=...); tasks have arguments already"
            )
        inputs, slots = None, inputs
    slots, repeats, until, limit, gpu_ids = check_arguments(
        speedup, slots=slots, repeats=repeats, until=until, limit=limit, gpu_ids=gpu_ids
    )
    if pool.get("cluster") is not None:
        raise ValueError(
            "speedup opens a pool for each number of slots, and a cluster gives slots by the node: leave cluster out, "
            "or run the work in pools of your own and compare(runs) them"
        )
    if repeats is None or limit is not None:
        until = UNTIL if until is None else until
    gpu_ids = getattr(work, "gpu_ids", None) if gpu_ids is None and is_config(work) else gpu_ids
    counts = _counts(slots, gpu_ids)
    made = _work(work, counts[-1]) if function is None else Work(calls(function, inputs))
    if len(counts) == 1:
        warnings.warn("a study of one count has nothing to compare: give several, [1, 2] say", stacklevel=2)
    if folder is not None and any(any(Path(folder).glob(f"slots-{n}-repeat-*")) for n in counts):
        raise FileExistsError(f"{folder} holds an earlier study, which would be resumed: give a new folder")
    options = {"threads": max(1, host.cores() // counts[-1])} | made.options | pool
    make_pool, widest = _pools(gpu_ids, counts[-1], options)
    with (
        tempfile.TemporaryDirectory(prefix="mgpu_nb-") as temporary,
        steps("speed-up study", progress) as shown,
    ):
        rounds = Rounds(
            made,
            counts,
            make_pool,
            least=repeats or REPEATS,
            until=until,
            limit=limit or LIMIT,
            folder=Path(temporary if folder is None else folder),
            keep=folder is not None,
            steps=shown,
        )
        try:
            measured = rounds.measure()
        except KeyboardInterrupt as error:
            if rounds.measured:
                error.add_note(f"Measured so far:\n{Study(rounds.measured)}")
            raise
    notes = [_GANG if made.gang else _WARM, *on_slots(widest, "threads" in pool), rounds.problem()]
    return Study(measured, [note for note in notes if note], gang=made.gang is not None)


_WARM = "Warm-up (start of workers, setup, a first pass over a few tasks) is not counted."
_GANG = (
    "A gang: measured from when its first rank began to when its last one ended; the start of its processes "
    "is not counted, making the process group and reading the data are."
)


def _work(work: Any, most: int) -> Work:
    """Work of a config or of tasks."""
    if is_config(work):
        return Work.of_config(work, most)
    if isinstance(work, Task) or not isinstance(work, Iterable):
        raise TypeError(f"give a function and its inputs, a list of tasks, or a config, got {work!r}")
    tasks = tuple(work)
    if not tasks:
        raise ValueError("no tasks: give at least one Task")
    return Work(tasks)


def _counts(slots: Iterable[int] | None, gpu_ids: Any) -> list[int]:
    """Numbers of slots, ascending; by default 1, 2 and 4, or powers of two up to the number of ids, and that."""
    ids = None if gpu_ids is None or isinstance(gpu_ids, str) else list(gpu_ids)
    if slots is None:
        slots = COUNTS if ids is None else [*(2**n for n in range(len(ids).bit_length())), len(ids)]
    counts = sorted(set(slots))
    if ids is not None and counts[-1] > len(ids):
        raise ValueError(f"slots={counts}: gpu_ids names {len(ids)}; give an id for each slot")
    return counts


def _pools(
    gpu_ids: Any, most: int, options: dict[str, Any]
) -> tuple[Callable[[int], GPUPool], tuple[Slot, ...]]:
    """Function that opens a pool of the first so many slots of the largest, and the slots of that.

    The largest is opened here once, so that what cannot be is said before anything is measured, and so that devices
    that are picked (``pick="free"``) are the same ones for each number of slots.
    """
    ids = None if gpu_ids is None or isinstance(gpu_ids, str) else list(gpu_ids)[:most]
    options = {"share": True, **options}  # the pool that a user has stays open meanwhile
    with GPUPool(gpu_ids if ids is None else ids, None if ids else most, **options) as largest:
        widest = largest.slots
    if ids is None and options.get("pick", "first") != "first" and all(s.kind == "cuda" for s in widest):
        ids, options = [slot.uuid for slot in widest], options | {"pick": "first"}
    return lambda n: GPUPool(gpu_ids if ids is None else ids[:n], None if ids else n, **options), widest


def on_slots(slots: Sequence[Slot], chosen: bool) -> list[str]:
    """What a reader should know of the slots: what they share, how they differ, and their threads."""
    most = len(slots)
    threads, cores = slots[0].threads, host.cores()
    notes = []
    if all(slot.kind == "cpu" for slot in slots):
        if most > cores:
            shared = f"{cores} core{'' if cores == 1 else 's'}"
            notes.append(
                f"{slots_text(most)} share {shared}: what tasks compute on a CPU cannot gain beyond "
                f"{slots_text(cores)}, so these figures say little about GPUs."
            )
        elif most * threads > cores:
            notes.append(
                f"{slots_text(most)} of {threads} threads share {cores} cores: the threads compete from "
                f"{slots_text(cores // threads + 1)} on; without threads= no number of slots has more than there are."
            )
    elif (devices := len({slot.device for slot in slots})) < most:
        notes.append(
            f"{slots_text(most)} share {devices} GPU{'' if devices == 1 else 's'}: work that keeps a GPU busy cannot "
            f"gain beyond {slots_text(devices)}."
        )
    if len(kinds := sorted({slot.name for slot in slots if slot.kind == "cuda"})) > 1:
        notes.append(
            f"The slots are on unlike GPUs ({', '.join(kinds)}): a speed-up is in units of the first."
        )
    each = f"{threads} CPU thread{'' if threads == 1 else 's'}"
    how = "as threads= says" if chosen else f"the cores divided by {most}; threads= sets another number"
    return [*notes, f"Each worker has {each} on every number of slots ({how})."]


def compare(runs: Iterable[Run | str | Path]) -> pd.DataFrame:
    """Table of several runs, a row each; folders are opened.

    Columns: run, tasks, ok, failed, cancelled, skipped (because a task that it waits for failed), slots (that ran
    something), wall (s, in which a task ran), busy (share of the slots' time that tasks ran), mean, longest (s of a
    task), peak_memory (bytes, the largest of a task). It is displayed with units, memory in GiB.

    Raises
    ------
    ValueError
        If there is no run, or one in which nothing ran.
    """
    import pandas as pd

    from .comparison import Comparison

    rows = []
    for item in runs:
        run = item if isinstance(item, Run) else Run.open(item)
        records = run.records
        ran = [r for r in records if r.started is not None and r.seconds is not None]
        if not ran:
            raise ValueError(f"run {run.name!r}: no task has run yet; wait for it, or leave it out")
        seconds = [r.seconds or 0.0 for r in ran]
        wall = busy_time(ran)
        used = len({r.slot for r in ran})
        statuses = Counter("failed" if r.failed else r.status for r in records)
        rows.append(
            {
                "run": run.name,
                "tasks": len(run.tasks),
                **{status: statuses[status] for status in ("ok", "failed", "cancelled", "skipped")},
                "slots": used,
                "wall": wall,
                "busy": sum(seconds) / (used * wall) if wall > 0 else 1.0,
                "mean": statistics.fmean(seconds),
                "longest": max(seconds),
                "peak_memory": max((r.peak_memory for r in ran if r.peak_memory is not None), default=None),
            }
        )
    if not rows:
        raise ValueError("no runs: give at least one")
    return Comparison(pd.DataFrame(rows).astype({"peak_memory": "Int64"}))
