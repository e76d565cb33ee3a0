from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from denoisers import SPREAD, Gaussian, harmonic
from torch import Tensor

from mgpu_nb.workloads.molecules.checkpoint import load_model
from mgpu_nb.workloads.molecules.diffusion import Diffusion
from mgpu_nb.workloads.molecules.draws import Noise, generator, number_of_atoms
from mgpu_nb.workloads.molecules.egnn import EGNN
from mgpu_nb.workloads.molecules.forces import load_field
from mgpu_nb.workloads.molecules.guidance import Guide
from mgpu_nb.workloads.molecules.molecule import Molecule
from mgpu_nb.workloads.molecules.noise import Schedule
from mgpu_nb.workloads.molecules.process import WIDEST
from mgpu_nb.workloads.molecules.sampler import check_broken, sample
from mgpu_nb.workloads.molecules.solvers import SAMPLERS, Sampler

pytestmark = pytest.mark.slow  # seconds in all


def bits(molecules: list[Molecule]) -> list[str]:
    """Digests: of other bits, others."""
    return [
        hashlib.sha256(molecule.numbers.tobytes() + molecule.positions.tobytes()).hexdigest()[:12]
        for molecule in molecules
    ]


# --- what is random ---


def test_a_sample_has_a_generator_of_its_own() -> None:
    assert generator(42, 3).random() == generator(42, 3).random()
    firsts = {generator(seed, index).random() for seed in range(20) for index in range(20)}
    assert len(firsts) == 400
    assert generator(2**63 - 1, 2**40).random() != generator(2**63 - 1, 2**40 + 1).random()


def test_the_number_of_atoms_has_the_distribution_of_the_histogram() -> None:
    histogram = {9: 1, 4: 6, 7: 0, 5: 3}
    drawn = Counter(number_of_atoms(generator(0, index), histogram, None) for index in range(2000))
    assert set(drawn) == {4, 5, 9}
    for size, share in ((4, 0.6), (5, 0.3), (9, 0.1)):
        assert abs(drawn[size] - 2000 * share) < 3 * np.sqrt(2000 * share * (1 - share))


def test_noise_goes_on_where_it_was_and_is_the_same_beside_others() -> None:
    beside = Noise([generator(0, n) for n in (5, 6, 7)], [4, 9, 2], 8, 40, "cpu")
    alone = Noise([generator(0, 6)], [9], 8, 3, "cpu")
    whole = generator(0, 6).standard_normal((40, 9, 8))
    for k in range(40):
        drawn = beside.draw()
        assert np.array_equal(drawn[1].numpy(), whole[k])
        assert bool((drawn[2, 2:] == 0).all())
        if k < 3:
            assert torch.equal(alone.draw()[0], drawn[1])


# --- which samples there are ---


@pytest.mark.parametrize("count", [1, 7, 50, 251])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_there_are_exactly_as_many_samples_in_their_order(count: int, sampler: Sampler) -> None:
    made = sample(Gaussian(20), range(count), seed=3, sampler=sampler, steps=4)
    assert len(made.molecules) == len(made.force_calls) == len(made.failed_calls) == len(made.broken) == count
    sizes = [number_of_atoms(generator(3, n), Gaussian(20).histogram, None) for n in range(count)]
    assert [len(molecule.numbers) for molecule in made.molecules] == sizes
    for molecule in made.molecules:
        assert molecule.positions.shape == (len(molecule.numbers), 3)
        assert molecule.positions.dtype == np.float64
        assert molecule.numbers.dtype == np.int64
        assert set(molecule.numbers) <= {1, 6, 7, 8, 9}
        assert np.abs(molecule.positions.mean(0)).max() < 1e-5
    last = sample(Gaussian(20), [count - 1], seed=3, sampler=sampler, steps=4)
    assert bits(last.molecules) == bits(made.molecules[-1:])


def test_no_samples_are_asked_for() -> None:
    made = sample(Gaussian(20), [], seed=3, frames=5, watch=harmonic())
    assert made.molecules == []
    assert made.trajectory is not None
    assert made.trajectory.force_rms.shape[0] == 0


def test_sets_begin_alike() -> None:
    """The same index has the same size and the same noise with any sampler and any guide."""
    plain = sample(Gaussian(20), [11], seed=0, frames=2).chain
    guided = sample(Gaussian(20), [11], seed=0, frames=2, guide=Guide(harmonic(), 0.1)).chain
    other = sample(Gaussian(20), [11], seed=0, frames=2, sampler="dpm_solver++", steps=3).chain
    assert plain is not None
    assert guided is not None
    assert other is not None
    assert bits(plain[:1]) == bits(guided[:1]) == bits(other[:1])
    assert len(set(bits([plain[1], guided[1], other[1]]))) == 3


