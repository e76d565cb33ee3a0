from __future__ import annotations

from collections.abc import Callable
from typing import Any

import biotite.structure as struc
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mgpu_nb.workloads.protein.folds import generate_folds
from mgpu_nb.workloads.protein.geometry import (
    geometric_score,
    kabsch,
    mean_l2,
    non_coil,
    rmsd,
    superpose,
    tm_d0,
    tm_score_fixed,
)


def noisy(folds: Tensor, draws: torch.Generator, scale: float) -> Tensor:
    return folds + scale * torch.randn(folds.shape, generator=draws, dtype=torch.float64)


def trace(positions: Tensor) -> Any:
    atoms = struc.AtomArray(len(positions))
    atoms.coord = np.asarray(positions, dtype=np.float32)
    atoms.atom_name[:], atoms.res_name[:], atoms.element[:] = "CA", "GLY", "C"
    atoms.res_id = np.arange(1, len(positions) + 1)
    return atoms


def test_kabsch_finds_the_motion_that_was_made(folds: Tensor, rotation: Callable[[], Tensor]) -> None:
    turn, shift = rotation(), torch.tensor([3.0, -20.0, 7.0], dtype=torch.float64)
    moved = folds @ turn.T + shift
    found, by = kabsch(folds, moved)
    torch.testing.assert_close(found, turn.expand(8, 3, 3), atol=1e-10, rtol=0)
    torch.testing.assert_close(by, shift.expand(8, 1, 3), atol=1e-8, rtol=0)


@given(seed=st.integers(0, 10**6), length=st.integers(4, 12), flat=st.booleans())
@settings(max_examples=60)
def test_kabsch_gives_rotations_and_no_other_rotation_is_better(seed: int, length: int, flat: bool) -> None:
    draws = torch.Generator().manual_seed(seed)
    p, q = torch.randn(2, length, 3, generator=draws, dtype=torch.float64)
    if flat:  # planar traces: the smallest singular value is zero
        p[:, 2] = q[:, 2] = 0
    turn, _ = kabsch(p, q)
    assert torch.linalg.det(turn).item() == pytest.approx(1)
    best = rmsd(p, q)
    p, q = p - p.mean(0), q - q.mean(0)
    for _ in range(5):
        other = torch.linalg.qr(torch.randn(3, 3, generator=draws, dtype=torch.float64)).Q
        other = other * torch.linalg.det(other)
        assert best <= (p @ other.T - q).square().sum(-1).mean().sqrt() + 1e-9


def test_a_mirror_image_does_not_fit(folds: Tensor) -> None:
    mirrored = folds * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    assert (torch.linalg.det(kabsch(mirrored, folds)[0]) > 0.999).all()
    assert (rmsd(mirrored, folds) > 1).all()


def test_rmsd_and_fixed_tm_score_are_those_of_biotite(folds: Tensor, draws: torch.Generator) -> None:
    samples = noisy(folds, draws, 1.5)
    for sample, fold in zip(samples, folds, strict=True):
        laid, _ = struc.superimpose(fold.numpy(), sample.numpy())
        assert rmsd(sample, fold).item() == pytest.approx(struc.rmsd(fold.numpy(), laid), abs=1e-6)
        ours = superpose(sample, fold)
        np.testing.assert_allclose(ours, laid, atol=1e-5)  # biotite computes in float32
        everywhere = np.arange(50)
        theirs = struc.tm_score(trace(fold), trace(ours), everywhere, everywhere)
        ours32 = tm_score_fixed(ours.float().double(), fold.float().double())
        assert ours32.item() == pytest.approx(float(theirs), abs=1e-6)


def test_mean_l2_is_the_mean_distance_and_never_above_the_rmsd(folds: Tensor, draws: torch.Generator) -> None:
    samples = noisy(folds, draws, 2.0)
    by_hand = torch.stack(
        [(superpose(s, f) - f).norm(dim=-1).mean() for s, f in zip(samples, folds, strict=True)]
    )
    torch.testing.assert_close(mean_l2(samples, folds), by_hand)
    assert (mean_l2(samples, folds) < rmsd(samples, folds)).all()


def test_d0_is_half_an_angstrom_for_short_chains() -> None:
    assert tm_d0(21) == 0.5
    assert tm_d0(22) == pytest.approx(1.24 * 7 ** (1 / 3) - 1.8)
    assert tm_d0(100) == pytest.approx(3.652, abs=1e-3)


def test_geometric_score_of_known_traces() -> None:
    # A line of exact bonds: no clash, all coil, bonds 3.802.
    line = torch.arange(10, dtype=torch.float64)[:, None] * torch.tensor([3.802, 0, 0], dtype=torch.float64)
    assert geometric_score(line).item() == pytest.approx(2 + 1.5 + 0 + 0.5)
    # All residues in one place: bonds "below 3.9", every pair a clash, bonds 3.802 off.
    assert geometric_score(torch.zeros(10, 3)).item() == pytest.approx(2.0)
    # Bonds of 4.802: none counts, and 1 - mean|d - 3.802| is 0.
    assert geometric_score(line / 3.802 * 4.802).item() == pytest.approx(1.5)


def test_helices_and_strands_are_not_coil(folds: Tensor) -> None:
    assert (non_coil(folds).double().mean(-1) > 0.85).all()
    zigzag = torch.tensor([[3.3 * i, 0.95 * (-1) ** i, 0.0] for i in range(12)], dtype=torch.float64)
    assert non_coil(zigzag).all()
    assert not non_coil(folds[0, :4]).any()  # too short to tell
    noise = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 10
    assert non_coil(noise).double().mean() < 0.1


def test_geometric_score_tells_folds_from_noise(folds: Tensor, draws: torch.Generator) -> None:
    assert (geometric_score(folds) > 4.8).all()
    assert (geometric_score(noisy(folds, draws, 1.0)) < geometric_score(folds)).all()


def test_lengths_below_the_shortest_window_work() -> None:
    assert geometric_score(torch.from_numpy(generate_folds(4))).shape == (8,)
