"""A journal that another process is writing, read as it grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .files import whole_lines
from .lines import LineReader, is_header
from .reading import FORMAT, JOURNAL, Journal

__all__ = ["JournalTail"]


class JournalTail:
    """Reads what was appended to a journal since the last time.

    Parameters
    ----------
    folder
        Folder of the run.
    journal
        What was read of it; from the beginning by default.
    """

    def __init__(self, folder: Path, journal: Journal | None = None) -> None:
        self._file = folder / JOURNAL
        self._read = 0 if journal is None else journal.end  # bytes, up to the end of a line
        self._reader = LineReader()
        self._reader.sealed = journal is not None and journal.sealed

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
