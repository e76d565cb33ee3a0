"""Figures of each molecule: validity as EDM has it, forces by a judge; rows join to the same whatever the parts."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn_molecules import Broken, Springs, g2, molecule, random_molecule, shaken

from mgpu_nb.store.values import load_value, store_value
from mgpu_nb.workloads.molecules.bonds import bond_orders, stability
from mgpu_nb.workloads.molecules.guidance import rms
from mgpu_nb.workloads.molecules.molecule import Molecule
from mgpu_nb.workloads.molecules.rows import Rows, canonical_smiles, join, measure

pytest.importorskip("rdkit")


def by_edm(drawn: Molecule) -> str | None:
    """EDM's two steps one after the other: SMILES of the whole, then of the piece with most atoms."""
    from rdkit import Chem, rdBase

    def to_smiles(mol: Chem.Mol) -> str | None:
        try:
            Chem.SanitizeMol(mol)
        except ValueError:
            return None
        return str(Chem.MolToSmiles(mol))

    kinds = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}
    mol = Chem.RWMol()
    for number in drawn.numbers:
        mol.AddAtom(Chem.Atom(int(number)))
    orders = bond_orders(drawn)
    for i in range(len(drawn.numbers)):
        for j in range(i):
            if orders[i, j]:
                mol.AddBond(i, j, kinds[int(orders[i, j])])
    with rdBase.BlockLogs():
        if to_smiles(mol) is None:
            return None
        pieces = Chem.GetMolFrags(mol, asMols=True)
        return to_smiles(max(pieces, default=mol, key=lambda m: m.GetNumAtoms()))


def equal(one: Rows, other: Rows, *but: str) -> bool:
    return all(
        one[name] == other[name]  # type: ignore[literal-required]
        if name == "smiles"
        else np.array_equal(one[name], other[name], equal_nan=one[name].dtype.kind == "f")  # type: ignore[literal-required]
        for name in Rows.__annotations__
        if name not in but
    )


@pytest.mark.parametrize("seed", range(60))
def test_smiles_are_those_of_edm(seed: int) -> None:
    drawn = random_molecule(seed, most=8)
    assert canonical_smiles(drawn) == by_edm(drawn)


@pytest.mark.parametrize(
    ("name", "smiles"),
    [
        ("CH4", "[H]C([H])([H])[H]"),
        ("H2O", "[H]O[H]"),
        ("C2H4", "[H]C([H])=C([H])[H]"),
        ("C2H2", "[H]C#C[H]"),
        ("HCN", "[H]C#N"),
        ("CO2", "O=C=O"),
    ],
)
def test_smiles_of_known_molecules(name: str, smiles: str) -> None:
    assert canonical_smiles(g2(name)) == smiles


def test_of_pieces_the_largest_counts() -> None:
    water, methane = g2("H2O"), g2("CH4")
    both = Molecule(
        np.concatenate([water.numbers, methane.numbers]),
        np.concatenate([water.positions, methane.positions + 30]),
    )
    assert canonical_smiles(both) == "[H]C([H])([H])[H]"


def test_an_open_valence_is_filled_and_a_full_one_is_not_valid() -> None:
    assert canonical_smiles(molecule("C", [[0, 0, 0]])) == "C"
    assert canonical_smiles(molecule("HHH", np.zeros((3, 3)))) is None
    assert stability(molecule("C", [[0, 0, 0]])).whole is False


def test_an_invalid_molecule_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert canonical_smiles(molecule("HHH", np.zeros((3, 3)))) is None
    assert capfd.readouterr() == ("", "")


def test_without_rdkit_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(ImportError, match=r'pip install "mgpu-nb\[molecules\]"'):
        canonical_smiles(molecule("C", [[0, 0, 0]]))


def test_forces_are_the_lengths_on_atoms() -> None:
    drawn = molecule("HHO", [[3, 4, 0], [0, 0, 0], [0, 0, 12]])
    rows = measure([drawn], [7], judge=Springs())
    assert rows["index"].tolist() == [7]
    assert rows["energy"].tolist() == [25 + 144]
    assert rows["force_rms"].tolist() == [pytest.approx(2 * np.sqrt((25 + 0 + 144) / 3))]
    assert rows["force_max"].tolist() == [24]
    assert rows["judge_calls"].tolist() == [1]
    assert rows["judge_failed"].tolist() == [0]


