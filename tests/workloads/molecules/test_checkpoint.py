"""Models of ours in files, the shipped one among them."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgpu_nb.workloads.fit import described
from mgpu_nb.workloads.molecules.bonds import stability
from mgpu_nb.workloads.molecules.checkpoint import WEIGHTS, load_model, save_model
from mgpu_nb.workloads.molecules.dataset import histogram, training_molecules
from mgpu_nb.workloads.molecules.diffusion import Diffusion
from mgpu_nb.workloads.molecules.egnn import EGNN
from mgpu_nb.workloads.molecules.forces.load import load_field
from mgpu_nb.workloads.molecules.guidance import Guide
from mgpu_nb.workloads.molecules.noise import Schedule
from mgpu_nb.workloads.molecules.rows import canonical_smiles, measure
from mgpu_nb.workloads.molecules.sampler import sample
from mgpu_nb.workloads.molecules.train import TrainConfig


def test_ours_comes_back(tmp_path: Path) -> None:
    net = Diffusion(
        EGNN(7, 32, 2, tanh=False, norm_constant=0.5),
        histogram={5: 3, 4: 1},
        schedule=Schedule(20, 1e-4),
        charges=True,
        h_scale=2.0,
    )
    save_model(net, tmp_path / "a" / "m.safetensors", {"seed": "7"})
    back = load_model(tmp_path / "a" / "m.safetensors")
    assert back.egnn.options == net.egnn.options
    assert (back.histogram, back.h_scale, back.charges) == ({4: 1, 5: 3}, 2.0, True)
    assert repr(back.schedule) == repr(net.schedule)
    for name, value in net.state_dict().items():
        assert torch.equal(back.state_dict()[name], value)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["m.safetensors"]


def damaged(path: Path, **described: Any) -> dict[str, Any]:
    """Weights and metadata of a model of ours, some of its description changed."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    metadata["model"] = json.dumps({**json.loads(metadata["model"]), **described})
    return {"tensors": load_file(path), "metadata": metadata}


@pytest.mark.parametrize(
    ("described", "reason"),
    [
        ({"alphabet": ["H", "C", "Xx", "O", "F"]}, r"elements \['Xx'\] are not known here, only H, C"),
        ({"histogram": {}}, "histogram must be the number of molecules by number of atoms, got {}"),
        ({"histogram": {"5": -1}}, "histogram must be the number of molecules by number of atoms"),
        ({"histogram": {"a": 1}}, "invalid literal for int"),
        ({"h_scale": 0}, "h_scale and charge_scale must be finite and not 0"),
        ({"charge_scale": "10"}, "TypeError: must be real number"),
        ({"network": {"\x1b[31mwide": 1}}, "unexpected keyword argument 'wide'"),
        ({"network": None}, "TypeError"),
    ],
)
def test_a_description_that_is_wrong(
    tmp_path: Path, model_path: str, described: dict[str, Any], reason: str
) -> None:
    from safetensors.torch import save_file

    save_file(**damaged(Path(model_path), **described), filename=tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x\.safetensors holds no model of molecules .*; copy it") as raised:
        load_model(tmp_path / "x.safetensors")
    assert re.search(reason, str(raised.value))
    assert str(raised.value).isprintable()


def test_a_file_of_something_else(tmp_path: Path, model_path: str) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    (tmp_path / "y.safetensors").write_bytes(b"junk")
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "cut.safetensors").write_bytes(Path(model_path).read_bytes()[:9999])
    save_file({"x": torch.zeros(1)}, tmp_path / "list.safetensors", {"model": "[]"})
    for name in ("x", "y", "empty", "cut", "list"):
        words = rf"{name}\.safetensors holds no model of molecules.*copy it again.*molecules train"
        with pytest.raises(ValueError, match=words):
            load_model(tmp_path / f"{name}.safetensors")