def test_seeds_and_indices_give_other_samples() -> None:
    made = [sample(Gaussian(20), [1, 2], seed=seed, n_nodes=5).molecules for seed in (0, 1)]
    assert len({one for pair in made for one in bits(pair)}) == 4


# --- batches ---


class Network(Diffusion):
    """A small network of random weights that moves atoms, and is no denoiser: its noise is bounded."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        network = EGNN(6, 32, 2)
        for name, weight in network.named_parameters():
            if name.endswith("coord_mlp.4.weight"):
                torch.nn.init.normal_(weight, std=0.02)
        histogram = dict.fromkeys(range(2, 13), 1)
        super().__init__(network, histogram=histogram, schedule=Schedule(20))

    def eps(self, x: Tensor, h: Tensor, t: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        eps_x, eps_h = super().eps(x, h, t, mask)
        return x * 0.9 + 0.1 * eps_x, h * 0.9 + 0.1 * eps_h


@pytest.fixture
def network() -> Network:
    return Network()


GUIDE = Guide(harmonic(), 0.05, iterations=2, force_clip=1.0)


@pytest.mark.parametrize(
    ("sampler", "guide"),
    [
        ("ddpm", GUIDE),
        pytest.param("ddpm", None, marks=pytest.mark.slow),
        pytest.param("dpm_solver++", None, marks=pytest.mark.slow),
        pytest.param("dpm_solver++", GUIDE, marks=pytest.mark.slow),
    ],
)
def test_a_sample_does_not_depend_on_those_beside_it(
    network: Network, sampler: Sampler, guide: Guide | None
) -> None:
    def made(indices: list[int], batch_size: int = 50) -> list[str]:
        return bits(
            sample(
                network, indices, seed=7, sampler=sampler, steps=3, guide=guide, batch_size=batch_size
            ).molecules
        )

    everything = list(range(50))
    expected = made(everything)
    assert len(set(expected)) == 50
    for batch_size in (1, 3):
        assert made(everything, batch_size) == expected
    parts = [made(everything[first : first + 7]) for first in range(0, 50, 7)]
    assert [one for part in parts for one in part] == expected
    assert [made([index])[0] for index in range(12)] == expected[:12]
    order = np.random.default_rng(0).permutation(50).tolist()
    assert made(order) == [expected[index] for index in order]
    assert made([9, 9]) == [expected[9]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("atoms", range(2, 26))
def test_batches_of_one_size_give_the_same_bits(network: Network, atoms: int) -> None:
    def made(batch_size: int) -> list[str]:
        return bits(
            sample(network, range(50), seed=7, steps=2, n_nodes=atoms, batch_size=batch_size).molecules
        )

    network.histogram = {atoms: 1}
    expected = made(50)
    for batch_size in (1, 2, 3, 4, 5, 8, 16, 17, 33, 49):
        assert made(batch_size) == expected


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_of_the_shipped_model_do_not_depend_on_those_beside_them(sampler: Sampler) -> None:
    model, guide = load_model(), Guide(load_field("potential"), 0.01, iterations=2)

    def made(indices: Sequence[int], batch_size: int = 50) -> list[str]:
        samples = sample(
            model, indices, seed=5, sampler=sampler, steps=10, guide=guide, batch_size=batch_size
        )
        assert not samples.failed_calls.any()
        return bits(samples.molecules)

    expected = made(range(50))
    for batch_size in (1, 3):
        assert made(range(50), batch_size) == expected
    assert [one for first in range(0, 50, 7) for one in made(range(50)[first : first + 7])] == expected
    order = np.random.default_rng(0).permutation(50).tolist()
    assert made(order) == [expected[index] for index in order]


def test_threads_of_the_process_do_not_matter(network: Network) -> None:
    threads = torch.get_num_threads()
    made = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            made.append(bits(sample(network, range(20), seed=7, steps=2, n_nodes=12).molecules))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert made[0] == made[1]


def test_a_padded_batch_gives_the_same_molecules(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU takes them; here the mask is what is tested, on a device that torch computes on the CPU."""
    from mgpu_nb.workloads.molecules import sampler as sampler_module

    grouped = sample(network, range(30), seed=7, steps=4)
    groups = sampler_module._groups
    monkeypatch.setattr(sampler_module, "_groups", lambda starts, size, padded: groups(starts, size, True))
    padded = sample(network, range(30), seed=7, steps=4, batch_size=20)
    for one, other in zip(grouped.molecules, padded.molecules, strict=True):
        assert np.array_equal(one.numbers, other.numbers)
        assert np.abs(one.positions - other.positions).max() < 1e-4


# --- progress ---


