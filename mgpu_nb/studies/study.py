"""A speed-up study: what was measured, what it predicts, its table and its picture."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..views.markup import block, line, table
from ..views.palette import COLOURS, NEUTRAL
from ..workloads.base import find_workload

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["Measurement", "Study", "makespan"]


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
    gang
        Whether the tasks of a run work together as ranks, one per slot.
    """

    def __init__(
        self, measurements: Sequence[Measurement], notes: Sequence[str] = (), *, gang: bool = False
    ) -> None:
        if not measurements:
            raise ValueError("a study needs measurements")
        self.measurements = tuple(measurements)
        self.notes = tuple(notes)
        self.gang = gang

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
        """Table, a row per count.

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
        """Table of what other counts would take: slots, wall (s), speed_up, efficiency. Nothing is run.

        Lists the tasks, longest first, onto so many slots (Graham, 1969), each with its median measured time at the
        smallest count and the overhead per task that was measured there. It knows nothing of what slots share: the
        cores of one machine, the memory of one GPU, a disk. A gang cannot be listed so: its prediction is Amdahl's law
        with the `serial_fraction` that was measured.

        Raises
        ------
        ValueError
            If a count is below one, or for a gang that was measured at one count.
        """
        import pandas as pd

        base = self.counts[0]
        wall_at = self._amdahl() if self.gang else self._listed()
        rows = []
        for n in slots:
            if n < 1:
                raise ValueError(f"slots={n!r}: give counts of one or more")
            wall = wall_at(n)
            gain = self.wall(base) / wall
            rows.append({"slots": n, "wall": wall, "speed_up": gain, "efficiency": gain * base / n})
        return pd.DataFrame(rows)

    def _amdahl(self) -> Callable[[int], float]:
        """Seconds by number of slots, by Amdahl's law."""
        base, serial = self.counts[0], self.serial_fraction
        if serial is None:
            raise ValueError(
                "a gang measured at one count has no serial fraction to predict by: measure several"
            )
        return lambda n: self.wall(base) * (serial + (1 - serial) * base / n)

    def _listed(self) -> Callable[[int], float]:
        """Seconds by number of slots, by a list schedule of the measured tasks."""
        base = self.counts[0]
        same = [m.seconds for m in self.measurements if m.slots == base]
        seconds = sorted((statistics.median(times) for times in zip(*same, strict=True)), reverse=True)
        per_task = self._overhead(base, seconds)
        return lambda n: makespan([s + per_task for s in seconds], n)

    def _overhead(self, base: int, seconds: list[float]) -> float:
        """Seconds per task that make the list schedule at the smallest count as long as it was measured."""
        missing = self.wall(base) - makespan(seconds, base)
        return max(0.0, missing * base / len(seconds))

    def plot(
        self,
        ax: Axes | None = None,
        *,
        predict: Iterable[int] = (),
        published: str | Mapping[int, float] | None = None,
    ) -> Axes:
        """Draw speed-up against slots: measured with its spread, the ideal, Amdahl's fit; returns the axes.

        Parameters
        ----------
        ax
            Where to draw; a new figure by default.
        predict
            Counts to predict, drawn dashed.
        published
            Speed-ups to draw for reference, by number of slots, or the workload whose guide states them.

        Raises
        ------
        ValueError
            If there is no such workload, or its guide states none.
        """
        if not isinstance(published, str):
            return _draw(self, ax, list(predict), published or {}, "published")
        stated = find_workload(published).published
        if not stated:
            raise ValueError(f"the guide of {published} states no speed-ups")
        return _draw(self, ax, list(predict), stated, f"stated by the guide ({published})")

    def __repr__(self) -> str:
        lines = [self.frame().round(3).to_string(index=False)]
        if self.serial_fraction is not None:
            lines.append(f"serial fraction by Amdahl's law: {self.serial_fraction:.1%}")
        return "\n".join([*lines, *self.notes])

    def _repr_html_(self) -> str:
        return _html(self)


def makespan(seconds: Sequence[float], slots: int) -> float:
    """Seconds that a list schedule takes: each task, in this order, to the slot that is free first."""
    free = [0.0] * slots
    for duration in seconds:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


def _draw(
    study: Study, ax: Axes | None, predict: list[int], published: Mapping[int, float], label: str
) -> Axes:
    import matplotlib.pyplot as plt
    import numpy as np

    if ax is None:
        _, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    frame = study.frame()
    base = study.counts[0]
    ahead = study.predict([study.counts[-1], *sorted(predict)]) if predict else None
    top = max([*study.counts, *predict, *published])
    line = np.array([base, top])
    ax.plot(line, line / base, color=NEUTRAL, lw=1, label="ideal")
    if (serial := study.serial_fraction) is not None:
        n = np.linspace(base, top, 100) / base
        ax.plot(
            n * base,
            1 / (serial + (1 - serial) / n),
            color=COLOURS[4],
            lw=1,
            label=f"Amdahl, {serial:.1%} serial",
        )
    walls = {n: [m.wall for m in study.measurements if m.slots == n] for n in study.counts}
    gains = frame["speed_up"].to_numpy()
    first = study.wall(base)
    low = gains - np.array([first / max(walls[n]) for n in study.counts])
    high = np.array([first / min(walls[n]) for n in study.counts]) - gains
    ax.errorbar(
        frame["slots"],
        gains,
        np.maximum(0, [low, high]),
        fmt="o-",
        color=COLOURS[1],
        capsize=3,
        label="measured",
    )
    if ahead is not None:
        ax.plot(ahead["slots"], ahead["speed_up"], "s--", color=COLOURS[2], mfc="white", label="predicted")
    if published:
        ax.plot([*published], [*published.values()], "x", color=COLOURS[5], label=label)
    ax.set_xlabel("slots")
    ax.set_ylabel(f"speed-up over {base} slot{'s' if base > 1 else ''}")
    ticks = sorted({*study.counts, *predict})
    ax.set_xticks(ticks, [str(n) for n in ticks])
    ax.set_ylim(bottom=0)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    return ax


def _html(study: Study) -> str:
    head = [
        (name, "n")
        for name in ("slots", "wall, s", "spread, s", "speed-up", "efficiency", "busy", "overhead, s")
    ]
    forms = {
        "slots": "{}",
        "wall": "{:.2f}",
        "spread": "{:.2f}",
        "speed_up": "{:.2f}",
        "efficiency": "{:.0%}",
    }
    forms |= {"busy": "{:.0%}", "overhead": "{:.4f}"}
    rows = [
        [form.format(row[name]) for name, form in forms.items()] for row in study.frame().to_dict("records")
    ]
    notes = list(study.notes)
    if study.serial_fraction is not None:
        notes.insert(0, f"Serial fraction by Amdahl's law: {study.serial_fraction:.1%}.")
    return block(table(head, rows, "speed-up study"), *(line(note, "q") for note in notes))
