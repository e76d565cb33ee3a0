"""A chunk of samples: what comes of it, whatever else is in it, and when memory runs out."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny_molecules import options, record_of

from mgpu_nb.tasks import Task
from mgpu_nb.workloads.molecules import worker
from mgpu_nb.workloads.molecules.checkpoint import load_model
from mgpu_nb.workloads.molecules.config import Config, SampleSet, canonical
from mgpu_nb.workloads.molecules.sampler import sample
from mgpu_nb.workloads.molecules.source import model_digest
from mgpu_nb.workloads.molecules.worker import FRAMES, guided_calls, run_chain, run_chunk

GUIDED = SampleSet("guided_scale_0.01", 0.01)


def chunk(path: str, of: SampleSet, start: int, stop: int, **changes: Any) -> dict[str, Any]:
    config = canonical(Config(**options(path, **changes)), of.scale, of.relaxed)
    return run_chunk(config, model_digest(path), of, range(start, stop))


def test_any_split_gives_the_same_samples(model_path: str) -> None:
    whole = chunk(model_path, GUIDED, 0, 7)
    parts = [chunk(model_path, GUIDED, start, min(start + 3, 7), batch_size=2) for start in (0, 3, 6)]
    for name in ("numbers", "positions", "sizes", "broken"):
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])
    for name in ("index", "stable", "energy", "force_rms", "force_calls"):
        np.testing.assert_array_equal(np.concatenate([p["rows"][name] for p in parts]), whole["rows"][name])
    joined = np.concatenate([part["trajectory"]["force_rms"] for part in parts])
    np.testing.assert_array_equal(joined, whole["trajectory"]["force_rms"])
    assert whole["rows"]["index"].tolist() == list(range(7))
    assert set(whole["sizes"]) <= {3, 5, 7, 9}


def test_guided_and_unguided_samples_begin_alike(model_path: str) -> None:
    plain, guided = (chunk(model_path, of, 0, 4) for of in (SampleSet("baseline"), GUIDED))
    np.testing.assert_array_equal(plain["sizes"], guided["sizes"])
    assert (plain["positions"] != guided["positions"]).any()


@pytest.mark.parametrize("sampler", ["ddpm", "dpm_solver++"])
@pytest.mark.parametrize(("iterations", "threshold"), [(1, 0.8), (3, 0.5)])
def test_force_calls_are_counted_as_they_are_planned(
    model_path: str, sampler: str, iterations: int, threshold: float
) -> None:
    changes = {
        "sampler": sampler,
        "steps": 6,
        "guidance_iterations": iterations,
        "noise_threshold": threshold,
    }
    found = chunk(model_path, GUIDED, 0, 2, **changes)
    planned = guided_calls(Config(**options(model_path, **changes)), load_model(model_path).schedule)
    assert planned % iterations == 0
    assert planned > 0
    assert found["rows"]["force_calls"].tolist() == [planned, planned]


@pytest.mark.slow
def test_relaxed_samples_are_those_of_the_baseline_moved_by_as_many_calls(model_path: str) -> None:
    plain = chunk(model_path, SampleSet("baseline"), 0, 3, steps=20)
    relaxed = chunk(model_path, SampleSet("relaxed", relaxed=True), 0, 3, steps=20)
    np.testing.assert_array_equal(plain["sizes"], relaxed["sizes"])
    calls = guided_calls(Config(**options(model_path, steps=20)), load_model(model_path).schedule)
    assert (relaxed["rows"]["force_calls"] <= calls).all()
    assert relaxed["trajectory"] is None
    assert (relaxed["rows"]["force_rms"] < plain["rows"]["force_rms"]).all()


def test_failed_calls_are_counted_and_add_nothing(model_path: str) -> None:
    field = {"mlff_model": "tiny_molecules:Broken", "judge": None}
    found = chunk(model_path, GUIDED, 0, 3, **field)
    assert (found["rows"]["failed_calls"] == found["rows"]["force_calls"]).all()
    assert "no convergence in 250 cycles" in found["error"]
    plain = chunk(model_path, SampleSet("baseline"), 0, 3, judge=None)
    np.testing.assert_array_equal(found["positions"], plain["positions"])
    assert np.isnan(found["rows"]["force_rms"]).all()


def test_at_debug_a_chunk_says_what_it_did(model_path: str, caplog: pytest.LogCaptureFixture) -> None:
    chunk(model_path, GUIDED, 0, 4, mlff_model="tiny_molecules:Moody")
    assert not caplog.messages
    caplog.set_level(logging.DEBUG, "mgpu_nb.molecules")
    value = chunk(model_path, GUIDED, 0, 4, mlff_model="tiny_molecules:Moody")
    (said,) = caplog.messages
    sizes = sorted(set(value["sizes"].tolist()))
    assert said.startswith(
        f"guided_scale_0.01: samples [0, 1, 2, 3] of {sizes} atoms on cpu; batches of 4 at most,"
    )
    failed, calls = (sum(value["rows"][name]) for name in ("failed_calls", "force_calls"))
    assert failed > 0
    assert re.search(rf"; dpm_solver\+\+, 2 steps of \d\.\d+ s; {failed} of {calls} calls of the guide", said)
    assert "failed (RuntimeError: five atoms)" in said


def test_a_chain_ends_in_the_sample(model_path: str) -> None:
    config = canonical(Config(**options(model_path)), 0.01)
    chain = run_chain(config, model_digest(model_path), 0.01)
    drawn = chunk(model_path, GUIDED, 0, 1)
    assert chain["positions"].shape == (FRAMES, *drawn["positions"].shape)
    np.testing.assert_array_equal(chain["positions"][-1], drawn["positions"])
    np.testing.assert_array_equal(chain["numbers"][-1], drawn["numbers"])


def test_a_chunk_that_was_halved_says_so_and_is_the_same(
    model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, real = chunk(model_path, GUIDED, 0, 7), sample

    def small(model: Any, indices: Any, **given: Any) -> Any:
        if given["batch_size"] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, indices, **given)

    monkeypatch.setattr(worker, "sample", small)
    found = chunk(model_path, GUIDED, 0, 7)
    assert found["halved"] == 2
    np.testing.assert_array_equal(found["positions"], whole["positions"])


def test_figures_are_reported_under_the_names_of_the_report(model_path: str) -> None:
    reports: list[dict[str, Any]] = []
    config = canonical(Config(**options(model_path)), 0.01)
    task = Task(run_chunk, config, model_digest(model_path), GUIDED, (3, 4), name="guided_scale_0.01-3")
    record = record_of(task, 0, reports)
    assert record.ok, record.error
    last = reports[-1]
    assert (last["progress"], last["step"]) == (1.0, 3)
    rows = record.value["rows"]
    assert last["guided_scale_0.01/molecule_stability"] == rows["whole"].mean()
    assert last["guided_scale_0.01/force_rms"] == np.median(rows["force_rms"])


def test_files_that_changed_under_way_are_told(model_path: str) -> None:
    config = canonical(Config(**options(model_path)))
    with pytest.raises(ValueError, match="have changed since the run was started"):
        run_chunk(config, "another digest", SampleSet("baseline"), (0,))


def test_weights_of_a_force_field_that_changed_under_way_are_told(model_path: str) -> None:
    config = canonical(Config(**options(model_path)))
    inputs = model_digest(model_path)
    with pytest.raises(
        ValueError, match=r"weights of the force field 'potential' have changed since the run"
    ):
        run_chunk(config, inputs, SampleSet("baseline"), (0,), {"potential": "another digest"})
    guided = canonical(Config(**options(model_path, mlff_model="potential")), 0.01)
    with pytest.raises(
        ValueError, match=r"weights of the force field 'potential' have changed since the run"
    ):
        run_chain(guided, inputs, 0.01, {"potential": "another digest"})


def test_one_thread_on_a_cpu(model_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = sample
    seen: list[int] = []

    def watched(*given: Any, **named: Any) -> Any:
        seen.append(torch.get_num_threads())
        return real(*given, **named)

    monkeypatch.setattr(worker, "sample", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        chunk(model_path, SampleSet("baseline"), 0, 1)
    finally:
        torch.set_num_threads(before)
    assert seen == [1]
