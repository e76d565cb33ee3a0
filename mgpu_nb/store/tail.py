"""A journal that another process is writing, read as it grows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .files import whole_lines

__all__ = ["JournalTail"]


class JournalTail:
    """Reads what was appended to a journal since the last time.

    Parameters
    ----------
    folder
        Folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "journal.jsonl"
        self._read = 0  # bytes, up to the end of a line

    def read(self) -> list[dict[str, Any]]:
        """Entries that were appended; a last line that is not complete is left for the next time."""
        with self._file.open("rb") as journal:
            lines, self._read = whole_lines(journal, self._read)
        entries = []
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:  # the rest of a writer that was killed
                continue
            if isinstance(entry, dict):
                entries.append(entry)
        return entries
