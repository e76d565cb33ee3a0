"""Intervals of a few timings."""

import math

import numpy as np
import pytest

from mgpu_nb.studies.interval import half_width, median_interval, ratio_interval, repeats_needed, student_t


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.30265), (4, 2.77645), (10, 2.22814), (11, 2.20099), (20, 2.08596), (100, 1.98397)],
)
def test_students_quantiles(freedom: int, quantile: float) -> None:
    assert student_t(freedom) == pytest.approx(quantile, abs=2e-4)
    assert student_t(freedom + 0.9) == student_t(freedom)  # rounded to the wider


def test_there_is_none_below_one_degree() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        student_t(0.5)


@pytest.mark.parametrize("count", [2, 3, 5, 10])
@pytest.mark.parametrize("skewed", [False, True])
def test_the_median_is_within_in_95_of_100(count: int, skewed: bool) -> None:
    rng = np.random.default_rng(0)
    tries = 1000
    drawn = rng.exponential(1.0, (2, tries, count)) if skewed else rng.standard_normal((2, tries, count))
    timings = 1 + 0.1 * drawn if skewed else np.exp(0.1 * drawn)
    truth = 1 + 0.1 * math.log(2) if skewed else 1.0
    held = ratio_held = 0
    for first, second in zip(*timings.tolist(), strict=True):
        lower, upper = median_interval(first)
        held += lower <= truth <= upper
        lower, upper = ratio_interval(first, second)
        ratio_held += lower <= 1 <= upper
    assert 0.92 * tries < held < 0.99 * tries
    assert 0.94 * tries < ratio_held


def test_one_timing_has_no_interval() -> None:
    assert math.isnan(half_width([1.0]))
    assert not median_interval([1.0]).known
    assert not ratio_interval([1.0], [1.0, 2.0]).known
    assert repeats_needed([1.0], 0.05) is None


def test_equal_timings_have_one_of_no_width() -> None:
    assert median_interval([2.0, 2.0]) == (2.0, 2.0)
    assert ratio_interval([4.0, 4.0], [2.0, 2.0, 2.0]) == (2.0, 2.0)
    assert repeats_needed([2.0, 2.0, 2.0], 0.05) == 3


def test_the_repeats_it_needs_are_the_fewest() -> None:
    walls = [1.0, 1.1, 0.9, 1.0]
    needed = repeats_needed(walls, 0.05)
    assert needed is not None
    each = half_width(walls) * math.sqrt(len(walls)) / student_t(len(walls) - 1)
    assert student_t(needed - 1) * each / math.sqrt(needed) <= math.log(1.05)
    assert student_t(needed - 2) * each / math.sqrt(needed - 1) > math.log(1.05)
