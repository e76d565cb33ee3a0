from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mgpu_nb.workloads.protein.budget import branch_steps, evaluations, noise_rounds
from mgpu_nb.workloads.protein.ca_net import CANet
from mgpu_nb.workloads.protein.config import METHODS, SCORES, Config
from mgpu_nb.workloads.protein.flow import Flow
from mgpu_nb.workloads.protein.mixture import Mixture
from mgpu_nb.workloads.protein.scores import Scorer
from mgpu_nb.workloads.protein.search import Best, Noise, Search
from mgpu_nb.workloads.protein.structures import reference_folds

pytestmark = pytest.mark.slow  # seconds of work each

SEARCHES = [method for method in METHODS if method != "standard"]


def search(
    config: Config, method: str, branches: int, model: Callable[[Tensor, Tensor], Tensor] | None = None
) -> tuple[Best, Flow]:
    folds = torch.from_numpy(reference_folds(config).positions)
    flow = Flow(model or Mixture(folds), config.steps)
    found = Search(flow, Scorer(config.scoring_function, folds), config, "cpu")
    return found.run(method, branches), flow


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("method", SEARCHES)
def test_a_search_is_never_worse_than_standard(method: str, score: str) -> None:
    config = Config(
        num_samples=4,
        sample_length=24,
        steps=16,
        num_folds=3,
        scoring_function=score,
        noise_scale=0.15,
        seed=3,
    )
    sign = 1 if config.higher_is_better else -1
    plain, _ = search(config, "standard", 1)
    for branches in (
        1,
        3,
    ):  # with one, a search has no more than the plain sample, and noise_search a noisy one
        found, _ = search(config, method, branches)
        assert (sign * found.score >= sign * plain.score).all()  # to the last bit
        torch.testing.assert_close(
            found.score, Scorer(score, torch.from_numpy(reference_folds(config).positions))(found.x)
        )
    assert (sign * found.score > sign * plain.score).any()


@pytest.mark.parametrize("method", SEARCHES)
def test_that_holds_for_a_network_too(method: str) -> None:
    # Matrix products may differ in their last bits with the size of the batch; the plain sample's may not.
    torch.manual_seed(0)
    net = CANet(hidden=16, layers=1).eval()
    for parameter in net.parameters():
        parameter.data.normal_(std=0.1)
    config = Config(num_samples=3, sample_length=17, steps=8, num_folds=3, noise_scale=0.01, lambda_div=0.0)
    plain, _ = search(config, "standard", 1, net)
    found, _ = search(config, method, 5, net)
    assert (found.score >= plain.score).all()


def test_without_noise_every_search_is_standard() -> None:
    config = Config(num_samples=3, sample_length=20, steps=10, noise_scale=0.0, lambda_div=0.0, num_folds=3)
    plain, _ = search(config, "standard", 1)
    for method in ("sde_path_exploration", "divergence_free_ode", "noise_search"):
        found, _ = search(config, method, 3)
        torch.testing.assert_close(found.x, plain.x, atol=1e-5, rtol=0)


def test_best_of_n_is_nested() -> None:
    config = Config(num_samples=6, sample_length=20, steps=10, num_folds=3)
    scores = [search(config, "best_of_n", n)[0].score for n in (1, 2, 4, 8)]
    for fewer, more in itertools.pairwise(scores):
        assert (more >= fewer - 1e-7).all()
    noise = Noise(0, 3, "cpu")
    assert torch.equal(noise.starts(8, 10)[:, :4], noise.starts(4, 10))


def test_random_search_is_never_worse_than_the_best_of_its_starts() -> None:
    config = Config(num_samples=6, sample_length=20, steps=10, num_folds=3)
    assert (
        search(config, "random_search_divfree", 4)[0].score >= search(config, "best_of_n", 4)[0].score
    ).all()


def test_round_streams_are_nested_and_apart() -> None:
    noise = Noise(5, 3, "cpu")
    assert torch.equal(noise.round(2, 6).normal(4)[:, :3], noise.round(2, 3).normal(4))
    every = torch.cat(
        [
            noise.starts(4, 10).flatten(),
            noise.round(0, 4).normal(10, 3).flatten(),
            noise.round(1, 4).normal(10, 3).flatten(),
        ]
    )
    assert len(every.unique()) == every.numel()


@pytest.mark.parametrize("method", METHODS)
def test_a_sample_does_not_depend_on_those_beside_it(method: str) -> None:
    few = Config(num_samples=2, sample_length=20, steps=10, scoring_function="rmsd", seed=9)
    many = Config(num_samples=5, sample_length=20, steps=10, scoring_function="rmsd", seed=9)
    torch.testing.assert_close(
        search(few, method, 2)[0].x, search(many, method, 2)[0].x[:2], atol=1e-5, rtol=0
    )
    other = Config(num_samples=2, sample_length=20, steps=10, scoring_function="rmsd", seed=10)
    assert not torch.allclose(search(other, method, 2)[0].x, search(few, method, 2)[0].x, atol=1e-2)


@given(
    method=st.sampled_from(METHODS),
    branches=st.integers(1, 4),
    steps=st.integers(1, 12),
    interval=st.floats(0.01, 1.0),
    start=st.floats(0.0, 0.99),
    keep=st.integers(1, 5),
)
@settings(max_examples=60)
def test_the_expected_evaluations_are_those_counted(
    method: str, branches: int, steps: int, interval: float, start: float, keep: int
) -> None:
    config = Config(
        num_samples=2, sample_length=5, steps=steps, branch_interval=interval, branch_start_time=start, num_keep=keep,
        scoring_function="geometric",
    )  # fmt: skip
    _, flow = search(config, method, branches, model=lambda x, t: -x)
    assert flow.evaluations == 2 * evaluations(method, branches, config)


