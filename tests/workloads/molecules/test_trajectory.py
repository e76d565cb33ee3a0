from __future__ import annotations

import numpy as np
import pytest
from denoisers import Field, Gaussian, harmonic

from mgpu_nb.workloads.molecules.guidance import Guide
from mgpu_nb.workloads.molecules.sampler import sample
from mgpu_nb.workloads.molecules.solvers import SAMPLERS, Levels, Sampler, grid
from mgpu_nb.workloads.molecules.trajectory import Trajectory, frame_states, watched_levels

pytestmark = pytest.mark.slow


def test_frames_are_spread_evenly_from_noise_to_molecule() -> None:
    assert frame_states(202, 100)[::99] == [0, 201]
    assert len(set(frame_states(202, 100))) == 100
    steps = np.diff(frame_states(202, 100))
    assert set(steps.tolist()) <= {2, 3}
    assert frame_states(100, 100) == list(range(100))
    assert frame_states(22, 25) == [*range(22), 21, 21, 21]
    assert frame_states(22, 1) == [21]
    assert frame_states(22, 2) == [0, 21]


@pytest.mark.parametrize(
    ("steps", "frames"), [(200, 100), (20, 100), (1, 100), (50, 7), (98, 100), (99, 100)]
)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_chain_has_its_frames_and_ends_with_the_molecule(sampler: Sampler, steps: int, frames: int) -> None:
    plain = sample(Gaussian(200), range(5), seed=3, sampler=sampler, steps=steps)
    made = sample(Gaussian(200), range(5), seed=3, sampler=sampler, steps=steps, frames=frames)
    assert plain.chain is None
    assert made.chain is not None
    assert len(made.chain) == frames
    for one, other in zip(plain.molecules, made.molecules, strict=True):  # the samples are not disturbed
        assert np.array_equal(one.numbers, other.numbers)
        assert np.array_equal(one.positions, other.positions)
    assert np.array_equal(made.chain[-1].numbers, made.molecules[0].numbers)
    assert np.array_equal(made.chain[-1].positions, made.molecules[0].positions)
    assert {len(frame.numbers) for frame in made.chain} == {len(made.molecules[0].numbers)}
    assert set(np.concatenate([frame.numbers for frame in made.chain])) <= {1, 6, 7, 8, 9}


def test_the_chain_is_that_of_the_sample_that_was_asked_for_first() -> None:
    alone = sample(Gaussian(20), [8], seed=3, frames=5)
    beside = sample(Gaussian(20), [8, 1, 2, 3, 8], seed=3, frames=5, batch_size=2)
    assert alone.chain is not None
    assert beside.chain is not None
    for one, other in zip(alone.chain, beside.chain, strict=True):
        assert np.array_equal(one.positions, other.positions)


def test_watched_levels_are_about_fifty_and_the_last() -> None:
    sigma = [k / 1000 for k in range(1001)]
    levels = watched_levels(sigma, 0.8)
    assert levels[-1] == 1
    assert 45 <= len(levels) <= 55
    assert max(levels) <= 800
    assert watched_levels(sigma[:21], 1.0) == list(range(20, 0, -1))
    assert watched_levels(sigma, 0.0) == []


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_watch_moves_nothing_and_records_the_forces(sampler: Sampler) -> None:
    field = harmonic(3.0)
    plain = sample(Gaussian(20), range(9), seed=0, sampler=sampler)
    made = sample(Gaussian(20), range(9), seed=0, sampler=sampler, watch=field, frames=22)
    assert plain.trajectory is None
    assert made.trajectory is not None
    assert [m.positions.tobytes() for m in plain.molecules] == [m.positions.tobytes() for m in made.molecules]
    assert not made.force_calls.any()
    assert made.trajectory.force_rms.shape == (9, len(made.trajectory.step))
    assert (np.diff(made.trajectory.step) > 0).all()
    assert made.trajectory.step[-1] == made.steps
    assert (np.diff(made.trajectory.sigma) < 0).all()
    assert made.trajectory.sigma[0] <= 0.8
    if sampler == "ddpm":  # the forces are those of the states
        assert made.chain is not None
        for step, force in zip(made.trajectory.step, made.trajectory.force_rms[0], strict=True):
            expected = 3.0 * np.sqrt(np.square(made.chain[step].positions).sum(1).mean())
            assert force == pytest.approx(expected, rel=1e-12)


