"""Figures of each molecule: what is measured where the molecules are, and joined for the whole set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .bonds import bond_orders, stability
from .forces.base import ForceField, evaluate
from .molecule import Molecule
from .relaxation import relaxation_gap

__all__ = ["Rows", "canonical_smiles", "join", "measure"]


class Rows(TypedDict):
    """Figures of n molecules, arrays of shape [n], plain so that a pool stores them.

    What is not known is NaN: all that the judge says if there is none or its call failed, the gap if it was not asked
    for.
    """

    index: NDArray[np.int64]  # of the sample
    atoms: NDArray[np.int64]
    stable: NDArray[np.int64]  # atoms
    whole: NDArray[np.bool_]  # all atoms are stable
    smiles: list[str | None]  # None: invalid
    energy: NDArray[np.float64]  # eV
    force_rms: NDArray[np.float64]  # eV/A
    force_max: NDArray[np.float64]  # eV/A
    gap: NDArray[np.float64]  # eV per atom
    judge_calls: NDArray[np.int64]
    judge_failed: NDArray[np.int64]
    seconds: NDArray[np.float64]
    force_calls: NDArray[np.int64]
    failed_calls: NDArray[np.int64]


def canonical_smiles(molecule: Molecule) -> str | None:
    """SMILES of the largest piece of a molecule, hydrogen written out, as the public EDM has it; None if invalid.

    Raises
    ------
    ImportError
        If RDKit is not installed.
    ValueError
        If an element is not in the table of bonds.
    """
    try:
        from rdkit import Chem, rdBase
    except ImportError as error:
        raise ImportError('validity needs RDKit: pip install "mgpu-nb[molecules]"') from error
    bonds = (Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE)
    built = Chem.RWMol()
    for number in molecule.numbers.tolist():
        built.AddAtom(Chem.Atom(number))
    orders = np.tril(bond_orders(molecule))
    for i, j in np.argwhere(orders).tolist():
        built.AddBond(i, j, bonds[orders[i, j] - 1])
    with rdBase.BlockLogs():  # an invalid molecule is a result, and no error to be shown
        try:
            Chem.SanitizeMol(built)
            pieces = Chem.GetMolFrags(built, asMols=True)
            largest = max(pieces, default=built, key=lambda piece: piece.GetNumAtoms())
            Chem.SanitizeMol(largest)
        except ValueError:
            return None
        return str(Chem.MolToSmiles(largest))


def measure(
    molecules: Sequence[Molecule],
    indices: Sequence[int],
    *,
    judge: ForceField | None = None,
    relax_calls: int = 0,
    seconds: ArrayLike = np.nan,
    force_calls: ArrayLike = 0,
    failed_calls: ArrayLike = 0,
) -> Rows:
    """Rows of molecules.

    Parameters
    ----------
    molecules
        The molecules.
    indices
        Index of the sample that each is.
    judge
        Force field that says energies and forces; one other than the guide. None: they stay unknown.
    relax_calls
        Further calls of the judge for the relaxation gap of each molecule at most; 0 leaves it out.
    seconds
        Time that sampling took, of each molecule or on average.
    force_calls, failed_calls
        Calls of the guide, and those of them that failed.

    Raises
    ------
    ImportError
        If RDKit, or ASE where a gap is asked for, is not installed.
    ValueError
        If there are not as many indices as molecules, or an element is not in the table of bonds.
    """
    n = len(molecules)
    if len(indices) != n:
        raise ValueError(f"indices must be one for each of {n} molecules, got {len(indices)}")
    found = [stability(molecule) for molecule in molecules]
    rows: Rows = {
        "index": np.array(indices, dtype=np.int64),
        "atoms": np.array([one.atoms for one in found], dtype=np.int64),
        "stable": np.array([one.stable for one in found], dtype=np.int64),
        "whole": np.array([one.whole for one in found], dtype=bool),
        "smiles": [canonical_smiles(molecule) for molecule in molecules],
        "energy": np.full(n, np.nan),
        "force_rms": np.full(n, np.nan),
        "force_max": np.full(n, np.nan),
        "gap": np.full(n, np.nan),
        "judge_calls": np.zeros(n, dtype=np.int64),
        "judge_failed": np.zeros(n, dtype=np.int64),
        "seconds": np.broadcast_to(np.asarray(seconds, dtype=np.float64), n).copy(),
        "force_calls": np.broadcast_to(np.asarray(force_calls, dtype=np.int64), n).copy(),
        "failed_calls": np.broadcast_to(np.asarray(failed_calls, dtype=np.int64), n).copy(),
    }
    if judge is not None:
        _judge(rows, molecules, judge)
        if relax_calls:
            _gaps(rows, molecules, judge, relax_calls)
    return rows


def join(parts: Sequence[Rows]) -> Rows:
    """Rows of all parts in the order of the samples' indices.

    Raises
    ------
    ValueError
        If a sample comes twice.
    """
    parts = parts or [measure([], [])]
    index = np.concatenate([part["index"] for part in parts])
    order = np.argsort(index, kind="stable")
    twice = index[order][1:][np.diff(index[order]) == 0]
    if len(twice):
        raise ValueError(f"samples {np.unique(twice)[:5].tolist()} come more than once")
    joined: dict[str, Any] = {}
    for name in Rows.__annotations__:
        columns: list[Any] = [part[name] for part in parts]  # type: ignore[literal-required]
        if name == "smiles":
            texts = [text for column in columns for text in column]
            joined[name] = [texts[n] for n in order.tolist()]
        else:
            joined[name] = np.concatenate(columns)[order]
    return cast(Rows, joined)


def _judge(rows: Rows, molecules: Sequence[Molecule], judge: ForceField) -> None:
    """Enter energies and forces; molecules of one size together, so that none depends on what it is padded to."""
    for size in np.unique(rows["atoms"]).tolist():
        at = np.flatnonzero(rows["atoms"] == size).tolist()
        found = evaluate(
            judge,
            torch.from_numpy(np.stack([molecules[n].numbers for n in at])),
            torch.from_numpy(np.stack([molecules[n].positions for n in at])),
        )
        for place, n in enumerate(at):
            rows["judge_calls"][n] += 1
            if not found.ok[place]:
                rows["judge_failed"][n] += 1
                continue
            squares = (found.forces[place].cpu().numpy() ** 2).sum(axis=1)
            rows["energy"][n] = float(found.energy[place])
            rows["force_rms"][n] = np.sqrt(squares.mean())
            rows["force_max"][n] = np.sqrt(squares.max())


def _gaps(rows: Rows, molecules: Sequence[Molecule], judge: ForceField, calls: int) -> None:
    """Enter relaxation gaps of the molecules that the judge has an energy of."""
    for n in np.flatnonzero(np.isfinite(rows["energy"])).tolist():
        gap = relaxation_gap(molecules[n], judge, calls)
        rows["gap"][n] = gap.value
        rows["judge_calls"][n] += gap.calls
        rows["judge_failed"][n] += gap.failed
