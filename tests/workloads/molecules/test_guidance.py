from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from denoisers import Field, Gaussian, batch, harmonic
from torch import Tensor

from mgpu_nb.workloads.molecules.draws import generator, number_of_atoms
from mgpu_nb.workloads.molecules.guidance import Guide, Pusher, check_calls, move, rms
from mgpu_nb.workloads.molecules.sampler import Samples, sample
from mgpu_nb.workloads.molecules.solvers import SAMPLERS, AncestralSolver, Levels, Sampler, centre, grid

pytestmark = pytest.mark.slow

MASK = torch.ones(3, 4, dtype=torch.bool)


def states(mask: Tensor = MASK) -> Tensor:
    return centre(batch(*mask.shape, 8), mask)


def carbon(mask: Tensor = MASK) -> Tensor:
    return 6 * mask.long()


def everyone(mask: Tensor = MASK) -> Tensor:
    return mask.any(1)


def positions(samples: Samples) -> list[bytes]:
    return [molecule.positions.tobytes() for molecule in samples.molecules]


# --- one push ---


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_iterations_evaluate_the_force_anew_and_add_no_strength(iterations: int) -> None:
    field = harmonic(2.0)
    pusher = Pusher(Guide(field, 0.3, iterations), MASK)
    z = states()
    pushed, before = pusher.push(z, carbon(), 0.4, everyone())
    # x += (scale / iterations) (1 - sigma) F(x) with F = -2 x, `iterations` times
    factor = (1 - 2.0 * 0.3 / iterations * (1 - 0.4)) ** iterations
    assert torch.allclose(pushed[..., :3], factor * z[..., :3], rtol=1e-12, atol=1e-12)
    assert torch.equal(pushed[..., 3:], z[..., 3:])
    assert pusher.calls.tolist() == [iterations] * 3
    assert len(field.asked) == 3 * iterations
    assert torch.allclose(before, 2 * z[..., :3].square().sum(2).mean(1).sqrt())


def test_a_push_is_recentred() -> None:
    field = Field(lambda x: np.ones_like(x) * [1.0, 2.0, 3.0])
    z = states()
    pushed, _ = Pusher(Guide(field, 1.0), MASK).push(z, carbon(), 0.0, everyone())
    assert torch.allclose(pushed, z, rtol=0, atol=1e-14)


def test_forces_are_clipped_atom_by_atom() -> None:
    x = torch.zeros(1, 3, 3, dtype=torch.float64)
    forces = torch.tensor([[[3.0, 4.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.0]]], dtype=torch.float64)
    moved = move(Guide(harmonic(), 2.0, force_clip=1.0), x, forces, 0.5)
    assert torch.allclose(
        moved[0], torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.0]]).double()
    )
    assert torch.allclose(move(Guide(harmonic(), 2.0), x, forces, 0.5), forces)


def test_force_rms_leaves_out_what_is_no_atom() -> None:
    forces = torch.zeros(2, 3, 3, dtype=torch.float64)
    forces[0], forces[1, 0] = 2.0, 3.0
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert torch.allclose(rms(forces, mask), math.sqrt(3) * torch.tensor([2.0, 3.0]).double())


def test_samples_of_other_sizes_and_those_that_are_broken() -> None:
    field = harmonic()
    mask = torch.tensor([[True] * 4, [True, True, False, False], [True] * 4])
    pusher = Pusher(Guide(field, 0.3), mask)
    z = states(mask)
    pushed, before = pusher.push(z, carbon(mask), 0.5, torch.tensor([True, True, False]))
    assert torch.allclose(pushed[:2, :, :3], 0.7 * z[:2, :, :3])
    assert torch.equal(pushed[2], z[2])
    assert [len(numbers) for numbers, _ in field.asked] == [4, 2]
    assert before.isnan().tolist() == [False, False, True]
    assert pusher.calls.tolist() == [1, 1, 0]
    none, _ = pusher.push(z, carbon(mask), 0.5, torch.zeros(3, dtype=torch.bool))
    assert torch.equal(none, z)


def test_a_guide_is_checked() -> None:
    for wrong in (-0.1, math.nan, math.inf, "much"):
        with pytest.raises(ValueError, match="scale must be a finite number >= 0"):
            Guide(harmonic(), wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="iterations must be"):
        Guide(harmonic(), 0.1, 0)
    with pytest.raises(ValueError, match="noise_threshold must be"):
        Guide(harmonic(), 0.1, noise_threshold=1.5)
    with pytest.raises(ValueError, match="force_clip must be"):
        Guide(harmonic(), 0.1, force_clip=0.0)


