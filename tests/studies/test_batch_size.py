"""largest_batch: what fits, by trying."""

from typing import Any

import jobs
import pytest
import torch

from mgpu_nb import GPUPool, largest_batch
from mgpu_nb.studies import batch_size
from mgpu_nb.views import progress


def test_finds_the_exact_size(pool: GPUPool) -> None:
    assert largest_batch(jobs.fits_up_to_37, pool) == 37
    assert largest_batch(jobs.fits_up_to_37, pool, start=30) == 37


def test_it_says_what_it_tries(
    pool: GPUPool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PERIOD", 0.0)
    assert largest_batch(jobs.fits_up_to_37, pool, progress=True) == 37
    said = capsys.readouterr().err
    assert "at least 0; trying 1" in said
    assert "largest batch: 37 in 0:0" in said


def test_the_share_of_the_trials_grows() -> None:
    tried = [(0, 1025), (32, 1025), (32, 64), (32, 48), (36, 40), (37, 38)]
    shares = [batch_size._share(*each, 0.0) for each in tried]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert all(0 <= share <= 1 for share in shares)


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
