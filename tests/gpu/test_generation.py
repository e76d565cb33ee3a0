"""Molecules and language models on a real GPU: the numbers of the CPU, the same twice, slots that share the card."""

import json
from pathlib import Path
from typing import Any

import gpu_jobs
import numpy as np
import pytest
from gpu_dry import DRY
from gpu_fixtures import ComputePool, Figures

from mgpu_nb import GPUPool, Task
from mgpu_nb.workloads import alignment, molecules
from mgpu_nb.workloads.alignment import check

ROUND = (
    "rounds_of_training=1", "data_collection.max_examples=8", "data_collection.examples_per_task=4",
    "data_collection.samples_per_example=8", "evaluation.max_examples=8", "algos.GRPO.steps=4",
    "algos.GRPO.prompts_per_step=8", "algos.GRPO-HF.steps=4", "algos.GRPO-HF.prompts_per_step=8",
)  # fmt: skip
ALGORITHMS = ("PITA", "QSharp", "DPO", "GRPO", "GRPO-HF")


@pytest.mark.limit(60)
def test_noise_of_molecules_is_that_of_the_cpu(compute_pool: ComputePool, figures: Figures) -> None:
    task = Task(gpu_jobs.noise_of_molecules)
    with GPUPool("cpu", 1) as cpu, compute_pool(1) as gpu:
        on_cpu, on_gpu, again = (np.array(pool.run([task]).results(40)[0]) for pool in (cpu, gpu, gpu))
    off = float(np.abs(on_gpu - on_cpu).max() / np.abs(on_cpu).max())
    figures(apart=off)
    assert off < 1e-4
    assert np.array_equal(on_gpu, again)


@pytest.mark.limit(90)
def test_molecules_are_drawn_and_guided(tmp_path: Path, compute_pool: ComputePool, figures: Figures) -> None:
    pytest.importorskip("rdkit", reason="rdkit, which judges molecules, is not installed")
    config = molecules.Config(
        n_samples=16, n_nodes=9, chunk_size=8, sampler="dpm_solver++", steps=20, judge=None, skip_chain=True,
        guidance_scales=(0.0, 0.0005), output_dir=str(tmp_path / "unused"),
    )  # fmt: skip
    found: dict[str, list[dict[str, Any]]] = {}
    with GPUPool("cpu", 2) as cpu, compute_pool(2) as gpu:
        for name, pool in (("cpu", cpu), ("gpu", gpu), ("again", gpu)):
            found[name] = pool.run(molecules.tasks(config), folder=tmp_path / name).results(80)
    for one, two in zip(found["gpu"], found["again"], strict=True):
        assert np.array_equal(one["positions"], two["positions"])
        assert not one["broken"].any()
    ours, theirs = (np.concatenate([chunk["positions"] for chunk in found[name]]) for name in ("gpu", "cpu"))
    near = np.linalg.norm(ours - theirs, axis=1)
    valid = {
        name: sum(smiles is not None for chunk in chunks for smiles in chunk["rows"]["smiles"])
        for name, chunks in found.items()
    }
    figures(
        angstrom_from_the_cpus_median=float(np.median(near)), angstrom_at_most=float(near.max()), valid=valid
    )
    assert np.median(near) < 1e-2  # a sample at a fork of its way may take the other one


@pytest.mark.limit(150)
def test_a_round_of_all_algorithms(tmp_path: Path, compute_pool: ComputePool, figures: Figures) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("omegaconf", reason="omegaconf is not installed")
    runs = {}
    with compute_pool(2) as gpu:
        for name in ("gpu", "again"):
            config = alignment.Config(ROUND, profile=("embedded",), output_dir=str(tmp_path / name))
            runs[name] = alignment.start(config, gpu).wait(140)
    seconds = {record.name: round(record.seconds or 0.0, 2) for record in runs["gpu"].records}
    assert not runs["gpu"].failures
    assert json.loads((tmp_path / "gpu" / "job_states.json").read_text()) == {
        f"{name}_gpt2_sums_r1": "EVAL_COMPLETED" for name in ALGORITHMS
    }
    same = {
        name: (tmp_path / "gpu" / "results" / name / "gpt2" / "sums" / "r1" / "result.json").read_bytes()
        == (tmp_path / "again" / "results" / name / "gpt2" / "sums" / "r1" / "result.json").read_bytes()
        for name in ALGORITHMS
    }
    figures(
        same_twice=same, slowest=max(seconds, key=lambda name: seconds[name]), seconds=max(seconds.values())
    )
    assert all(same.values())


@pytest.mark.limit(90)
def test_a_check_finds_slots_alike_and_the_largest_batches(
    tmp_path: Path, compute_pool: ComputePool, figures: Figures
) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("omegaconf", reason="omegaconf is not installed")
    config = alignment.CheckConfig(
        profile=("embedded",), largest=8 if DRY else 64, output_dir=str(tmp_path / "run")
    )
    with compute_pool(2) as gpu:
        run = alignment.start(config, gpu).wait(80)
    assert not run.failures
    report = check.collect(run)
    print(report)
    values = {record.name: record.value for record in run.records}
    looks = [value for name, value in values.items() if name.startswith(check.SLOT)]
    assert len({each["uuid"] for each in looks}) == (2 if DRY else 1)  # both slots are on the one GPU
    fits = {name: value["fits"] for name, value in values.items() if name.startswith(check.FITS)}
    figures(fits=fits, memory=[list(map(str, each["memory"])) for each in looks])
    assert all(number >= 1 for number in fits.values())
