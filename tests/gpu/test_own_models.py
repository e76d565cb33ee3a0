"""Models, losses and interpreters of one's own on a real GPU: the CPU's numbers, and a resume that nothing shows."""

import json
import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import gpu_jobs
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gpu_dry import DRY
from gpu_fixtures import ComputePool, Figures
from torch import Tensor, nn
from torch.nn import functional

from mgpu_nb import GPUPool
from mgpu_nb.workloads import tracin, training
from mgpu_nb.workloads.training.examples import images, language
from mgpu_nb.workloads.training.report import Report

Examples = tuple[Tensor, Tensor]


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3))


def examples(n: int, seed: int) -> Examples:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 8, 8, generator=draw), torch.randint(3, (n,), generator=draw)


def loss(model: nn.Module, batch: Examples) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def apart(found: npt.ArrayLike, wanted: npt.ArrayLike) -> float:
    """Largest difference, relative to the largest number."""
    one, two = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return float(np.abs(one - two).max() / np.abs(two).max())


@pytest.mark.limit(60)
@pytest.mark.parametrize("engine", ["factored", "vmap"])
def test_influences_of_a_classifier_are_those_of_the_cpu(
    engine: Any, compute_pool: ComputePool, figures: Figures
) -> None:
    train, test = examples(400, 1), examples(8, 2)
    net = classifier()
    here = tracin.influence(net, train, test, loss=loss, k=None, engine=engine)
    found = []
    for slots in (1, 2):
        with compute_pool(slots) as pool:
            found.append(tracin.influence(net, train, test, loss=loss, k=None, engine=engine, pool=pool))
    one, two = found
    figures(apart=apart(one.values, here.values), selves=apart(one.self_influence, here.self_influence))
    assert apart(one.values, here.values) < 2e-3  # cuDNN computes convolutions in TF32 by default
    assert np.array_equal(one.values, two.values)
    assert np.array_equal(one.self_influence, two.self_influence)
    assert not next(net.parameters()).is_cuda


def train(folder: Path, pool: GPUPool, module: Any = images, **options: Any) -> Report:
    run = training.start(config(folder, module, **options), pool).wait(50)
    assert [record.error for record in run.records if not record.ok] == []
    return training.collect(run)


def config(folder: Path, module: Any = images, **options: Any) -> training.Config:
    own = {"model": module.model, "data": module.data, "loss": module.loss}
    return training.Config(
        **{"epochs": 3, "batch_size": 64, "world_size": 1, **own, **options}, output_dir=str(folder)
    )


def curve(report: Report) -> npt.NDArray[np.float64]:
    return report.frame()["loss"].to_numpy()


@pytest.mark.limit(100)
def test_a_model_of_ones_own_has_the_curve_of_the_cpu(
    tmp_path: Path, compute_pool: ComputePool, figures: Figures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    with GPUPool("cpu", 1) as cpu:
        wanted = {name: train(tmp_path / f"cpu-{name}", cpu, **options) for name, options in KINDS.items()}
    with compute_pool(1) as gpu:
        found = {name: train(tmp_path / f"gpu-{name}", gpu, **options) for name, options in KINDS.items()}
        half = train(tmp_path / "bf16", gpu, use_amp=True)
    differences = {name: apart(curve(found[name]), curve(wanted[name])) for name in KINDS}
    figures(
        **differences, bf16=apart(curve(half), curve(found["ddp"])), backend=found["ddp"].results["backend"],
        speed={name: report.frame()["samples_per_second"].max() for name, report in found.items()},
        speed_of_the_cpu={name: report.frame()["samples_per_second"].max() for name, report in wanted.items()},
    )  # fmt: skip
    assert DRY or found["ddp"].results["backend"] == "nccl"
    assert max(differences.values()) < 1e-3
    assert apart(curve(half), curve(found["ddp"])) < 0.05


KINDS: dict[str, dict[str, Any]] = {
    "ddp": {"metrics": images.metrics, "predict": images.predict},
    "fsdp": {"strategy": "fsdp", "ema_decay": 0.9},
    "language": {"module": language, "schedule": "cosine", "gradient_checkpointing": True},
}


@pytest.mark.limit(80)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_resume_on_the_gpu_is_not_to_be_seen(
    strategy: Any, tmp_path: Path, compute_pool: ComputePool, figures: Figures
) -> None:
    options = {"strategy": strategy, "checkpoint_steps": 3, "epochs": 6}
    with compute_pool(1) as pool:
        whole = train(tmp_path / "whole", pool, **options)
        run = training.start(config(tmp_path / "again", **options), pool)
        end = time.monotonic() + 40
        while not len(run.metrics()):  # the first epoch is over
            assert time.monotonic() < end
            time.sleep(0.01)
        run.cancel()
        stopped = run.wait(20).records[0].status
        report = train(tmp_path / "again", pool, **options)
    figures(apart=apart(curve(report), curve(whole)), stopped=stopped)
    assert len(curve(report)) == 6
    assert apart(curve(report), curve(whole)) < 1e-3


@pytest.mark.limit(60)
def test_torchrun_trains_on_its_gpu(tmp_path: Path, figures: Figures) -> None:
    pytest.importorskip("tyro", reason="tyro, which reads the command line, is not installed")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    options = ["--columns", "40", "--epochs", "2", "--batch_size", "8", "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(
        [*torchrun, "-m", "mgpu_nb.workloads.training", *options, *(["--gpu_ids", "cpu"] if DRY else [])],
        capture_output=True, text=True, timeout=55, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "run" / "training_results.json").read_text())
    figures(backend=found["backend"], memory=found["ranks"][0]["peak_memory"], seconds=found["seconds"])
    assert DRY or found["backend"] == "nccl"
    assert found["history"][1]["loss"] < found["history"][0]["loss"]


@pytest.mark.limit(90)
def test_workers_of_another_interpreter_are_pinned_as_well(tmp_path: Path, figures: Figures) -> None:
    """Another environment, of this machine's packages: it has no network to install any."""
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True, timeout=40
    )
    python = tmp_path / "env" / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = tmp_path / "env" / "lib" / version / "site-packages"
    paths = [sysconfig.get_path("purelib"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    (site / "carried.pth").write_text("\n".join(path for path in paths if path))
    with GPUPool([0], python=python) as pool:
        seen = pool.submit(gpu_jobs.sees).result(timeout=60)
        value = pool.submit(gpu_jobs.cubes).result(timeout=30)
    figures(seen=seen)
    assert pool.python == str(python)
    assert DRY or seen["count"] == 1
    assert value.device.type == "cpu"
    assert value.tolist() == [0, 1, 8, 27]
