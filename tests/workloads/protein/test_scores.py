"""Scores of the user's: functions and paths, what they are given, what is refused at the door."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mgpu_nb.cli import main
from mgpu_nb.tasks import Record
from mgpu_nb.workloads.protein import Config, collect, run_experiment, tasks
from mgpu_nb.workloads.protein.geometry import geometric_score
from mgpu_nb.workloads.protein.scores import Scorer

SMALL: dict[str, Any] = {"num_samples": 2, "sample_length": 16, "steps": 5, "num_folds": 2}


def compactness(positions: Tensor) -> Tensor:
    tight: Tensor = -positions.var(dim=-2).sum(-1).sqrt()
    return tight


def weighted(positions: Tensor, weight: float) -> Any:
    assert positions.dtype == torch.float64
    assert positions.ndim == 3
    return (weight * compactness(positions)).numpy()


def of_backbone(positions: Tensor, backbone: Tensor) -> Tensor:
    torch.testing.assert_close(backbone[:, :, 1], positions)
    bonds: Tensor = (backbone[:, 1:, 0] - backbone[:, :-1, 2]).norm(dim=-1)  # of peptides
    return -bonds.mean(-1)


@pytest.mark.parametrize(
    "score",
    [
        compactness,
        functools.partial(weighted, weight=2.0),
        "tests_own_score:compact",
        lambda x: [float(trace.std()) for trace in x],
    ],
)
def test_functions_and_paths_are_taken(score: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tests_own_score.py").write_text(
        "def compact(positions):\n    return -positions.var((-1, -2))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = Config(**SMALL, scoring_function=score)
    assert config.higher_is_better
    assert tasks(config)[0].args[2].scoring_function is score
    result = run_experiment("best_of_n", 3, config)
    assert result["scores"] == [
        max(one) for one in zip(*zip(*result["scores_by_n"], strict=True), strict=True)
    ]
    assert ":" in result["scoring_function"]
    assert json.loads(json.dumps(result))["config"]["scoring_function"] == result["scoring_function"]
    record = Record(name="best_of_n-b3", index=0, kind="k", status="ok", value=result)
    report = collect(SimpleNamespace(records=[record], folder=None))
    name = result["scoring_function"].rpartition(":")[2]
    assert f"mean {name} {result['mean_score']:.4f} at" in str(report)
    assert name in report.plot().get_ylabel()


def test_a_score_is_given_angstrom_in_one_batch(folds: Tensor) -> None:
    scorer, own = Scorer("geometric", folds), Scorer(geometric_score, folds)
    states = (folds * 0.1).reshape(2, 4, 50, 3)
    torch.testing.assert_close(own(states), scorer(states))
    assert own(states[:, :0]).shape == (2, 0)
    assert own.gain(own(states))[0, 0] == own(states)[0, 0]


@pytest.mark.parametrize(
    ("score", "error", "reason"),
    [
        (
            lambda positions: positions,
            ValueError,
            r"returned \[2, 16, 3\] of float64 for 2 samples, not \[2\] of float",
        ),
        (lambda positions: positions.mean(), ValueError, r"returned \[\] of float64"),
        (lambda positions: positions[:, 0, 0] > 0, ValueError, r"returned \[2\] of bool"),
        (lambda positions: "high", TypeError, "returned a str: it must be a function of positions"),
        (lambda positions: None, TypeError, "returned a NoneType"),
        (
            lambda positions: positions[:, 0, 0] / 0,
            ValueError,
            "nan.* for two extended chains: return finite numbers",
        ),
        (lambda positions: 1 / 0, ValueError, r"fails for positions \[2, 16, 3\] \(ZeroDivisionError"),
        (
            lambda: 1,
            ValueError,
            "fails for positions .*takes 0 positional arguments.*higher is better",
        ),
        (
            "no_such_module:score",
            ValueError,
            r"scoring_function='no_such_module:score' does not import \(No module",
        ),
        ("math:no_such", ValueError, "does not import .*has no attribute 'no_such'"),
        ("math:pi", TypeError, "is a float; a function of positions"),
        (
            of_backbone,
            ValueError,
            "asks for backbone atoms, and model='mixture' has C-alpha atoms only: take a model",
        ),
        (3, TypeError, "scoring_function must be one of tm_score, .*'package.module:name' of a function"),
    ],
)
def test_what_is_no_score_is_refused_before_a_worker_starts(
    score: Any, error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        tasks(Config(**SMALL, scoring_function=score))


NOTEBOOK = """
import torch
from mgpu_nb import Run
from mgpu_nb.workloads import protein

def tightness(positions):
    return -positions.var(dim=-2).sum(-1)

if __name__ == "__main__":
    config = protein.Config(slots=2, methods=("standard", "best_of_n"), branch_counts=(2,), num_samples=2,
        sample_length=16, steps=5, num_folds=2, scoring_function=tightness, output_dir="out")
    run = protein.start(config)
    report = protein.collect(run.wait())
    print([r["scoring_function"] for r in report.results], [len(r["scores"]) for r in report.results])
    print(protein.collect(Run.open("out")).best == report.best)
    again = protein.start(config)
    print([r.started for r in again.wait().records] == [r.started for r in run.records])
"""


@pytest.mark.slow
def test_a_function_of_a_cell_goes_to_the_workers(tmp_path: Path) -> None:
    (tmp_path / "cell.py").write_text(NOTEBOOK)
    done = subprocess.run([sys.executable, "cell.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names, same, resumed = done.stdout.splitlines()
    assert names == "['__main__:tightness', '__main__:tightness'] [2, 2]"
    assert (same, resumed) == ("True", "True")
    assert (
        json.loads((tmp_path / "out/config.json").read_text())["config"]["scoring_function"]
        == "__main__:tightness"
    )


@pytest.mark.slow
def test_a_score_beside_the_user_is_named_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "their_score.py").write_text("def score(x):\n    return -x.var((-1, -2))\n")
    monkeypatch.chdir(tmp_path)
    words = "--slots 1 --methods standard --num_samples 1 --sample_length 16 --steps 2 --num_folds 1 --output_dir out"
    command = ["protein", *words.split(), "--scoring_function"]
    assert main([*command, "their_score:scores"]) == 2
    assert "--scoring_function their_score:scores does not import" in capsys.readouterr().err
    assert main([*command, "their_score:score"]) == 0
    assert "mean score -" in capsys.readouterr().out
