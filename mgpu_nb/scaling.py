"""Speed-up studies: the same work on ever more slots, measured, and predicted from the measured task times."""

from __future__ import annotations

import heapq
import importlib
import statistics
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import host
from .device import resolve_slots
from .pool import GPUPool
from .run import Run
from .tasks import Task, covered

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["PUBLISHED", "Measurement", "Study", "compare", "speedup"]

PUBLISHED = {
    "protein": {3: 3.0},
    "tracin": {2: 1.8, 4: 3.3, 8: 5.5},
    "training": {2: 1.8, 4: 3.5, 8: 6.5},
    "alignment": {2: 1.8, 4: 3.5, 8: 6.75},
}
"""Speed-ups by number of GPUs that the original guides of the workloads state, where they state any."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run of a study: seconds from the first task queued to the last ended, and seconds of each task."""

    slots: int
    repeat: int
    wall: float
    seconds: tuple[float, ...]


class Study:
    """What a speed-up study measured. Displayed as its table.

    Parameters
    ----------
    measurements
        A run each; several of one count are its repeats.
    notes
        What the reader should know.
    """

    def __init__(self, measurements: Sequence[Measurement], notes: Sequence[str] = ()) -> None:
        if not measurements:
            raise ValueError("a study needs measurements")
        self.measurements = tuple(measurements)
        self.notes = tuple(notes)

    @property
    def counts(self) -> list[int]:
        """Numbers of slots that were measured, ascending."""
        return sorted({m.slots for m in self.measurements})

    def wall(self, slots: int) -> float:
        """Seconds with so many slots, the median of the repeats."""
        return statistics.median(m.wall for m in self.measurements if m.slots == slots)

    @property
    def serial_fraction(self) -> float | None:
        """Share of the work that more slots do not speed up, by least squares of Amdahl's law; None for one count.

        Amdahl (1967): ``T(n) / T(1) = s + (1 - s) / n``. With the smallest count as the unit.
        """
        first, *more = self.counts
        if not more:
            return None
        # In units of the smallest count, n is the factor of slots: T(n) - 1/n = s (1 - 1/n).
        pairs = [(1 - first / n, self.wall(n) / self.wall(first) - first / n) for n in more]
        fitted = sum(x * y for x, y in pairs) / sum(x * x for x, _ in pairs)
        return min(1.0, max(0.0, fitted))

    def frame(self) -> pd.DataFrame:
        """Return a table, a row per count.

        Columns: slots, wall (s, median of the repeats), spread (s, from the fastest to the slowest), speed_up and
        efficiency (against the smallest count), busy (share of the slots' time that tasks ran), overhead (s of a
        slot's time per task in which no task ran), repeats.
        """
        import pandas as pd

        base = self.counts[0]
        rows = []
        for n in self.counts:
            same = [m for m in self.measurements if m.slots == n]
            walls = [m.wall for m in same]
            busy = [sum(m.seconds) / (n * m.wall) for m in same]
            idle = [(n * m.wall - sum(m.seconds)) / len(m.seconds) for m in same]
            gain = self.wall(base) / self.wall(n)
            rows.append(
                {
                    "slots": n,
                    "wall": self.wall(n),
                    "spread": max(walls) - min(walls),
                    "speed_up": gain,
                    "efficiency": gain * base / n,
                    "busy": statistics.median(busy),
                    "overhead": statistics.median(idle),
                    "repeats": len(same),
                }
            )
        return pd.DataFrame(rows)

    def predict(self, slots: Iterable[int]) -> pd.DataFrame:
        """Return a table of what other counts would take: slots, wall (s), speed_up, efficiency. Nothing is run.

        Lists the tasks, longest first, onto so many slots (Graham, 1969), each with its median measured time at the
        smallest count and the overhead per task that was measured there. It knows nothing of what slots share: the
        cores of one machine, the memory of one GPU, a disk.

        Raises
        ------
        ValueError
            Where a count is below one.
        """
        import pandas as pd

        base = self.counts[0]
        same = [m.seconds for m in self.measurements if m.slots == base]
        seconds = sorted((statistics.median(times) for times in zip(*same, strict=True)), reverse=True)
        per_task = self._overhead(base, seconds)
        rows = []
        for n in slots:
            if n < 1:
                raise ValueError(f"slots={n!r}: give counts of one or more")
            wall = makespan([s + per_task for s in seconds], n)
            gain = self.wall(base) / wall
            rows.append({"slots": n, "wall": wall, "speed_up": gain, "efficiency": gain * base / n})
        return pd.DataFrame(rows)

    def _overhead(self, base: int, seconds: list[float]) -> float:
        """Seconds per task that make the list schedule at the smallest count as long as it was measured."""
        missing = self.wall(base) - makespan(seconds, base)
        return max(0.0, missing * base / len(seconds))

    def plot(
        self, ax: Axes | None = None, *, predict: Iterable[int] = (), published: str | None = None
    ) -> Axes:
        """Draw speed-up against slots: measured with its spread, the ideal, Amdahl's fit; returns the axes.

        Parameters
        ----------
        ax
            Where to draw; a new figure by default.
        predict
            Counts to predict, drawn dashed.
        published
            A workload whose guide states speed-ups (`PUBLISHED`), drawn for reference.

        Raises
        ------
        ValueError
            Where that workload has no published figures.
        """
        from .views.scaling import scaling

        return scaling(self, ax, list(predict), published)

    def __repr__(self) -> str:
        lines = [self.frame().round(3).to_string(index=False)]
        if self.serial_fraction is not None:
            lines.append(f"serial fraction by Amdahl's law: {self.serial_fraction:.1%}")
        return "\n".join([*lines, *self.notes])

    def _repr_html_(self) -> str:
        from .views.scaling import study_html

        return study_html(self)


def makespan(seconds: Sequence[float], slots: int) -> float:
    """Return the seconds that a list schedule takes: each task, in this order, to the slot that is free first."""
    free = [0.0] * slots
    for duration in seconds:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


def speedup(
    work: Iterable[Task] | Any,
    slots: Iterable[int] = (1, 2, 4),
    *,
    repeats: int = 3,
    gpu_ids: Sequence[int | str] | None = None,
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
        Where counts are missing, below one or more than `gpu_ids`, or there are no tasks.
    Exception
        Of the first task that fails: a study of work that fails says nothing.
    """
    tasks = _tasks(work)
    counts = _counts(slots, gpu_ids)
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise ValueError(f"repeats={repeats!r}: give a whole number, one or more")
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


def _counts(slots: Iterable[int], gpu_ids: Sequence[int | str] | None) -> list[int]:
    if not isinstance(slots, Iterable):
        raise TypeError(f"slots={slots!r}: give the numbers of slots to measure, [1, 2] say")
    if isinstance(gpu_ids, (str, int)):
        raise TypeError(f"gpu_ids={gpu_ids!r}: give a list of ids, one for each slot")
    counts = list(dict.fromkeys(slots))
    for count in counts:
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"slots={counts!r}: give whole numbers, one or more each")
        if gpu_ids is not None and count > len(gpu_ids):
            raise ValueError(f"slots={counts!r}: gpu_ids names {len(gpu_ids)}; give an id for each slot")
    if not counts:
        raise ValueError("slots is empty: give the numbers of slots to measure, [1, 2] say")
    if len(counts) == 1:
        warnings.warn("a study of one count has nothing to compare: give several, [1, 2] say", stacklevel=3)
    return sorted(counts)


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
        wall = covered(ran)
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
