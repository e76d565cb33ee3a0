"""The training of a ConvE as a run: on which device."""

from types import SimpleNamespace
from typing import Any

import pytest
from fake_nvml import gpus, install

from mgpu_nb.cli import main
from mgpu_nb.hardware.slots import resolve_slots
from mgpu_nb.workloads import tracin
from mgpu_nb.workloads.base import pool_options
from mgpu_nb.workloads.tracin.report import collect_training

TRAIN = tracin.WORKLOAD.verbs["train"]
QUICK: dict[str, Any] = {"epochs": 1, "checkpoints": 1, "batch_size": 480}


@pytest.mark.parametrize(("gpu_ids", "device"), [(None, 0), ("cpu", None), ((1,), 1)])
def test_a_training_has_one_device_the_one_that_is_named(
    gpu_ids: Any, device: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, gpus("NVIDIA H100", "NVIDIA H100"))
    (slot,) = resolve_slots(**pool_options(TRAIN, tracin.TrainConfig(gpu_ids=gpu_ids)))
    assert (slot.kind, slot.gpu_id) == ("cpu" if device is None else "cuda", device)


def test_a_training_runs_on_one_gpu() -> None:
    with pytest.raises(ValueError, match=r"gpu_ids=\(0, 1\): a training runs on one GPU; give one id"):
        tracin.TrainConfig(gpu_ids=(0, 1))


def test_the_device_makes_no_other_training() -> None:
    here, there = (tracin.training_task(tracin.TrainConfig(gpu_ids=ids)) for ids in ("cpu", None))
    assert here.args == there.args


@pytest.mark.slow
def test_a_training_on_the_cpu_from_the_command_line(
    tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for name, value in QUICK.items() for word in (f"--{name}", str(value))]
    assert main(["tracin", "train", "--gpu_ids", "cpu", *words, "--output_dir", str(tmp_path / "run")]) == 0
    assert "loss" in capsys.readouterr().out
    assert main(["tracin", "train", "--gpu_ids", "0", "1", *words]) == 2
    assert "--gpu_ids 0 1: a training runs on one GPU; give one id" in capsys.readouterr().err


def test_the_report_tells_what_was_left_out_where_a_run_knows_it() -> None:
    value = {"loss": [0.7], "seconds": 1.0, "checkpoints": ["checkpoints/checkpoint_0.pt"]}
    for more, words in ({}, []), ({"left_out": ["left out of train.tsv: 1 comment"]}, ["1 comment"]):
        record = SimpleNamespace(ok=True, failed=False, error="", status="ok", value={**value, **more})
        run: Any = SimpleNamespace(folder=None, records=[record])
        lines = collect_training(run).text.splitlines()
        assert lines[0] == "loss 0.7000 after 1 epochs in 1.0 s"
        assert [line.rpartition(": ")[2] for line in lines[1:]] == words
