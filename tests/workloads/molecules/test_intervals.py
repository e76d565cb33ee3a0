"""Intervals: what they cover, when there is none, and that they depend on nothing but the values and the seed."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from mgpu_nb.workloads.molecules.intervals import (
    NOTHING,
    Estimate,
    change,
    difference,
    distinct,
    fraction,
    mean,
    median,
    share,
    share_difference,
)

SAMPLES = 300  # the standard error of a coverage of .95 is then .013
Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]


def coverage(of: Callable[[NDArray[np.float64]], Estimate], draw: Draw, truth: float, n: int) -> float:
    """Share of the samples whose interval holds the truth."""
    rng = np.random.default_rng(1)
    found = [of(draw(rng, n)) for _ in range(SAMPLES)]
    return float(
        np.mean([e.low is not None and e.high is not None and e.low <= truth <= e.high for e in found])
    )


def width(found: Estimate) -> float:
    assert found.low is not None
    assert found.high is not None
    return found.high - found.low


def exponential(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    return rng.exponential(size=n)


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9, 0.99])
def test_a_fraction_is_covered_near_its_ends_too(share: float) -> None:
    found = coverage(fraction, lambda rng, n: (rng.random(n) < share).astype(float), share, 50)
    assert found >= 0.92


@pytest.mark.slow
def test_means_and_medians_of_skewed_values_are_covered() -> None:
    assert 0.90 <= coverage(mean, exponential, 1.0, 50) <= 0.98
    assert 0.91 <= coverage(median, exponential, math.log(2), 50) <= 0.99


@pytest.mark.slow
def test_a_ratio_of_sums_is_covered() -> None:
    def draw(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        atoms = rng.integers(2, 20, n)
        return np.stack([rng.binomial(atoms, rng.choice([0.5, 1.0], n)), atoms])

    assert 0.90 <= coverage(lambda both: share(both[0], both[1]), draw, 0.75, 60) <= 0.98


@pytest.mark.slow
def test_differences_of_pairs_are_covered_and_narrower_than_without_pairs() -> None:
    def draw(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        shared = rng.normal(size=n)
        return np.stack([3 + shared + 0.1 * rng.normal(size=n), 5 + shared + 0.1 * rng.normal(size=n)])

    assert 0.90 <= coverage(lambda both: difference(both[0], both[1], "mean"), draw, -2.0, 60) <= 0.98
    assert coverage(lambda both: difference(both[0], both[1], "median"), draw, -2.0, 60) >= 0.90
    one, other = draw(np.random.default_rng(0), 60)
    paired, apart = difference(one, other, "mean"), difference(one, np.roll(other, 1), "mean")
    assert width(paired) * 3 < width(apart)


@pytest.mark.slow
def test_a_difference_of_fractions_is_covered() -> None:
    def draw(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        shared = rng.random(n)
        return np.stack([shared < 0.55, shared + 0.1 * rng.normal(size=n) < 0.5]).astype(float)

    truth = 0.05
    assert coverage(lambda both: difference(both[0], both[1], "fraction"), draw, truth, 60) >= 0.92


@pytest.mark.parametrize("kinds", [60, 600])
def test_the_share_of_different_ones_is_covered(kinds: int) -> None:
    n = 50
    truth = kinds * (1 - (1 - 1 / kinds) ** n) / n  # what is expected of so many
    found = coverage(
        lambda drawn: distinct([f"{k:.0f}" for k in drawn]),
        lambda rng, n: rng.integers(kinds, size=n).astype(float),
        truth,
        n,
    )
    assert found >= 0.93


def test_change_is_of_the_medians() -> None:
    other = np.linspace(1, 9, 101)
    found = change(other * 0.7, other)
    assert found.value is not None
    assert found.value == pytest.approx(-0.3)
    assert found.low == pytest.approx(-0.3)
    assert found.high == pytest.approx(-0.3)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("n", [1, 2, 7, 50, 1003])
def test_all_alike_is_not_certain(value: float, n: int) -> None:
    found = fraction(np.full(n, value))
    assert found.value == value
    assert (found.high if value else found.low) == value
    assert width(found) > min(2 / n, 0.5)  # about three of n might be otherwise
    if n >= 6:
        apart = difference(np.full(n, value), np.full(n, value), "fraction")
        assert apart.value == 0
        assert width(apart) > 2 / n
        atoms = np.arange(n) + 2
        assert share(value * atoms, atoms) == found
        assert share_difference(value * atoms, value * atoms, atoms) == apart


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_values_have_no_interval(n: int) -> None:
    values = np.arange(n, dtype=float) + 1
    more = values + 1
    all_found = [
        mean(values),
        median(values),
        share(values, more),
        share_difference(more, values, more),
        difference(values, values, "mean"),
        difference(values, values, "fraction"),
        difference(values, values, "median"),
        change(values, values),
        distinct([str(v) for v in values]),
    ]
    for found in all_found:
        assert found.value is not None
        assert found[1:] == (None, None, n)
    assert mean(np.arange(6)).low is not None


def test_nothing_is_no_number() -> None:
    none: list[float] = []
    all_found = [
        *(of(none) for of in (fraction, mean, median)),
        *(of([math.nan] * 9) for of in (mean, median)),
        share(none, none),
        share([0] * 9, [0] * 9),
        share_difference(none, none, none),
        share_difference([0], [0], [0]),
        difference(none, none, "mean"),
        difference(none, none, "median"),
        difference(none, none, "fraction"),
        difference([math.nan] * 9, [1.0] * 9, "median"),
        change(none, none),
        change([1.0] * 9, [0.0] * 9),
        distinct([]),
    ]
    for found in all_found:
        assert found == NOTHING


@pytest.mark.filterwarnings("error")
def test_resamples_without_a_call_are_left_out() -> None:
    found = share([1, 0, 0, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0, 0])
    assert found == (0.5, 0.5, 0.5, 7)


def test_values_that_are_not_finite_are_left_out_and_not_counted() -> None:
    values = [1.0, 2.0, math.nan, 3.0, math.inf, 4.0, 5.0, 6.0]
    assert median(values) == median([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert median(values).n == 6
    assert difference(values, [1.0] * 8, "median").n == 6


def test_the_interval_holds_its_estimate() -> None:
    rng = np.random.default_rng(3)
    for n in range(6, 40):
        one, other = rng.exponential(size=n), rng.exponential(size=n)
        for found in (mean(one), median(one), share(one, other), difference(one, other, "median"), change(one, other),
                      fraction(one > 1), distinct([f"{v:.1f}" for v in one])):  # fmt: skip
            assert found.value is not None
            assert found.low is not None
            assert found.high is not None
            assert found.low <= found.value <= found.high


def test_the_seed_decides() -> None:
    values = np.random.default_rng(0).exponential(size=80)
    assert median(values, seed=4) == median(values, seed=4)
    assert mean(values, seed=4) != mean(values, seed=5)
    assert fraction(values > 1, seed=4) == fraction(values > 1, seed=4)


def test_many_values_are_resampled_in_pieces() -> None:
    values = np.random.default_rng(0).normal(size=30_000)
    found = mean(values)
    assert width(found) == pytest.approx(2 * 1.96 / math.sqrt(30_000), rel=0.1)
