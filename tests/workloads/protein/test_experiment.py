from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from biotite.structure.io import pdb

from mgpu_nb.context import Worker, set_worker
from mgpu_nb.workloads import protein
from mgpu_nb.workloads.protein.config import METHODS, Config
from mgpu_nb.workloads.protein.worker import run_experiment

pytestmark = pytest.mark.slow

SEED_KEYS = [
    "method", "num_branches", "config", "num_samples", "mean_score", "std_score", "max_score", "min_score",
    "total_time", "time_per_sample", "scores", "scoring_function", "nfe",
]  # fmt: skip
SMALL = Config(num_samples=3, sample_length=16, steps=10, num_folds=3)


@pytest.mark.parametrize("method", METHODS)
def test_the_result_is_plain_and_complete(method: str) -> None:
    result = run_experiment(method, 2, SMALL)
    assert list(result)[: len(SEED_KEYS)] == SEED_KEYS
    assert json.loads(json.dumps(result, allow_nan=False))["scores"] == result["scores"]
    scores = np.array(result["scores"])
    assert scores.shape == (3,)
    assert result["mean_score"] == pytest.approx(scores.mean())
    assert result["std_score"] == pytest.approx(scores.std())
    assert (result["max_score"], result["min_score"]) == (scores.max(), scores.min())
    assert result["time_per_sample"] == pytest.approx(result["total_time"] / 3)
    assert (result["method"], result["num_branches"], result["num_samples"]) == (method, 2, 3)
    assert result["structures"] == []
    assert "gpu_ids" not in result["config"]
    assert Config(**result["config"]).steps == 10


def test_structures_are_written_into_the_runs_folder(in_folder: Path) -> None:
    result = run_experiment("best_of_n", 2, SMALL)
    assert result["structures"] == [f"structures/best_of_n-b2/sample_{i:03d}.pdb" for i in range(3)]
    best = in_folder / result["structures"][result["best_sample"]]
    atoms = pdb.PDBFile.read(str(best)).get_structure(model=1)
    np.testing.assert_allclose(atoms.coord, result["positions"], atol=2e-3)
    folds = torch.from_numpy(protein.reference_folds(SMALL).positions)
    from mgpu_nb.workloads.protein.tm_score import nearest_tm_score

    again = nearest_tm_score(torch.tensor(atoms.coord), folds).item()  # files are in angstrom
    assert again == pytest.approx(result["max_score"], abs=1e-3)


def test_the_best_sample_of_a_distance_is_the_lowest() -> None:
    result = run_experiment(
        "standard", 1, Config(num_samples=6, sample_length=16, steps=10, scoring_function="rmsd")
    )
    assert result["scores"][result["best_sample"]] == result["min_score"]


def test_progress_is_reported() -> None:
    reports: list[dict[str, Any]] = []
    set_worker(Worker(0, "cpu", ("cpu",), None, "cpu:0", _send=reports.append))
    try:
        result = run_experiment("sde_path_exploration", 2, SMALL)
    finally:
        set_worker(None)
    shares = [report["progress"] for report in reports]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert reports[-1]["nfe"] == result["nfe"]
    assert reports[-1]["best"] == pytest.approx(result["max_score"])


def test_it_runs_on_one_thread_and_gives_the_others_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    from mgpu_nb.workloads.protein.flow import Flow

    original = Flow.velocity

    def velocity(*args: Any) -> torch.Tensor:
        seen.add(torch.get_num_threads())
        return original(*args)

    monkeypatch.setattr(Flow, "velocity", velocity)
    torch.set_num_threads(2)
    run_experiment("standard", 1, SMALL)
    assert seen == {1}
    assert torch.get_num_threads() == 2
    monkeypatch.setattr(Flow, "velocity", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_experiment("standard", 1, SMALL)
    assert torch.get_num_threads() == 2


@pytest.mark.slow
def test_another_process_gives_the_same_bits() -> None:
    code = (
        "from mgpu_nb.workloads.protein import Config, run_experiment\n"
        "c = Config(num_samples=3, sample_length=16, steps=10, num_folds=3)\n"
        "print([run_experiment(m, 3, c)['scores'] for m in ('noise_search', 'divergence_free_ode')])\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == str(
        [run_experiment(m, 3, SMALL)["scores"] for m in ("noise_search", "divergence_free_ode")]
    )


def test_the_users_own_folds_are_model_and_references(tmp_path: Path) -> None:
    fold = protein.generate_folds(24, 1, seed=77)[0]
    protein.write_pdb(tmp_path / "mine.pdb", fold)
    config = Config(num_samples=4, sample_length=24, references=str(tmp_path), scoring_function="rmsd")
    result = run_experiment("standard", 1, config)
    assert result["max_score"] < 2.0  # 1 angstrom per coordinate, 1.7 in all
    generated = torch.from_numpy(protein.generate_folds(24))
    from mgpu_nb.workloads.protein.geometry import rmsd

    assert rmsd(torch.tensor(result["positions"], dtype=torch.float64), generated).min() > 2.5


def test_ca_net_runs() -> None:
    result = run_experiment("best_of_n", 2, Config(num_samples=2, sample_length=30, steps=20, model="ca_net"))
    assert result["mean_score"] > 0.25


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'standard'"):
        run_experiment("standart", 1, SMALL)
