"""The training molecules."""

import logging
from collections import Counter

import numpy as np
import pytest
from ase.collections import g2
from rdkit import Chem

from mgpu_nb.workloads.molecules.bonds import bond_orders, stability
from mgpu_nb.workloads.molecules.dataset import (
    _conformers,
    enumerate_smiles,
    histogram,
    told,
    training_molecules,
)
from mgpu_nb.workloads.molecules.molecule import NUMBERS, Molecule


def test_graphs_of_three_heavy_atoms_that_a_chemist_would_count() -> None:
    found = enumerate_smiles(3)
    assert len(found) == len(set(found)) == 46
    assert found[:4] == ["C", "F", "N", "O"]
    assert {"CC=O", "C1CC1", "C1CO1", "CC#N", "OCF", "C=CC", "CNC"} <= set(found)
    assert not {"OO", "C=C=C", "C1=CC1", "OCO", "FOC", "[CH3]"} & set(found)
    assert all(Chem.MolToSmiles(Chem.MolFromSmiles(smiles)) == smiles for smiles in found)


def test_numbers_of_graphs_by_size() -> None:
    sizes = [Chem.MolFromSmiles(smiles).GetNumAtoms() for smiles in enumerate_smiles(4)]
    assert [sizes.count(n) for n in (1, 2, 3)] == [4, 9, 33]


@pytest.fixture(scope="module")
def small() -> list[Molecule]:
    return training_molecules(3, conformers=4)


def test_every_molecule_is_stable_and_one_that_rdkit_accepts(small: list[Molecule]) -> None:
    for molecule in small:
        assert stability(molecule).whole
        built, orders = Chem.RWMol(), bond_orders(molecule)
        for number in molecule.numbers:
            built.AddAtom(Chem.Atom(int(number)))
        for i, j in zip(*np.nonzero(np.triu(orders)), strict=True):
            built.AddBond(int(i), int(j), Chem.BondType.values[int(orders[i, j])])
        Chem.SanitizeMol(built)
        assert not any(atom.GetNumRadicalElectrons() or atom.GetFormalCharge() for atom in built.GetAtoms())
        assert "." not in Chem.MolToSmiles(built)


def test_elements_sizes_and_counts(small: list[Molecule]) -> None:
    assert {int(number) for molecule in small for number in molecule.numbers} == set(NUMBERS.values())
    assert all(m.numbers.dtype == np.int64 and m.positions.dtype == np.float64 for m in small)
    sizes = histogram(small)
    assert sum(sizes.values()) == len(small)
    assert list(sizes) == sorted(sizes)
    assert min(sizes) == 3
    assert max(sizes) == 14  # isobutane and butane, of G2


@pytest.mark.slow
def test_the_same_seed_gives_the_same_molecules(small: list[Molecule]) -> None:
    again = training_molecules(3, conformers=4)
    assert len(again) == len(small)
    for one, other in zip(small, again, strict=True):
        assert np.array_equal(one.positions, other.positions)


def test_what_is_left_out_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mgpu_nb.molecules")
    left_out: Counter[str] = Counter()
    found = training_molecules(2, left_out=left_out)
    graphs, of_g2 = len(enumerate_smiles(2)), len(g2.names)
    assert len(found) + left_out.total() == graphs + of_g2
    assert left_out["of G2 with other elements, an open shell or fewer than three atoms"] > 50
    (said,) = caplog.messages
    assert said == f"{len(found)} training molecules by number of atoms: {histogram(found)}{told(left_out)}"
    for reason, count in left_out.items():
        assert f"{count} {reason}" in said


def test_a_molecule_without_parameters_or_conformers_is_counted() -> None:
    counts: Counter[str] = Counter()
    assert not list(_conformers("B", 1, 0, counts))
    assert not list(_conformers("C", 0, 0, counts))
    assert counts == {"without parameters of MMFF94": 1, "without a conformer": 1}
    assert told(counts) == " (left out: 1 without parameters of MMFF94, 1 without a conformer)"
    assert told(Counter()) == ""


def test_conformers_differ() -> None:
    found = list(_conformers("CCCO", 8, 0, Counter()))
    distances = [
        np.sort(np.linalg.norm(m.positions[:, None] - m.positions, axis=-1), axis=None) for m in found
    ]
    assert len(found) > 1
    assert all(np.abs(a - b).max() > 0.05 for n, a in enumerate(distances) for b in distances[:n])
    assert len(list(_conformers("O", 8, 0, Counter()))) == 1
