"""Molecules out of .xyz files: plain, extended, and those of QM9, packed by gzip or not."""

from __future__ import annotations

import gzip
import logging
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ...output import clean
from .molecule import NUMBERS, Molecule

__all__ = ["Frame", "molecules_of", "read_xyz", "text_of"]

log = logging.getLogger("mgpu_nb.molecules")

Frame = tuple[int, list[tuple[str, list[float], int]]]
"""Line on which a molecule begins in a file, and symbol, position and line of each of its atoms."""

_SYMBOL = re.compile("[A-Z][a-z]?")
_PROPERTIES = re.compile(r"\bProperties=\"?([^\s\"]+)")
_QM9_TAIL = 3  # lines after the atoms in files of QM9: frequencies, SMILES, InChI
_OTHER_FORMAT = "read an .sdf file by read_sdf, and convert others by `obabel FILE -O molecules.xyz`, say"


def read_xyz(path: str | Path, skip_unknown: bool = False) -> list[Molecule]:
    """Read the molecules of an .xyz file, a molecule for each frame.

    A frame is a line with the number of atoms, a line that may say anything, and a line for each atom: its symbol, and
    its coordinates in angstrom. In extended files symbol and coordinates stand where ``Properties`` says that
    ``species`` and ``pos`` are; what else there is of an atom is not read. The files of QM9, with their ``1.5*^-6`` and
    the three lines after the atoms, are read as they are. An empty file has no molecules.

    What was read is logged by ``mgpu_nb.molecules``; that some molecules have two atoms at one place, at which force
    fields fail, as a warning.

    Parameters
    ----------
    path
        The file, in UTF-8, packed by gzip or not.
    skip_unknown
        Whether to leave out molecules with other elements than H, C, N, O and F; how many, and of which elements, is
        logged as a warning.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no such file, or an element is unknown or a coordinate not finite; the message has the line, and what
        to do.
    """
    path = Path(path).expanduser()
    name = clean(str(path))
    return molecules_of(name, _frames(text_of(path, "an .xyz"), name), skip_unknown)


def molecules_of(name: str, frames: Iterable[Frame], skip_unknown: bool) -> list[Molecule]:
    """Molecules of the frames of a file; what was read and what was left out is logged.

    Parameters
    ----------
    name
        The file, for messages.
    frames
        Line on which each begins, and symbol, position and line of its atoms.
    skip_unknown
        Whether to leave out those with other elements.

    Raises
    ------
    ValueError
        If an element is unknown, or a frame is damaged.
    """
    molecules: list[Molecule] = []
    unknown: Counter[str] = Counter()
    touching: list[int] = []
    left_out = 0
    for first, atoms in frames:
        others = [(symbol, line) for symbol, _, line in atoms if symbol not in NUMBERS]
        if others and not skip_unknown:
            symbol, line = others[0]
            raise ValueError(
                f"{name}, line {line}: no element {symbol!r}; the elements are {', '.join(NUMBERS)}: take the molecule "
                "out, or have all such left out by skip_unknown=True"
            )
        if others:
            left_out += 1
            unknown.update({symbol for symbol, _ in others})
            continue
        positions = np.array([position for _, position, _ in atoms], dtype=np.float64)
        if len({tuple(position) for _, position, _ in atoms}) < len(atoms):
            touching.append(first)
        molecules.append(Molecule(np.array([NUMBERS[s] for s, _, _ in atoms], dtype=np.int64), positions))
    _tell(name, molecules, touching)
    if left_out:
        found = ", ".join(f"{symbol} in {count}" for symbol, count in unknown.most_common())
        all_of = left_out + len(molecules)
        log.warning("%s: %d of %d molecules left out, of unknown elements: %s", name, left_out, all_of, found)
    return molecules


def _frames(lines: list[str], name: str) -> Iterator[Frame]:
    at = 0
    while at < len(lines):
        first, count = at + 1, _count(lines, at, name)
        yield first, list(_atoms(lines[at + 2 : at + 2 + count], lines[at + 1], f"{name}, line", at + 3))
        at += 2 + count + (_QM9_TAIL if lines[at + 1].startswith("gdb") else 0)


