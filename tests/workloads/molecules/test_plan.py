"""What is checked before an evaluation starts, and its tasks."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from tiny_molecules import SIZES, options

from mgpu_nb.runs.fingerprint import fingerprint
from mgpu_nb.tasks import Task
from mgpu_nb.workloads.molecules import plan
from mgpu_nb.workloads.molecules.config import Config
from mgpu_nb.workloads.molecules.draws import generator, number_of_atoms
from mgpu_nb.workloads.molecules.forces import potential
from mgpu_nb.workloads.molecules.plan import check_inputs, chunks, tasks


def prints(config: Config, slots: int = 1) -> dict[str, str]:
    return {str(task.name): fingerprint(task, config.seed) for task in tasks(config, slots)}


@pytest.mark.slow
def test_chunks_are_the_same_for_any_number_of_slots_samples_and_scales(model_path: str) -> None:
    config = Config(**options(model_path, n_samples=50, chunk_size=8))
    assert prints(config, 1) == prints(config, 4)
    longer = Config(**options(model_path, n_samples=251, chunk_size=8, guidance_scales=(0.3, 0.01)))
    whole = [f"baseline-{indices[0]}" for _, indices in chunks(config, SIZES) if len(indices) == 8]
    assert len(whole) >= 3
    assert {name: prints(longer)[name] for name in whole} == {name: prints(config)[name] for name in whole}
    rest = prints(config).keys() & prints(longer).keys() - set(whole)
    assert any(prints(longer)[name] != prints(config)[name] for name in rest)


@pytest.mark.parametrize("n", [1, 7, 50, 251, 1003])
@pytest.mark.parametrize("chunk_size", [1, 20, 2000])
def test_each_sample_is_in_one_chunk_of_its_size(model_path: str, n: int, chunk_size: int) -> None:
    config = Config(**options(model_path, n_samples=n, chunk_size=chunk_size))
    found = chunks(config, SIZES)
    assert sorted(index for _, indices in found for index in indices) == list(range(n))
    assert max(len(indices) for _, indices in found) <= chunk_size
    for atoms, indices in found:
        draws = [generator(config.seed, index) for index in indices]
        assert {number_of_atoms(each, SIZES, None) for each in draws} == {atoms}
    fixed = chunks(Config(**options(model_path, n_samples=n, chunk_size=chunk_size, n_nodes=5)), SIZES)
    assert len(fixed) == -(-n // chunk_size)
    assert {atoms for atoms, _ in fixed} == {5}


def test_the_longest_start_first_and_the_shortest_are_at_the_end(model_path: str) -> None:
    config = Config(**options(model_path, relax=True, skip_chain=False, n_samples=6, n_nodes=5))
    cost = {str(task.name): task.cost or 0.0 for task in tasks(config)}
    assert cost["relaxed-0"] > cost["guided_scale_0.01-0"] > cost["baseline-0"] > cost["chain_baseline"]
    assert all(task.retries == 1 and task.seed == config.seed for task in tasks(config))


def test_other_weights_are_other_tasks(tmp_path: Any, model_path: str) -> None:
    from tiny_molecules import tiny_model

    path = tiny_model(tmp_path / "model.safetensors")
    before = prints(Config(**options(path)))
    tiny_model(tmp_path / "model.safetensors", seed=1)
    after = prints(Config(**options(path)))
    assert before.keys() == after.keys()
    assert not before.items() & after.items()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_nodes": 4}, "n_nodes must be 3 to 9 except 4, 6, 8"),
        ({"n_nodes": 99}, "n_nodes must be 3 to 9"),
        ({"steps": 21}, "steps=21: the model was trained with 20 steps"),
        (
            {"model_path": "none.safetensors"},
            "model_path='none.safetensors' does not exist; give a .safetensors file",
        ),
        ({"noise_threshold": 0.0}, "noise_threshold=0 is below the noise of every step"),
        ({"mlff_model": "gfn3"}, "mlff_model must be one of potential, gfn2"),
        ({"mlff_model": "no_such_module:Field"}, "mlff_model='no_such_module:Field' does not import"),
        ({"judge": "tiny_molecules:Sprnigs"}, "judge='tiny_molecules:Sprnigs' does not import"),
        (
            {"judge": "tiny_molecules:needs_more"},
            r"judge='tiny_molecules:needs_more' cannot be called \(missing a required argument: 'key'\).* of your own",
        ),
    ],
)
def test_what_cannot_be_is_told_before_a_worker_starts(
    model_path: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises((ValueError, OSError), match=words):
        check_inputs(Config(**options(model_path, **changes)))


@pytest.mark.parametrize(
    ("package", "changes", "words"),
    [
        ("rdkit", {}, r'needs rdkit, which is not installed: pip install "mgpu-nb\[molecules\]"'),
        ("ase", {"relax": True}, r'pip install "mgpu-nb\[molecules\]"'),
        ("tblite", {"judge": "gfn2"}, r'pip install "mgpu-nb\[molecules\]"'),
        ("wandb", {"use_wandb": True}, r'use_wandb needs wandb.*: pip install "mgpu-nb\[wandb\]"'),
    ],
)
def test_what_is_not_installed_is_told_with_its_extra(
    model_path: str, monkeypatch: pytest.MonkeyPatch, package: str, changes: dict[str, Any], words: str
) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else found(name, *rest)
    )
    with pytest.raises(ValueError, match=words):
        check_inputs(Config(**options(model_path, **changes)))


def test_the_model_that_is_read_is_logged(model_path: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mgpu_nb.molecules")
    check_inputs(Config(**options(model_path)))
    (said,) = caplog.messages
    assert said.startswith(f"model {model_path}: ")
    assert said.endswith("weights, 20 steps, trained on 11 molecules of 3 to 9 atoms of H, C, N, O, F")
    caplog.clear()
    check_inputs(Config(**{**options(model_path), "model_path": None, "steps": 4, "noise_threshold": 1.0}))
    assert caplog.messages[0].startswith("model of this package: ")


def test_a_force_field_that_is_not_used_need_not_be_there(model_path: str) -> None:
    check_inputs(
        Config(**options(model_path, mlff_model="no_such_module:Field", guidance_scales=(0.0,), judge=None))
    )


def test_tasks_are_of_the_functions_of_the_worker(model_path: str) -> None:
    found = tasks(Config(**options(model_path, skip_chain=False)))
    assert all(isinstance(task, Task) for task in found)
    assert {task.kind.rpartition(":")[2] for task in found} == {"run_chunk", "run_chain"}
    assert plan.RETRIES == 1


@pytest.mark.parametrize(
    ("guide", "more"), [("potential", {"relaxed", "chain_guided"}), ("tiny_molecules:Springs", set())]
)
def test_with_other_weights_of_a_force_field_it_is_another_task(
    model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guide: str, more: set[str]
) -> None:
    config = Config(**options(model_path, skip_chain=False, relax=True, mlff_model=guide))
    before = prints(config)
    other = tmp_path / potential.PARAMETERS.name
    other.write_bytes(potential.PARAMETERS.read_bytes() + b" ")
    monkeypatch.setattr(potential, "PARAMETERS", other)
    after = prints(config)
    changed = {name for name in before if before[name] != after[name]}
    # The potential watches all sets but that which is relaxed.
    sets = {"baseline", "guided_scale_0.0", "guided_scale_0.01"} | more
    assert changed == {name for name in before if (name.rpartition("-")[0] or name) in sets}
    assert "chain_baseline" in before.keys() - changed