# --- in a sampling ---


def test_states_are_guided_after_each_step_that_is_quiet_enough() -> None:
    """The whole of it beside its formulas, step by step: x += scale (1 - sigma_t) F after the step from t to s."""
    model, scale = Gaussian(20), 0.05
    field = harmonic(1.0)
    made = sample(model, [4], seed=0, n_nodes=3, guide=Guide(field, scale), frames=22)
    plain = sample(model, [4], seed=0, n_nodes=3, frames=22)
    assert made.chain is not None
    assert plain.chain is not None
    levels = Levels(model.schedule, grid("ddpm", 20, model.schedule))
    guided = [k for k in range(20, 0, -1) if levels.sigma[k] <= 0.8]
    assert 0 < len(guided) < 20
    assert made.force_calls.tolist() == [len(guided) + 1]  # the last step decodes
    # Model and field are linear: how much farther each step is from the plain one is their factor.
    difference = np.zeros((3, 3))
    for k in range(20, 0, -1):
        t, s = torch.tensor(k), torch.tensor(k - 1)
        alpha_t, sigma_t = float(model.schedule.alpha(t)), float(model.schedule.sigma(t))
        ratio = alpha_t / float(model.schedule.alpha(s))
        of_step = sigma_t**2 - ratio**2 * float(model.schedule.sigma(s)) ** 2
        reverse = 1 / ratio - of_step / (ratio * (alpha_t**2 * 1.5**2 + sigma_t**2))
        difference = reverse * difference
        state = 20 - k + 1
        if sigma_t <= 0.8:
            difference = difference - scale * (1 - sigma_t) * (plain.chain[state].positions + difference)
        found = made.chain[state].positions - plain.chain[state].positions
        assert np.allclose(found, difference, rtol=1e-4, atol=1e-5)  # the model computes in float32
    least = torch.tensor(0)
    alpha, sigma = float(model.schedule.alpha(least)), float(model.schedule.sigma(least))
    difference = (1 - sigma**2 / (alpha**2 * 1.5**2 + sigma**2)) / alpha * difference
    difference = difference - scale * (1 - sigma) * (plain.molecules[0].positions + difference)
    found = made.molecules[0].positions - plain.molecules[0].positions
    assert np.allclose(found, difference, rtol=1e-4, atol=1e-5)


def test_data_are_guided_in_the_space_of_x0() -> None:
    """A field that pulls to the origin with (scale)(1 - sigma) 2 = 1 - sigma: x0 is multiplied by sigma."""
    model = Gaussian(20)
    asked: list[np.ndarray] = []

    def pull(x: np.ndarray) -> np.ndarray:
        asked.append(x)
        return -2.0 * x

    guide = Guide(Field(pull), 0.5, noise_threshold=1.0)
    made = sample(model, [4], seed=0, n_nodes=3, sampler="dpm_solver++", steps=1, guide=guide, frames=3)
    assert made.chain is not None
    start, end = made.chain[0].positions, made.chain[1].positions
    top = torch.tensor(20)
    alpha, sigma = float(model.schedule.alpha(top)), float(model.schedule.sigma(top))
    eps = start * sigma / (alpha**2 * 1.5**2 + sigma**2)
    data = (start - sigma * eps) / alpha
    assert np.allclose(asked[0], data, rtol=1e-5, atol=1e-5)
    moved_data = sigma * data
    moved_eps = torch.from_numpy((start - alpha * moved_data) / sigma)  # back to eps, for the step of ddpm
    draws = generator(0, 4)
    number_of_atoms(draws, model.histogram, 3)
    xi = torch.from_numpy(draws.standard_normal((2, 3, 8))[1:])
    levels, mask = Levels(model.schedule, [0, 20]), torch.ones(1, 3, dtype=torch.bool)
    expected = AncestralSolver(levels, mask).step(
        1, torch.from_numpy(start)[None], moved_eps[None], lambda: xi[..., :3], lambda z, k: z
    )
    assert np.allclose(end, expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.8, 1.0])
