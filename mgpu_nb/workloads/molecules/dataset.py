"""The molecules that the embedded model learns: enumerated small ones, their conformers, and some of G2."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .bonds import stability
from .molecule import ALPHABET, NUMBERS, Molecule

__all__ = ["enumerate_smiles", "histogram", "told", "training_molecules"]

log = logging.getLogger("mgpu_nb.molecules")

_VALENCES = {"C": 4, "N": 3, "O": 2, "F": 1}
# What is strained, falls apart or is read as another bond: bonds between N, O and F; triple bonds in rings; cumulated
# double bonds; double bonds within rings of 3 and 4; atoms of two rings; carbon with two of -OH and -NH2 on it.
_LEFT_OUT = (
    "[N,O,F]~[N,O,F]",
    "[*;R]#[*;R]",
    "*=*=*",
    "[r3,r4]=,:[r3,r4]",
    "[R2,R3]",
    "[CX4]([OX2H1,NX3])[OX2H1,NX3]",
)
_SLACK = 0.015  # bonds are the same if all distances are so much longer or shorter
_SAME = 0.05  # angstrom: conformers whose sorted distances differ less are one


def enumerate_smiles(heavy_atoms: int = 4) -> list[str]:
    """Canonical SMILES of the molecules of up to so many atoms of C, N, O and F, and their hydrogens.

    Closed shells, no charges, no stereo marks. All graphs are grown atom by atom and by closing rings; those
    with a strained or reactive group are left out.

    Parameters
    ----------
    heavy_atoms
        Most atoms beside hydrogen, at least 1.

    Raises
    ------
    ImportError
        If RDKit is not installed.
    """
    chem = _rdkit()
    patterns = [chem.MolFromSmarts(pattern) for pattern in _LEFT_OUT]
    level = {chem.CanonSmiles(symbol) for symbol in _VALENCES}
    found: list[str] = []
    for size in range(1, heavy_atoms + 1):
        if size > 1:
            level = {new for smiles in level for new in _grown(chem, smiles)}
            open_ends = list(level)
            while open_ends:
                new = set(_closed(chem, open_ends.pop())) - level
                level |= new
                open_ends += new
        molecules = ((smiles, chem.MolFromSmiles(smiles)) for smiles in sorted(level))
        found += [s for s, molecule in molecules if not any(map(molecule.HasSubstructMatch, patterns))]
    return found


def training_molecules(
    heavy_atoms: int = 4, conformers: int = 1, seed: int = 0, left_out: Counter[str] | None = None
) -> list[Molecule]:
    """Molecules in the order of their SMILES, then those of G2.

    Of each SMILES of `enumerate_smiles` the distinct conformers among `conformers` tries of ETKDG, optimised with
    MMFF94. Of `ase.collections.g2`, whose geometries are MP2's, the closed shells of three and more atoms of H, C,
    N, O and F.

    A molecule is left out if it is not stable by the table of bonds, also with all distances 1.5 % longer or shorter:
    there the table reads another bond than was drawn (amides with a short C-N bond, cyanamides, aromatic rings).

    Parameters
    ----------
    heavy_atoms
        Most atoms beside hydrogen of the enumerated molecules.
    conformers
        Tries per molecule.
    seed
        Seed of ETKDG, of the first try; the others have those that follow.
    left_out
        Where to count what was left out, by reason; it is logged, too.

    Raises
    ------
    ImportError
        If RDKit or ASE is not installed.
    """
    counts: Counter[str] = Counter() if left_out is None else left_out
    enumerated = (
        conformer
        for smiles in enumerate_smiles(heavy_atoms)
        for conformer in _conformers(smiles, conformers, seed, counts)
    )
    found = []
    for source in (enumerated, _g2(counts)):
        for molecule in source:
            if _is_stable(molecule):
                found.append(molecule)
            else:
                counts["which the table of bonds reads otherwise"] += 1
    sizes = histogram(found)
    log.info("%d training molecules by number of atoms: %s%s", len(found), sizes, told(counts))
    return found


def told(left_out: Mapping[str, int]) -> str:
    """What was left out, in brackets after what there is; empty for nothing."""
    parts = [f"{count:,} {reason}" for reason, count in left_out.items() if count]
    return f" (left out: {', '.join(parts)})" if parts else ""


def histogram(molecules: list[Molecule]) -> dict[int, int]:
    """Number of molecules by number of atoms, ascending."""
    return dict(sorted(Counter(len(molecule.numbers) for molecule in molecules).items()))


def _is_stable(molecule: Molecule) -> bool:
    scaled = (molecule.positions * scale for scale in (1 - _SLACK, 1, 1 + _SLACK))
    return all(stability(Molecule(molecule.numbers, positions)).whole for positions in scaled)


def _grown(chem: Any, smiles: str) -> Iterator[str]:
    """SMILES of a molecule with one more atom, bound in each possible way."""
    molecule = chem.MolFromSmiles(smiles)
    chem.Kekulize(molecule, clearAromaticFlags=True)
    for atom in molecule.GetAtoms():
        for symbol, valence in _VALENCES.items():
            for order in range(1, min(3, valence, atom.GetTotalNumHs()) + 1):
                grown = chem.RWMol(molecule)
                added = grown.AddAtom(chem.Atom(symbol))
                grown.AddBond(atom.GetIdx(), added, chem.BondType.values[order])
                yield chem.CanonSmiles(chem.MolToSmiles(grown))


def _closed(chem: Any, smiles: str) -> Iterator[str]:
    """SMILES of a molecule with one more ring."""
    molecule = chem.MolFromSmiles(smiles)
    chem.Kekulize(molecule, clearAromaticFlags=True)
    free = [atom.GetTotalNumHs() for atom in molecule.GetAtoms()]
    for first in range(len(free)):
        for second in range(first):
            if molecule.GetBondBetweenAtoms(first, second) is None:
                for order in range(1, min(2, free[first], free[second]) + 1):
                    closed = chem.RWMol(molecule)
                    closed.AddBond(first, second, chem.BondType.values[order])
                    yield chem.CanonSmiles(chem.MolToSmiles(closed))


def _conformers(smiles: str, tries: int, seed: int, left_out: Counter[str]) -> Iterator[Molecule]:
    """Distinct optimised conformers."""
    chem = _rdkit()
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

    molecule = chem.AddHs(chem.MolFromSmiles(smiles))
    if not rdForceFieldHelpers.MMFFHasAllMoleculeParams(molecule):
        left_out["without parameters of MMFF94"] += 1
        return
    options: Any = rdDistGeom.ETKDGv3()
    numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()], dtype=np.int64)
    kept: list[np.ndarray[Any, Any]] = []
    for attempt in range(tries):
        options.randomSeed = seed + attempt  # RDKit's own seeds of many are multiples of it: all 0 for 0
        if rdDistGeom.EmbedMolecule(molecule, options) == -1:
            continue
        rdForceFieldHelpers.MMFFOptimizeMolecule(molecule, maxIters=2000)
        positions = np.array(molecule.GetConformer().GetPositions())
        distances = np.sort(np.linalg.norm(positions[:, None] - positions, axis=-1), axis=None)
        if all(np.abs(distances - other).max() > _SAME for other in kept):
            kept.append(distances)
            yield Molecule(numbers, positions)
    if not kept:
        left_out["without a conformer"] += 1


def _g2(left_out: Counter[str]) -> Iterator[Molecule]:
    """Closed shells of G2 made of the model's elements."""
    try:
        from ase.collections import g2
    except ImportError as error:
        raise ImportError('training molecules need ASE: pip install "mgpu-nb[molecules]"') from error
    known = [NUMBERS[symbol] for symbol in ALPHABET]
    for name in sorted(g2.names):
        atoms = g2[name]
        if (
            len(atoms) > 2
            and not atoms.get_initial_magnetic_moments().any()
            and np.isin(atoms.numbers, known).all()
        ):
            yield Molecule(atoms.numbers.astype(np.int64), atoms.positions.copy())
        else:
            left_out["of G2 with other elements, an open shell or fewer than three atoms"] += 1


def _rdkit() -> Any:
    try:
        from rdkit import Chem
    except ImportError as error:
        raise ImportError('training molecules need RDKit: pip install "mgpu-nb[molecules]"') from error
    return Chem
