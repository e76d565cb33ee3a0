"""What the potential is fitted to: molecules displaced a little and a lot, with the forces of GFN1-xTB."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..dataset import training_molecules
from ..molecule import Molecule
from .base import ForceField

__all__ = ["Frame", "displaced", "labelled", "random_molecules"]

log = logging.getLogger("mgpu_nb.molecules")

_VALENCES = {6: 4, 7: 3, 8: 2, 9: 1}
_GROUPS = [
    "c1ccccc1", "c1ccncc1", "c1ccoc1", "c1cc[nH]c1", "c1cnc[nH]1", "c1ccon1",
    "Cc1ccccc1", "Oc1ccccc1", "Fc1ccccc1", "Nc1ccccc1", "C1CCCCC1", "C1CCCC1",
    "CC(C)C", "CC(=O)OC", "CC(=O)N(C)C", "NCC(=O)O", "C[N+](=O)[O-]", "N#N",
    "[C-]#[O+]", "O=C=O", "FF", "OO", "F", "C=C=O",
    "CN=C=O", "C#CC=C", "C1COCCO1", "O=C1CCCO1",
]  # fmt: skip
"""SMILES of groups that random graphs seldom have."""


class Frame(NamedTuple):
    """Atoms somewhere near a molecule, and what acts on them.

    Attributes
    ----------
    numbers, positions
        Atomic numbers [N] and positions [N, 3] in A.
    energy, forces
        In eV and eV/A, [N, 3].
    """

    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    energy: float
    forces: NDArray[np.float64]


def random_molecules(count: int, seed: int) -> list[Molecule]:
    """The training molecules of the diffusion model, some groups, and molecules of random bonds, `count` in all.

    The random ones are trees of up to nine heavy atoms with up to two rings closed, strained ones too: a molecule that
    is being drawn looks like any of them. Their geometries are those of ETKDG and MMFF94 or UFF.

    Raises
    ------
    ImportError
        If RDKit or ASE is not installed.
    """
    from rdkit import Chem, RDLogger

    RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]
    draws = np.random.default_rng(seed)
    found = training_molecules(conformers=1, seed=seed)
    found += filter(None, (_conformer(Chem.MolFromSmiles(smiles), draws) for smiles in _GROUPS))
    while len(found) < count:
        graph = _random_graph(int(draws.integers(1, 10)), draws)
        if graph is not None and (molecule := _conformer(graph, draws)) is not None:
            found.append(molecule)
    return found[:count]


def _random_graph(heavy: int, draws: np.random.Generator) -> Any:
    """RDKit molecule of so many heavy atoms or fewer; None if RDKit refuses it."""
    from rdkit import Chem

    orders = Chem.BondType.values
    graph = Chem.RWMol()
    numbers = [int(number) for number in draws.choice([6, 6, 6, 6, 6, 7, 7, 8, 8, 9], heavy)]
    free: list[int] = []
    for new, number in enumerate(numbers):
        others = [old for old in range(new) if free[old]]
        if new and not others:
            break
        graph.AddAtom(Chem.Atom(number))
        free.append(_VALENCES[number])
        if new:
            weights = np.array([3.0 if numbers[old] == 6 else 1.0 if number == 6 else 0.15 for old in others])
            old = int(draws.choice(others, p=weights / weights.sum()))
            order = 1 + (draws.random() < 0.3) + (draws.random() < 0.05)
            order = min(order, free[old], free[new], 3)
            graph.AddBond(old, new, orders[order])
            free[old] -= order
            free[new] -= order
    for _ in range(int(draws.integers(0, 3))):
        apart = Chem.GetDistanceMatrix(graph, force=True)
        ends = [
            (a, b)
            for a in range(len(free))
            for b in range(a)
            if free[a] and free[b] and 2 <= apart[a, b] <= 5
        ]
        if not ends:
            break
        weights = np.array([{2: 0.15, 3: 0.4}.get(int(apart[pair]), 1.0) for pair in ends])
        a, b = ends[int(draws.choice(len(ends), p=weights / weights.sum()))]
        graph.AddBond(a, b, orders[1])
        free[a] -= 1
        free[b] -= 1
    molecule = graph.GetMol()
    return molecule if Chem.SanitizeMol(molecule, catchErrors=True) == 0 else None


def _conformer(molecule: Any, draws: np.random.Generator) -> Molecule | None:
    from rdkit import Chem
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

    molecule = Chem.AddHs(molecule)
    seed = int(draws.integers(1 << 31))
    if rdDistGeom.EmbedMolecule(molecule, randomSeed=seed, maxAttempts=5) != 0:
        return None
    if rdForceFieldHelpers.MMFFHasAllMoleculeParams(molecule):
        rdForceFieldHelpers.MMFFOptimizeMolecule(molecule)
    elif rdForceFieldHelpers.UFFHasAllMoleculeParams(molecule):
        rdForceFieldHelpers.UFFOptimizeMolecule(molecule)
    numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
    return Molecule(numbers, molecule.GetConformer().GetPositions())


def displaced(molecule: Molecule, count: int, draws: np.random.Generator) -> Iterator[Molecule]:
    """Copies of a molecule with Gaussian noise: of a tenth of an angstrom, of some, and as on a way of diffusion.

    Of ten, one has up to 0.08 A, three 0.05 to 0.2 A, two 0.2 to 0.45 A; three are in the state
    ``sqrt(1 - s^2) x + s e`` with s from 0.05 to 0.8, where bonds are half formed; and one has an atom moved to within
    0.5 A of another.
    """
    centred = molecule.positions - molecule.positions.mean(0)
    atoms = len(centred)
    for n in range(count):
        noise = draws.standard_normal(centred.shape)
        noise -= noise.mean(0)
        part = n / count
        if 0.6 <= part < 0.9:
            sigma = draws.uniform(0.05, 0.8)
            positions = np.sqrt(1 - sigma**2) * centred + sigma * noise
        else:
            low, high = (
                (0.05, 0.2) if 0.1 <= part < 0.4 else (0.2, 0.45) if 0.4 <= part < 0.6 else (0.0, 0.08)
            )
            positions = centred + draws.uniform(low, high) * noise
        if part >= 0.9 and atoms > 1:
            moved, other = draws.choice(atoms, 2, replace=False)
            direction = draws.standard_normal(3)
            positions[moved] = positions[other] + draws.uniform(0.05, 0.5) * direction / np.linalg.norm(
                direction
            )
        yield Molecule(molecule.numbers, positions)


def labelled(field: ForceField, molecules: list[Molecule], tell: Callable[[float], None]) -> Iterator[Frame]:
    """Frames of the molecules for which the field converges; `tell` hears of the share done."""
    for n, molecule in enumerate(molecules):
        if n % 500 == 0:
            tell(n / len(molecules))
        try:
            yield Frame(*molecule, *field.forces(*molecule))
        except RuntimeError as error:  # electrons that do not converge, atoms that coincide
            log.debug("frame %d of %d atoms is left out: %s", n, len(molecule.numbers), error)
