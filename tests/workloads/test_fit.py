"""The report of the training of a small model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgpu_nb.workloads import molecules, protein
from mgpu_nb.workloads.fit import MOST_LOSSES, FitReport
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
