"""What must come out of the mixture at 50 residues and 50 steps; benchmarks/protein_scaling.py has all of it."""

from __future__ import annotations

from typing import Any

import pytest

from mgpu_nb.workloads.protein import Config, run_experiment

pytestmark = pytest.mark.slow
CONFIG = Config(num_samples=16, noise_scale=1.0)


@pytest.fixture(scope="module")
def measured() -> dict[tuple[str, int], dict[str, Any]]:
    pairs = [
        ("standard", 1),
        ("best_of_n", 2),
        ("best_of_n", 8),
        ("sde_path_exploration", 2),
        ("sde_path_exploration", 8),
    ]
    return {pair: run_experiment(*pair, CONFIG) for pair in pairs}


@pytest.mark.parametrize(
    ("method", "branches", "score", "nfe"),
    [
        ("standard", 1, 0.810, 50),
        ("best_of_n", 2, 0.864, 100),
        ("best_of_n", 8, 0.937, 400),
        ("sde_path_exploration", 2, 0.902, 590),
        ("sde_path_exploration", 8, 0.980, 2240),
    ],
)
def test_the_measured_scores_come_out(
    measured: dict[tuple[str, int], dict[str, Any]], method: str, branches: int, score: float, nfe: int
) -> None:
    result = measured[method, branches]
    assert result["mean_score"] == pytest.approx(score, abs=0.010)  # of the same seed
    assert result["nfe"] == nfe


def test_more_branches_are_better(measured: dict[tuple[str, int], dict[str, Any]]) -> None:
    score = {pair: result["mean_score"] for pair, result in measured.items()}
    assert score["standard", 1] < score["best_of_n", 2] < score["best_of_n", 8]
    assert score["standard", 1] < score["sde_path_exploration", 2] < score["sde_path_exploration", 8]


def test_exploration_beats_best_of_n_at_equal_nfe(measured: dict[tuple[str, int], dict[str, Any]]) -> None:
    few = Config(num_samples=16, noise_scale=1.0)
    assert measured["sde_path_exploration", 8]["nfe"] <= 45 * 50
    assert (
        measured["sde_path_exploration", 8]["mean_score"] > run_experiment("best_of_n", 45, few)["mean_score"]
    )
