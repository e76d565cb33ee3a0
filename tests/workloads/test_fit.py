"""The report of the training of a small model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mgpu_nb.workloads.alignment.fit_reference as reference
from mgpu_nb.workloads import base, molecules, protein, tracin
from mgpu_nb.workloads.fit import MOST_LOSSES, FitReport, described
from mgpu_nb.workloads.molecules.forces import FitConfig


@pytest.mark.parametrize("count", [0, 1, MOST_LOSSES, MOST_LOSSES + 1, 100])
def test_a_report_shows_some_losses_and_the_last(count: int) -> None:
    report = FitReport(None, {10 * n: 2.0 - n / 1000 for n in range(count)}, "step", [], "a model")
    shown = str(report)
    assert "a model" in shown
    assert sum(f" {2.0 - n / 1000:.4f}" in shown for n in range(count)) <= MOST_LOSSES
    if count:
        assert f"{2.0 - (count - 1) / 1000:.4f}" in shown
    assert len(report.frame()) == count


@pytest.mark.parametrize("config", [molecules.TrainConfig, FitConfig, protein.TrainConfig])
def test_where_nothing_can_be_written_is_told_before_a_training(
    config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.safetensors").mkdir()
    Path("file").write_text("mine")
    with pytest.raises(
        ValueError, match=r"output='folder\.safetensors' is a folder; give the path of a file in it"
    ):
        config(output="folder.safetensors")
    with pytest.raises(ValueError, match=r"output='file/new/m\.safetensors': file is a file; name a folder"):
        config(output="file/new/m.safetensors")
    config(output="new/m.safetensors")


TRAININGS = (protein.TrainConfig, tracin.TrainConfig, molecules.TrainConfig, FitConfig, reference.FitConfig)


@pytest.mark.parametrize("kind", TRAININGS, ids=lambda kind: kind.__module__.split(".")[2])
def test_a_training_takes_one_device_of_the_users(kind: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"gpu_ids=\(0, 1\).*one GPU; give one id|give an id for each rank"):
        kind(gpu_ids=(0, 1))
    workload = base.workload_of(kind())
    if workload.launch is None:  # else it makes its pool itself
        assert base.pool_options(workload, kind(gpu_ids="cpu")) == {"gpu_ids": "cpu", "slots": 1}
        assert base.pool_options(workload, kind(gpu_ids=(3,))) == {"gpu_ids": (3,), "slots": None}
    if kind is not tracin.TrainConfig:  # which writes no weights that say how they were made
        assert described(kind(gpu_ids="cpu")) == described(kind())  # what comes of it is the same