def text_of(path: Path, kind: str) -> list[str]:
    """Lines of a text file, packed by gzip or not, without empty ones at its end; `kind` is "an .xyz" say.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is no text, or its packing is damaged.
    """
    name = clean(str(path.absolute()))
    if path.is_dir():
        raise IsADirectoryError(
            f"{name} is a folder: give one{kind.removeprefix('an')} file; that of a set is beside its folder"
        )
    if not path.exists():
        raise FileNotFoundError(f"{name}: there is no such file; give the path of {kind} file")
    data = path.read_bytes()
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(
                f"{name}: its gzip data are broken or cut off ({error}): copy it again"
            ) from None
    if b"\0" in data:
        line = 1 + data[: data.index(b"\0")].count(b"\n")
        raise ValueError(
            f"{name}, line {line}: it holds a zero byte, so it is no text in UTF-8; save it so, or {_OTHER_FORMAT}"
        )
    # A text may be in any encoding where it is not read: in the second line of a frame.
    lines = data.decode("utf-8-sig", "replace").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def _count(lines: list[str], at: int, name: str) -> int:
    """Number of atoms of the frame that begins at a line, all of which are there."""
    try:
        count = int(lines[at])
    except ValueError:
        count = 0
    if count < 1:
        raise ValueError(
            f"{name}, line {at + 1}: expected a number of atoms, got {lines[at][:40]!r}; a frame is that number, a "
            f"line of text, and a line for each atom: {_OTHER_FORMAT}"
        )
    there = max(0, len(lines) - at - 2)
    if there < count:
        raise ValueError(
            f"{name}, line {at + 1}: {count} atoms, but {there} lines follow; is it cut off? Copy it again, or take "
            "the frame out"
        )
    return count


def _atoms(rows: list[str], about: str, where: str, first: int) -> Iterator[tuple[str, list[float], int]]:
    """Symbol, position and line of each atom of a frame."""
    species, pos = _columns(about, f"{where} {first - 1}")
    for line, row in enumerate(rows, first):
        cells = row.split()
        symbol = cells[species] if species < len(cells) else ""
        try:
            position = [float(cell.replace("*^", "e")) for cell in cells[pos : pos + 3]]
        except ValueError:
            position = []
        if len(position) != 3 or not _SYMBOL.fullmatch(symbol):
            raise ValueError(
                f"{where} {line}: expected a symbol and three coordinates, got {row[:80]!r}; mend the line, or take "
                "the frame out"
            )
        if not all(map(math.isfinite, position)):
            raise ValueError(
                f"{where} {line}: coordinates must be finite numbers, got {row[:80]!r}; take the frame out"
            )
        yield symbol, position, line


def _columns(about: str, where: str) -> tuple[int, int]:
    """Columns of the symbol and of the first coordinate."""
    stated = _PROPERTIES.search(about)
    if stated is None:
        return 0, 1
    columns: dict[str, int] = {}
    at = 0
    try:
        parts = stated[1].split(":")
        for name, _, width in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            columns[name] = at
            at += int(width)
        return columns["species"], columns["pos"]
    except (ValueError, KeyError):
        raise ValueError(
            f"{where}: Properties={stated[1][:80]!r} does not say where species and pos are; write "
            "Properties=species:S:1:pos:R:3, or leave it out"
        ) from None


def _tell(name: str, molecules: list[Molecule], touching: list[int]) -> None:
    """Log what was read."""
    if not molecules:
        log.warning("%s: no molecules", name)
        return
    sizes = [len(molecule.numbers) for molecule in molecules]
    present = {number for molecule in molecules for number in molecule.numbers.tolist()}
    elements = ", ".join(symbol for symbol, number in NUMBERS.items() if number in present)
    log.info("%s: %d molecules of %d to %d atoms of %s", name, len(sizes), min(sizes), max(sizes), elements)
    if touching:
        log.warning(
            "%s: %d of %d molecules have two atoms at one place, where force fields fail; the first begins in line %d",
            name,
            len(touching),
            len(molecules),
            touching[0],
        )