def test_a_guided_run_records_the_forces_of_its_guide_and_of_another_that_watches() -> None:
    guide, watch = Guide(harmonic(2.0), 0.05, iterations=2), harmonic(6.0)
    own = sample(Gaussian(20), range(4), seed=0, guide=guide)
    other = sample(Gaussian(20), range(4), seed=0, guide=guide, watch=watch)
    same = sample(Gaussian(20), range(4), seed=0, guide=guide, watch=guide.field)
    unguided = sample(Gaussian(20), range(4), seed=0, watch=watch)
    assert own.trajectory is not None
    assert other.trajectory is not None
    assert same.trajectory is not None
    assert unguided.trajectory is not None
    assert np.allclose(3 * own.trajectory.force_rms, other.trajectory.force_rms)
    assert np.array_equal(own.trajectory.force_rms, same.trajectory.force_rms)
    assert np.array_equal(own.force_calls, other.force_calls)
    assert np.array_equal(own.trajectory.step, unguided.trajectory.step)
    assert np.allclose(
        other.trajectory.force_rms[:, 0], unguided.trajectory.force_rms[:, 0]
    )  # before any push
    assert (other.trajectory.force_rms[:, -1] < unguided.trajectory.force_rms[:, -1]).all()


def test_the_bits_of_a_trajectory_do_not_depend_on_the_batch() -> None:
    guide = Guide(harmonic(2.0), 0.05)
    whole = sample(Gaussian(20), range(12), seed=0, guide=guide).trajectory
    parts = [sample(Gaussian(20), [n], seed=0, guide=guide).trajectory for n in range(12)]
    assert whole is not None
    joined = Trajectory.join([part for part in parts if part is not None])
    assert whole.force_rms.tobytes() == joined.force_rms.tobytes()
    assert np.array_equal(whole.step, joined.step)


def test_calls_that_failed_are_no_forces() -> None:
    def some(x: np.ndarray) -> np.ndarray:
        if len(x) == 4:
            raise RuntimeError("no")
        return np.ones_like(x)

    for options in ({"watch": Field(some)}, {"guide": Guide(Field(some), 0.01)}):
        made = sample(Gaussian(20, sizes=(4, 5)), range(12), seed=0, **options)
        assert made.trajectory is not None
        sizes = np.array([len(molecule.numbers) for molecule in made.molecules])
        assert np.isnan(made.trajectory.force_rms[sizes == 4]).all()
        assert np.allclose(made.trajectory.force_rms[sizes == 5], np.sqrt(3))
        assert np.allclose(made.trajectory.quartiles(), np.sqrt(3))


def test_quartiles_are_over_samples() -> None:
    values = np.array(
        [[1.0, np.nan], [2.0, np.nan], [3.0, np.nan], [np.nan, np.nan], [4.0, np.nan], [5.0, np.nan]]
    )
    path = Trajectory(np.array([1, 2]), np.array([0.5, 0.4]), values)
    assert path.quartiles()[:, 0].tolist() == [2.0, 3.0, 4.0]
    assert np.isnan(path.quartiles()[:, 1]).all()
    nothing = Trajectory(np.zeros(0, np.int64), np.zeros(0), np.zeros((3, 0)))
    assert nothing.quartiles().shape == (3, 0)


def test_levels_of_a_run_that_is_watched_are_those_of_its_noise() -> None:
    model = Gaussian(200)
    made = sample(model, range(2), seed=0, steps=100, watch=harmonic())
    levels = Levels(model.schedule, grid("ddpm", 100, model.schedule))
    assert made.trajectory is not None
    assert np.allclose(made.trajectory.sigma, [levels.sigma[100 - step + 1] for step in made.trajectory.step])
