"""What other numbers of slots would take, from what was measured, with an interval."""

from __future__ import annotations

import heapq
import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .figures import Figures, Measurement
from .interval import UNKNOWN, Interval, half_width

__all__ = ["Predicted", "Predictor", "makespan", "serial_fraction"]


class Predicted(NamedTuple):
    """Seconds and speed-up of a number of slots, with their intervals."""

    wall: float
    wall_interval: Interval
    speed_up: float
    interval: Interval


class Predictor:
    """Predicts the wall of any number of slots; see `Study.predict`, which says how."""

    def __init__(self, rows: Sequence[Figures], measurements: Sequence[Measurement], gang: bool) -> None:
        self._rows = rows
        self._base = rows[0]
        self._gang = gang
        self._wall_at = self._amdahl(0) if gang else self._listed(measurements)

    def __call__(self, slots: int) -> Predicted:
        """Prediction for a number of slots."""
        first = self._base.wall
        wall = self._wall_at(slots)
        gain = first / wall
        lower, upper = self._bounds(slots, gain)
        half = half_width(self._base.walls)
        if math.isnan(lower) or math.isnan(half):
            return Predicted(wall, UNKNOWN, gain, UNKNOWN)
        # The errors of the wall at the smallest number and of the factor from there are independent: added in squares.
        slow, fast = (math.exp(math.hypot(half, math.log(end / gain))) for end in (lower, upper))
        return Predicted(wall, Interval(wall / fast, wall * slow), gain, Interval(lower, upper))

    def _bounds(self, slots: int, gain: float) -> Interval:
        """Speed-up that the measured intervals allow."""
        checks = [row for row in self._rows[1:] if row.interval.known]
        if slots == self._base.slots:
            return Interval(1.0, 1.0)
        if len(checks) < len(self._rows) - 1:
            return UNKNOWN
        if self._gang:
            first = self._base.wall
            return Interval(*sorted(first / self._amdahl(side)(slots) for side in (-1, 1)))
        if not checks:  # nothing tells how far the list schedule is off
            return UNKNOWN
        rate = max(
            abs(math.log(end * self._wall_at(row.slots) / self._base.wall)) / math.log(row.slots / row.base)
            for row in checks
            for end in row.interval
        )
        off = math.exp(rate * abs(math.log(slots / self._base.slots)))
        linear = max(1.0, slots / self._base.slots)
        return Interval(gain / off, max(gain, min(gain * off, linear)))

    def _amdahl(self, side: int) -> Callable[[int], float]:
        """Seconds by number of slots, by Amdahl's law fitted to the speed-ups or to their lower or upper ends."""
        serial, first, base = serial_fraction(self._rows, side), self._base.wall, self._base.slots
        if serial is None:
            raise ValueError(
                "a gang measured at one count has no serial fraction to predict by: measure several"
            )
        return lambda n: first * (serial + (1 - serial) * base / n)

    def _listed(self, measurements: Sequence[Measurement]) -> Callable[[int], float]:
        """Seconds by number of slots, by a list schedule of the measured tasks."""
        base = self._base.slots
        same = [m.seconds for m in measurements if m.slots == base]
        seconds = sorted((statistics.median(times) for times in zip(*same, strict=True)), reverse=True)
        # Seconds per task that make the list schedule at the smallest count as long as it was measured.
        per_task = max(0.0, (self._base.wall - makespan(seconds, base)) * base / len(seconds))
        return lambda n: makespan([s + per_task for s in seconds], n)


def serial_fraction(rows: Sequence[Figures], side: int = 0) -> float | None:
    """Share of the work that more slots do not speed up, 0 to 1; None for one number of slots.

    Parameters
    ----------
    rows
        Figures of each number of slots.
    side
        0 fits Amdahl's law to the speed-ups, -1 to the lower ends of their intervals, 1 to the upper ends.
    """
    first, *more = rows
    if not more:
        return None
    gains = [(row.interval.lower, row.speed_up, row.interval.upper)[side + 1] for row in more]
    if any(math.isnan(gain) for gain in gains):
        return None
    # In units of the smallest count, n is the factor of slots: T(n) - 1/n = s (1 - 1/n).
    pairs = [
        (1 - first.slots / row.slots, 1 / gain - first.slots / row.slots)
        for row, gain in zip(more, gains, strict=True)
    ]
    fitted = sum(x * y for x, y in pairs) / sum(x * x for x, _ in pairs)
    return min(1.0, max(0.0, fitted))


def makespan(seconds: Sequence[float], slots: int) -> float:
    """Seconds that a list schedule takes: each task, in this order, to the slot that is free first."""
    free = [0.0] * slots
    for duration in seconds:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)
