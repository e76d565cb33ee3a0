"""The figures of a study: a row for each number of slots, and what a reader should know of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .interval import Interval, half_width, median_interval, ratio_interval

__all__ = ["Figures", "Measurement", "figures_of", "notes_on", "slots_text"]

NOISE = 0.5  # spread of the repeats, as a share of the wall, above which a figure says nothing
# Half of the interval, as a share, below which it does: of many repeats some are far from the rest.
KNOWN = 0.1
LINEAR = 1.05  # efficiency that rounding and the clock explain


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run of a study: seconds from the first task queued to the last ended, and seconds of each task."""

    slots: int
    repeat: int
    wall: float
    seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of one number of slots; the speed-up is over the smallest number, `base`."""

    slots: int
    base: int
    walls: tuple[float, ...]
    wall: float
    wall_interval: Interval
    speed_up: float
    interval: Interval
    busy: float
    overhead: float
    base_is_noise: bool

    @property
    def spread(self) -> float:
        """Seconds from the fastest repeat to the slowest."""
        return max(self.walls) - min(self.walls)

    @property
    def efficiency(self) -> float:
        """Speed-up per slot, of the slots that were added."""
        return self.speed_up * self.base / self.slots

    @property
    def known(self) -> float:
        """Half of the interval of the wall, as a share of it; NaN if unknown."""
        return math.expm1(half_width(self.walls))

    @property
    def varies(self) -> bool:
        """Whether the repeats differ by more than half of the wall, and are too few to know its median all the same."""
        return _vary(self.walls)

    @property
    def noise(self) -> bool:
        """Whether the speed-up says nothing, because its own repeats or those of the smallest number vary so much."""
        return self.varies or self.base_is_noise

    @property
    def above_linear(self) -> bool:
        """Whether the slots seem to give more than there is of them."""
        return self.slots > self.base and self.efficiency > LINEAR

    @property
    def super_linear(self) -> bool:
        """Whether they give more, noise considered."""
        lowest = self.interval.lower if self.interval.known else self.speed_up
        return self.above_linear and lowest * self.base / self.slots > 1

    @property
    def slower(self) -> bool:
        """Whether more slots take longer, noise considered."""
        return self.slots > self.base and (
            self.interval.upper < 1 if self.interval.known else self.speed_up < 1
        )

    @property
    def unclear(self) -> bool:
        """Whether the repeats do not show if the slots gain anything."""
        return (
            self.slots > self.base and self.interval.known and self.interval.lower <= 1 <= self.interval.upper
        )

    @property
    def note(self) -> str:
        """What its row in a table says of it; empty if there is nothing to say."""
        words = {
            "this figure is noise": self.noise,
            "super-linear": self.super_linear,
            "above linear, within the noise": self.above_linear and not self.super_linear,
            "no gain shown": self.unclear,
            "slower": self.slower,
            "measured once": len(self.walls) == 1,
        }
        return "; ".join(word for word, applies in words.items() if applies)


def figures_of(measurements: Sequence[Measurement]) -> list[Figures]:
    """Figures of each number of slots, ascending."""
    counts = sorted({m.slots for m in measurements})
    of = {n: [m for m in measurements if m.slots == n] for n in counts}
    walls = {n: tuple(m.wall for m in same) for n, same in of.items()}
    base = counts[0]
    first = statistics.median(walls[base])
    rows = []
    for n in counts:
        wall = statistics.median(walls[n])
        rows.append(
            Figures(
                slots=n,
                base=base,
                walls=walls[n],
                wall=wall,
                wall_interval=median_interval(walls[n]),
                speed_up=first / wall,
                interval=Interval(1.0, 1.0) if n == base else ratio_interval(walls[base], walls[n]),
                busy=statistics.median(sum(m.seconds) / (n * m.wall) for m in of[n]),
                overhead=statistics.median((n * m.wall - sum(m.seconds)) / len(m.seconds) for m in of[n]),
                base_is_noise=_vary(walls[base]),
            )
        )
    return rows


def notes_on(rows: Sequence[Figures]) -> list[str]:
    """What a reader should know of the figures, a line each."""
    base = rows[0].base
    notes = [
        f"{slots_text(row.slots)}: the repeats took {min(row.walls):.3g} to {max(row.walls):.3g} s, a spread of "
        f"{row.spread / row.wall:.0%} of the wall: this figure is noise"
        + (", and so is every speed-up. " if row.slots == base and len(rows) > 1 else ". ")
        + "Longer tasks, more repeats or a machine that does nothing else give one to rely on."
        for row in rows
        if row.varies
    ]
    causes = (
        f"caches (the share of each slot fits, that of {slots_text(base)} did not), warm-up (the runs on "
        f"{slots_text(base)} paid for what is compiled, loaded or tuned at first use), noise, or more threads per "
        "worker on one side"
    )
    if high := _which(rows, lambda row: row.super_linear):
        notes.append(
            f"{high}: super-linear, more than so many slots can give by themselves. What can cause it: {causes}. "
            "Find out which before you quote it."
        )
    if near := _which(rows, lambda row: row.above_linear and not row.super_linear, interval=True):
        notes.append(
            f"{near}: above linear, but noise alone explains it: this does not show a super-linear gain. If it stays "
            f"with more repeats, what can cause it: {causes}."
        )
    if unclear := _which(rows, lambda row: row.unclear, interval=True):
        notes.append(f"{unclear}: the interval includes 1, so that no gain is shown.")
    if slower := _which(rows, lambda row: row.slower):
        notes.append(f"{slower}: slower than {slots_text(base)}.")
    if once := [row.slots for row in rows if len(row.walls) == 1]:
        notes.append(
            f"Measured once on {_listed(once)}: how far the figures vary is unknown. repeats=3 or more says it."
        )
    return notes


def slots_text(count: int) -> str:
    """Number of slots in words: ``1 slot``, ``4 slots``."""
    return f"{count} slot{'' if count == 1 else 's'}"


def _vary(walls: Sequence[float]) -> bool:
    wide = max(walls) - min(walls) > NOISE * statistics.median(walls)
    return wide and half_width(walls) > math.log1p(KNOWN)


def _which(rows: Iterable[Figures], applies: Callable[[Figures], bool], *, interval: bool = False) -> str:
    """Numbers of slots with their speed-ups; empty if it applies to none."""
    return ", ".join(
        f"{slots_text(row.slots)} ({row.speed_up:.2f} times"
        + (f", {row.interval.lower:.2f} to {row.interval.upper:.2f})" if interval else ")")
        for row in rows
        if applies(row)
    )


def _listed(counts: Sequence[int]) -> str:
    *most, last = counts
    return f"{', '.join(map(str, most))} and {slots_text(last)}" if most else slots_text(last)
