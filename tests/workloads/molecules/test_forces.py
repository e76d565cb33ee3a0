"""Force fields: any of them evaluated for a batch, by name or import path."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mgpu_nb.workloads.molecules import forces
from mgpu_nb.workloads.molecules.forces import check_field, evaluate, load_field

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Springs:
    """Atoms bound to the origin; none of them is a carbon."""

    def __init__(self, name: str = "springs") -> None:
        self.name = name
        self.calls = 0

    def forces(self, numbers: Ints, positions: Floats) -> tuple[float, Floats]:
        self.calls += 1
        if 6 in numbers:
            raise RuntimeError("no carbon")
        return float(0.5 * (positions**2).sum()), -positions


class Batched(Springs):
    """The same, of a batch; the energy of a molecule with fluorine is not a number."""

    def batch(self, numbers: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        if bool((numbers == 6).any()):
            raise RuntimeError("no carbon in the batch")
        mask = numbers > 0
        energy = 0.5 * (positions.square().sum(2) * mask).sum(1)
        return torch.where((numbers == 9).any(1), torch.nan, energy), -positions


def batch_of(*rows: list[int]) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    numbers = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return numbers, torch.randn(*numbers.shape, 3, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("field", [Springs(), Batched("batched")], ids=lambda field: str(field.name))
def test_a_call_that_fails_stops_no_other(field: Springs) -> None:
    numbers, positions = batch_of([1, 1, 8], [6, 1], [7, 1, 1])
    found = evaluate(field, numbers, positions)
    assert found.ok.tolist() == [True, False, True]
    assert found.failed == 1
    assert found.error is not None
    assert "no carbon" in found.error
    assert torch.equal(found.forces[0], -positions[0])
    assert torch.equal(found.forces[1], torch.zeros(3, 3, dtype=torch.float64))
    assert bool(found.energy.isnan().eq(~found.ok).all())
    alone = evaluate(field, numbers[2:], positions[2:])
    assert torch.equal(alone.forces[0], found.forces[2])
    assert alone.error is None


def test_numbers_that_are_not_finite_are_failures() -> None:
    numbers, positions = batch_of([9, 1], [1, 1])
    found = evaluate(Batched("batched"), numbers, positions)
    assert found.ok.tolist() == [False, True]
    assert found.error == "batched gave an energy or forces that are not finite numbers"
    positions[1, 0, 0] = torch.inf
    field = Springs()
    found = evaluate(field, numbers, positions)
    assert found.ok.tolist() == [True, False]
    assert field.calls == 1  # a library is not asked what may hang it


def test_forces_of_no_atom_are_zero_and_the_type_is_that_of_the_positions() -> None:
    numbers, positions = batch_of([1, 1, 8], [8, 1])
    positions[1, 2] = torch.nan  # what stands where there is no atom does not count
    found = evaluate(Springs(), numbers, positions.float())
    assert found.forces.dtype == torch.float32
    assert found.energy.dtype == torch.float64
    assert found.failed == 0
    assert torch.equal(found.forces[1, 2], torch.zeros(3))


def test_a_batch_without_atoms_or_molecules() -> None:
    numbers, positions = batch_of([1, 1], [0, 0])
    assert evaluate(Springs(), numbers, positions).ok.tolist() == [True, False]
    assert evaluate(Springs(), numbers[:0], positions[:0]).ok.tolist() == []


def test_memory_that_runs_out_is_not_a_failed_call() -> None:
    class Large(Springs):
        def batch(self, numbers: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
            raise torch.OutOfMemoryError("too many")

    with pytest.raises(torch.OutOfMemoryError):
        evaluate(Large(), *batch_of([1]))


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[B, N, 3\], got \[2, 2\] and \[2, 2\]"):
        evaluate(Springs(), torch.ones(2, 2, dtype=torch.int64), torch.zeros(2, 2))


def test_a_field_that_gives_other_shapes_fails() -> None:
    class Wrong(Springs):
        def forces(self, numbers: Ints, positions: Floats) -> tuple[float, Floats]:
            return 0.0, positions[:1]

    found = evaluate(Wrong(), *batch_of([1, 1]))
    assert found.failed == 1
    assert "shape [1, 3] for 2 atoms" in str(found.error)


def test_a_module_that_exits_is_told_before_a_worker_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "exits_at_once.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    said = (
        r"judge='exits_at_once:Field' does not import \(SystemExit: 3, in .*exits_at_once.py, line 2\): mend"
    )
    with pytest.raises(ValueError, match=said):
        check_field("exits_at_once:Field", "judge")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("potentail", "did you mean 'potential'"),
        ("gfn3", "did you mean 'gfn"),
        ("", "must be one of potential, gfn2"),
        (3, "must be one of potential, gfn2"),
        (None, "must be one of potential, gfn2"),
        ("no_such_package:Field", "does not import"),
        ("math:no_such_name", "does not import"),
        ("math:pi", "is a float"),
        ("uma-s-1p1", "pip install fairchem-core"),
        ("uma-s-1p1", "HF_TOKEN"),
        ("uma-s-1p1:/no/such/file.pt", "'/no/such/file.pt' is no file"),
    ],
)
def test_a_field_that_cannot_be_had_is_told_before_a_worker_starts(name: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        check_field(name, "judge")
    assert "judge" in str(raised.value)
    with pytest.raises(ValueError, match=said):
        load_field(name)


@pytest.mark.parametrize(
    ("name", "package"), [("gfn2", "tblite"), ("gfn1", "tblite"), ("ase.calculators.emt:EMT", "ase")]
)
def test_the_extra_is_named_that_brings_a_missing_package(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package, *_: None)
    with pytest.raises(
        ValueError, match=rf'{package}, which is not installed: pip install "mgpu-nb\[molecules\]"'
    ):
        check_field(name)


@pytest.mark.parametrize(
    "name", ["potential", "gfn2", "gfn1", "ase.calculators.emt:EMT", "tblite.ase:TBLite"]
)
def test_fields_by_name(name: str) -> None:
    check_field(name)
    field = load_field(name)
    assert field.name == name
    water = np.array([[0.0, 0.0, 0.12], [0.0, 0.78, -0.48], [0.0, -0.78, -0.48]])
    energy, force = field.forces(np.array([8, 1, 1]), water)
    assert np.isfinite(energy)
    assert np.abs(force.sum(0)).max() < 1e-6
    slope = np.zeros_like(water)
    for index in np.ndindex(*water.shape):
        ends = []
        for step in (1e-4, -1e-4):
            moved = water.copy()
            moved[index] += step
            ends.append(field.forces(np.array([8, 1, 1]), moved)[0])
        slope[index] = -(ends[0] - ends[1]) / 2e-4
    assert np.abs(slope - force).max() < 1e-4  # the units of energies and forces belong together


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A module of a user."""
    made = SimpleNamespace(Springs=Springs, FIELD=Springs())
    monkeypatch.setitem(sys.modules, "a_users_fields", made)
    return made


