"""Files of structures as they lie in folders: the PDB's own names and formats, plain or by gzip, complete or not."""

from __future__ import annotations

import gzip
import importlib
import io
import re
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Found", "find_structures", "named", "read_atoms"]

_NAME = re.compile(r"\.(?P<kind>pdb\d*|ent|cif|mmcif|bcif)(\.gz)?$", re.IGNORECASE)
_ATOMS = ("ATOM", "HETATM")
_GZIP = b"\x1f\x8b"


class Found(NamedTuple):
    """Files of a folder that hold structures, by name, and a sentence on those that were left out."""

    files: list[Path]
    left_out: str


def find_structures(folder: Path) -> Found:
    """Files of structures in a folder: .pdb, .ent, .cif, .mmcif and .bcif, each also as .gz.

    Hidden files are left out: macOS writes a ``._a.pdb`` of its own beside each file.
    """
    places = sorted(path for path in folder.iterdir() if path.is_file())
    hidden = [path for path in places if path.name.startswith(".")]
    files = [path for path in places if path not in hidden and _NAME.search(path.name)]
    other = [path for path in places if path not in hidden and path not in files]
    kinds = ((hidden, "hidden"), (other, "of other kinds"))
    parts = [f"{len(each)} {what} ({named([file.name for file in each])})" for each, what in kinds if each]
    left = len(hidden) + len(other)
    said = f"{left} of {len(places)} files left out: {', '.join(parts)}" if parts else ""
    return Found(files, said)


def named(names: list[str], most: int = 3) -> str:
    """The first of some names of files, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def read_atoms(file: Path) -> Iterator[tuple[str, Any]]:
    """First model of each structure of a file, of alternative locations the first, as biotite's atom arrays.

    Each comes with the name of its block, which is empty for the first.

    Raises
    ------
    ValueError
        If the file cannot be read; the message has its name, the line if one is to blame, and what to do.
    """
    text: bytes = b""
    try:
        text = _content(file)
        is_pdb = _kind(file).startswith(("pdb", "ent"))
        found = [("", _pdb(text))] if is_pdb else list(_blocks(file, text))
    except Exception as error:  # biotite has no common class of its own for what can be wrong with a file
        reason = str(error).splitlines()[0] if str(error) else "no message"
        line = _bad_line(text) if _kind(file).startswith(("pdb", "ent")) else ""
        raise ValueError(
            f"{file} cannot be read ({line}{type(error).__name__}: {reason}); mend it or take it out"
        ) from error
    yield from found


def _kind(file: Path) -> str:
    match = _NAME.search(file.name)
    return "" if match is None else match["kind"].lower()


def _content(file: Path) -> bytes:
    """Content, unpacked where it is packed, whatever the name says."""
    content = file.read_bytes()
    if not content.startswith(_GZIP):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"its gzip data are broken or cut off: {error}") from None


def _pdb(text: bytes) -> Any:
    pdb = _biotite("structure.io.pdb")
    # Programs leave out the columns behind the coordinates, or blanks at the ends of lines.
    lines = [_filled(line.ljust(80)) for line in text.decode("utf-8", "replace").splitlines()]
    if not any(line.startswith(_ATOMS) for line in lines):
        raise ValueError("none of its lines is of an atom, ATOM or HETATM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # elements are guessed where there is no column of them
        return pdb.PDBFile.read(io.StringIO("\n".join(lines))).get_structure(model=1, altloc="first")


def _filled(line: str) -> str:
    """A line with an occupancy and a temperature factor, if it is of an atom without."""
    if not line.startswith(_ATOMS) or (line[54:60].strip() and line[60:66].strip()):
        return line
    return f"{line[:54]}{line[54:60].strip() or '1.00':>6}{line[60:66].strip() or '0.00':>6}{line[66:]}"


def _bad_line(text: bytes) -> str:
    """Number of the first line of an atom without coordinates or number of a residue; empty if there is none."""
    for number, line in enumerate(text.decode("utf-8", "replace").splitlines(), 1):
        if line.startswith(_ATOMS):
            try:
                int(line[22:26])
                [float(line[start : start + 8]) for start in (30, 38, 46)]
            except ValueError:
                return f"line {number}: "
    return ""


def _blocks(file: Path, text: bytes) -> Iterator[tuple[str, Any]]:
    """Structures of a file of blocks; blocks without atoms are passed over."""
    pdbx = _biotite("structure.io.pdbx")
    if _kind(file) == "bcif":
        whole = pdbx.BinaryCIFFile.read(io.BytesIO(text))
    else:
        whole = pdbx.CIFFile.read(io.StringIO(text.decode("utf-8", "replace")))
    blocks = [(name, whole[name]) for name in whole if "atom_site" in whole[name]]
    if not blocks:
        raise ValueError("none of its blocks has atoms (category atom_site)")
    for number, (name, block) in enumerate(blocks):
        _complete(block["atom_site"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # label_ stands in where auth_ is missing
            atoms = pdbx.get_structure(block, model=1, altloc="first")
        yield (f"[{name}]" if number else ""), atoms


def _complete(sites: Any) -> None:
    """Fill in columns of atoms that programs leave out and that the reader wants."""
    count = sites.row_count
    names = sites["label_atom_id" if "label_atom_id" in sites else "auth_atom_id"].as_array(str)
    residues = next((key for key in ("label_comp_id", "auth_comp_id") if key in sites), "")
    if not residues:
        sites["label_comp_id"] = np.full(count, "UNK")
    element = [
        "CA" if residues and residue == "CA" else name[:1]
        for name, residue in zip(names, sites[residues or "label_comp_id"].as_array(str), strict=True)
    ]
    usual = {
        "group_PDB": ["ATOM"] * count,
        "label_alt_id": ["."] * count,
        "pdbx_PDB_ins_code": ["?"] * count,
        "type_symbol": element,
        "label_atom_id": list(names),
    }
    if "label_asym_id" not in sites and "auth_asym_id" not in sites:
        usual["label_asym_id"] = ["A"] * count
    for key, values in usual.items():
        if key not in sites:
            sites[key] = np.array(values)
    try:
        sites["pdbx_PDB_model_num"].as_array(np.int32)
    except (KeyError, ValueError, TypeError):
        sites["pdbx_PDB_model_num"] = np.full(count, "1")


def _biotite(name: str) -> Any:
    """Import a module of biotite on first use; its functions carry no types."""
    return importlib.import_module(f"biotite.{name}")
