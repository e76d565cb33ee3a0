"""A journal that another process is writing, read as it grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .files import whole_lines
from .lines import LineReader, is_header
from .reading import FORMAT, JOURNAL

__all__ = ["JournalTail"]


class JournalTail:
    """Reads what was appended to a journal since the last time.

    Parameters
    ----------
    folder
        Folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / JOURNAL
        self._read = 0  # bytes, up to the end of a line
        self._reader = LineReader()

    def read(self) -> list[dict[str, Any]]:
        """Entries that were appended, but damaged ones; a last line that is not complete is left for the next time."""
        with self._file.open("rb") as journal:
            lines, self._read = whole_lines(journal, self._read)
        entries = []
        for line in lines:
            entry = self._reader.entry(line + b"\n")
            if entry is None:  # the rest of a writer that was killed
                continue
            if entry.get("event") == "run" and entry.get("format") == FORMAT and not is_header(entry):
                continue
            entries.append(entry)
        return entries
