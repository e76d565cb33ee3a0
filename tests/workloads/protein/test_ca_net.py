from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from mgpu_nb.context import Worker, set_worker
from mgpu_nb.workloads.protein.ca_net import WEIGHTS, CANet, load_ca_net
from mgpu_nb.workloads.protein.flow import Flow, centre
from mgpu_nb.workloads.protein.folds import generate_folds
from mgpu_nb.workloads.protein.geometry import geometric_score, non_coil
from mgpu_nb.workloads.protein.tm_score import nearest_tm_score
from mgpu_nb.workloads.protein.train_ca_net import TrainConfig, train

pytestmark = pytest.mark.slow  # seconds of work each


@pytest.fixture
def net() -> CANet:
    """The shipped network in float64, where equivariance is exact to 1e-9."""
    return load_ca_net().double()


def state(draws: torch.Generator, length: int = 20) -> tuple[Tensor, Tensor]:
    x = torch.randn(3, length, 3, generator=draws, dtype=torch.float64)
    return centre(x), torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)


def test_the_velocity_turns_with_the_chain(
    net: CANet, draws: torch.Generator, rotation: Callable[[], Tensor]
) -> None:
    x, t = state(draws)
    turn = rotation()
    torch.testing.assert_close(net(x @ turn.T, t), net(x, t) @ turn.T, atol=1e-9, rtol=1e-9)


def test_it_does_not_depend_on_where_the_chain_is(net: CANet, draws: torch.Generator) -> None:
    x, t = state(draws)
    torch.testing.assert_close(net(x + 5.0, t), net(x, t), atol=1e-9, rtol=1e-9)
    assert net(x, t).mean(-2).abs().max() < 1e-12


def test_it_tells_a_fold_from_its_mirror_image(net: CANet, draws: torch.Generator) -> None:
    x, t = state(draws)
    mirror = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    assert (net(x * mirror, t) - net(x, t) * mirror).abs().max() > 1e-3


def test_members_of_a_batch_do_not_mix(net: CANet, draws: torch.Generator) -> None:
    x, t = state(draws)
    each = torch.cat([net(x[i : i + 1], t[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(net(x, t), each, atol=1e-9, rtol=1e-9)


def test_it_makes_folds(folds: Tensor, draws: torch.Generator) -> None:
    noise = centre(torch.randn(8, 50, 3, generator=draws))
    samples = 10 * Flow(load_ca_net(), 50).complete(noise, 0).double()
    to_folds, of_noise = nearest_tm_score(samples, folds), nearest_tm_score(10 * noise.double(), folds)
    assert to_folds.mean() > 0.40  # measured: 0.48
    assert of_noise.mean() < 0.12
    bonds = (samples[:, 1:] - samples[:, :-1]).norm(dim=-1)
    assert bonds.mean().item() == pytest.approx(3.8, abs=0.3)
    assert non_coil(samples).double().mean() > 0.6  # measured: 0.74; the folds themselves have 0.96
    assert geometric_score(samples).mean() > 4.3
    lengths = (samples[:, 1:] - samples[:, :-1]).norm(dim=-1)
    assert ((lengths > 3.6) & (lengths < 4.0)).double().mean() > 0.99
    i, j = torch.triu_indices(50, 50, offset=3)
    assert (samples[:, i] - samples[:, j]).norm(dim=-1).min() > 4.0  # no clash
    a, b, c = (samples[:, 1 + n : 48 + n] - samples[:, n : 47 + n] for n in range(3))
    hand = (torch.linalg.cross(a, b, dim=-1) * c).sum(-1)
    assert (hand > 0).double().mean() > 0.75  # right-handed helices


@pytest.mark.parametrize("length", [4, 5, 9])
def test_short_chains_work(length: int) -> None:
    x = torch.randn(2, length, 3, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(load_ca_net()(x, torch.tensor([0.0, 0.98]))).all()


def test_an_untrained_network_gives_the_linear_guess() -> None:
    x, t = torch.randn(1, 6, 3), torch.tensor([0.0])
    torch.testing.assert_close(CANet(hidden=8, layers=2)(x, t), -centre(x))


def test_the_shipped_weights_state_where_they_come_from() -> None:
    assert WEIGHTS.stat().st_size < 1_000_000
    with safe_open(str(WEIGHTS), framework="pt") as file:
        metadata = file.metadata()
    stated = json.loads(metadata["config"])
    defaults = TrainConfig()
    assert {name: getattr(defaults, name) for name in stated} == stated
    assert metadata["seed"] == str(defaults.seed)
    assert set(json.loads(metadata["versions"])) == {"mgpu_nb", "torch"}


@pytest.mark.slow
def test_training_learns_reports_and_repeats_itself(tmp_path: Path) -> None:
    reports: list[dict[str, Any]] = []
    options: dict[str, Any] = {
        "steps": 60,
        "batch_size": 4,
        "hidden": 16,
        "layers": 1,
        "shortest": 12,
        "longest": 13,
        "num_folds": 2,
    }
    set_worker(Worker(0, "cpu", ("cpu",), None, "cpu:0", folder=tmp_path, _send=reports.append))
    try:
        first = train(TrainConfig(**options))
    finally:
        set_worker(None)
    second = train(TrainConfig(**options, output=str(tmp_path / "new" / "again.safetensors")))
    assert first["path"] == str(tmp_path / "ca_net.safetensors")
    assert [report["progress"] for report in reports] == pytest.approx([1 / 60, 51 / 60, 1.0])
    assert reports[-1]["loss"] < 0.85 * reports[0]["loss"]
    a, b = load_ca_net(first["path"]), load_ca_net(second["path"])
    assert all(torch.equal(a.state_dict()[name], b.state_dict()[name]) for name in a.state_dict())
    assert first["parameters"] == sum(value.numel() for value in a.state_dict().values())
    x = centre(torch.randn(2, 12, 3, generator=torch.Generator().manual_seed(0)))
    assert not torch.allclose(a(x, torch.tensor([0.5, 0.5])), CANet(16, 1)(x, torch.tensor([0.5, 0.5])))


def test_training_leaves_torch_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    torch.set_num_threads(2)
    train(
        TrainConfig(
            steps=1,
            batch_size=2,
            hidden=8,
            layers=1,
            shortest=8,
            longest=8,
            num_folds=1,
            output=str(tmp_path / "w"),
        )
    )
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"steps": 0}, "steps must be an integer >= 1, got 0"),
        ({"shortest": 3}, "shortest must be an integer >= 4, got 3"),
        ({"shortest": 40, "longest": 30}, "shortest must be at most longest=30, got 40"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number > 0, got nan"),
        ({"ema": 1.0}, r"ema must be a number >= 0 and < 1, got 1\.0"),
    ],
    ids=str,
)
def test_training_options_that_cannot_be_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        TrainConfig(**options)


def test_training_without_a_place_for_the_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="nowhere to write the weights"):
        train(TrainConfig())


def test_the_folds_it_was_trained_on_are_the_references() -> None:
    assert generate_folds(50, TrainConfig().num_folds).shape == (8, 50, 3)
