"""Intervals of 95 % for a few repeated timings.

Timings are positive and skewed to the right, so all is done on their logarithms (Hoefler and Belli, 2015), with
Student's t for the small number of repeats (Georges, Buytaert and Eeckhout, 2007). A ratio of two has Welch's (1947)
degrees of freedom. The estimate is the median, whose standard error in normal samples of three or more is at most
``sqrt(pi / 2)`` that of the mean.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Interval", "half_width", "median_interval", "ratio_interval", "repeats_needed", "student_t"]

# Two-sided quantiles of Student's t for 95 %, by degrees of freedom from 1.
_T = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
_Z = 1.959964
_MEDIAN = math.sqrt(math.pi / 2)
MOST_REPEATS = 1000


class Interval(NamedTuple):
    """Two ends; both NaN if unknown."""

    lower: float
    upper: float

    @property
    def known(self) -> bool:
        """Whether it is known."""
        return not math.isnan(self.lower)


UNKNOWN = Interval(math.nan, math.nan)


def student_t(freedom: float) -> float:
    """Two-sided quantile of Student's t for 95 %; degrees of freedom are rounded down, which widens an interval."""
    if freedom < 1:
        raise ValueError(f"freedom must be at least 1, got {freedom}")
    whole = int(freedom)
    if whole <= len(_T):
        return _T[whole - 1]
    z = _Z  # Cornish and Fisher's expansion: four digits from eleven degrees on
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term * math.pow(whole, -power) for power, term in enumerate(terms))


def half_width(walls: Sequence[float]) -> float:
    """Half of the interval of the median of positive timings, in logarithms; NaN for fewer than two."""
    if len(walls) < 2:
        return math.nan
    return student_t(len(walls) - 1) * math.sqrt(_variance(walls))


def median_interval(walls: Sequence[float]) -> Interval:
    """Interval of the median of positive timings, in their unit; unknown for fewer than two."""
    return _around(statistics.median(walls), half_width(walls))


def ratio_interval(above: Sequence[float], below: Sequence[float]) -> Interval:
    """Interval of the ratio of two medians; unknown where either has fewer than two timings."""
    if len(above) < 2 or len(below) < 2:
        return UNKNOWN
    ratio = statistics.median(above) / statistics.median(below)
    parts = [(_variance(walls), len(walls) - 1) for walls in (above, below)]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return Interval(ratio, ratio)
    freedom = variance**2 / sum(part**2 / less for part, less in parts)
    return _around(ratio, student_t(max(1.0, freedom)) * math.sqrt(variance))


def repeats_needed(walls: Sequence[float], until: float) -> int | None:
    """Repeats that make half of the interval the share `until` of the median, at this spread; None if unknown."""
    if len(walls) < 2:
        return None
    each, wanted = _variance(walls) * len(walls), math.log1p(until)
    return next(
        (n for n in range(len(walls), MOST_REPEATS) if student_t(n - 1) * math.sqrt(each / n) <= wanted),
        MOST_REPEATS,
    )


def _variance(walls: Sequence[float]) -> float:
    """Squared standard error of the median of the logarithms."""
    each = statistics.variance(map(math.log, walls))
    return each / len(walls) * (_MEDIAN**2 if len(walls) > 2 else 1.0)  # the median of two is their mean


def _around(middle: float, half: float) -> Interval:
    return UNKNOWN if math.isnan(half) else Interval(middle * math.exp(-half), middle * math.exp(half))