def test_each_step_is_told_and_may_end_the_sampling() -> None:
    steps: list[tuple[int, int]] = []
    sample(Gaussian(20), range(30), seed=0, steps=4, n_nodes=4, on_step=lambda *step: steps.append(step))
    assert steps == [(n, 5) for n in range(1, 6)]
    steps.clear()
    sample(
        Gaussian(20), range(3), seed=0, steps=4, n_nodes=4, batch_size=1, on_step=lambda *s: steps.append(s)
    )
    assert steps == [(n, 15) for n in range(1, 16)]

    def stop(step: int, steps: int) -> None:
        raise InterruptedError(f"{step} of {steps}")

    with pytest.raises(InterruptedError, match="1 of 5"):
        sample(Gaussian(20), range(30), seed=0, steps=4, n_nodes=4, on_step=stop)


def test_memory_that_runs_out_is_told() -> None:
    class Full(Gaussian):
        def eps(self, x: Tensor, h: Tensor, t: Tensor, mask: Tensor, /) -> tuple[Tensor, Tensor]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        sample(Full(20), range(3), seed=0)


# --- samples that come to nothing ---


class Faulty(Gaussian):
    """The Gaussian model, but for molecules of 5 atoms from some time on."""

    def __init__(self, gives: float, until: float) -> None:
        super().__init__(20, sizes=(4, 5))
        self.gives, self.until = gives, until

    def eps(self, x: Tensor, h: Tensor, t: Tensor, mask: Tensor, /) -> tuple[Tensor, Tensor]:
        eps_x, eps_h = super().eps(x, h, t, mask)
        broken = ((mask.sum(1) == 5) & (t <= self.until))[:, None, None]
        return torch.where(broken, x * self.gives, eps_x), eps_h


@pytest.mark.parametrize("gives", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("until", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_broken_sample_is_finite_and_told_and_alone(sampler: Sampler, until: float, gives: float) -> None:
    if sampler == "ddpm" and gives == 1e30:
        gives = 1e300  # a step takes a small part of it
    field = harmonic()
    faulty, sound = Faulty(gives, until), Gaussian(20, sizes=(4, 5))
    guide = Guide(field, 0.01, noise_threshold=1.0)
    made = sample(faulty, range(20), seed=2, sampler=sampler, guide=guide, frames=30)
    expected = sample(sound, range(20), seed=2, sampler=sampler, guide=guide)
    sizes = np.array([len(molecule.numbers) for molecule in made.molecules])
    assert np.array_equal(made.broken, sizes == 5)
    assert not made.failed_calls.any()
    for size, one, other in zip(sizes, made.molecules, expected.molecules, strict=True):
        assert np.isfinite(one.positions).all()
        assert np.abs(one.positions).max() <= WIDEST
        assert np.abs(one.positions.mean(0)).max() < 1e-5
        if size == 4:
            assert bits([one]) == bits([other])
    if until == 1.0:  # nothing asked for a broken molecule's forces
        assert (made.force_calls[sizes == 5] == 0).all()
    assert all(np.isfinite(positions).all() for _, positions in field.asked)
    assert made.chain is not None
    assert all(np.isfinite(frame.positions).all() for frame in made.chain)


def test_a_guide_that_breaks_a_molecule_breaks_it_alone() -> None:
    violent = Guide(harmonic(-1e9), 1.0)
    made = sample(Gaussian(20), range(5), seed=2, guide=violent)
    assert made.broken.all()
    assert (made.force_calls == 1).all()  # the first throws them out
    assert all(np.isfinite(molecule.positions).all() for molecule in made.molecules)


def test_a_model_of_which_nothing_comes_is_refused() -> None:
    made = sample(Faulty(float("nan"), 1.0), range(5), seed=2, n_nodes=5)
    with pytest.raises(ValueError, match=r"each of 5 samples .* model_path"):
        check_broken(made.broken)
    check_broken([True, False])
    check_broken([])


# --- options ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "dpm"}, r"sampler must be one of ddpm, dpm_solver\+\+"),
        ({"steps": 0}, "choose from 1 to 20"),
        ({"steps": 21}, "choose from 1 to 20"),
        ({"n_nodes": 30}, "n_nodes must be 2 to 9"),
        ({"n_nodes": 1}, "n_nodes must be 2 to 9"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
        ({"frames": -1}, "frames >= 0"),
    ],
)
def test_an_option_that_cannot_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(Gaussian(20), [0], seed=0, **options)  # type: ignore[arg-type]


def test_the_spread_is_that_of_the_model() -> None:
    made = sample(Gaussian(20), range(100), seed=0)
    x = np.concatenate([molecule.positions for molecule in made.molecules])
    assert 0.5 * SPREAD < x.std() < SPREAD
