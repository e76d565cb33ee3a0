"""File names and writes that are safe on any file system, in spreadsheets, and for concurrent readers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

__all__ = [
    "PRIVATE",
    "atomic_write",
    "escape_formula",
    "file_stem",
    "former_stem",
    "make_private",
    "remove_parts",
    "safe_name",
    "strict_json",
    "whole_lines",
]


PRIVATE = 0o700  # mode of what none but its owner may read
LONGEST = 80  # characters of a name in that of a file


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Path to write to; when the block ends, the file replaces `path`, which is never seen partially written.

    The folder is created. If the block raises, `path` is unchanged and no other file remains.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        yield part
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def make_private(folder: Path) -> None:
    """Make a folder that none but its owner may read, below those that are missing; one that exists keeps its mode.

    Arguments, values and logs of tasks may hold secrets, and the machine may have other users.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=PRIVATE, exist_ok=True)


def remove_parts(folder: Path, *names: str) -> None:
    """Remove what is left of writes that never ended; with names, of these files alone."""
    with contextlib.suppress(OSError):
        for part in folder.glob(".*.part"):
            if not names or part.name.startswith(tuple(f".{name}." for name in names)):
                part.unlink(missing_ok=True)


def whole_lines(file: BinaryIO, at: int, most: int = -1) -> tuple[list[bytes], int]:
    """Lines of a file that is being appended to, from a byte on, and the byte after them.

    A last line that is not complete is left for the next time. With `most`, about as many bytes are read.
    """
    file.seek(at)
    data = file.read(most) + (file.readline() if most >= 0 else b"")
    whole = data[: data.rfind(b"\n") + 1]
    return whole.splitlines(), at + len(whole)


def escape_formula(cell: Any) -> Any:
    """Table cell; text that a spreadsheet would evaluate as a formula is prefixed with an apostrophe."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def strict_json(value: Any) -> str:
    """JSON text of dicts, lists and scalars, numpy's too; null for every number that JSON does not have."""
    return json.dumps(_strict(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _strict(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def file_stem(index: int, name: str) -> str:
    """File name of task `index` without extension: readable, safe on any file system, and that of no other name.

    Another call on the same folder may have another task of this index: a name that is not whole in the file's, because
    of other signs than those that sweeps use, or of its length, has a digest.
    """
    safe = re.sub(r"[^A-Za-z0-9 ._=,+@-]+", "_", name)[:LONGEST]
    return f"{index:05d}-{safe}" if safe == name else f"{index:05d}-{safe}-{_digest(name)}"


def former_stem(index: int, name: str) -> str:
    """What `file_stem` was in earlier versions, for readers of their folders: that of several names, maybe."""
    stem = f"{index:05d}-{safe_name(name)}"
    return stem if name.isascii() and len(name) <= LONGEST else f"{stem}-{_digest(name)}"


def safe_name(name: str) -> str:
    """A name as a part of a file's name: all but letters, digits, full stops and dashes becomes ``_``."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:LONGEST]


def _digest(name: str) -> str:
    return hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=4).hexdigest()