def test_evaluations_of_the_defaults() -> None:
    count = {method: [evaluations(method, b, Config()) for b in (2, 4, 8)] for method in METHODS}
    assert count["standard"] == [50, 50, 50]
    assert count["best_of_n"] == [100, 200, 400]
    assert count["sde_path_exploration"] == count["divergence_free_ode"] == [590, 1140, 2240]
    assert count["random_search_divfree"] == [690, 1340, 2640]
    assert count["noise_search"] == [402, 754, 1458]


def test_where_branches_and_rounds_are() -> None:
    assert list(branch_steps(Config())) == list(range(0, 50, 5))
    assert list(branch_steps(Config(branch_start_time=0.5, branch_interval=0.3))) == [25, 40]
    assert list(branch_steps(Config(steps=5))) == [0, 1, 2, 3, 4]
    assert noise_rounds(50) == [0, 10, 20, 30, 37, 40, 43, 46, 48]
    assert noise_rounds(1) == [0]


class Nearer(Scorer):
    """A scorer that wants the first residue far along x, so that what selection does is plain to see."""

    def __init__(self) -> None:
        super().__init__("tm_score", torch.zeros(1, 8, 3))  # of it too the higher is the better

    def __call__(self, x: Tensor) -> Tensor:
        return x[..., 0, 0].double()


def walk(config: Config, method: str, branches: int) -> Best:
    flow = Flow(lambda x, t: torch.zeros_like(x), config.steps)
    return Search(flow, Nearer(), config, "cpu").run(method, branches)


def test_selection_adds_up_over_the_branchings() -> None:
    # No velocity and no score of its own: each branching adds the best of B - 1 normal draws, or nothing.
    config = Config(num_samples=200, sample_length=8, steps=10, noise_scale=1.0)
    gains = []
    for branches in (2, 8):
        start = walk(config, "standard", 1).score
        gains.append((walk(config, "sde_path_exploration", branches).score - start).mean().item())
    # E max(0, N(0, s^2)) = s / sqrt(2 pi), at ten branchings, s^2 = dt (1 - 1/L); the score term shrinks it a little.
    one = 10 * math.sqrt(0.1 * 7 / 8) / math.sqrt(2 * math.pi)
    assert 0.5 * one < gains[0] < 1.1 * one
    assert gains[1] > 2 * gains[0]


def test_keeping_more_states_goes_on_from_more() -> None:
    one = Config(num_samples=3, sample_length=8, steps=10, noise_scale=1.0)
    two = Config(num_samples=3, sample_length=8, steps=10, noise_scale=1.0, num_keep=2)
    assert evaluations("sde_path_exploration", 2, two) > evaluations("sde_path_exploration", 2, one)
    for method in ("sde_path_exploration", "noise_search"):
        assert torch.isfinite(walk(two, method, 2).score).all()


def test_noise_search_restarts_from_the_state_it_went_through() -> None:
    flow = Flow(lambda x, t: x, 10)
    x = Noise(0, 2, "cpu").starts(3, 5)
    end, state = Search(flow, Nearer(), Config(steps=10), "cpu")._walk(x, 2, 5, None)
    torch.testing.assert_close(state, 1.1**3 * x)
    torch.testing.assert_close(end, 1.1**8 * x)


def test_the_projection_is_another_field() -> None:
    options: dict[str, Any] = {
        "num_samples": 2,
        "sample_length": 20,
        "steps": 10,
        "lambda_div": 2.0,
        "num_folds": 3,
    }
    exact, _ = search(Config(**options), "divergence_free_ode", 3)
    projected, _ = search(Config(**options, divergence_free="projection"), "divergence_free_ode", 3)
    assert not torch.equal(exact.x, projected.x)


def test_samples_that_are_not_finite_are_an_error() -> None:
    with pytest.raises(ValueError, match="samples that are not finite"):
        search(
            Config(num_samples=1, sample_length=8, steps=3), "standard", 1, model=lambda x, t: x * torch.nan
        )


def test_a_score_that_is_no_number_is_worst_of_all(folds: Tensor) -> None:
    for name in ("tm_score", "rmsd"):
        gain = Scorer(name, folds).gain(torch.tensor([0.5, torch.nan, 0.7]))
        assert gain.argmin() == 1
    assert Scorer("rmsd", folds).gain(torch.tensor([0.5, 0.7])).argmax() == 0


def test_the_scores_are_what_they_are_called(folds: Tensor) -> None:
    x = folds[3] * 0.1 + torch.tensor([1.0, 0, 0], dtype=torch.float64)  # nm, moved away
    x[0] += 0.3
    spread = torch.tensor(9.0 * 3).sqrt()  # 3 angstrom along each axis, of one residue
    assert Scorer("rmsd", folds)(x).item() == pytest.approx((spread / math.sqrt(50)).item(), rel=0.05)
    assert Scorer("mean_l2", folds)(x).item() < 0.5 * Scorer("rmsd", folds)(x).item()
    assert 0.97 < Scorer("tm_score", folds)(x).item() < 1
    assert 4.5 < Scorer("geometric", folds)(x).item() < 5
