"""Self-consistency: the stand-in, the protocol, what is refused, and the columns of the report."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ids import steady
from torch import Tensor

from mgpu_nb.tasks import Record
from mgpu_nb.workloads.protein import Config, collect, run_experiment, tasks
from mgpu_nb.workloads.protein.designability import Designability, stand_in_sequences, stand_in_structures
from mgpu_nb.workloads.protein.geometry import rmsd
from mgpu_nb.workloads.protein.tm_score import tm_score

STAND_IN: dict[str, Any] = {"design_sequences": "stand_in", "fold_sequences": "stand_in"}
SMALL: dict[str, Any] = {
    "num_samples": 2,
    "sample_length": 20,
    "steps": 5,
    "num_folds": 2,
    "num_sequences": 3,
}
SEEN: list[Any] = []


def design(positions: Tensor, count: int, seed: int) -> list[str]:
    SEEN.append((tuple(positions.shape), positions.dtype, count, seed))
    return stand_in_sequences(positions, count, seed)


def of_backbone(positions: Tensor, count: int, seed: int, backbone: Tensor) -> list[str]:
    raise NotImplementedError


@pytest.mark.slow
def test_folds_are_designable_and_clouds_are_not(folds: Tensor) -> None:
    found = Designability(Config(**STAND_IN))(folds * 0.1)
    assert max(found["sc_rmsd"]) < 1.3  # measured: 0.5 to 1.2
    assert found["designable"] == 1.0
    assert found["mean_sc_tm"] > 0.85
    draws = torch.Generator().manual_seed(0)
    cloud = folds[:3] + torch.randn(3, 50, 3, generator=draws, dtype=torch.float64)
    assert Designability(Config(**STAND_IN))(cloud * 0.1)["designable"] == 0.0  # bonds of 1 to 8 angstrom


def test_it_is_the_best_of_the_structures(folds: Tensor) -> None:
    found = Designability(Config(design_sequences=design, fold_sequences="stand_in", num_sequences=5))(
        folds[:2] * 0.1
    )
    (_, _, count, seed), last = SEEN[-2:]
    assert (last[:2], count) == (((50, 3), torch.float64), 5)
    assert seed != last[3]  # each sample has its own
    structures = stand_in_structures(stand_in_sequences(folds[0], 5, seed))
    assert len({tuple(each.flatten().tolist()) for each in structures}) > 1
    assert found["sc_rmsd"][0] == pytest.approx(rmsd(structures, folds[0]).min().item(), abs=1e-6)
    assert found["sc_tm"][0] == pytest.approx(tm_score(folds[0], structures).max().item(), abs=1e-6)
    assert found == Designability(Config(**STAND_IN, num_sequences=5))(folds[:2] * 0.1)  # twice the same bits


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"design_sequences": "stand_in"}, ValueError, "designability needs both steps; give fold_sequences"),
        ({"fold_sequences": design}, ValueError, "designability needs both steps; give design_sequences"),
        (
            {**STAND_IN, "fold_sequences": "esmfold"},
            ValueError,
            "fold_sequences must be one of stand_in or 'package",
        ),
        (
            {**STAND_IN, "fold_sequences": "none_such:fold"},
            ValueError,
            "fold_sequences='none_such:fold' does not import",
        ),
        (
            {**STAND_IN, "design_sequences": of_backbone},
            ValueError,
            "design_sequences asks for backbone atoms, and model=",
        ),
        ({**STAND_IN, "num_sequences": 0}, ValueError, "num_sequences must be an integer >= 1"),
    ],
    ids=steady,
)
def test_what_cannot_be_is_refused_before_a_worker_starts(
    options: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        tasks(Config(**{**SMALL, **options}))


@pytest.mark.parametrize(
    ("option", "given", "error", "reason"),
    [
        ("design_sequences", "AAA", TypeError, "must return 3 texts of 20 letters, got str"),
        (
            "design_sequences",
            ["A" * 20],
            ValueError,
            "must return 3 texts of 20 letters, got 1 of 20 letters",
        ),
        ("design_sequences", ["A" * 19] * 3, ValueError, "got 3 of 19 letters"),
        ("design_sequences", [1, 2, 3], TypeError, "got list"),
        (
            "fold_sequences",
            torch.zeros(3, 20, 4, 3),
            ValueError,
            r"positions \[3, 20, 3\] .* got \[3, 20, 4, 3\]",
        ),
        (
            "fold_sequences",
            torch.full((3, 20, 3), torch.nan),
            ValueError,
            r"got \[3, 20, 3\] that are not finite",
        ),
        ("fold_sequences", None, TypeError, "got NoneType"),
    ],
)
def test_what_the_functions_return_is_checked(
    option: str, given: Any, error: type[Exception], reason: str
) -> None:
    steps: dict[str, Any] = {**STAND_IN, option: lambda *args: given}
    with pytest.raises(error, match=reason):
        Designability(Config(**SMALL, **steps))(torch.randn(1, 20, 3))


@pytest.mark.slow
def test_its_columns_are_in_the_result_the_report_and_the_files(tmp_path: Path) -> None:
    options = {**SMALL, "design_sequences": design, "fold_sequences": "stand_in"}
    results = [
        run_experiment("standard", 1, Config(**options)),
        run_experiment("best_of_n", 2, Config(**options)),
    ]
    assert json.loads(json.dumps(results))[0]["config"]["design_sequences"] == f"{__name__}:design"
    records = [
        Record(name=f"{r['method']}-b{r['num_branches']}", index=n, kind="k", status="ok", value=r)
        for n, r in enumerate(results)
    ]
    records.append(Record(name="noise_search-b2", index=2, kind="k", status="killed", error="killed"))
    report = collect(SimpleNamespace(records=records, folder=None))
    first = results[0]
    frame = report.frame()
    assert frame.mean_sc_rmsd[0] == first["mean_sc_rmsd"]
    assert frame.designable[0] == first["designable"] == sum(each < 2 for each in first["sc_rmsd"]) / 2
    assert frame.designable.isna().tolist() == [False, False, True]
    assert f"{first['mean_sc_tm']:.3f}  {first['mean_sc_rmsd']:.2f} Å" in str(report)
    assert ">scRMSD</th>" in report._repr_html_()
    with report.save(tmp_path)[1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["mean_sc_tm"] == str(first["mean_sc_tm"])
    assert rows[2]["designable"] == ""
    plain = run_experiment("standard", 1, Config(**SMALL))
    assert "sc_tm" not in plain
    assert plain["scores"] == first["scores"]
