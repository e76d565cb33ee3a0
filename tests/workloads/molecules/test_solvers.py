from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from denoisers import SPREAD, Gaussian, batch
from torch import Tensor
from torch.nn.functional import softplus

from mgpu_nb.workloads.molecules.noise import Schedule
from mgpu_nb.workloads.molecules.sampler import sample
from mgpu_nb.workloads.molecules.solvers import (
    SAMPLERS,
    AncestralSolver,
    Levels,
    MultistepSolver,
    Sampler,
    centre,
    decode,
    grid,
    number_of_steps,
    solver,
    sum_atoms,
)

SCHEDULE = Schedule(200)


def whole(z: Tensor) -> Tensor:
    """Mask of states in which each atom is there."""
    return torch.ones(z.shape[:2], dtype=torch.bool)


def unsteered(z: Tensor, k: int) -> Tensor:
    return z


# --- where levels stand ---


@pytest.mark.parametrize("trained", [1, 2, 7, 200, 1000])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_grid_ascends_from_0_to_the_last_step(sampler: Sampler, trained: int) -> None:
    for steps in {1, 2, 5, 20, trained // 2, trained - 1, trained} & set(range(1, trained + 1)):
        at = grid(sampler, steps, Schedule(trained))
        assert (at[0], at[-1], len(at)) == (0, trained, steps + 1)
        assert at == sorted(set(at))


def test_levels_of_ddpm_are_rounded_steps() -> None:
    assert grid("ddpm", 3, SCHEDULE) == [0, 67, 133, 200]
    assert grid("ddpm", 200, SCHEDULE) == list(range(201))


def test_the_number_of_steps_is_that_of_the_training_or_20() -> None:
    assert number_of_steps("ddpm", None, 200) == 200
    assert number_of_steps("dpm_solver++", None, 200) == 20
    assert number_of_steps("dpm_solver++", None, 7) == 7
    assert number_of_steps("ddpm", 50, 200) == 50
    for wrong in (0, -1, 201):
        with pytest.raises(ValueError, match=r"from 1 to 200"):
            number_of_steps("ddpm", wrong, 200)


# --- centre of mass ---


@pytest.mark.parametrize("atoms", range(1, 27))
def test_the_sum_over_atoms_does_not_depend_on_batch_or_padding(atoms: int) -> None:
    values = batch(9, atoms, 3)
    expected = sum_atoms(values)
    assert torch.allclose(expected[:, 0], values.sum(1), rtol=0, atol=1e-12)
    assert torch.equal(sum_atoms(values[4:5].clone()), expected[4:5])
    padded = torch.cat([values, torch.zeros(9, 11, 3, dtype=torch.float64)], 1)
    assert torch.equal(sum_atoms(padded), expected)


def test_centring_leaves_features_and_clears_what_is_no_atom() -> None:
    z = batch(4, 6, 8)
    mask = torch.arange(6) < torch.tensor([6, 3, 1, 5])[:, None]
    z[1, 4] = torch.nan  # where there is no atom nothing counts
    centred = centre(z, mask)
    assert centred[..., :3].sum(1).abs().max() < 1e-14
    assert torch.equal(centred[~mask], torch.zeros(9, 8, dtype=torch.float64))
    assert torch.equal(centred[..., 3:][mask], z[..., 3:][mask])
    assert torch.allclose(centred[2, 0, :3], torch.zeros(3, dtype=torch.float64))


# --- one step ---


@pytest.mark.parametrize("k", [1, 2, 10, 49, 50])
def test_a_reverse_step_has_the_mean_and_the_variance_of_the_posterior(k: int) -> None:
    """Against q(z_s | z_t, x0) in the form of Ho et al. 2020, from alphas and sigmas alone."""
    at = grid("ddpm", 50, SCHEDULE)
    t, s = torch.tensor(at[k]), torch.tensor(at[k - 1])
    alpha_t, alpha_s = float(SCHEDULE.alpha(t)), float(SCHEDULE.alpha(s))
    var_t, var_s = float(SCHEDULE.sigma(t)) ** 2, float(SCHEDULE.sigma(s)) ** 2
    z, eps, xi = (centre(batch(3, 5, 8, seed=n), torch.ones(3, 5, dtype=torch.bool)) for n in range(3))
    data = (z - math.sqrt(var_t) * eps) / alpha_t
    var_ts = var_t - (alpha_t / alpha_s) ** 2 * var_s
    mean = (alpha_t / alpha_s) * var_s / var_t * z + alpha_s * var_ts / var_t * data
    expected = mean + math.sqrt(var_ts * var_s / var_t) * xi
    found = AncestralSolver(Levels(SCHEDULE, at), whole(z)).step(k, z, eps, lambda: xi, unsteered)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_a_step_is_that_of_its_formula() -> None:
    t, s = torch.tensor(120), torch.tensor(119)
    gamma_t, gamma_s = SCHEDULE.gamma(t), SCHEDULE.gamma(s)
    ratio = SCHEDULE.alpha(t) / SCHEDULE.alpha(s)
    of_step = -torch.expm1(softplus(gamma_s) - softplus(gamma_t))
    z, eps, xi = (centre(batch(3, 5, 8, seed=n), torch.ones(3, 5, dtype=torch.bool)) for n in range(3))
    mu = z / ratio - of_step / (ratio * SCHEDULE.sigma(t)) * eps
    expected = mu + of_step.sqrt() * SCHEDULE.sigma(s) / SCHEDULE.sigma(t) * xi
    levels = Levels(SCHEDULE, list(range(201)))
    found = AncestralSolver(levels, whole(z)).step(120, z, eps, lambda: xi, unsteered)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_the_last_step_is_that_of_its_formula() -> None:
    zero = torch.tensor(0)
    alpha, sigma = SCHEDULE.alpha(zero), SCHEDULE.sigma(zero)
    z, eps, xi = (centre(batch(3, 5, 8, seed=n), torch.ones(3, 5, dtype=torch.bool)) for n in range(3))
    found = decode(Levels(SCHEDULE, [0]), z, eps, xi, whole(z))
    assert torch.allclose(found, (z - sigma * eps) / alpha + sigma / alpha * xi, rtol=1e-12, atol=1e-12)


def test_a_multistep_solver_is_exact_where_the_data_are_a_point() -> None:
    """eps of a point x0 is (z - alpha x0) / sigma: any number of steps leaves the posterior of q given x0."""
    levels = Levels(SCHEDULE, grid("dpm_solver++", 5, SCHEDULE))
    data, eps, xi = (centre(batch(2, 4, 8, seed=n), torch.ones(2, 4, dtype=torch.bool)) for n in range(3))
    z = levels.alpha[5] * data + levels.sigma[5] * eps
    walk, noise = MultistepSolver(levels, whole(z)), eps
    for k in range(5, 0, -1):
        z = walk.step(k, z, (z - levels.alpha[k] * data) / levels.sigma[k], lambda: xi, unsteered)
        shrinks = levels.alpha[k] * levels.sigma[k - 1] / (levels.alpha[k - 1] * levels.sigma[k])  # exp(-h)
        noise = shrinks * noise + math.sqrt(1 - shrinks**2) * xi
        expected = levels.alpha[k - 1] * data + levels.sigma[k - 1] * noise
        assert torch.allclose(z, expected, rtol=1e-9, atol=1e-9)


def test_the_first_step_of_a_multistep_solver_is_that_of_ddpm() -> None:
    levels = Levels(SCHEDULE, grid("dpm_solver++", 20, SCHEDULE))
    z, eps, xi = (centre(batch(3, 5, 8, seed=n), torch.ones(3, 5, dtype=torch.bool)) for n in range(3))
    for k in (20, 11, 1):
        one, other = (
            solver(sampler, levels, whole(z)).step(k, z, eps, lambda: xi, unsteered) for sampler in SAMPLERS
        )
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_step_turns_with_its_noise(sampler: Sampler) -> None:
    model, levels = Gaussian(200), Levels(SCHEDULE, grid(sampler, 20, SCHEDULE))
    turn = torch.linalg.qr(batch(3, 3)).Q
    whole_turn = torch.block_diag(turn, torch.eye(5, dtype=torch.float64))
    z, xi = (centre(batch(3, 5, 8, seed=n), torch.ones(3, 5, dtype=torch.bool)) for n in (1, 2))
    plain, turned = (solver(sampler, levels, whole(z)) for _ in range(2))
    rotated, turned_xi = z @ whole_turn, xi @ whole_turn

    def eps(state: Tensor, k: int) -> Tensor:
        time = torch.full((3,), levels_at[k] / 200, dtype=torch.float64)
        return torch.cat(model.eps(state[..., :3], state[..., 3:], time, whole(state)), 2)

    levels_at = grid(sampler, 20, SCHEDULE)
    for k in (14, 13, 12):
        z = plain.step(k, z, eps(z, k), lambda: xi, unsteered)
        rotated = turned.step(k, rotated, eps(rotated, k), lambda: turned_xi, unsteered)
    assert torch.allclose(z @ whole_turn, rotated, rtol=0, atol=1e-10)


# --- all steps: a target whose moments are known ---


def exact_variance(model: Gaussian, sampler: Sampler, steps: int, spread: float) -> float:
    """Variance of what comes of a sampler, by the formulas of its steps, of a Gaussian target."""
    at = torch.tensor(grid(sampler, steps, model.schedule))
    alpha, sigma = model.schedule.alpha(at).tolist(), model.schedule.sigma(at).tolist()
    guess = [s / (a * a * spread**2 + s * s) for a, s in zip(alpha, sigma, strict=True)]
    states = np.array([[1.0, 0.0], [0.0, 0.0]])  # covariance of a state and the one before it
    for t in range(steps, 0, -1):
        s = t - 1
        shrinks = alpha[t] * sigma[s] / (alpha[s] * sigma[t])
        of_data = alpha[s] * (1 - shrinks**2)
        data = [(1 - sigma[k] * guess[k]) / alpha[k] for k in (t, min(t + 1, steps))]
        ahead = 0.0
        if sampler == "dpm_solver++" and t < steps:
            h, h_before = (math.log(alpha[k] * sigma[k + 1] / (sigma[k] * alpha[k + 1])) for k in (s, t))
            ahead = 0.8 * h / (2 * h_before)
        moves = np.array(
            [
                [sigma[s] / sigma[t] * shrinks + of_data * (1 + ahead) * data[0], -of_data * ahead * data[1]],
                [1.0, 0.0],
            ]
        )
        states = moves @ states @ moves.T
        states[0, 0] += sigma[s] ** 2 * (1 - shrinks**2)
    return float(states[0, 0] * ((1 - sigma[0] * guess[0]) / alpha[0]) ** 2 + (sigma[0] / alpha[0]) ** 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "steps"), [("ddpm", 200), ("ddpm", 60), ("dpm_solver++", 20), ("dpm_solver++", 5)]
)
def test_moments_of_a_gaussian_target(sampler: Sampler, steps: int) -> None:
    model, count, atoms = Gaussian(200), 300, 6
    made = sample(model, range(count), seed=1, sampler=sampler, steps=steps, n_nodes=atoms, batch_size=300)
    x = np.stack([molecule.positions for molecule in made.molecules])
    degrees = count * 3 * (atoms - 1)
    error = math.sqrt(2 / degrees)  # of a variance, as a share
    variance = np.square(x).sum() / degrees
    assert variance == pytest.approx(exact_variance(model, sampler, steps, SPREAD), rel=3 * error)
    if (sampler, steps) in (("ddpm", 200), ("dpm_solver++", 20)):  # fewer steps are off, as they must be
        assert variance == pytest.approx(SPREAD**2, rel=3 * error)
    axis_mean = x[:, 0].mean(0) / (SPREAD * math.sqrt((1 - 1 / atoms) / count))
    assert np.abs(axis_mean).max() < 3
    fourth = np.power(x, 4).mean() / np.square(x).mean() ** 2
    assert fourth == pytest.approx(3, abs=3 * math.sqrt(24 / degrees) * 1.5)
    correlation = np.corrcoef(x.reshape(-1, 3).T)
    assert np.abs(correlation - np.eye(3)).max() < 3 / math.sqrt(degrees / 3)


def test_elements_are_drawn_as_their_features_are() -> None:
    """All five features have one distribution: each element comes as often as the others."""
    made = sample(Gaussian(50), range(300), seed=4, n_nodes=6)
    counts = np.unique(np.concatenate([molecule.numbers for molecule in made.molecules]), return_counts=True)
    assert counts[0].tolist() == [1, 6, 7, 8, 9]
    assert np.abs(counts[1] - 360).max() < 3 * math.sqrt(1800 * 0.2 * 0.8)
