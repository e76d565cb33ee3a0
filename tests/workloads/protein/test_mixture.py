from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mgpu_nb.workloads.protein.config import Config
from mgpu_nb.workloads.protein.flow import NM_PER_ANGSTROM, Flow, centre, interpolate, score
from mgpu_nb.workloads.protein.folds import generate_folds
from mgpu_nb.workloads.protein.mixture import Mixture
from mgpu_nb.workloads.protein.scores import Scorer
from mgpu_nb.workloads.protein.search import Search
from mgpu_nb.workloads.protein.structures import reference_folds


def mixture(length: int = 6, count: int = 3) -> Mixture:
    """Folds near each other, so that all of them count, with modes of very different variance."""
    return Mixture(torch.from_numpy(generate_folds(length, count)) * 0.5, smooth=2.0)


def state(model: Mixture, t: float, seed: int) -> Tensor:
    """A state of p_t, float64 [1, L, 3]."""
    draws = torch.Generator().manual_seed(seed)
    modes = torch.randn(1, 5, 3, generator=draws, dtype=torch.float64) * model.variances.sqrt()
    data = model.folds[:1] + model.modes.mT @ modes
    noise = centre(torch.randn(1, 6, 3, generator=draws, dtype=torch.float64))
    return interpolate(noise, data, torch.full((1,), t, dtype=torch.float64))


@pytest.mark.slow
@given(t=st.floats(0.0, 0.98), seed=st.integers(0, 1000))
@settings(max_examples=40)
def test_the_score_from_the_velocity_is_the_gradient_of_log_p(t: float, seed: int) -> None:
    model, time = mixture(), torch.full((1,), t, dtype=torch.float64)
    x = state(model, t, seed).requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_density(x, time).sum(), x)
    x = x.detach()
    from_velocity = score(x, model(x, time), t)
    torch.testing.assert_close(from_velocity, model.score(x, time), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(centre(gradient), from_velocity, atol=1e-9, rtol=1e-9)


@pytest.mark.slow
@given(t=st.floats(0.05, 0.95), seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_the_velocity_carries_the_density(t: float, seed: int) -> None:
    """The continuity equation: d/dt log p + div v + v.s = 0."""
    model = mixture()
    x, time = state(model, t, seed), torch.full((1,), t, dtype=torch.float64)

    def log_p(at: Tensor) -> Tensor:
        variances = (1 - at) ** 2 + at**2 * model.variances  # of L - 1 modes, each in 3 dimensions
        return (model.log_density(x, at) - 1.5 * variances.log().sum()).sum()

    change = torch.autograd.functional.jacobian(log_p, time).item()
    jacobian = torch.autograd.functional.jacobian(lambda at: centre(model(centre(at), time)), x).view(18, 18)
    v = model(x, time)
    assert change + jacobian.trace().item() + (v * model.score(x, time)).sum().item() == pytest.approx(
        0, abs=1e-6
    )


def test_displacements_are_a_smooth_process_along_the_chain() -> None:
    """The modes and their variances are those of the kernel, but for the centre and the ends."""
    model = Mixture(torch.zeros(1, 200, 3, dtype=torch.float64), sigma=1.5, smooth=8.0)
    covariance = model.modes.mT @ (model.variances * model.modes) / NM_PER_ANGSTROM**2
    apart = torch.arange(200.0, dtype=torch.float64)
    kernel = 1.5**2 * torch.exp(-((apart[:, None] - apart) ** 2) / (2 * 8.0**2))
    kernel = kernel - kernel[100].mean()  # the centre of mass is at rest
    torch.testing.assert_close(covariance[60:140, 60:140], kernel[60:140, 60:140], atol=0.03, rtol=0)
    torch.testing.assert_close(model.modes @ model.modes.mT, torch.eye(199, dtype=torch.float64))
    assert model.modes.sum(-1).abs().max() < 1e-12


@pytest.mark.slow
def test_one_fold_is_a_gaussian_and_its_flow_is_linear() -> None:
    fold = torch.from_numpy(generate_folds(40, 1))
    model = Mixture(fold)
    x = centre(torch.randn(4, 40, 3, generator=torch.Generator().manual_seed(0)))
    ends = Flow(model, 2000).complete(x, 0)
    # The exact map: noise of standard deviation 1 in a mode becomes the mode's own deviation from the fold.
    modes = model.modes.float() @ (ends - fold.float() * NM_PER_ANGSTROM)
    torch.testing.assert_close(
        modes, model.variances.sqrt().float() * (model.modes.float() @ x), atol=2e-3, rtol=0
    )


@pytest.mark.slow
def test_samples_lie_about_the_folds_as_they_should(folds: Tensor) -> None:
    model = Mixture(folds)
    draws = torch.Generator().manual_seed(0)
    ends = Flow(model, 400).complete(centre(torch.randn(64, 50, 3, generator=draws)), 0)
    nearest = (ends[:, None] - model.folds).square().sum((-1, -2)).argmin(dim=1)
    modes = model.modes.float() @ (ends - model.folds[nearest].float())
    measured = modes[:, :4].square().mean((0, 2)).sqrt()
    torch.testing.assert_close(measured, model.variances[:4, 0].sqrt().float(), rtol=0.15, atol=0)
    assert len(nearest.unique()) >= 6  # of eight folds


@pytest.mark.slow
@pytest.mark.parametrize("length", [24, 50, 100])
@pytest.mark.parametrize("method", ["standard", "sde_path_exploration", "noise_search"])
def test_samples_are_chains(method: str, length: int) -> None:
    """Bonds of 3.6 to 4.0 angstrom and no clashes, also of the methods that add noise of the highest scale."""
    config = Config(
        num_samples=12, sample_length=length, noise_scale=1.0, scoring_function="geometric", steps=25
    )
    references = torch.from_numpy(reference_folds(config).positions)
    search = Search(Flow(Mixture(references), config.steps), Scorer("geometric", references), config, "cpu")
    samples = 10 * search.run(method, 2).x.double()
    bonds = (samples[:, 1:] - samples[:, :-1]).norm(dim=-1)
    assert ((bonds > 3.6) & (bonds < 4.0)).double().mean() > 0.94  # measured: 0.97 and more
    assert bonds.min() > 3.3
    i, j = torch.triu_indices(length, length, offset=3)
    clashes = (samples[:, i] - samples[:, j]).norm(dim=-1) < 3.0
    assert clashes.sum(-1).double().mean() < 0.5  # pairs of a sample


def test_times_may_differ_within_a_batch(folds: Tensor) -> None:
    model = Mixture(folds)
    x = centre(torch.randn(3, 50, 3, generator=torch.Generator().manual_seed(1)))
    t = torch.tensor([0.0, 0.4, 0.9])
    each = torch.cat([model(x[i : i + 1], t[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(model(x, t), each)
