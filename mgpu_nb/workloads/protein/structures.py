"""Structures on disk: folds from files of structures, and C-alpha traces to .pdb. Angstrom throughout."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..inputs import files_digest
from .config import Config
from .folds import CA_DISTANCE, generate_folds
from .frames import ATOMS
from .structure_files import find_structures, named, read_atoms

__all__ = ["Folds", "inputs_digest", "read_folds", "reference_folds", "write_pdb"]

_BREAK = 1.0  # angstrom off the distance of bonded C-alpha atoms (3.8, cis proline 2.9) that ends a segment


@dataclass(frozen=True)
class Folds:
    """Reference folds.

    Attributes
    ----------
    positions
        [K, L, 3] C-alpha positions in angstrom, zero centre of mass.
    names
        K names: file, chain and first residue, or the number of a generated fold.
    left_out
        Sentence on the files of the folder that were not read, or gave no fold; empty if there are none.
    """

    positions: npt.NDArray[np.float64]
    names: tuple[str, ...]
    left_out: str = ""


def reference_folds(config: Config) -> Folds:
    """Folds of a run: read from `Config.references`, or generated."""
    if config.references is not None:
        return read_folds(config.references, config.sample_length, config.num_folds, config.skip_unreadable)
    count = config.num_folds or 8
    names = tuple(f"generated {number + 1}" for number in range(count))
    return Folds(generate_folds(config.sample_length, count), names)


def read_folds(
    folder: str | Path, length: int, count: int | None = None, skip_unreadable: bool = False
) -> Folds:
    """Read folds of `length` residues from the files of a folder: .pdb, .ent, .cif, .mmcif, .bcif, each also .gz.

    Of each chain the C-alpha trace of the first model is taken (of alternative locations the first), split
    where consecutive residues are not bonded. A segment of just this length is taken whole; of a longer one
    the most compact window; chains without such a segment are left out. Files are read in the order of
    their names, of those with several blocks each; hidden ones and other kinds are left out, and `Folds.left_out` says
    which.

    Parameters
    ----------
    folder
        Folder with the files.
    length
        Residues per fold.
    count
        Take the first `count` folds; all by default.
    skip_unreadable
        Whether to go on without files that cannot be read; `Folds.left_out` counts and names them, with the reasons.

    Raises
    ------
    ValueError
        If the folder or, without `skip_unreadable`, a file cannot be read, or no chain, or fewer than `count`, is long
        enough.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ValueError(f"references={str(folder)!r} is no folder: give one that holds .pdb or .cif files")
    files, left_out = find_structures(folder)
    if not files:
        raise ValueError(
            f"references={str(folder)!r} holds no .pdb or .cif file, nor an .ent, .mmcif or .bcif, nor one of these as "
            f".gz{f'; {left_out}' if left_out else ''}"
        )
    found: list[npt.NDArray[np.float64]] = []
    names: list[str] = []
    longest = 0
    unreadable: list[str] = []
    short: list[str] = []
    for file in files:
        try:
            segments = list(_segments(file))
        except ValueError as error:
            if not skip_unreadable:
                raise ValueError(f"{error}, or go on without it by skip_unreadable=True") from error
            unreadable.append(
                str(error).replace(f"{file.parent}/", "").removesuffix("; mend it or take it out")
            )
            continue
        if not any(len(trace) >= length for *_, trace in segments):
            short.append(file.name)
        for block, chain, first, trace in segments:
            longest = max(longest, len(trace))
            if len(trace) >= length:
                start = _most_compact(trace, length)
                window = trace[start : start + length]
                found.append(window - window.mean(axis=0))
                names.append(f"{file.name}{block} {chain}{first + start}")
    said = [left_out] if left_out else []
    if unreadable:
        more = f" and {len(unreadable) - 3} more" * (len(unreadable) > 3)
        said.append(
            f"{len(unreadable)} of {len(files)} structure files left out: {'; '.join(unreadable[:3])}{more}"
        )
    if short:
        said.append(
            f"{len(short)} of {len(files)} structure files have no unbroken chain of {length} residues: "
            f"{named(short)}"
        )
    left_out = "; ".join(said)
    if len(found) < (count or 1):
        wanted = "a fold" if count is None else f"{count} folds"
        raise ValueError(
            f"references={str(folder)!r} does not give {wanted} of {length} residues: {len(found)} of its "
            f"chains are that long, the longest unbroken one has {longest}; give a smaller sample_length or "
            f"num_folds, or add structures{f' ({left_out})' if left_out else ''}"
        )
    return Folds(np.stack(found[:count]), tuple(names[:count]), left_out)


