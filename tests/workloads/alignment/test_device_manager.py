"""Memory of devices, and largest batches that are found by trying."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tiny_language_models import tiny_model

from mgpu_nb import GPUPool
from mgpu_nb.context import Worker
from mgpu_nb.workloads.alignment import device_manager
from mgpu_nb.workloads.alignment.config import Config
from mgpu_nb.workloads.alignment.device_manager import (
    DeviceMemory,
    Trial,
    device_memory,
    largest_batches,
    largest_here,
    memory_here,
    memory_lines,
    trials,
)
from mgpu_nb.workloads.alignment.job import EMBEDDED, Pair
from mgpu_nb.workloads.alignment.models import load_model
from mgpu_nb.workloads.alignment.settings import ValueGuided, load_settings

GIB = 2**30
PAIR = Pair("gpt2", EMBEDDED, EMBEDDED)


def test_lines_are_those_of_the_guide() -> None:
    found = [
        DeviceMemory("GPU 0", int(45.23 * GIB), int(48.5 * GIB), 80 * GIB),
        DeviceMemory("CPU 1", GIB, GIB, 8 * GIB),
    ]
    assert memory_lines(found) == [
        "GPU Memory Summary:",
        "  GPU 0: 45.23 GB allocated, 48.50 GB reserved, 80.00 GB total",
        "  CPU 1: 1.00 GB allocated, 1.00 GB reserved, 8.00 GB total (no GPU: the process, and the RAM that all slots "
        "share)",
    ]


def test_memory_of_a_virtual_device_is_that_of_its_process() -> None:
    here = Worker(slot=1, device="cpu", devices=("cpu",), gpu_id=None, uuid="cpu:1")
    found = memory_here(here)
    assert found.device == "CPU 1"
    assert found.allocated == pytest.approx(psutil.Process(os.getpid()).memory_info().rss, rel=0.2)
    assert found.allocated < found.total
    if not torch.cuda.is_available():
        assert [each.device for each in device_memory()] == ["CPU"]


@pytest.mark.parametrize("fits", [0, 1, 5, 64])
def test_the_largest_batch_is_found_by_trying(fits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def attempt(trial: Trial, size: int) -> None:
        tried.append(size)
        if size > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Trial, "__call__", attempt)
    assert largest_here(Trial("generation", PAIR, 1, 1, "eager", False), 64) == fits
    assert max(tried) <= 64
    assert len(tried) < 12


def test_other_errors_are_not_held_for_want_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt(trial: Trial, size: int) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(Trial, "__call__", attempt)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        largest_here(Trial("generation", PAIR, 1, 1, "eager", False), 64)


def test_trials_have_the_lengths_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"question": "1+2+3", "answer": "6"}\n')
    words = f"datasets.mine={{kind: table, train: {path}, test: {path}, reward: 'm:f', max_new_tokens: 6}}"
    found = trials(load_settings(Config((words, "training.gradient_checkpointing=false"))))
    assert [trial.what for trial in found] == ["generation", "training", "guide"]
    assert {trial.guided and trial.guided.law for trial in found} == {"bernoulli"}
    assert {replace(trial, what="", guided=None) for trial in found} == {
        Trial("", PAIR, 5, 6, "eager", False)
    }
    few = load_settings(Config(("algos.PITA=null", "algos.QSharp=null")))
    assert [(trial.what, trial.guided) for trial in trials(few)] == [("generation", None), ("training", None)]
    wide = load_settings(
        Config(("algos.DPO=null", "algos.GRPO=null", "algos.GRPO-HF=null", "algos.QSharp.law=categorical"))
    )
    assert [(trial.what, trial.guided) for trial in trials(wide)] == [
        (what, wide.algos["QSharp"]) for what in ("generation", "guide")
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "penalty"), [("generation", 0.0), ("training", 0.0), ("guide", 0.0), ("guide", 0.1)]
)
def test_a_trial_goes_through_as_many_tokens_as_the_work(
    what: str, penalty: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = tiny_model("llama", tmp_path / "large")
    small = tiny_model("llama", tmp_path / "small", hidden=8)
    sizes: list[tuple[int, ...]] = []

    def watched(*arguments: Any, **options: Any) -> Any:
        model = load_model(*arguments, **options)
        model.base_model.register_forward_pre_hook(
            lambda module, given, named: sizes.append((module.config.hidden_size, *named["input_ids"].shape)),
            with_kwargs=True,
        )
        return model

    monkeypatch.setattr(device_manager, "load_model", watched)
    guided = ValueGuided(batch_size=1, learning_rate=1.0, epochs=1, eta=1.0, top_k=3, value_penalty=penalty)
    Trial(what, Pair("llama", large, small), 7, 5, "eager", True, guided)(3)
    if what == "generation":
        assert {hidden for hidden, rows, _ in sizes} == {8, 16}  # both of them write
        assert len(sizes) >= 2 * 5
        assert sizes[0] == (16, 3, 7)
    else:
        assert sizes[0] == ((16, 6, 12) if what == "training" else (8, 3, 12))
        if what == "guide":  # a penalty asks the reference which tokens are guided
            assert ((16, 3, 12) in sizes) == (penalty > 0)
    with pytest.raises(ValueError, match="context"):
        Trial("generation", Pair("llama", large, small), 60, 5, "eager", True)(1)


@pytest.mark.slow
def test_a_pool_finds_them_from_the_parent_process() -> None:
    with GPUPool(slots=1, preload=("transformers",)) as pool:
        found = largest_batches(Config(), pool, largest=2, progress=False)
    assert found == {("gpt2", what): 2 for what in ("generation", "training", "guide")}
