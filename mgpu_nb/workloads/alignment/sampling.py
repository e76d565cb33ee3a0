"""The next token: the most likely, or one drawn by the inverse of the distribution function."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["least_share", "next_tokens", "uniforms"]


_COLDEST = 1e-20  # quotients are finite still, and only the most likely token is left


def uniforms(seeds: Sequence[Sequence[int]], count: int) -> NDArray[np.float64]:
    """Numbers in [0, 1), float64 [B, count], each row from a generator of its own.

    Raises
    ------
    ValueError
        If a number of a seed is negative or has more than 64 bits.
    """
    rows = [np.random.Generator(np.random.PCG64(_mixed(seed))).random(count) for seed in seeds]
    return np.stack(rows) if rows else np.zeros((0, count))


def _mixed(seed: Sequence[int]) -> np.random.SeedSequence:
    """Seed of which every number counts for itself: numpy alone takes (1,) for (1, 0), and (2**32,) for (0, 1)."""
    words = [len(seed)]
    for number in map(int, seed):
        if not 0 <= number < 1 << 64:
            raise ValueError(f"the numbers of a seed must be >= 0 and < 2**64, got {number}")
        words += [number & 0xFFFFFFFF, number >> 32]
    return np.random.SeedSequence(words)


def next_tokens(logits: Tensor, points: Tensor | None, temperature: float, top_p: float) -> Tensor:
    """A token for each row.

    Parameters
    ----------
    logits
        float32 [B, V].
    points
        A number in [0, 1) for each row, float64 [B]: the token is that in whose share of the probability it lies,
        counted in the order of the vocabulary. None for the most likely token.
    temperature
        What logits are divided by.
    top_p
        Share of the probability that is drawn from: of the fewest tokens that have so much together, and of those that
        are as likely as the last of them.

    Returns
    -------
    Tensor
        int64 [B].

    Raises
    ------
    ValueError
        If logits are no numbers.
    """
    if points is None:
        most, chosen = logits.max(1)
        _check_numbers(most)
        return chosen
    shares = (logits / max(temperature, _COLDEST)).softmax(1)
    if top_p < 1:
        shares *= shares >= least_share(shares, top_p)
    sums = shares.cumsum(1, dtype=torch.float64)
    total = sums[:, -1]
    _check_numbers(total)
    # Below the total, also where the product is rounded up: a token without probability is never drawn.
    at = torch.minimum(points * total, total.nextafter(total.new_zeros(())))
    return torch.searchsorted(sums, at[:, None], right=True)[:, 0]


def least_share(shares: Tensor, top_p: float) -> Tensor:
    """Share of the least likely token that is drawn: those that have more have less than `top_p` together.

    Parameters
    ----------
    shares
        Probabilities, float32 [N, V].
    top_p
        Share of the probability that is drawn from, above 0 and at most 1.

    Returns
    -------
    Tensor
        float32 [N, 1].
    """
    # Without the places of the shares, and by numpy on a CPU: torch's sort takes thirty times as long there.
    ordered = (
        torch.from_numpy(np.sort(shares.detach().numpy(), axis=1))
        if shares.is_cpu
        else shares.sort(dim=1).values
    )
    sums = ordered.cumsum(1)
    left_out = torch.searchsorted(sums, (1 - top_p) * sums[:, -1:], right=True)
    return ordered.gather(1, left_out.clamp(max=shares.shape[1] - 1))


def _check_numbers(row: Tensor) -> None:
    if not row.isfinite().all():
        raise ValueError(
            "the model gave logits that are no numbers (NaN or infinite): its weights have become so, or its type "
            "(float16) holds too small a range; train with a lower learning_rate, or store it in bfloat16"
        )
