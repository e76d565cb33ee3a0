"""A speed-up study: what was measured, what it predicts, its table and its picture."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..tables import Html, Table, block, escape, line, table
from ..workloads.base import find_workload
from .figures import Measurement, figures_of, notes_on
from .interval import Interval
from .prediction import Predictor, makespan, serial_fraction

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["Measurement", "Study", "makespan"]

_HEAD = (
    ("slots", "n"), ("wall, s", "n"), ("", ""), ("speed-up", "n"), ("95 % interval", ""), ("efficiency", "n"),
    ("busy", "n o"), ("repeats", "n o"), ("note", ""),
)  # fmt: skip
# Wrapped, so that a narrow page has room for the figures.
_NOTE = (
    '<span class="e" style="display:inline-block;white-space:normal;min-width:6em;max-width:12em">{}</span>'
)


class Study:
    """What a speed-up study measured. Displayed as its table, with its notes below.

    The table has half of the 95 % interval behind each wall, as a share of it; `frame` has more columns.

    Parameters
    ----------
    measurements
        A run each; several of one count are its repeats.
    notes
        What the reader should know of how it was measured. What the figures themselves ask for is added: which are
        noise, super-linear, show no gain.
    gang
        Whether the tasks of a run work together as ranks, one per slot.

    Attributes
    ----------
    measurements
        Those given, in the order in which they were made.
    notes
        Those given, then those on the figures.
    """

    def __init__(
        self, measurements: Sequence[Measurement], notes: Sequence[str] = (), *, gang: bool = False
    ) -> None:
        if not measurements:
            raise ValueError("a study needs measurements")
        if wrong := [m for m in measurements if not (m.wall > 0 and math.isfinite(m.wall))]:
            raise ValueError(
                f"the wall of a measurement must be a number of seconds above 0, got {wrong[0].wall}"
            )
        self.measurements = tuple(measurements)
        self._figures = figures_of(self.measurements)
        self._on_figures = tuple(notes_on(self._figures))
        self.notes = (*notes, *self._on_figures)
        self.gang = gang

    @property
    def counts(self) -> list[int]:
        """Numbers of slots that were measured, ascending."""
        return [row.slots for row in self._figures]

    def wall(self, slots: int) -> float:
        """Seconds with so many slots, the median of the repeats.

        Raises
        ------
        ValueError
            If so many slots were not measured.
        """
        for row in self._figures:
            if row.slots == slots:
                return row.wall
        raise ValueError(
            f"slots={slots!r} was not measured, {self.counts} were; predict([{slots!r}]) estimates it"
        )

    @property
    def serial_fraction(self) -> float | None:
        """Share of the work that more slots do not speed up, by least squares of Amdahl's law; None for one count.

        Amdahl (1967): ``T(n) / T(1) = s + (1 - s) / n``. With the smallest count as the unit.
        """
        return serial_fraction(self._figures)

    def frame(self) -> pd.DataFrame:
        """Table, a row per count.

        Columns: slots, wall (s, median of the repeats), wall_lower and wall_upper (its interval), spread (s, from the
        fastest to the slowest), speed_up (against the smallest count), speed_up_lower and speed_up_upper (its
        interval, of the walls of both counts), efficiency, busy (share of the slots' time that tasks ran), overhead
        (s of a slot's time per task in which no task ran), repeats, note (``this figure is noise`` where the repeats
        differ by more than half of the wall, ``super-linear``,
        ``above linear, within the noise``, ``no gain shown`` where the interval includes 1,
        ``slower``, ``measured once``; several are separated by semicolons).

        Intervals are of 95 %, by Student's t on the logarithms of the walls, with Welch's degrees of freedom for
        speed-ups; see `mgpu_nb.studies.interval`. They are NaN for a count that was measured once.
        """
        import pandas as pd

        return pd.DataFrame(
            {
                "slots": row.slots,
                "wall": row.wall,
                "wall_lower": row.wall_interval.lower,
                "wall_upper": row.wall_interval.upper,
                "spread": row.spread,
                "speed_up": row.speed_up,
                "speed_up_lower": row.interval.lower,
                "speed_up_upper": row.interval.upper,
                "efficiency": row.efficiency,
                "busy": row.busy,
                "overhead": row.overhead,
                "repeats": len(row.walls),
                "note": row.note,
            }
            for row in self._figures
        )

    def predict(self, slots: Iterable[int]) -> pd.DataFrame:
        """Table of what other counts would take. Nothing is run.

        Columns: slots, wall (s), wall_lower, wall_upper, speed_up, speed_up_lower, speed_up_upper, efficiency.

        Lists the tasks, longest first, onto so many slots (Graham, 1969), each with its median measured time at the
        smallest count and the overhead per task that was measured there. It knows nothing of what slots share: the
        cores of one machine, the memory of one GPU, a disk. A gang cannot be listed so: its prediction is Amdahl's law
        with the `serial_fraction` that was measured.

        The interval of a speed-up is propagated from the measured ones. Of tasks: the list schedule is held against
        each larger count that was measured; the factor between them, to the farther end of the measured interval, is
        taken to grow as a power of the slots, so that 16 slots foretold from 4 have a wider interval than 8. No
        speed-up is taken to be more than linear. Of a gang: Amdahl's law fitted to the lower and to the upper ends of
        the measured speed-ups. The interval of a wall adds, in squares of logarithms, that of the wall at the smallest
        count. Intervals are NaN unless each count was measured twice and, for tasks, there are two counts.

        Raises
        ------
        TypeError, ValueError
            If a count is not a whole number of one or more, or for a gang that was measured at one count.
        """
        import pandas as pd

        base, predicted = self.counts[0], Predictor(self._figures, self.measurements, self.gang)
        rows = []
        for n in _checked(slots):
            at = predicted(n)
            rows.append(
                {
                    "slots": n,
                    "wall": at.wall,
                    "wall_lower": at.wall_interval.lower,
                    "wall_upper": at.wall_interval.upper,
                    "speed_up": at.speed_up,
                    "speed_up_lower": at.interval.lower,
                    "speed_up_upper": at.interval.upper,
                    "efficiency": at.speed_up * base / n,
                }
            )
        return pd.DataFrame(rows)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        predict: Iterable[int] = (),
        published: str | Mapping[int, float] | Mapping[str, Mapping[int, float]] | None = None,
    ) -> Axes:
        """Axes with speed-up against slots: measured, with its interval and each repeat, the ideal, Amdahl's fit.

        Parameters
        ----------
        ax
            Where to draw; a new figure by default.
        predict
            Counts to predict, drawn dashed, with their interval as a band.
        published
            Speed-ups of others to draw for reference, as crosses: the workload whose guide states them,
            ``{"whose they are": {slots: speed_up}}``, or ``{slots: speed_up}``. None are drawn by default.

        Raises
        ------
        ValueError
            If there is no such workload, or its guide states none.
        """
        from .picture import draw

        others = _checked(predict, "predict")
        ahead = self.predict(sorted({*self.counts, *others})) if others else None
        return draw(self._figures, ax, others, ahead, _stated(published))

    def _table(self) -> Table:
        rows = [
            (
                row.slots,
                _figure(row.wall),
                f"±{row.known:.{row.known < 0.01:d}%}" if row.wall_interval.known else "",
                f"{row.speed_up:.2f}",
                _ends(row.interval) if row.slots > row.base else "",
                f"{row.efficiency:.0%}",
                f"{row.busy:.0%}",
                len(row.walls),
                Html(_NOTE.format(escape(row.note))) if row.note else "",
            )
            for row in self._figures
        ]
        noted = None if any(row.note for row in self._figures) else -1  # the last column
        return Table(_HEAD[:noted], [row[:noted] for row in rows], "speed-up study")

    def _serial(self) -> list[str]:
        if (serial := self.serial_fraction) is None:
            return []
        ends = [serial_fraction(self._figures, side) for side in (1, -1)]
        known = "" if None in ends else f" (95 % interval {ends[0]:.1%} to {ends[1]:.1%})"
        return [f"Serial fraction by Amdahl's law: {serial:.1%}{known}."]

    def _lines(self) -> tuple[Sequence[str], Sequence[str]]:
        """What a reader should know of the figures, and what is said of how they came about."""
        given = self.notes[: len(self.notes) - len(self._on_figures)]
        return self._on_figures, (*self._serial(), *given)

    def __str__(self) -> str:
        first, then = self._lines()
        return "\n".join([str(self._table()), *first, *then])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        shown = self._table()
        first, then = self._lines()
        return block(
            table(shown.head, shown.rows, shown.label),
            *(line(note, most=600) for note in first),
            *(line(note, "q", most=600) for note in then),
        )


def _checked(slots: Any, name: str = "slots") -> list[int]:
    """Numbers of slots to predict."""
    if isinstance(slots, str) or not isinstance(slots, Iterable):
        raise TypeError(f"{name} must be a sequence of counts, [8, 16] say, got {slots!r}")
    counts = []
    for n in slots:
        try:
            counts.append(0 if isinstance(n, bool) else operator.index(n))
        except TypeError:
            raise TypeError(f"{name}={n!r}: give counts of one or more") from None
        if counts[-1] < 1:
            raise ValueError(f"{name}={n!r}: give counts of one or more")
    return counts


def _stated(
    published: str | Mapping[int, float] | Mapping[str, Mapping[int, float]] | None,
) -> dict[str, Mapping[int, float]]:
    """Speed-ups of others by what the picture says of them."""
    if published is None:
        return {}
    if isinstance(published, str):
        stated = find_workload(published).published
        if not stated:
            raise ValueError(f"the guide of {published} states no speed-ups")
        return {f"stated by the guide ({published})": stated}
    named: dict[str, Mapping[int, float]] = {}
    unnamed: dict[int, float] = {}
    for key, value in published.items():
        if isinstance(value, Mapping):
            named[f"stated by {key}"] = value
        else:
            unnamed[int(key)] = value
    return named | ({"published": unnamed} if unnamed else {})


def _figure(seconds: float) -> str:
    """Seconds with three digits, two decimals at least up to a hundred."""
    return f"{seconds:.0f}" if seconds >= 100 else f"{seconds:.2f}" if seconds >= 1 else f"{seconds:.3g}"


def _ends(interval: Interval) -> str:
    if not interval.known:
        return "unknown"
    return f"{interval.lower:.2f} to {interval.upper:.2f}"
