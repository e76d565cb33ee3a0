"""Molecules as extended .xyz files, metrics as JSON and as a table.

A set of n molecules is a folder of exactly n files, ``baseline/molecule_baseline_000.xyz`` and on, by sample index, and
beside the folder one file with a frame for each, ``baseline.xyz``. Coordinates have as many digits as it takes to read
the same 64 bits back, without exponents, which RDKit does not read.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...store.files import atomic_write, escape_formula, strict_json
from .intervals import Estimate
from .molecule import NUMBERS, Molecule

__all__ = ["write_chain", "write_metrics", "write_molecules", "write_summary", "xyz_text"]

_SYMBOLS = {number: symbol for symbol, number in NUMBERS.items()}
_PROPERTIES = "Properties=species:S:1:pos:R:3"


def xyz_text(molecule: Molecule, **facts: float | None) -> str:
    """Frame of an extended .xyz file.

    Parameters
    ----------
    molecule
        The molecule.
    **facts
        Numbers in its second line, such as ``index`` and ``energy`` (eV); those that are None or not finite are left
        out.

    Raises
    ------
    ValueError
        If an element has no symbol here.
    """
    unknown = sorted(set(molecule.numbers.tolist()) - _SYMBOLS.keys())
    if unknown:
        raise ValueError(f"atomic numbers {unknown} cannot be written: the elements are {', '.join(NUMBERS)}")
    plain = {name: fact.item() if isinstance(fact, np.generic) else fact for name, fact in facts.items()}
    known = "".join(
        f" {name}={fact!r}" for name, fact in plain.items() if fact is not None and math.isfinite(fact)
    )
    positions = np.asarray(molecule.positions, dtype=np.float64)
    lines = [str(len(molecule.numbers)), f'{_PROPERTIES}{known} pbc="F F F"']
    for number, position in zip(molecule.numbers.tolist(), positions, strict=True):
        lines.append("".join([_SYMBOLS[number].ljust(2), *(f" {_decimal(x):>22}" for x in position)]))
    return "\n".join(lines) + "\n"


def write_molecules(
    folder: Path,
    molecules: Sequence[Molecule],
    name: str,
    indices: Sequence[int] | None = None,
    energies: Sequence[float | None] | None = None,
) -> list[Path]:
    """Write a set: a file ``molecule_NAME_INDEX.xyz`` each, and all of them as frames of ``FOLDER.xyz`` beside it.

    Files of these names that an earlier, longer set left in the folder are removed; no other file is touched.

    Parameters
    ----------
    folder
        Folder of the set.
    molecules
        The molecules, in the order of their frames.
    name
        What they are: ``"baseline"``, ``"guided"``.
    indices
        Index of each sample; from 0 on by default. All are written with as many digits as the highest has, at least
        three, so that names sort by index.
    energies
        In eV, where known.

    Returns
    -------
    list of Path
        The files of the molecules, then the one with all of them.

    Raises
    ------
    ValueError
        If an index comes twice, or there are not as many as molecules.
    """
    numbers = list(range(len(molecules)) if indices is None else map(int, indices))
    if len(set(numbers)) < len(numbers):
        twice = sorted({n for n in numbers if numbers.count(n) > 1})
        raise ValueError(f"sample indices must differ, got {twice[:5]} more than once")
    digits = max(3, len(str(max(numbers, default=0))))
    known = [None] * len(molecules) if energies is None else energies
    frames = {
        folder / f"molecule_{name}_{index:0{digits}d}.xyz": xyz_text(molecule, index=index, energy=energy)
        for index, molecule, energy in zip(numbers, molecules, known, strict=True)
    }
    for path, text in frames.items():
        _write(path, text)
    ours = re.compile(rf"molecule_{re.escape(name)}_\d+\.xyz")
    for path in [*folder.iterdir()] if folder.is_dir() else []:
        if ours.fullmatch(path.name) and path not in frames and path.is_file():
            path.unlink()
    together = folder.with_name(f"{folder.name}.xyz")
    _write(together, "".join(frames.values()))
    return [*frames, together]


def write_chain(path: Path, frames: Sequence[Molecule], index: int) -> Path:
    """Write the way of sample `index` from noise to molecule, a frame each, to one .xyz file."""
    _write(path, "".join(xyz_text(molecule, index=index, frame=n) for n, molecule in enumerate(frames)))
    return path


def write_metrics(path: Path, metrics: Mapping[str, Any]) -> Path:
    """Write metrics as JSON: an `Estimate` as its value, low, high and n; null for what is not known."""
    _write(path, strict_json(_plain(metrics)))
    return path


def write_summary(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write a table of sets as CSV.

    Parameters
    ----------
    path
        The file.
    rows
        A row per set: cells by column. An `Estimate` named x is three cells, x, x_low and x_high. What is not known is
        an empty cell, and so is what another row has and this one has not.
    """
    flat = [
        {column: cell for name, value in row.items() for column, cell in _cells(name, value)} for row in rows
    ]
    columns = list(dict.fromkeys(column for row in flat for column in row))
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow([escape_formula(column) for column in columns])
    writer.writerows([escape_formula(row.get(column)) for column in columns] for row in flat)
    _write(path, table.getvalue())
    return path


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8", newline="")


def _decimal(x: float) -> str:
    """The shortest number without exponent that reads back as the same 64 bits."""
    return np.format_float_positional(x, unique=True, trim="0")


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return value._asdict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _cells(name: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Estimate):
        return [
            (name, _cell(value.value)),
            (f"{name}_low", _cell(value.low)),
            (f"{name}_high", _cell(value.high)),
        ]
    return [(name, _cell(value))]


def _cell(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
