from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
import tmtools
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mgpu_nb.workloads.protein.folds import generate_folds
from mgpu_nb.workloads.protein.geometry import kabsch, superpose, tm_score_fixed
from mgpu_nb.workloads.protein.tm_score import _rotations, nearest_tm_score, tm_score, tm_superposition

pytestmark = pytest.mark.slow


def pairs(
    length: int, scales: Sequence[float], draws: torch.Generator, rotation: Callable[[], Tensor]
) -> tuple[Tensor, Tensor]:
    folds = torch.from_numpy(generate_folds(length, 6))
    samples = [
        f + s * torch.randn(length, 3, generator=draws, dtype=torch.float64) for s in scales for f in folds
    ]
    moved = [
        sample @ rotation().T + 30 * torch.randn(3, generator=draws, dtype=torch.float64)
        for sample in samples
    ]
    return torch.stack(moved), folds.repeat(len(scales), 1, 1)


def by_tmtools(mobile: Tensor, target: Tensor) -> npt.NDArray[np.float64]:
    sequence = "A" * mobile.shape[1]
    each = zip(mobile.numpy(), target.numpy(), strict=True)
    return np.array([tmtools.tm_align(a, b, sequence, sequence).tm_norm_chain2 for a, b in each])


@pytest.mark.parametrize("length", [30, 50, 80])
def test_it_is_the_score_of_tmtools_above_070(
    length: int, draws: torch.Generator, rotation: Callable[[], Tensor]
) -> None:
    mobile, target = pairs(length, (0.2, 0.5, 0.8, 1.0), draws, rotation)
    ours, theirs = tm_score(mobile, target).numpy(), by_tmtools(mobile, target)
    alike = theirs > 0.7
    assert alike.sum() >= 10
    np.testing.assert_allclose(ours[alike], theirs[alike], atol=1e-3)


def test_it_does_not_shift_the_alignment_as_tmtools_does(folds: Tensor) -> None:
    # One residue dropped at the start, one added at the end: nearly the same fold for an alignment.
    shifted = torch.cat([folds[:, 1:], folds[:, -1:] + 3.8], dim=1)
    ours, theirs = tm_score(shifted, folds).numpy(), by_tmtools(shifted, folds)
    assert (theirs > 0.95).all()
    assert (ours < theirs - 0.1).all()


def test_the_nearest_of_several_targets_is_found(folds: Tensor, draws: torch.Generator) -> None:
    for scale in (0.5, 1.5, 6.0):
        samples = folds + scale * torch.randn(folds.shape, generator=draws, dtype=torch.float64)
        every = tm_score(samples[:, None], folds)
        torch.testing.assert_close(nearest_tm_score(samples, folds), every.amax(1), atol=1e-9, rtol=0)
    assert nearest_tm_score(samples.view(2, 4, 50, 3), folds).shape == (2, 4)


def test_the_superposition_reaches_the_score(draws: torch.Generator, rotation: Callable[[], Tensor]) -> None:
    mobile, target = pairs(40, (0.5, 2.0, 6.0), draws, rotation)
    score, turn, shift = tm_superposition(mobile, target)
    torch.testing.assert_close(tm_score_fixed(mobile @ turn.mT + shift, target), score, atol=1e-9, rtol=0)
    torch.testing.assert_close(torch.linalg.det(turn), torch.ones_like(score))


def test_it_is_never_below_the_superposition_of_least_rmsd(
    draws: torch.Generator, rotation: Callable[[], Tensor]
) -> None:
    mobile, target = pairs(50, (1.0, 3.0), draws, rotation)
    assert (tm_score(mobile, target) >= tm_score_fixed(superpose(mobile, target), target) - 1e-12).all()


def test_it_finds_the_half_that_fits() -> None:
    fold = torch.from_numpy(generate_folds(60, 1))[0]
    bent = fold.clone()
    bent[30:] = fold[30:] @ torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64).T + 40
    assert tm_score(bent, fold) > 0.5  # half of the residues at distance 0
    assert tm_score_fixed(superpose(bent, fold), fold) < 0.3  # where the least RMSD misses both halves


@pytest.mark.parametrize("length", [4, 5, 8, 21, 22])
def test_short_chains_score_one_against_themselves(length: int, rotation: Callable[[], Tensor]) -> None:
    folds = torch.from_numpy(generate_folds(length, 3))
    torch.testing.assert_close(tm_score(folds @ rotation().T + 5, folds), torch.ones(3, dtype=torch.float64))


def test_mirror_images_score_low(folds: Tensor) -> None:
    mirrored = folds * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    assert (tm_score(mirrored, folds) < 0.6).all()


def test_shapes_broadcast_and_batches_change_nothing(folds: Tensor, draws: torch.Generator) -> None:
    samples = folds[:3] + torch.randn(3, 50, 3, generator=draws, dtype=torch.float64)
    table = tm_score(samples[:, None], folds)
    assert table.shape == (3, 8)
    alone = torch.stack([tm_score(sample, fold) for sample in samples for fold in folds]).view(3, 8)
    torch.testing.assert_close(table, alone, atol=1e-10, rtol=0)
    assert tm_score(samples[:0], folds[:0]).shape == (0,)


def test_many_pairs_go_block_by_block(folds: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tm_score(folds[:, None], folds)
    monkeypatch.setattr("mgpu_nb.workloads.protein.tm_score._BLOCK", 1)
    torch.testing.assert_close(tm_score(folds[:, None], folds), whole, atol=1e-10, rtol=0)


def test_collinear_and_coinciding_residues_do_no_harm() -> None:
    line = torch.arange(10, dtype=torch.float64)[:, None] * torch.tensor([3.8, 0, 0], dtype=torch.float64)
    assert tm_score(line, line).item() == pytest.approx(1)
    heap = torch.zeros(10, 3, dtype=torch.float64)
    assert torch.isfinite(tm_score(heap, line))
    assert tm_score(heap, heap).item() == pytest.approx(1)


def test_lengths_that_do_not_fit_are_refused(folds: Tensor) -> None:
    with pytest.raises(ValueError, match=r"50 and 49 residues: give two of equal length"):
        tm_score(folds, folds[:, 1:])
    with pytest.raises(ValueError, match="4 or more"):
        tm_score(folds[:, :3], folds[:, :3])


@given(st.integers(0, 10**6))
@settings(max_examples=80)
def test_rotations_by_quaternion_are_those_of_kabsch(seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    p, q = torch.randn(2, 6, 3, generator=draws, dtype=torch.float64)
    p, q = p - p.mean(0), q - q.mean(0)
    bound = 0.5 * (p.square().sum() + q.square().sum())
    ours = _rotations((p.T @ q)[None], bound[None])[0]
    best = (kabsch(p, q)[0] @ p.T @ q).trace()
    assert (ours @ p.T @ q).trace().item() == pytest.approx(best.item(), rel=1e-6)
    torch.testing.assert_close(ours @ ours.T, torch.eye(3, dtype=torch.float64))