@pytest.mark.parametrize("bad", [None, np.nan, np.inf])
def test_a_call_of_the_judge_that_fails_is_counted_and_unknown(bad: float | None) -> None:
    molecules = [molecule("HH", [[0, 0, 0], [0, 0, n]]) for n in range(1, 5)]
    rows = measure(molecules, range(4), judge=Springs(fails={2}, bad=bad))
    assert rows["judge_failed"].tolist() == [0, 1, 0, 0]
    assert rows["judge_calls"].tolist() == [1] * 4
    known: dict[str, Any] = {**rows}
    for name in ("energy", "force_rms", "force_max"):
        assert np.isnan(known[name]).tolist() == [False, True, False, False]


def test_all_calls_may_fail_and_there_may_be_no_judge() -> None:
    molecules = [shaken("CH4", n) for n in range(3)]
    for judge, calls in ((Broken(), 1), (None, 0)):
        rows = measure(molecules, range(3), judge=judge, relax_calls=9)
        assert np.isnan(rows["energy"]).all()
        assert np.isnan(rows["gap"]).all()
        assert rows["judge_calls"].tolist() == rows["judge_failed"].tolist() == [calls] * 3


def test_a_gap_is_per_atom_and_its_calls_are_counted() -> None:
    pytest.importorskip("ase")
    drawn = molecule("HO", [[0.3, 0, 0], [0, 0.4, 0]])
    springs = Springs()
    rows = measure([drawn, molecule("H", [[0, 0, 0]])], [0, 1], judge=springs, relax_calls=40)
    assert rows["gap"][0] == pytest.approx((0.09 + 0.16) / 2, abs=1e-3)
    assert rows["gap"][1] == 0
    assert rows["judge_calls"].sum() == springs.calls
    assert 2 < rows["judge_calls"][0] <= 41
    assert rows["judge_calls"][1] == 2
    assert np.isnan(measure([drawn], [0], judge=Springs())["gap"]).all()


def chunks(n: int, size: int) -> list[range]:
    return [range(start, min(n, start + size)) for start in range(0, n, size)]


@pytest.mark.parametrize("order", ["up", "down"])
@pytest.mark.parametrize("size", [1, 3, 50])
def test_rows_are_the_same_whatever_the_chunks_and_their_order(size: int, order: str) -> None:
    molecules = [random_molecule(seed, most=9) for seed in range(50)]

    def part(indices: Sequence[int]) -> Rows:
        return measure(
            [molecules[n] for n in indices],
            indices,
            judge=Springs(),
            seconds=0.5,
            force_calls=list(indices),
            failed_calls=[n // 2 for n in indices],
        )

    whole = part(range(50))
    parts = [part(indices) for indices in chunks(50, size)]
    assert equal(join(parts if order == "up" else parts[::-1]), whole)
    assert equal(join([part(range(49, -1, -1))]), whole)


def test_a_sample_comes_once() -> None:
    part = measure([molecule("H", [[0, 0, 0]])] * 3, [4, 1, 7])
    assert join([part])["index"].tolist() == [1, 4, 7]
    with pytest.raises(ValueError, match=r"samples \[1, 4, 7\] come more than once"):
        join([part, part])


def test_no_rows_join_to_none() -> None:
    none = join([])
    assert none["smiles"] == []
    assert len(none["index"]) == len(none["energy"]) == 0
    part = measure([molecule("H", [[0, 0, 0]])], [3])
    assert equal(join([none, part, none]), part)


def test_a_pool_stores_rows(tmp_path: Path) -> None:
    rows = measure([shaken("CH4", 1), molecule("HHH", np.zeros((3, 3)))], [0, 1], judge=Springs())
    assert rows["smiles"][1] is None
    stored = load_value(tmp_path, json.loads(store_value(tmp_path, "a", rows)))
    assert equal(stored, rows)


def test_as_many_indices_as_molecules() -> None:
    with pytest.raises(ValueError, match="one for each of 2 molecules, got 3"):
        measure([molecule("H", [[0, 0, 0]])] * 2, range(3))


def test_forces_along_the_way_have_the_same_definition() -> None:
    drawn = shaken("CH4", 4)
    rows = measure([drawn], [0], judge=Springs())
    forces = torch.from_numpy(Springs().forces(drawn.numbers, drawn.positions)[1])[None]
    along = rms(forces, torch.ones(1, len(drawn.numbers), dtype=torch.bool))
    assert along.tolist() == [pytest.approx(rows["force_rms"][0], rel=1e-14)]