def test_import_paths_of_fields_classes_and_factories(module: SimpleNamespace) -> None:
    def on(device: str) -> Springs:
        return Springs(device)

    def anything(**kwargs: Any) -> Springs:
        assert not kwargs  # one that swallows any keyword is not handed one
        return Springs()

    module.on, module.anything = on, anything
    assert load_field("a_users_fields:FIELD") is module.FIELD
    assert isinstance(load_field("a_users_fields:Springs"), Springs)
    assert load_field("a_users_fields:on", "meta").name == "meta"
    assert load_field("a_users_fields:anything").name == "springs"


def test_what_is_made_must_be_a_field(module: SimpleNamespace) -> None:
    def broken() -> None:
        raise OSError("no weights")

    module.broken, module.other, module.needs = broken, dict, lambda file: Springs()
    with pytest.raises(ValueError, match=r"could not be made \(OSError: no weights\)"):
        load_field("a_users_fields:broken")
    with pytest.raises(ValueError, match="made a dict, which is neither"):
        load_field("a_users_fields:other")
    with pytest.raises(ValueError, match="without arguments"):
        load_field("a_users_fields:needs")


def test_calculators_do_not_remember_the_molecule_before() -> None:
    field = load_field("tblite.ase:TBLite")
    numbers = np.array([8, 1, 1])
    water = np.array([[0.0, 0.0, 0.12], [0.0, 0.78, -0.48], [0.0, -0.78, -0.48]])
    first = field.forces(numbers, water)
    field.forces(numbers, water * 1.1)
    again = field.forces(numbers, water)
    assert first[0] == again[0]
    assert np.array_equal(first[1], again[1])


def test_a_calculator_that_raises_is_a_failed_call() -> None:
    numbers, positions = batch_of([26, 8], [6, 1, 1, 1, 1])
    found = evaluate(load_field("ase.calculators.emt:EMT"), numbers, positions * 2)
    assert found.ok.tolist() == [False, True]  # EMT has no iron


def test_names_are_exported() -> None:
    for name in forces.__all__:
        assert getattr(forces, name) is not None
