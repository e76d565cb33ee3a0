from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mgpu_nb.workloads.protein import check_inputs
from mgpu_nb.workloads.protein import foldflow2 as foldflow2_module
from mgpu_nb.workloads.protein.config import Config
from mgpu_nb.workloads.protein.mixture import Mixture
from mgpu_nb.workloads.protein.models import load_checkpoint, load_model


def validated(**options: Any) -> Config:
    config = Config(**options)
    check_inputs(config)
    return config


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of the user's, `their_model`, on the path."""
    source = """
        from torch import nn

        class Pull(nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = nn.Linear(1, 1, bias=False)
                nn.init.constant_(self.scale.weight, -1.0)

            def forward(self, x, t):
                return self.scale(x[..., None])[..., 0]

        def make():
            return Pull()

        def wrong():
            return 3

        def sized(size):
            return nn.Linear(size, size)

        number = 3
    """
    (tmp_path / "their_model.py").write_text(textwrap.dedent(source))
    (tmp_path / "their_broken.py").write_text("raise RuntimeError('no GPU today')")
    (tmp_path / "their_exit.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("their_model", "their_broken"):
        sys.modules.pop(name, None)


def test_the_embedded_models_load() -> None:
    assert isinstance(load_model(Config(sample_length=20), "cpu"), Mixture)
    net = load_model(Config(sample_length=20, model="ca_net"), "cpu")
    assert not net.training
    assert not any(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("path", ["their_model:make", "their_model:Pull"])
def test_a_factory_of_the_users_loads(user_module: Path, path: str) -> None:
    config = validated(sample_length=6, model=path)
    x = torch.ones(2, 6, 3)
    torch.testing.assert_close(load_model(config, "cpu")(x, torch.zeros(2)), -x)


@pytest.mark.parametrize(
    ("path", "error", "reason"),
    [
        ("their_modle:make", ValueError, "does not import.*No module named 'their_modle'"),
        ("their_model:mkae", ValueError, "does not import.*has no attribute 'mkae'"),
        (
            "their_broken:make",
            ValueError,
            r"does not import.*no GPU today, in .*their_broken.py, line 1\): mend",
        ),
        (
            "their_exit:make",
            ValueError,
            r"model='their_exit:make' does not import \(SystemExit: 3, in .*, line 1\)",
        ),
        ("their_model:number", TypeError, "is a int; a factory is a callable"),
        (
            "their_model:sized",
            TypeError,
            r"cannot be called \(missing a required argument: 'size'\): a factory is",
        ),
    ],
)
def test_a_factory_that_cannot_be_had_is_refused_at_the_door(
    user_module: Path, path: str, error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        validated(model=path)


def test_a_checkpoint_that_is_none_of_ca_net_is_refused_at_the_door(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_text("garbage")
    with pytest.raises(
        ValueError, match=r"holds no weights of ca_net .*train some with `mgpu-nb protein train`"
    ):
        validated(model="ca_net", checkpoint=str(tmp_path / "bad.safetensors"))


def test_a_factory_must_make_a_module(user_module: Path) -> None:
    with pytest.raises(TypeError, match=r"made a int; a factory must return an nn.Module"):
        load_model(Config(model="their_model:wrong"), "cpu")


@pytest.mark.parametrize("form", ["safetensors", "bare", "state_dict", "model"])
def test_checkpoints_of_all_forms_load(tmp_path: Path, form: str) -> None:
    weights = {"weight": torch.tensor([[2.5]])}
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pt")
    if form == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights if form == "bare" else {form: weights, "epoch": 3}, path)
    layer = nn.Linear(1, 1, bias=False)
    load_checkpoint(layer, path)
    assert layer.weight.item() == 2.5


def test_a_checkpoint_goes_into_the_users_model(user_module: Path) -> None:
    torch.save({"scale.weight": torch.tensor([[4.0]])}, user_module / "four.pt")
    model = load_model(Config(model="their_model:make", checkpoint=str(user_module / "four.pt")), "cpu")
    assert model(torch.ones(1, 4, 3), torch.zeros(1))[0, 0, 0].item() == 4.0


class Evil:
    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, ("executed",)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt holds more than weights"):
        load_checkpoint(nn.Linear(1, 1), tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()


def test_checkpoints_that_do_not_fit_are_named(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2, 2)}, tmp_path / "wide.pt")
    with pytest.raises(ValueError, match=r"(?s)wide\.pt does not fit Linear.*size mismatch"):
        load_checkpoint(nn.Linear(1, 1, bias=False), tmp_path / "wide.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(TypeError, match="holds a list, not a state dict"):
        load_checkpoint(nn.Linear(1, 1), tmp_path / "list.pt")
    for name in ("torn.pt", "torn.safetensors"):
        (tmp_path / name).write_bytes(b"\x00\x01 torn")
        with pytest.raises(ValueError, match="torn"):
            load_checkpoint(nn.Linear(1, 1), tmp_path / name)


def test_a_missing_checkpoint_is_refused_at_the_door() -> None:
    with pytest.raises(ValueError, match=r"no-such\.pt' is no file; give a \.safetensors"):
        validated(model="ca_net", checkpoint="no-such.pt")


def test_ca_net_takes_only_its_own_weights(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors holds no weights of ca_net"):
        load_model(Config(model="ca_net", checkpoint=str(tmp_path / "other.safetensors")), "cpu")


class FakeNetwork(nn.Module):
    """Pulls to the origin as FoldFlow says it: (x_t - x_0) / t in nm with x_0 = 0, its time running backwards."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        self.batch = batch
        return {"trans_vectorfield": 0.1 * batch["rigids_t"][..., 4:] / batch["t"][:, None, None]}


def test_foldflow2_is_turned_into_a_velocity() -> None:
    fake = FakeNetwork()
    x = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0))
    x = x - x.mean(1, keepdim=True)
    t = torch.tensor([0.0, 0.75])
    v = foldflow2_module.FoldFlow2(fake)(x, t)
    torch.testing.assert_close(v, -x / (1 - t)[:, None, None])  # reaches the origin at t = 1
    quaternions = fake.batch["rigids_t"][..., :4]
    torch.testing.assert_close(quaternions.norm(dim=-1), torch.ones(2, 9))
    assert fake.batch["res_mask"].shape == (2, 9)


def test_frames_of_foldflow2_turn_with_the_chain(rotation: Callable[[], Tensor]) -> None:
    x = torch.randn(1, 9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turn = rotation()
    frames = foldflow2_module._frames(x)
    torch.testing.assert_close(foldflow2_module._frames(x @ turn.T), turn @ frames)
    torch.testing.assert_close(torch.linalg.det(frames), torch.ones(1, 9, dtype=torch.float64))
    w, u = foldflow2_module._quaternions(frames).split([1, 3], dim=-1)
    cross = torch.linalg.cross(
        u[..., None, :].expand(1, 9, 3, 3), torch.eye(3, dtype=torch.float64).expand(1, 9, 3, 3)
    )
    rebuilt = (2 * w**2 - 1)[..., None] * torch.eye(3, dtype=torch.float64) + 2 * u[..., :, None] * u[
        ..., None, :
    ]
    torch.testing.assert_close(rebuilt + 2 * w[..., None] * cross.mT, frames)
