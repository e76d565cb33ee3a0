"""Names and writes of files: what is safe on any file system, in a spreadsheet, and under a reader's eyes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["atomic_write", "escape_formula", "file_stem"]


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Path to write to; when the block ends, the file is moved to `path`, which is never seen half written.

    The folder is created. If the block raises, `path` stays as it was and nothing is left beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def escape_formula(cell: Any) -> Any:
    """Table cell with an apostrophe before a text that a spreadsheet would take for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def file_stem(index: int, name: str) -> str:
    """File name for task `index`, safe on any file system, that still shows the task's name."""
    return f"{index:05d}-{re.sub(r'[^A-Za-z0-9._-]+', '_', name)[:80]}"