def test_weights_that_are_missing_or_no_numbers(tmp_path: Path, model_path: str) -> None:
    from safetensors.torch import save_file

    whole = damaged(Path(model_path))
    name, value = next(iter(whole["tensors"].items()))
    save_file({**whole["tensors"], name: value * torch.nan}, tmp_path / "nan.safetensors", whole["metadata"])
    with pytest.raises(
        ValueError, match=rf"nan\.safetensors: {name} has weights that are no finite floating-point"
    ):
        load_model(tmp_path / "nan.safetensors")
    del whole["tensors"][name]
    save_file(**whole, filename=tmp_path / "less.safetensors")
    with pytest.raises(
        ValueError, match=rf"less\.safetensors has no {name} \[.*; give weights and options of one"
    ):
        load_model(tmp_path / "less.safetensors")


@pytest.mark.parametrize("name", ["molecules.sdf", "weights.pt", "model.safetensors.gz"])
def test_a_file_without_options_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no model")
    words = rf"{re.escape(name)} is read as a model of EDM, and .* has no options of it; it needs args\.json"
    with pytest.raises(ValueError, match=words):
        load_model(tmp_path / name)


def test_a_folder_with_the_name_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").mkdir()
    with pytest.raises(ValueError, match=r"m\.safetensors has neither generative_model_ema\.npy nor"):
        load_model(tmp_path / "m.safetensors")


@pytest.mark.slow
def test_the_shipped_weights_state_how_they_were_made() -> None:
    from safetensors import safe_open

    assert WEIGHTS.stat().st_size < 1_000_000
    with safe_open(str(WEIGHTS), framework="pt") as file:
        about = file.metadata()
    assert about["command"] == "mgpu-nb molecules train"
    assert about["config"] == described(TrainConfig())["config"]
    assert (about["seed"], about["step"]) == ("0", str(TrainConfig().steps))
    assert {"mgpu_nb", "torch", "rdkit", "ase"} <= json.loads(about["versions"]).keys()
    net = load_model()
    assert net.alphabet == ("H", "C", "N", "O", "F")
    assert net.histogram == histogram(training_molecules())
    assert sum(value.numel() for value in net.parameters()) < 250_000


@pytest.mark.slow
def test_the_shipped_weights_know_their_molecules() -> None:
    net, known = load_model(), [m for m in training_molecules(3) if len(m.numbers) == 8]
    x = torch.stack([torch.from_numpy(m.positions).float() for m in known]).repeat(20, 1, 1)
    numbers = torch.stack([torch.from_numpy(m.numbers) for m in known]).repeat(20, 1)
    noise = torch.randn(*x.shape[:2], 8, generator=torch.Generator().manual_seed(0))
    step = torch.full((len(x),), 100)  # noise of 0.14 angstrom
    loss = net.loss_at(x, numbers, numbers != 0, step, noise[..., :3], noise[..., 3:])
    assert loss.mean() < 0.1  # 1 of a model that knows nothing


@pytest.mark.slow
def test_molecules_of_the_shipped_weights_are_stable_and_valid() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        drawn = sample(load_model(), range(64), seed=1, steps=100).molecules
    finally:
        torch.set_num_threads(threads)
    assert sum(stability(molecule).whole for molecule in drawn) >= 48
    assert sum(canonical_smiles(molecule) is not None for molecule in drawn) >= 0.85 * 64


@pytest.mark.slow
def test_molecules_that_are_guided_have_lower_forces_by_another_field_and_too_much_breaks_them() -> None:
    pytest.importorskip("tblite")
    model, guide, judge = load_model(), load_field("potential"), load_field("gfn2")
    forces, stable = {}, {}
    for scale in (0.0, 0.005, 0.05):
        made = sample(model, range(64), seed=2, sampler="dpm_solver++", guide=Guide(guide, scale))
        rows = measure(made.molecules, range(64), judge=judge)
        forces[scale], stable[scale] = float(np.nanmedian(rows["force_rms"])), float(rows["whole"].mean())
    assert forces[0.005] < 0.75 * forces[0.0]
    assert stable[0.005] > stable[0.0] - 0.05
    assert forces[0.05] > 2 * forces[0.005]
    assert stable[0.05] < stable[0.0] - 0.2
