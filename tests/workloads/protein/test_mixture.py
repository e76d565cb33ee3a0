from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mgpu_nb.workloads.protein.flow import NM_PER_ANGSTROM, Flow, centre, interpolate, score
from mgpu_nb.workloads.protein.folds import generate_folds
from mgpu_nb.workloads.protein.mixture import Mixture


def mixture(length: int = 6, count: int = 3) -> Mixture:
    return Mixture(torch.from_numpy(generate_folds(length, count)) * 0.5)  # near each other: all three count


def state(model: Mixture, t: float, seed: int) -> Tensor:
    """A state of p_t, float64 [1, L, 3]."""
    draws = torch.Generator().manual_seed(seed)
    data = model.folds[:1].double() + model.sigma * centre(
        torch.randn(1, 6, 3, generator=draws, dtype=torch.float64)
    )
    noise = centre(torch.randn(1, 6, 3, generator=draws, dtype=torch.float64))
    return interpolate(noise, data, torch.full((1,), t, dtype=torch.float64))


@given(t=st.floats(0.0, 0.98), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_the_score_from_the_velocity_is_the_gradient_of_log_p(t: float, seed: int) -> None:
    model, time = mixture(), torch.full((1,), t, dtype=torch.float64)
    x = state(model, t, seed).requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_density(x, time).sum(), x)
    x = x.detach()
    from_velocity = score(x, model(x, time), t)
    torch.testing.assert_close(from_velocity, model.score(x, time), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(centre(gradient), from_velocity, atol=1e-9, rtol=1e-9)


@given(t=st.floats(0.05, 0.95), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_the_velocity_carries_the_density(t: float, seed: int) -> None:
    """The continuity equation: d/dt log p + div v + v.s = 0."""
    model = mixture()
    x, time = state(model, t, seed), torch.full((1,), t, dtype=torch.float64)

    def log_p(at: Tensor) -> Tensor:
        variance = (1 - at) ** 2 + (at * model.sigma) ** 2
        return (model.log_density(x, at) - 0.5 * 3 * 5 * variance.log()).sum()  # 3 (L - 1) dimensions

    change = torch.autograd.functional.jacobian(log_p, time).item()
    jacobian = torch.autograd.functional.jacobian(lambda at: centre(model(centre(at), time)), x).view(18, 18)
    v = model(x, time)
    assert change + jacobian.trace().item() + (v * model.score(x, time)).sum().item() == pytest.approx(
        0, abs=1e-6
    )


def test_one_fold_is_a_gaussian_and_its_flow_is_linear() -> None:
    fold = torch.from_numpy(generate_folds(10, 1))
    model = Mixture(fold)
    draws = torch.Generator().manual_seed(0)
    x = centre(torch.randn(4, 10, 3, generator=draws))
    ends = Flow(model, 2000).complete(x, 0)
    # The exact map: noise of standard deviation 1 becomes deviation from the fold of 1 angstrom.
    torch.testing.assert_close(ends - fold.float() * NM_PER_ANGSTROM, 0.1 * x, atol=2e-3, rtol=0)


def test_samples_lie_one_angstrom_about_the_folds(folds: Tensor) -> None:
    model = Mixture(folds)
    draws = torch.Generator().manual_seed(0)
    ends = Flow(model, 400).complete(centre(torch.randn(64, 50, 3, generator=draws)), 0)
    apart = (ends[:, None] - model.folds).square().sum((-1, -2))
    squared, nearest = apart.min(dim=1)
    assert math.sqrt(squared.mean() / (3 * 49)) == pytest.approx(0.1, rel=0.03)
    assert len(nearest.unique()) >= 6  # of eight folds


def test_times_may_differ_within_a_batch(folds: Tensor) -> None:
    model = Mixture(folds)
    x = centre(torch.randn(3, 50, 3, generator=torch.Generator().manual_seed(1)))
    t = torch.tensor([0.0, 0.4, 0.9])
    each = torch.cat([model(x[i : i + 1], t[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(model(x, t), each)
