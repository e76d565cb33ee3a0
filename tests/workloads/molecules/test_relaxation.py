"""Relaxation: never more calls than allowed, downhill, and what failed stays."""

import sys
from pathlib import Path

import numpy as np
import pytest
from drawn_molecules import Broken, Quartic, Springs, molecule, shaken

from mgpu_nb.workloads.molecules.forces.load import load_field
from mgpu_nb.workloads.molecules.molecule import Molecule
from mgpu_nb.workloads.molecules.relaxation import relax, relaxation_gap

pytest.importorskip("ase")


def energy(one: Molecule) -> float:
    return Springs().forces(one.numbers, one.positions)[0]


@pytest.mark.parametrize("calls", [0, 1, 2, 5, 17])
def test_exactly_so_many_calls_are_spent(calls: int) -> None:
    field = Quartic()
    molecules = [shaken("CH4", n, 0.5) for n in range(3)]
    found = relax(molecules, field, calls)
    assert found.force_calls.tolist() == [calls] * 3
    assert field.calls == 3 * calls
    assert not found.failed.any()
    assert not found.converged.any()
    for before, after in zip(molecules, found.molecules, strict=True):
        moved = np.abs(after.positions - before.positions).max()
        assert (moved > 0) == (calls > 0)
        assert moved <= 0.2 * calls + 1e-12  # a step follows each call
        assert np.isfinite(after.positions).all()


def test_a_molecule_at_rest_needs_no_more_calls() -> None:
    field = Springs()
    found = relax([shaken("CH4", 1, 0.1), molecule("H", [[0, 0, 0]])], field, 100)
    assert found.converged.tolist() == [True, True]
    assert found.force_calls[0] < 100
    assert found.force_calls[1] == 1
    assert field.calls == found.force_calls.sum()
    assert energy(found.molecules[0]) < 1e-3


def test_each_molecule_has_its_own_number_of_calls() -> None:
    found = relax([shaken("CH4", n, 0.5) for n in range(3)], Quartic(), [3, 0, 7])
    assert found.force_calls.tolist() == [3, 0, 7]


def test_a_molecule_depends_on_no_other_and_is_left_as_it_was() -> None:
    molecules = [shaken("CH4", n, 0.3) for n in range(4)]
    before = [one.positions.copy() for one in molecules]
    together = relax(molecules, Springs(), 6)
    for n, one in enumerate(molecules):
        (alone,) = relax([one], Springs(), 6).molecules
        assert alone.positions.tobytes() == together.molecules[n].positions.tobytes()
        assert alone.numbers.tolist() == one.numbers.tolist()
        assert (one.positions == before[n]).all()


@pytest.mark.parametrize("bad", [None, np.nan])
def test_a_molecule_whose_call_fails_stays_and_is_counted(bad: float | None) -> None:
    one = shaken("CH4", 1, 0.3)
    found = relax([one], Springs(fails={1}, bad=bad), 9)
    assert found.failed.tolist() == [True]
    assert found.force_calls.tolist() == [1]
    assert (found.molecules[0].positions == one.positions).all()
    # Later: as at the last call that did not fail.
    found = relax([one], Springs(fails={3}, bad=bad), 9)
    assert found.failed.tolist() == [True]
    assert found.force_calls.tolist() == [3]
    assert energy(found.molecules[0]) < energy(one)
    assert (found.molecules[0].positions == relax([one], Springs(), 1).molecules[0].positions).all()


def test_all_may_fail_and_the_others_go_on() -> None:
    molecules = [shaken("CH4", n, 0.3) for n in range(3)]
    found = relax(molecules, Broken(), 5)
    assert found.failed.all()
    assert found.force_calls.tolist() == [1, 1, 1]
    found = relax(molecules, Springs(fails={1}), 5)
    assert found.failed.tolist() == [True, False, False]


def test_positions_that_are_no_numbers_fail() -> None:
    found = relax([molecule("HH", [[0, 0, np.nan], [0, 0, 1]])], Springs(), 5)
    assert found.failed.tolist() == [True]
    assert relax([], Springs(), 5).molecules == []


def test_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    relax([shaken("CH4", 0)], Springs(), 5)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_a_gap_is_the_energy_above_the_lowest_that_was_seen() -> None:
    one = shaken("CH4", 1, 0.3)
    field = Springs()
    gap = relaxation_gap(one, field, 60)
    assert gap.value == pytest.approx(energy(one) / 5, abs=0.01)
    assert (gap.calls, gap.failed) == (field.calls, 0)
    assert gap.calls <= 60
    few = relaxation_gap(one, Springs(), 3)
    assert 0 < few.value < gap.value
    assert relaxation_gap(one, Springs(), 1) == (0, 1, 0)
    assert np.isnan(relaxation_gap(one, Broken(), 9).value)
    assert relaxation_gap(one, Broken(), 9)[1:] == (1, 1)
    later = relaxation_gap(one, Springs(fails={4}), 9)
    assert 0 < later.value < gap.value
    assert later[1:] == (4, 1)


@pytest.mark.parametrize(
    ("calls", "says"), [([1, 2], "one for each of 3"), (-1, "at least 0"), ([1, -2, 0], "at least 0")]
)
def test_calls_that_make_no_sense(calls: int | list[int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        relax([shaken("CH4", n) for n in range(3)], Springs(), calls)


def test_without_ase_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    one = shaken("CH4", 1)
    monkeypatch.setitem(sys.modules, "ase", None)
    with pytest.raises(ImportError, match=r'pip install "mgpu-nb\[molecules\]"'):
        relax([one], Springs(), 3)


@pytest.mark.slow
def test_the_embedded_potential_is_relaxed() -> None:
    field = load_field("potential")
    one = shaken("CH4", 3, 0.1)
    found = relax([one], field, 30)
    before, after = (field.forces(m.numbers, m.positions)[0] for m in (one, found.molecules[0]))
    assert after < before
