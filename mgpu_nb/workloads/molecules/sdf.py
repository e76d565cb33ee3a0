"""Molecules out of .sdf and .mol files, read by RDKit."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...output import clean
from .forces.base import check_extra
from .molecule import Molecule
from .reader import Frame, molecules_of, text_of

__all__ = ["read_sdf"]

log = logging.getLogger("mgpu_nb.molecules")

_END = "$$$$"  # line that ends a molecule
_HEADER = 4  # lines before the atoms


def read_sdf(path: str | Path, skip_unknown: bool = False) -> list[Molecule]:
    """Read the molecules of an .sdf or .mol file, V2000 or V3000, packed by gzip or not.

    Atoms and positions are read; bonds, charges and properties are not. That hydrogens are left out, as they are in
    many such files, is logged as a warning by ``mgpu_nb.molecules``, and so is what `read_xyz` warns of.

    Parameters
    ----------
    path
        The file.
    skip_unknown
        As of `read_xyz`.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If RDKit is not installed, a molecule is damaged or a drawing in the plane, a coordinate not finite, or an
        element unknown; the message has the line, and what to do.
    """
    check_extra("rdkit", "an .sdf file")
    path = Path(path).expanduser()
    name = clean(str(path))
    bare: list[int] = []
    molecules = molecules_of(name, _frames(text_of(path, "an .sdf"), name, bare), skip_unknown)
    if bare:
        log.warning(
            "%s: %d molecules have hydrogens that are not written, the first begins in line %d: add them, by "
            "Chem.AddHs(molecule, addCoords=True) of RDKit say",
            name,
            len(bare),
            bare[0],
        )
    return molecules


def _frames(lines: list[str], name: str, bare: list[int]) -> Iterator[Frame]:
    """Molecules of a file; in `bare` are the lines where those without their hydrogens begin."""
    from rdkit import Chem, rdBase

    for first, block in _blocks(lines):
        with rdBase.BlockLogs():
            found = Chem.MolFromMolBlock(
                "\n".join(block), sanitize=False, removeHs=False, strictParsing=False
            )
        if found is None or not found.GetNumAtoms():
            raise ValueError(
                f"{name}, line {first}: no molecule as .sdf files have them begins here: mend it, or take it out up to "
                f"the next {_END}"
            )
        conformer = found.GetConformer()
        if not conformer.Is3D():
            raise ValueError(
                f"{name}, line {first}: the molecule is a drawing in the plane: make positions in space, by `obabel "
                "FILE -O molecules.sdf --gen3d` say"
            )
        found.UpdatePropertyCache(strict=False)
        if any(atom.GetTotalNumHs() for atom in found.GetAtoms()):
            bare.append(first)
        yield first, list(_atoms(found, conformer.GetPositions().tolist(), name, first))


def _atoms(
    found: Any, positions: list[list[float]], name: str, first: int
) -> Iterator[tuple[str, list[float], int]]:
    for n, (atom, position) in enumerate(zip(found.GetAtoms(), positions, strict=True)):
        if not all(map(math.isfinite, position)):
            raise ValueError(
                f"{name}, line {first}: coordinates of atom {n + 1} are no finite numbers; take the molecule out"
            )
        yield atom.GetSymbol(), position, first + _HEADER + n


def _blocks(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Lines of each molecule, and the number of the first."""
    first, block = 1, list[str]()
    for line, text in enumerate([*lines, _END], 1):
        if text.rstrip() == _END:
            if any(map(str.strip, block)):
                yield first, block
            first, block = line + 1, []
        else:
            block.append(text)
