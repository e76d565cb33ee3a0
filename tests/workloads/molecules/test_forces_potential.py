"""The potential: its forces are the slope of its energy, alone as in any batch, wherever the molecule lies."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mgpu_nb.workloads.molecules.forces.base import evaluate
from mgpu_nb.workloads.molecules.forces.moments import INDEX, MomentNet
from mgpu_nb.workloads.molecules.forces.potential import PARAMETERS, Potential

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]  # seconds in all

ELEMENTS = torch.tensor([1, 6, 7, 8, 9])
METHANOL = (
    np.array([6, 8, 1, 1, 1, 1]),
    np.array(
        [
            [-0.047, 0.664, 0.0],
            [-0.047, -0.758, 0.0],
            [-1.092, 0.970, 0.0],
            [0.878, -1.046, 0.0],
            [0.438, 1.071, 0.892],
            [0.438, 1.071, -0.892],
        ]
    ),
)


@pytest.fixture(scope="module")
def potential() -> Potential:
    return Potential()


def clouds(count: int, atoms: int, seed: int = 0, spread: float = 1.5) -> tuple[Tensor, Tensor]:
    """Random elements at random places: half-formed molecules."""
    draws = torch.Generator().manual_seed(seed)
    numbers = ELEMENTS[torch.randint(0, 5, (count, atoms), generator=draws)]
    return numbers, spread * torch.randn(count, atoms, 3, dtype=torch.float64, generator=draws)


@pytest.mark.parametrize("spread", [0.3, 1.0, 2.0])
def test_forces_are_the_slope_of_the_energy(potential: Potential, spread: float) -> None:
    numbers, positions = clouds(4, 7, spread=spread)
    forces = potential.batch(numbers, positions)[1]
    step = 1e-5
    moves = torch.eye(21, dtype=torch.float64).view(21, 1, 7, 3) * step
    ends = [
        potential.batch(numbers.repeat(21, 1), (positions + sign * moves).flatten(0, 1))[0].view(21, 4)
        for sign in (1, -1)
    ]
    slope = (ends[0] - ends[1]).T.view(4, 7, 3) / (2 * step)
    assert torch.allclose(-slope, forces, rtol=0, atol=1e-6 * float(forces.abs().max()))


def test_forces_go_on_smoothly_through_the_cutoff_and_into_the_core(potential: Potential) -> None:
    apart = torch.linspace(0, 4.5, 4501, dtype=torch.float64)
    numbers = torch.tensor([[6, 8]]).repeat(len(apart), 1)
    positions = torch.zeros(len(apart), 2, 3, dtype=torch.float64)
    positions[:, 1, 0] = apart
    energy, forces = potential.batch(numbers, positions)
    along = forces[:, 1, 0]
    assert bool(along.isfinite().all())
    assert float(along[0]) == 0  # where they coincide there is no direction
    assert float(along.abs().max()) < 1000
    strongest = float(along.abs().max())
    assert float(along.diff().abs().max()) < 0.05 * strongest  # no jump from one pm to the next
    assert bool((along[apart >= 4.0] == 0).all())
    assert float(energy[apart > 0.2].diff()[:300].max()) < 0  # repelled wherever they overlap


def test_forces_are_bounded_however_many_atoms_overlap(potential: Potential) -> None:
    numbers, positions = clouds(50, 20, spread=0.05)
    found = evaluate(potential, numbers, positions)
    assert found.failed == 0
    assert float(found.forces.norm(dim=2).max()) < 5000
    positions[:] = positions[:, :1]
    found = evaluate(potential, numbers, positions)
    assert found.failed == 0
    assert float(found.forces.abs().max()) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_molecule_gets_the_same_bits_in_any_batch(potential: Potential, dtype: torch.dtype) -> None:
    check_bits(potential, dtype, sizes=(1, 2, 3, 9, 20), counts=(1, 3, 7))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_molecule_of_any_size_gets_the_same_bits(potential: Potential, dtype: torch.dtype) -> None:
    check_bits(potential, dtype, sizes=range(1, 26), counts=(1, 2, 3, 4, 5, 7, 8, 16, 33, 49))


def check_bits(potential: Potential, dtype: torch.dtype, sizes: Iterable[int], counts: Iterable[int]) -> None:
    draws = torch.Generator().manual_seed(0)
    for atoms in sizes:
        numbers, positions = clouds(50, atoms, seed=atoms)
        positions = positions.to(dtype)
        energy, forces = potential.batch(numbers, positions)
        for count in counts:
            first = int(torch.randint(0, 51 - count, (), generator=draws))
            rows = slice(first, first + count)
            some_energy, some_forces = potential.batch(numbers[rows], positions[rows])
            assert torch.equal(some_energy, energy[rows]), (atoms, count)
            assert torch.equal(some_forces, forces[rows]), (atoms, count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_places_without_an_atom_change_no_bit(potential: Potential, dtype: torch.dtype) -> None:
    numbers, positions = clouds(30, 25, seed=1)
    positions = positions.to(dtype)
    sizes = torch.arange(30) % 25 + 1
    numbers[torch.arange(25) >= sizes[:, None]] = 0
    energy, forces = potential.batch(numbers, positions)
    for row, size in enumerate(sizes.tolist()):
        alone = potential.batch(numbers[row : row + 1, :size], positions[row : row + 1, :size])
        assert torch.equal(alone[0][0], energy[row])
        assert torch.equal(alone[1][0], forces[row, :size])
    assert bool((forces[numbers == 0] == 0).all())
    one_energy, one_forces = potential.forces(
        numbers[24].numpy(), positions[24].double().numpy()
    )  # of 25 atoms, in float64
    assert abs(one_energy - float(energy[24])) < 1e-4 * max(1, abs(one_energy))
    assert np.abs(one_forces - forces[24].double().numpy()).max() < 1e-3 * np.abs(one_forces).max()


def test_energy_is_invariant_and_forces_turn_with_the_molecule(potential: Potential) -> None:
    numbers, positions = clouds(8, 9)
    energy, forces = potential.batch(numbers, positions)
    turn = torch.linalg.qr(
        torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    )[0]
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    for moved_numbers, moved, expected in (
        (numbers, positions @ turn, forces @ turn),
        (numbers, positions + torch.tensor([30.0, -7.0, 2.0]), forces),
        (numbers[:, order], positions[:, order], forces[:, order]),
    ):
        moved_energy, moved_forces = potential.batch(moved_numbers, moved)
        assert torch.allclose(moved_energy, energy, rtol=1e-9, atol=1e-9)
        assert torch.allclose(moved_forces, expected, rtol=1e-8, atol=1e-8 * float(forces.abs().max()))
    assert float(forces.sum(1).abs().max()) < 1e-9 * float(forces.abs().max())
    torque = torch.linalg.cross(positions, forces).sum(1)
    assert float(torque.abs().max()) < 1e-8 * float(forces.abs().max())


def test_far_parts_do_not_feel_each_other(potential: Potential) -> None:
    numbers, positions = clouds(2, 6)
    energy, forces = potential.batch(numbers, positions)
    apart = torch.cat([positions[0], positions[1] + 50.0])[None]
    both_energy, both_forces = potential.batch(numbers.view(1, 12), apart)
    assert torch.allclose(both_energy[0], energy.sum(), rtol=1e-12, atol=0)
    assert torch.allclose(both_forces[0], forces.flatten(0, 1), rtol=0, atol=1e-9 * float(forces.abs().max()))


def test_energy_can_be_differentiated_by_the_positions(potential: Potential) -> None:
    numbers, positions = clouds(3, 5)
    positions.requires_grad_()
    energy, forces = potential.batch(numbers, positions)
    (slope,) = torch.autograd.grad((2 * energy).sum(), positions)
    assert torch.equal(slope, -2 * forces)
    with torch.inference_mode():
        again = potential.batch(numbers, positions.detach().clone())
    assert torch.equal(again[1], forces)


def test_the_analytic_forces_are_those_of_autograd() -> None:
    torch.manual_seed(0)
    net = MomentNet().double()
    draws = torch.Generator().manual_seed(1)
    kinds = torch.randint(0, 6, (6, 9), generator=draws)
    kinds[0, 1:] = 0
    positions = torch.randn(6, 9, 3, generator=draws, dtype=torch.float64).requires_grad_()
    energy, forces = net(kinds, positions)
    (slope,) = torch.autograd.grad(energy.sum(), positions, retain_graph=True)
    assert torch.allclose(forces, -slope, rtol=0, atol=1e-12 * float(slope.abs().max()))
    (forces.square().sum() + energy.sum()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())


def test_forces_can_be_differentiated_by_the_parameters() -> None:
    torch.manual_seed(0)
    net = MomentNet(bumps=3, weights=2, channels=4, hidden=5).double()
    numbers, positions = clouds(3, 4)
    kinds = torch.tensor(INDEX)[numbers]

    def loss() -> Tensor:
        energy, forces = net(kinds, positions)
        total: Tensor = forces.square().sum() + energy.sum()
        return total

    loss().backward()
    step = 1e-6
    for parameter in net.parameters():
        assert parameter.grad is not None
        place = int(parameter.grad.abs().argmax())
        slopes = []
        for move in (step, -step):
            with torch.no_grad():
                parameter.view(-1)[place] += move
                slopes.append(float(loss()))
                parameter.view(-1)[place] -= move
        found = float(parameter.grad.view(-1)[place])
        assert (slopes[0] - slopes[1]) / (2 * step) == pytest.approx(found, rel=1e-5, abs=1e-5)


def test_a_position_that_is_no_number_gives_no_energy(potential: Potential) -> None:
    numbers, positions = clouds(4, 5)
    expected = potential.batch(numbers, positions)
    for row, bad in enumerate((torch.nan, torch.inf, -torch.inf)):
        positions[row, 2, 1] = bad
    energy, forces = potential.batch(numbers, positions)
    assert energy.isnan().tolist() == [True, True, True, False]
    assert torch.equal(energy[3], expected[0][3])
    assert torch.equal(forces[3], expected[1][3])


def test_other_elements_are_refused_by_name(potential: Potential) -> None:
    for number, name in ((16, "S"), (17, "Cl"), (5, "B"), (300, "300"), (-1, "-1")):
        with pytest.raises(ValueError, match=f"knows H, C, N, O, F, not .*{name};"):
            potential.forces(np.array([6, number]), np.array([[0.0, 0, 0], [0, 0, 1.8]]))
    numbers, positions = clouds(3, 4)
    expected = potential.batch(numbers, positions)
    numbers[1, 2] = 16
    found = evaluate(potential, numbers, positions)
    assert found.ok.tolist() == [True, False, True]
    assert torch.equal(found.forces[2], expected[1][2])


def test_parameters_of_something_else_are_refused(tmp_path: Path) -> None:
    whole = load_file(PARAMETERS)
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    save_file({**whole, "mix.0": whole["mix.0"] * torch.nan}, tmp_path / "nan.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    (tmp_path / "cut.safetensors").write_bytes(PARAMETERS.read_bytes()[:9999])
    (tmp_path / "folder.safetensors").mkdir()
    reasons = {
        "none": "No such file",
        "other": "it lacks 'centers'",
        "nan": "they are not finite numbers",
        "text": "",
        "cut": "not fully covered",
        "folder": "",
    }
    for name, reason in reasons.items():
        words = (
            rf"{name}\.safetensors holds no parameters of the potential: .*{reason}.*; give .*molecules fit"
        )
        with pytest.raises(ValueError, match=words):
            Potential(tmp_path / f"{name}.safetensors")


def test_the_parameters_are_small() -> None:
    assert PARAMETERS.stat().st_size < 300_000


def test_methanol_is_near_a_minimum(potential: Potential) -> None:
    numbers, positions = METHANOL
    at_rest = np.sqrt((potential.forces(numbers, positions)[1] ** 2).sum(1).mean())
    stretched = positions.copy()
    stretched[3] += 0.3 * (positions[3] - positions[1])
    pulled = potential.forces(numbers, stretched)[1]
    assert at_rest < 1.5
    back = -(positions[3] - positions[1])
    assert pulled[3] @ back / np.linalg.norm(pulled[3]) / np.linalg.norm(back) > 0.9
    assert np.linalg.norm(pulled[3]) > 3
