"""largest_batch: what fits, by trying."""

from typing import Any

import jobs
import pytest
import torch

from mgpu_nb import GPUPool, largest_batch


def test_finds_the_exact_size(pool: GPUPool) -> None:
    assert largest_batch(jobs.fits_up_to_37, pool) == 37
    assert largest_batch(jobs.fits_up_to_37, pool, start=30) == 37


def test_stops_at_the_limit_and_at_the_tolerance(pool: GPUPool) -> None:
    assert largest_batch(jobs.fits_up_to_37, pool, limit=20) == 20
    assert 33 <= largest_batch(jobs.fits_up_to_37, pool, tolerance=0.1) <= 37


def test_nothing_fits(pool: GPUPool) -> None:
    assert largest_batch(jobs.out_of_memory_for, pool, start=8) == 0


def test_a_process_that_allocates_too_much(pool: GPUPool) -> None:
    n = largest_batch(torch.empty, pool, start=2**20, limit=2**62, tolerance=0.5)  # of floats, none touched
    assert 2**20 <= n < 2**62


def test_other_errors_come_through(pool: GPUPool) -> None:
    with pytest.raises(ValueError, match="1"):
        largest_batch(jobs.raises, pool)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"start": 0}, {"start": 9, "limit": 8}, {"tolerance": 1.0}])
def test_bad_input_is_refused(pool: GPUPool, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        largest_batch(jobs.says_nothing, pool, **wrong)
