"""Estimates with intervals of 95 %, by the bootstrap (Efron, 1979): 1,000 resamples of the molecules, percentiles.

Resampled are molecules, never atoms or force calls, because what is within one molecule belongs together. A sample in
which all molecules came out the same would resample to an interval of no width, so a fraction is resampled from the
molecules and four more, two hits and two misses (Agresti and Coull, 1998), and a difference of fractions from the pairs
and two more, one each way (Agresti and Min, 2005); the estimate itself is of the molecules alone. Of fewer than six
values no interval of a mean or a median is given: that from the least to the greatest covers the median in less than
95 % of samples, and resamples go no further.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "NOTHING",
    "RESAMPLES",
    "Estimate",
    "change",
    "difference",
    "distinct",
    "fraction",
    "mean",
    "median",
    "share",
    "share_difference",
]

Floats = NDArray[np.float64]

RESAMPLES = 1000
FEWEST = 6  # values of an interval: 1 - 2 ** (1 - n) is above .95 from here on
_ENDS = (2.5, 97.5)
_BLOCK = 1 << 21  # numbers that are resampled at a time


class Estimate(NamedTuple):
    """A figure of a set of molecules.

    Attributes
    ----------
    value
        The estimate, None if there is nothing to estimate it from.
    low, high
        Ends of its interval of 95 %; None if unknown.
    n
        Number of molecules, or of pairs, that it is of.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int


NOTHING = Estimate(None, None, None, 0)


def fraction(hits: ArrayLike, seed: int = 0) -> Estimate:
    """Share of hits among zeros and ones, shape [n]."""
    values = np.asarray(hits, dtype=bool)
    n = len(values)
    if not n:
        return NOTHING
    # A resample of zeros and ones is a draw of the binomial distribution.
    more, hit = n + 4, int(values.sum())
    drawn = np.random.default_rng(seed).binomial(more, (hit + 2) / more, RESAMPLES) / more
    return _estimate(hit / n, drawn, n)


def mean(values: ArrayLike, seed: int = 0) -> Estimate:
    """Mean of values, shape [n]; those that are not finite are left out."""
    return _of(_finite(values), _mean, seed)


def median(values: ArrayLike, seed: int = 0) -> Estimate:
    """Median of values, shape [n]; those that are not finite are left out."""
    return _of(_finite(values), lambda some: _medians(some)[0], seed)


def share(part: ArrayLike, whole: ArrayLike, seed: int = 0) -> Estimate:
    """Sum of the one over the sum of the other, shape [n] each: stable atoms among atoms, failed calls among calls.

    Where all is 0, or all is 1, the interval is that of a fraction of n.
    """
    pairs = _finite(part, whole)
    if not pairs[:, 1].any():
        return NOTHING
    for all_alike in (0, pairs[:, 1]):
        if (pairs[:, 0] == all_alike).all():
            return fraction(np.full(len(pairs), bool(np.any(all_alike))), seed)
    return _of(pairs, _quotient, seed)


def share_difference(one: ArrayLike, other: ArrayLike, whole: ArrayLike, seed: int = 0) -> Estimate:
    """Difference of two such shares of the same whole, shape [n] each, by pairs."""
    pairs = _finite(np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64), whole)
    if not pairs[:, 1].any():
        return NOTHING
    if not pairs[:, 0].any():
        return difference(pairs[:, 0], pairs[:, 0], "fraction", seed)
    return _of(pairs, _quotient, seed)


def difference(
    one: ArrayLike, other: ArrayLike, of: Literal["fraction", "mean", "median"], seed: int = 0
) -> Estimate:
    """How much higher the first set is than the second, whose values at the same place belong together.

    Parameters
    ----------
    one, other
        Values of the two sets, shape [n] each; a pair of which one is not finite is left out.
    of
        ``"fraction"`` or ``"mean"``: mean of the differences. ``"median"``: difference of the medians.
    seed
        Seed of the resamples.
    """
    pairs = _finite(one, other)
    if of == "median":
        return _of(pairs, lambda some: np.subtract(*_medians(some)), seed)
    apart = pairs[:, :1] - pairs[:, 1:]
    if of == "mean" or len(apart) < FEWEST:
        return _of(apart, _mean, seed)
    return _estimate(
        float(apart.mean()), _resample(np.vstack([apart, [[1.0], [-1.0]]]), _mean, seed), len(apart)
    )


def change(one: ArrayLike, other: ArrayLike, seed: int = 0) -> Estimate:
    """Median of the first set over that of the second, less one, of pairs: -0.25 if it is a quarter lower."""
    pairs = _finite(one, other)
    if not len(pairs) or not np.median(pairs[:, 1]):
        return NOTHING
    return _of(pairs, lambda some: np.divide(*_medians(some)) - 1, seed)


def distinct(kinds: Sequence[str]) -> Estimate:
    """Share of different ones among so many.

    A resample with replacement repeats what was drawn once, and would find too few. The interval is by the jackknife,
    which leaves out one at a time, and which on average is not too narrow (Efron and Stein, 1981).
    """
    n = len(kinds)
    if not n:
        return NOTHING
    counts = np.unique(np.asarray(kinds), return_counts=True)[1]
    value = len(counts) / n
    if n < FEWEST:
        return Estimate(value, None, None, n)
    # Their number changes where the one left out is alone of its kind. Four more, as for a fraction.
    alone = (int((counts == 1).sum()) + 2) / (n + 4)
    half = 1.96 * math.sqrt(alone * (1 - alone) / (n + 4))
    return Estimate(value, max(1 / n, value - half), min(1.0, value + half), n)


def _finite(*columns: ArrayLike) -> Floats:
    """Columns beside each other, [n, columns], without the rows in which one is not finite."""
    values = np.column_stack([np.asarray(column, dtype=np.float64) for column in columns])
    kept: Floats = values[np.isfinite(values).all(axis=1)]
    return kept


def _of(sample: Floats, statistic: Callable[[Floats], Floats], seed: int) -> Estimate:
    """Estimate and interval of a statistic, which takes [..., n, columns] and gives [...]."""
    n = len(sample)
    if not n:
        return NOTHING
    value = float(statistic(sample))
    if n < FEWEST:
        return Estimate(value, None, None, n)
    return _estimate(value, _resample(sample, statistic, seed), n)


def _resample(sample: Floats, statistic: Callable[[Floats], Floats], seed: int) -> Floats:
    """The statistic of each resample."""
    rng, n = np.random.default_rng(seed), len(sample)
    block = max(1, min(RESAMPLES, _BLOCK // n))
    sizes = [min(block, RESAMPLES - done) for done in range(0, RESAMPLES, block)]
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample may have no call, or a median of zero
        return np.concatenate([statistic(sample[rng.integers(0, n, (size, n))]) for size in sizes])


def _estimate(value: float, drawn: Floats, n: int) -> Estimate:
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Estimate(value, None, None, n)
    low, high = np.percentile(drawn, _ENDS)
    return Estimate(value, min(float(low), value), max(float(high), value), n)


def _mean(sample: Floats) -> Floats:
    means: Floats = sample[..., 0].mean(axis=-1)
    return means


def _medians(sample: Floats) -> Floats:
    """Medians of each column, the columns first."""
    return np.moveaxis(np.median(sample, axis=-2), -1, 0)


def _quotient(sample: Floats) -> Floats:
    sums = sample.sum(axis=-2)
    quotients: Floats = sums[..., 0] / sums[..., 1]
    return quotients
