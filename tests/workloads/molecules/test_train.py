"""The training: what it writes, what it repeats, what it shares among ranks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mgpu_nb
from mgpu_nb.workloads.molecules.checkpoint import load_model
from mgpu_nb.workloads.molecules.train import TrainConfig, train

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    "steps": 6,
    "batch_size": 8,
    "hidden": 32,
    "layers": 1,
    "heavy_atoms": 2,
    "conformers": 1,
}


def test_what_it_writes_and_says(tmp_path: Path) -> None:
    file = tmp_path / "new" / "m.safetensors"
    said = train(TrainConfig(output=str(file), save_every=4, seed=5, **SMALL))
    assert said["path"] == str(file)
    assert said["bytes"] == file.stat().st_size
    assert said["steps"] == 6
    assert [step for step, _ in said["losses"]] == [6]
    model = load_model(file)
    assert said["parameters"] == sum(value.numel() for value in model.parameters())
    assert said["molecules"] == sum(model.histogram.values())
    assert said["left_out"]["of G2 with other elements, an open shell or fewer than three atoms"] > 50

    from safetensors import safe_open

    with safe_open(str(file), framework="pt") as opened:
        about = opened.metadata()
    assert about["command"] == "mgpu-nb molecules train"
    assert (about["seed"], about["step"]) == ("5", "6")
    assert json.loads(about["config"])["hidden"] == 32
    assert {"mgpu_nb", "torch", "rdkit", "ase"} <= json.loads(about["versions"]).keys()


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
        train(TrainConfig(output=str(tmp_path / f"{name}.safetensors"), seed=seed, **SMALL))
    a, b, c = (load_model(tmp_path / f"{name}.safetensors").state_dict() for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_going_on_from_earlier_weights(tmp_path: Path) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    train(TrainConfig(output=str(first), **SMALL))
    still = {**SMALL, "steps": 1, "learning_rate": 1e-30, "init": str(first)}
    train(TrainConfig(output=str(second), **still))
    before, after = load_model(first).state_dict(), load_model(second).state_dict()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    with pytest.raises(ValueError, match=r"init=.*does not fit hidden=64, layers=1.*it has hidden=32\. Give"):
        train(TrainConfig(output=str(second), **{**still, "hidden": 64}))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"steps": 0}, "steps must be"),
        ({"noise_precision": 0.7}, "noise_precision must be"),
        ({"ema": 1.0}, "ema must be"),
        ({"world_size": 9}, "world_size must be at most batch_size=8"),
        ({"output": "weights"}, "output must be a path that ends in .safetensors"),
        ({"init": "nowhere.safetensors"}, "init='nowhere.safetensors' is no file"),
    ],
)
def test_bad_options(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{**SMALL, **bad})


def test_nowhere_to_write_and_no_gang(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere to write"):
        train(TrainConfig(**SMALL))
    with pytest.raises(ValueError, match=r"world_size=2, and this process is one of 1; .*launch"):
        train(TrainConfig(output=str(tmp_path / "m.safetensors"), world_size=2, **SMALL))


def test_a_training_that_diverges_ends(tmp_path: Path) -> None:
    wild = {**SMALL, "steps": 50, "learning_rate": 1e30, "matrix_rate": 1e30}
    with pytest.raises(
        ValueError, match=r"the loss is (inf|nan) after \d+ steps; lower learning_rate=1e\+30"
    ):
        train(TrainConfig(output=str(tmp_path / "m.safetensors"), **wild))


@pytest.mark.slow
def test_the_loss_falls(tmp_path: Path) -> None:
    wanted = {**SMALL, "steps": 400, "batch_size": 16, "layers": 2}
    losses = [
        loss for _, loss in train(TrainConfig(output=str(tmp_path / "m.safetensors"), **wanted))["losses"]
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.4


@pytest.mark.slow
def test_two_ranks_give_the_losses_of_one(tmp_path: Path) -> None:
    wanted = {**SMALL, "batch_size": 9}  # an odd batch: parts of 4 and of 5
    alone = train(TrainConfig(output=str(tmp_path / "one.safetensors"), **wanted))
    config = TrainConfig(output=str(tmp_path / "two.safetensors"), world_size=2, **wanted)
    first, second = mgpu_nb.launch(train, args=(config,), nprocs=2, gpu_ids="cpu").results()
    assert first["loss"] == second["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert (first["bytes"] > 0, second["bytes"]) == (True, 0)
    one, two = (load_model(tmp_path / f"{name}.safetensors").state_dict() for name in ("one", "two"))
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
