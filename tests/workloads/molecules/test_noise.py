"""The schedule against its formulas, written out."""

import math

import pytest
import torch

from mgpu_nb.workloads.molecules.noise import Schedule


@pytest.mark.parametrize(("steps", "precision"), [(10, 1e-5), (200, 1e-4), (1000, 1e-5)])
def test_alpha_by_the_formulas(steps: int, precision: float) -> None:
    before, left = 1.0, 1.0
    alphas = []
    for t in range(steps + 1):
        now = (1 - (t / steps) ** 2) ** 2
        left *= min(1.0, max(0.001, now / before if before > 0 else 0.0))
        before = now
        alphas.append(math.sqrt((1 - 2 * precision) * left + precision))
    got = Schedule(steps, precision).alpha(torch.arange(steps + 1))
    assert got.dtype == torch.float64
    assert torch.allclose(got, torch.tensor(alphas, dtype=torch.float64), rtol=1e-12, atol=0)


def test_the_last_ratio_is_clipped() -> None:
    schedule = Schedule(10)
    squares = (schedule.alpha(torch.tensor([9, 10])) ** 2 - 1e-5) / (1 - 2e-5)
    assert squares[1] / squares[0] == pytest.approx(1e-3, rel=1e-9)  # 0 without clipping


def test_data_and_noise_add_up() -> None:
    schedule, step = Schedule(), torch.arange(1001)
    alpha, sigma = schedule.alpha(step), schedule.sigma(step)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones(1001, dtype=torch.float64), atol=1e-14)
    assert torch.allclose(schedule.gamma(step), torch.log(sigma**2 / alpha**2), atol=1e-9)
    assert (schedule.gamma(step).diff() > 0).all()
    assert sigma[0] == pytest.approx(math.sqrt(1e-5), rel=1e-6)


def test_any_shape_and_no_step_beyond_the_last() -> None:
    assert Schedule(5).gamma(torch.tensor([[0, 5], [2, 3]])).shape == (2, 2)
    with pytest.raises(IndexError):
        Schedule(5).gamma(torch.tensor([6]))


@pytest.mark.parametrize("bad", [{"steps": 0}, {"precision": 0.0}, {"precision": 0.5}, {"power": 0.0}])
def test_bad_options(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Schedule(**bad)  # type: ignore[arg-type]