def inputs_digest(config: Config) -> str:
    """Digest of the files that a config names, its structures and its checkpoint; empty if it names none."""
    files = []
    if config.references is not None:
        files += find_structures(Path(config.references).expanduser()).files
    if config.checkpoint is not None and (checkpoint := Path(config.checkpoint).expanduser()).is_file():
        files.append(checkpoint)
    return files_digest(files)


def write_pdb(path: str | Path, positions: npt.NDArray[Any]) -> None:
    """Write a C-alpha trace [L, 3], or N, CA, C and O atoms [L, 4, 3], in angstrom as a .pdb file.

    It has one chain A of glycines.
    """
    struc, pdb = _biotite("structure"), _biotite("structure.io.pdb")
    length, names = len(positions), ATOMS if np.ndim(positions) == 3 else ("CA",)
    trace = struc.AtomArray(length * len(names))
    trace.coord = np.asarray(positions, dtype=np.float32).reshape(-1, 3)
    trace.chain_id[:] = "A"
    trace.res_id = np.arange(1, length + 1).repeat(len(names))
    trace.res_name[:] = "GLY"
    trace.atom_name = np.tile(names, length)
    trace.element = np.array([name[0] for name in trace.atom_name])
    file = pdb.PDBFile()
    file.set_structure(trace)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    file.write(str(path))


def _biotite(name: str) -> Any:
    """Import a module of biotite on first use; its functions carry no types."""
    return importlib.import_module(f"biotite.{name}")


def _segments(file: Path) -> Iterator[tuple[str, str, int, npt.NDArray[np.float64]]]:
    """Block, chain, residue number of the start, and positions [n, 3] of the unbroken C-alpha traces of a file."""
    for block, atoms in read_atoms(file):
        atoms = atoms[(atoms.atom_name == "CA") & (atoms.element != "CA")]  # the other CA is calcium
        atoms = atoms[np.isfinite(atoms.coord).all(axis=-1)]
        if not len(atoms):
            continue
        atoms = atoms[~_again(atoms)]
        x = atoms.coord.astype(np.float64)
        bonds = np.linalg.norm(np.diff(x, axis=0), axis=-1)
        bonded = (bonds > CA_DISTANCE - _BREAK) & (bonds < CA_DISTANCE + _BREAK)
        starts = [0, *(np.flatnonzero(~bonded | (atoms.chain_id[1:] != atoms.chain_id[:-1])) + 1), len(x)]
        for a, b in itertools.pairwise(starts):
            yield block, str(atoms.chain_id[a]), int(atoms.res_id[a]), x[a:b]


def _again(atoms: Any) -> npt.NDArray[np.bool_]:
    """Whether a C-alpha atom is the same residue's once more: two kinds of residue at one place, or unmarked copies."""
    one, two = atoms[:-1], atoms[1:]
    same = (one.chain_id == two.chain_id) & (one.res_id == two.res_id) & (one.ins_code == two.ins_code)
    near = np.linalg.norm(one.coord - two.coord, axis=-1) < CA_DISTANCE / 2
    return np.concatenate([[False], same & near])


def _most_compact(trace: npt.NDArray[np.float64], length: int) -> int:
    """Start of the window of `length` residues with the smallest radius of gyration."""
    windows = np.lib.stride_tricks.sliding_window_view(trace, length, axis=0)  # [n, 3, length]
    return int(windows.var(axis=-1).sum(axis=-1).argmin())
