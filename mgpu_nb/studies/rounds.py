"""Rounds of measurements: the same work on each number of slots in turn, until the figures are good enough."""

from __future__ import annotations

import math
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..pool import GPUPool
from ..views.progress import Steps
from .figures import Measurement, slots_text
from .interval import half_width, repeats_needed
from .work import Work, finish

__all__ = ["Rounds"]


@dataclass
class Rounds:
    """Measurements of work, there and back over the numbers of slots: 1, 2, 4, 4, 2, 1, 1, ...

    So a drift of the machine falls on all numbers alike and does not look like a speed-up; and a pool that stands at a
    turn serves twice. Pools of all numbers at once would hold each device several times over.

    Attributes
    ----------
    work
        What is measured.
    counts
        Numbers of slots, ascending.
    make_pool
        Function that opens the pool of a number of slots.
    least
        Repeats of each number.
    until
        Half of the interval of each wall, as a share of it, at which no further round is made; None for `least` rounds.
    limit
        Seconds after which no further round ends, once there are `least`.
    folder
        Folder of the runs.
    keep
        Whether their folders stay.
    steps
        Where the progress is shown.
    """

    work: Work
    counts: Sequence[int]
    make_pool: Callable[[int], GPUPool]
    least: int
    until: float | None
    limit: float
    folder: Path
    keep: bool
    steps: Steps
    measured: list[Measurement] = field(default_factory=list)
    _open: tuple[int, GPUPool] | None = None
    _began: float = 0.0

    def measure(self) -> list[Measurement]:
        """Measurements in the order in which they were made."""
        self._began = time.monotonic()
        try:
            while self._goes_on():
                repeat = len(self.measured) // len(self.counts)
                for n in self.counts if repeat % 2 == 0 else self.counts[::-1]:
                    self._measure(n, repeat)
        except BaseException:
            if self._open is not None:  # what still runs is of no use
                self._open[1].shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            self._close()
        self.steps.close(f"speed-up study: {len(self.measured)} runs")
        return self.measured

    def problem(self) -> str:
        """What is missing at the end; empty if the intervals are as narrow as wanted."""
        if self.until is None or self._narrow():
            return ""
        return (
            f"The limit of {self.limit:g} s came before the walls were known to ±{self.until:.0%} as wanted: they are "
            f"known to {self._known()}. A larger limit=, longer tasks or an idle machine make it narrower."
        )

    def _known(self) -> str:
        """How well each wall is known, in words."""
        return ", ".join(
            f"±{math.expm1(half_width(self._walls(n))):.0%} on {slots_text(n)}" for n in self.counts
        )

    def _goes_on(self) -> bool:
        rounds = len(self.measured) // len(self.counts)
        if rounds < self.least:
            return True
        if self.until is None or self._narrow():
            return False
        elapsed = time.monotonic() - self._began
        return elapsed * (rounds + 1) / rounds <= self.limit

    def _narrow(self) -> bool:
        """Whether each wall is known as well as wanted; False where it was measured once."""
        return self.until is not None and all(
            half_width(self._walls(n)) <= math.log1p(self.until) for n in self.counts
        )

    def _walls(self, count: int) -> list[float]:
        return [m.wall for m in self.measured if m.slots == count]

    def _measure(self, count: int, repeat: int) -> None:
        pool = self._pool(count, lambda _: self._show(count, repeat, 0.0, "warm-up, "))
        self._show(count, repeat, 0.0)
        folder = self.folder / f"slots-{count}-repeat-{repeat}"
        run = self.work.start(pool, count, folder)
        finish(run, lambda share: self._show(count, repeat, share))
        records = run.records
        end = max(record.finished or 0.0 for record in records)
        begin = min((record.started if self.work.gang else record.queued) or 0.0 for record in records)
        seconds = tuple(record.seconds or 0.0 for record in records)
        self.measured.append(Measurement(count, repeat, end - begin, seconds))
        if not self.keep:
            shutil.rmtree(folder, ignore_errors=True)

    def _pool(self, count: int, beat: Callable[[float], None]) -> GPUPool:
        """Warm pool of a number of slots; that of another number is closed."""
        if self._open is None or self._open[0] != count:
            beat(0.0)
            self._close()
            self._open = count, self.make_pool(count)
            self.work.warm_up(self._open[1], beat)
        return self._open[1]

    def _close(self) -> None:
        if self._open is not None:
            _, pool = self._open
            self._open = None
            pool.shutdown()

    def _show(self, count: int, repeat: int, share: float, doing: str = "") -> None:
        """Progress: each run counts as long as it is known, or expected, to take."""
        known = {n: statistics.median(walls) for n in self.counts if (walls := self._walls(n))}
        unit = statistics.fmean(n * wall for n, wall in known.items()) if known else 1.0
        each = {n: known.get(n, unit / n) for n in self.counts}
        wanted, text = self.least, f"{doing}repeat {repeat + 1}, {slots_text(count)}"
        if self.until is not None:
            needed = [repeats_needed(self._walls(n), self.until) for n in self.counts]
            wanted = max(wanted, repeat + 1, *(n or 0 for n in needed))
            if None not in needed:
                worst = max(half_width(self._walls(n)) for n in self.counts)
                text = f"{text}; known to ±{math.expm1(worst):.0%}, wanted ±{self.until:.0%}"
        done = sum(each[m.slots] for m in self.measured) + share * each[count]
        total = sum(each.values()) * wanted
        elapsed = time.monotonic() - self._began
        left = elapsed * (total - done) / done if done else None
        if left is not None and wanted > self.least:
            left = min(left, max(0.0, self.limit - elapsed))
            total = done * (elapsed + left) / elapsed if elapsed else total
        self.steps.update(done / total, text, left)
