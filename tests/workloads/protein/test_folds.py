from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpu_nb.workloads.protein.folds import CA_DISTANCE, HELIX_RADIUS, HELIX_RISE, HELIX_TURN, generate_folds


@pytest.mark.slow
@given(length=st.integers(4, 70), seed=st.integers(0, 100))
@settings(max_examples=30)
def test_chains_have_bonds_of_38_and_do_not_touch_themselves(length: int, seed: int) -> None:
    folds = generate_folds(length, 2, seed)
    assert folds.shape == (2, length, 3)
    np.testing.assert_allclose(np.linalg.norm(np.diff(folds, axis=1), axis=-1), CA_DISTANCE)
    np.testing.assert_allclose(folds.mean(axis=1), 0, atol=1e-9)
    i, j = np.triu_indices(length, k=3)
    assert np.linalg.norm(folds[:, i] - folds[:, j], axis=-1).min() > 3.8


def test_helices_are_ideal_and_right_handed() -> None:
    start = generate_folds(50, 4)[:, :15]
    turn = HELIX_TURN * np.arange(6)
    ideal = np.stack(
        [HELIX_RADIUS * np.cos(turn), HELIX_RADIUS * np.sin(turn), HELIX_RISE * np.arange(6)], axis=-1
    )
    for apart in (2, 3, 4, 5):
        expected = np.linalg.norm(ideal[apart] - ideal[0])
        found = np.linalg.norm(start[:, apart:] - start[:, :-apart], axis=-1)
        np.testing.assert_allclose(found, expected, rtol=0.02)
    a, b, c = np.diff(start, axis=1)[:, :3].transpose(1, 0, 2)
    assert (np.einsum("ij,ij->i", np.cross(a, b), c) > 0).all()


def test_folds_are_compact_and_differ() -> None:
    folds = generate_folds(50)
    radius = np.sqrt(folds.var(axis=1).sum(-1))
    assert (radius < 15).all()  # one helix of 50 residues has 21.7
    for k in range(8):
        for other in range(k):
            assert np.abs(folds[k] - folds[other]).max() > 2


def test_a_fold_depends_on_its_number_and_the_seed_alone() -> None:
    np.testing.assert_array_equal(generate_folds(30, 8)[:6], generate_folds(30, 6))
    assert not np.allclose(generate_folds(30, 1, seed=1), generate_folds(30, 1))


@pytest.mark.parametrize(("length", "count"), [(3, 1), (10, 0)])
def test_less_than_a_fold_is_refused(length: int, count: int) -> None:
    with pytest.raises(ValueError, match="4 residues or more"):
        generate_folds(length, count)
