"""The next token by the inverse of the distribution function, and the random numbers that it comes from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mgpu_nb.workloads.alignment.sampling import next_tokens, uniforms


def points(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_a_token_is_that_in_whose_share_the_point_lies() -> None:
    logits = torch.tensor([0.1, 0.0, 0.4, 0.5]).log().repeat(5, 1)
    drawn = next_tokens(logits, points(0.0, 0.0999, 0.1001, 0.4999, 0.5001), 1.0, 1.0)
    assert drawn.tolist() == [0, 0, 2, 2, 3]


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_a_token_without_probability_is_never_drawn(top_p: float) -> None:
    logits = torch.full((2, 6), -torch.inf)
    logits[:, 2:4] = 0.0
    assert next_tokens(logits, points(0.0, np.nextafter(1.0, 0.0)), 1.0, top_p).tolist() == [2, 3]


def test_the_most_likely_token_without_points() -> None:
    assert next_tokens(torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), None, 1.0, 1.0).tolist() == [1, 0]


def test_tokens_are_as_frequent_as_they_are_likely() -> None:
    logits = torch.tensor([1.0, -1.0, 0.5, 2.0])
    rows = 40_000
    drawn = next_tokens(logits.repeat(rows, 1), torch.from_numpy(uniforms([(7,)], rows)[0]), 0.8, 1.0)
    shares = torch.bincount(drawn, minlength=4) / rows
    torch.testing.assert_close(shares, (logits / 0.8).softmax(0), atol=4 * 0.5 / rows**0.5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999])
def test_the_tokens_that_are_left_are_those_of_transformers(top_p: float) -> None:
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    logits = 2 * torch.randn(5, 300, generator=torch.Generator().manual_seed(3))
    ids = torch.zeros(5, 1, dtype=torch.int64)
    left = TopPLogitsWarper(top_p)(ids, TemperatureLogitsWarper(0.8)(ids, logits))
    sums = left.softmax(1).double().cumsum(1)
    at = torch.from_numpy(uniforms([(1, n) for n in range(5)], 400))
    for column in at.T:
        expected = torch.searchsorted(sums, column[:, None] * sums[:, -1:], right=True)[:, 0]
        assert next_tokens(logits, column, 0.8, top_p).tolist() == expected.tolist()


def test_the_smallest_top_p_is_the_most_likely_token() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    drawn = next_tokens(logits, points(0.1, 0.4, 0.6, 0.999), 1.0, 1e-300)
    assert drawn.tolist() == logits.argmax(1).tolist()


@pytest.mark.parametrize("temperature", [1e-9, 1e-300])
def test_the_coldest_samples_are_the_most_likely_token(temperature: float) -> None:
    logits = 1e4 * torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    drawn = next_tokens(logits, points(0.1, 0.4, 0.6, 0.999), temperature, 0.9)
    assert drawn.tolist() == logits.argmax(1).tolist()


def test_equally_likely_tokens_are_all_left() -> None:
    logits = torch.zeros(3, 4)
    assert next_tokens(logits, points(0.1, 0.6, 0.9), 1.0, 0.5).tolist() == [0, 2, 3]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("greedy", [True, False])
def test_logits_that_are_no_numbers_are_refused(bad: float, greedy: bool) -> None:
    logits = torch.tensor([[0.0, 1.0], [bad, 0.0]])
    with pytest.raises(ValueError, match="logits that are no numbers"):
        next_tokens(logits, None if greedy else points(0.5, 0.5), 1.0, 0.9)


def test_a_seed_has_numbers_of_its_own_and_more_of_them_begin_alike() -> None:
    seeds = [(1,), (1, 0), (0, 1), (1 << 32,), (1 << 32, 0), (1, 0, 0)]
    drawn = uniforms(seeds, 6)
    assert len({row.tobytes() for row in drawn}) == len(seeds)
    np.testing.assert_array_equal(uniforms(seeds[2:4], 3), drawn[2:4, :3])
    assert uniforms([], 3).shape == (0, 3)


@pytest.mark.parametrize("number", [-1, 1 << 64])
def test_numbers_that_a_seed_cannot_have(number: int) -> None:
    with pytest.raises(ValueError, match=r"must be >= 0 and < 2\*\*64, got"):
        uniforms([(0, number)], 1)