def test_the_threshold_is_of_the_noise_of_the_step(sampler: Sampler, threshold: float) -> None:
    model = Gaussian(20)
    made = sample(
        model,
        range(3),
        seed=0,
        sampler=sampler,
        steps=10,
        guide=Guide(harmonic(), 0.1, 2, threshold),
        n_nodes=3,
    )
    levels = Levels(model.schedule, grid(sampler, 10, model.schedule))
    expected = 2 * sum(sigma <= threshold for sigma in levels.sigma)
    assert made.force_calls.tolist() == [expected] * 3


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_scale_0_is_no_guide_bit_for_bit_and_asks_nothing(sampler: Sampler) -> None:
    field = harmonic()
    plain = sample(Gaussian(20), range(9), seed=0, sampler=sampler)
    guided = sample(Gaussian(20), range(9), seed=0, sampler=sampler, guide=Guide(field, 0.0))
    assert positions(plain) == positions(guided)
    assert field.asked == []
    assert not guided.force_calls.any()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_guide_draws_to_where_its_forces_vanish(sampler: Sampler) -> None:
    spreads = []
    for scale in (0.0, 0.01, 0.1):
        made = sample(
            Gaussian(50), range(60), seed=0, sampler=sampler, n_nodes=5, guide=Guide(harmonic(), scale)
        )
        spreads.append(np.stack([molecule.positions for molecule in made.molecules]).std())
    assert spreads[0] > spreads[1] > spreads[2]


# --- force fields that fail ---


def fails(x: np.ndarray) -> np.ndarray:
    raise RuntimeError("SCF did not converge")


def gives_nan(x: np.ndarray) -> np.ndarray:
    return np.full_like(x, np.nan)


@pytest.mark.parametrize("function", [fails, gives_nan])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_field_that_always_fails_adds_nothing_and_is_counted(sampler: Sampler, function: object) -> None:
    field = Field(function, "hopeless")  # type: ignore[arg-type]
    plain = sample(Gaussian(20), range(6), seed=0, sampler=sampler)
    made = sample(Gaussian(20), range(6), seed=0, sampler=sampler, guide=Guide(field, 0.1, 3))
    assert positions(plain) == positions(made)
    assert made.force_calls.min() > 0
    assert np.array_equal(made.force_calls, made.failed_calls)
    assert made.first_error is not None
    index, said = made.first_error
    assert index == 0
    with pytest.raises(ValueError, match=r"'hopeless' failed on each of \d+ calls.*") as raised:
        check_calls(field.name, made.force_calls, made.failed_calls, said)
    assert ("SCF did not converge" if function is fails else "finite") in str(raised.value)


@pytest.mark.parametrize("chunks", [[range(12)], [range(6, 12), range(6)], [[n] for n in range(12)]])
def test_a_field_that_fails_for_some_guides_the_others(chunks: list[range | list[int]]) -> None:
    model = Gaussian(20, sizes=(4, 5))

    def sometimes(x: np.ndarray) -> np.ndarray:
        if len(x) == 5:
            raise RuntimeError(f"not with {len(x)} atoms")
        return -x

    guide = Guide(Field(sometimes, "moody"), 0.1)
    plain = sample(model, range(12), seed=0)
    whole = sample(model, range(12), seed=0, guide=Guide(harmonic(1.0), 0.1))
    parts = {
        n: part for chunk in chunks for part in [sample(model, chunk, seed=0, guide=guide)] for n in chunk
    }
    made = [parts[n].molecules[list(chunk).index(n)] for chunk in chunks for n in chunk]
    for n, molecule in zip([n for chunk in chunks for n in chunk], made, strict=True):
        expected = (plain if len(molecule.numbers) == 5 else whole).molecules[n]
        assert molecule.positions.tobytes() == expected.positions.tobytes()
    errors = [part.first_error for part in parts.values() if part.first_error is not None]
    first = next(n for n in range(12) if len(plain.molecules[n].numbers) == 5)
    assert min(errors) == (first, "RuntimeError: not with 5 atoms")
    calls = np.concatenate([part.force_calls for part in [sample(model, range(12), seed=0, guide=guide)]])
    failed = sample(model, range(12), seed=0, guide=guide).failed_calls
    sizes = np.array([len(molecule.numbers) for molecule in plain.molecules])
    assert np.array_equal(failed, np.where(sizes == 5, calls, 0))
    check_calls("moody", calls, failed)


def test_no_calls_are_not_a_failure() -> None:
    check_calls("none", [0, 0], [0, 0])
    check_calls("most", [5, 5], [5, 4])
    with pytest.raises(ValueError, match="'all' failed on each of 10 calls"):
        check_calls("all", np.array([5, 5]), np.array([5, 5]))
