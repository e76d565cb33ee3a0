from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mgpu_nb.workloads.protein import flow as flow_module
from mgpu_nb.workloads.protein.flow import Flow, antisymmetric_field, centre, interpolate, projection_field
from mgpu_nb.workloads.protein.folds import generate_folds
from mgpu_nb.workloads.protein.mixture import Mixture

LENGTH = 6


def residual(kind: str, t: float, seed: int) -> float:
    """``div w + w.s`` at a state of p_t of a small mixture, float64; the divergence by autograd."""
    model = Mixture(torch.from_numpy(generate_folds(LENGTH, 3)) * 0.5)
    draws = torch.Generator().manual_seed(seed)
    time = torch.full((1,), t, dtype=torch.float64)
    noise = centre(torch.randn(1, LENGTH, 3, generator=draws, dtype=torch.float64))
    x = interpolate(noise, model.folds[:1].double(), time)
    square = torch.randn(1, LENGTH, LENGTH, generator=draws, dtype=torch.float64)
    column = centre(torch.randn(1, LENGTH, 3, generator=draws, dtype=torch.float64))

    def field(at: Tensor) -> Tensor:
        at = centre(at)
        s = flow_module.score(at, model(at, time), t)
        w = antisymmetric_field(s, t, square) if kind == "antisymmetric" else projection_field(s, column)
        return centre(w)

    divergence = torch.autograd.functional.jacobian(field, x).reshape(3 * LENGTH, 3 * LENGTH).trace()
    return float((divergence + (field(x) * model.score(x, time)).sum()).abs())


@given(t=st.floats(0.0, 0.98), seed=st.integers(0, 1000))
@settings(max_examples=30)
def test_the_antisymmetric_field_keeps_the_density(t: float, seed: int) -> None:
    assert residual("antisymmetric", t, seed) < 1e-10


def test_the_projection_keeps_only_the_direction() -> None:
    residuals = [residual("projection", 0.5, seed) for seed in range(20)]
    assert sorted(residuals)[10] > 0.1
    s, draw = torch.randn(2, 4, 10, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert ((projection_field(s, draw) * s).sum((-1, -2)).abs() < 1e-10).all()


def test_the_antisymmetric_step_stays_bounded_at_the_end(folds: Tensor) -> None:
    model = Mixture(folds)
    draws = torch.Generator().manual_seed(0)
    x = centre(torch.randn(8, 50, 3, generator=draws))
    for step in range(50):
        draw = torch.randn(8, 50, 50, generator=draws)
        x = Flow(model, 50).divergence_free_step(x, step, draw, 0.6, "antisymmetric")
    assert (x[:, None] - model.folds).square().sum((-1, -2)).amin(1).sqrt().max() < 3.0  # nm


def deviations(folds: Tensor, noise_scale: float) -> Tensor:
    """Standard deviation of the first four modes of SDE samples about the nearest fold, by that of the data."""
    model, draws = Mixture(folds), torch.Generator().manual_seed(3)
    integrator = Flow(model, 50)
    x = centre(torch.randn(96, 50, 3, generator=draws))
    for step in range(50):
        x = integrator.sde_step(x, step, centre(torch.randn(x.shape, generator=draws)), noise_scale)
    nearest = (x[:, None] - model.folds).square().sum((-1, -2)).argmin(1)
    modes = model.modes[:4].float() @ (x - model.folds[nearest].float())
    return modes.square().mean((0, 2)).sqrt() / model.variances[:4, 0].sqrt()


def test_the_sde_preserves_the_marginal_at_t_1(folds: Tensor) -> None:
    assert (deviations(folds, 0.3) - 1).abs().max() < 0.15  # the error of 288 numbers is 0.04
    assert (deviations(folds, 0.1) - deviations(folds, 0.0)).abs().max() < 0.1


def test_noise_without_the_score_term_would_broaden_it(
    folds: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_module, "score", lambda x, v, t: torch.zeros_like(x))
    assert deviations(folds, 0.3).mean() > 1.2


def test_the_noise_of_a_step_is_less_than_what_belongs_to_its_end() -> None:
    integrator = Flow(lambda x, t: torch.zeros_like(x), 25)
    draw = centre(torch.randn(400, 30, 3, generator=torch.Generator().manual_seed(0)))
    noise = [integrator.sde_step(torch.zeros_like(draw), step, draw, 1.0) for step in (0, 19, 21, 23, 24)]
    expected = [1 / 5, 1 / 5, 3 / 25, 1 / 25, 0.0]
    for moved, deviation in zip(noise, expected, strict=True):
        torch.testing.assert_close(moved, deviation * draw)


def test_the_noise_of_a_step_has_variance_g2_dt() -> None:
    integrator = Flow(lambda x, t: torch.zeros_like(x), 25)
    x = torch.zeros(400, 30, 3)
    draw = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    moved = integrator.sde_step(x, 0, draw, 0.5)
    expected = 0.5**2 / 25 * 29 / 30  # less what the centre of mass carries
    assert moved.var(correction=0).item() == pytest.approx(expected, rel=0.02)


def test_steps_are_euler_steps_and_recentred() -> None:
    integrator = Flow(lambda x, t: x + t[:, None, None] + 1, 10)
    x = centre(torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(integrator.ode_step(x, 3), 1.1 * x)
    assert integrator.ode_step(x, 3).mean(-2).abs().max() < 1e-6
    torch.testing.assert_close(integrator.complete(x, 8), 1.1**2 * x)


def test_all_states_go_through_the_model_in_one_call_and_are_counted() -> None:
    seen = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        seen.append((tuple(x.shape), t.tolist()))
        return torch.zeros_like(x)

    calls = []
    integrator = Flow(model, 4, on_call=lambda flow: calls.append(flow.evaluations))
    integrator.complete(torch.zeros(2, 3, 5, 3), 2)
    assert seen == [((6, 5, 3), [0.5] * 6), ((6, 5, 3), [0.75] * 6)]
    assert integrator.evaluations == 12
    assert calls == [6, 12]


def test_nothing_to_complete_is_not_a_call() -> None:
    integrator = Flow(lambda x, t: pytest.fail("called"), 4)
    assert integrator.complete(torch.zeros(2, 0, 5, 3), 0).shape == (2, 0, 5, 3)


def test_a_model_of_another_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"returned \[2, 5\] for x \[2, 5, 3\]"):
        Flow(lambda x, t: x[..., 0], 4).ode_step(torch.zeros(2, 5, 3), 0)
    with pytest.raises(ValueError, match="returned tuple"):
        Flow(lambda x, t: (x,), 4).ode_step(torch.zeros(2, 5, 3), 0)  # type: ignore[arg-type, return-value]
