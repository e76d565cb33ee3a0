"""Tables of text: rows with tabs or commas between their cells, packed by gzip or not."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

__all__ = ["FileRead", "Rows", "TableFile", "counted", "short", "told"]

Rows = list[tuple[int, list[str]]]
"""Cells of each row, and the number of its line."""


@dataclass(frozen=True, slots=True)
class FileRead:
    """What was read of a file, and what was not.

    Attributes
    ----------
    path
        The file.
    found
        What is in it, and in which form, in words.
    left_out
        What was left out, and how many of it, in words.
    unseen
        How many triples were, for they name what the maps of names do not have.
    """

    path: str
    found: str
    left_out: tuple[str, ...] = ()
    unseen: int = 0

    def __str__(self) -> str:
        return "; left out: ".join(
            [f"{self.path}: {self.found}", *[", ".join(self.left_out)] * bool(self.left_out)]
        )


def told(files: Iterable[FileRead]) -> list[str]:
    """What was left out of files, a sentence for each of which something was."""
    return [
        f"left out of {Path(file.path).name}: {', '.join(file.left_out)}" for file in files if file.left_out
    ]


@dataclass(frozen=True, slots=True)
class TableFile:
    """Rows of a file of text, without blank lines and comments.

    Attributes
    ----------
    path
        The file.
    rows
        Line and cells of each row.
    separator
        Tab or comma.
    form
        What else is to be said of its form.
    left_out
        Blank lines and comments, in words.
    """

    path: str
    rows: Rows
    separator: str
    form: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(cls, path: str | Path, columns: int) -> TableFile:
        """Rows of a file. A line that begins with # is a comment if it has another number of columns."""
        text, packed = _text(path)
        separator = "\t" if "\t" in text or "," not in text else ","
        rows, blank = _with_commas(path, text) if separator == "," else _with_tabs(text)
        data = rows
        if "#" in text:
            data = [row for row in rows if len(row[1]) == columns or not row[1][0].startswith("#")]
        numbers = {"blank line": blank, "comment": len(rows) - len(data)}
        left_out = tuple(counted(number, what) for what, number in numbers.items() if number)
        return cls(str(path), data, separator, ("gzip",) * packed, left_out)

    def without(self, form: str) -> TableFile:
        """Rows below the first, of which `form` says what it is."""
        return replace(self, rows=self.rows[1:], form=(*self.form, form))

    def without_count(self) -> TableFile:
        """Rows below a first line that is their number.

        Raises
        ------
        ValueError
            If it is another number.
        """
        if len(self.rows) < 2 or len(first := self.rows[0][1]) != 1 or not first[0].strip().isdecimal():
            return self
        if len("\t".join(self.rows[1][1]).split()) < 2:  # numbers alone
            return self
        below = len(self.rows) - 1
        if int(first[0]) != below:
            raise ValueError(
                f"{self.path}, line {self.rows[0][0]}: it says that {int(first[0])} lines follow, as OpenKE has it, "
                f"and {below} do: copy the file again, or correct the number"
            )
        return self.without("below their count")

    def shown(self, cells: Sequence[str]) -> str:
        """Cells of a row for a message."""
        return short(self.separator.join(cells))

    def read(self, what: str, order: str, *left_out: str, unseen: int = 0) -> FileRead:
        """What was read of it, in which order of columns."""
        form = ("with commas" if self.separator == "," else "with tabs", *self.form)
        return FileRead(self.path, f"{what}; {order}, {', '.join(form)}", (*left_out, *self.left_out), unseen)


def _text(path: str | Path) -> tuple[str, bool]:
    """Text of a file, and whether gzip packed it."""
    content = Path(path).expanduser().read_bytes()
    if packed := content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(
                f"{path}: its gzip data are broken or cut off ({error}): copy it again"
            ) from None
    try:
        text = content.decode("utf-8-sig")
        at, what = text.find("\0"), "a NUL"
    except UnicodeDecodeError as error:
        text, at, what = "", error.start, f"byte 0x{content[error.start]:02x}"
    if at >= 0:
        line = (text or content)[:at].count("\n" if text else b"\n") + 1  # type: ignore[arg-type]
        raise ValueError(
            f"{path}, line {line} is not UTF-8 text, it has {what}: save the file as UTF-8, or name one that is text"
        )
    return text, packed


def _with_tabs(text: str) -> tuple[Rows, int]:
    """Rows of a text, and how many of its lines are blank."""
    lines = text.removesuffix("\n").split("\n") if text else []
    rows = [(n, line.removesuffix("\r").split("\t")) for n, line in enumerate(lines, 1) if line.strip()]
    return rows, len(lines) - len(rows)


def _with_commas(path: str | Path, text: str) -> tuple[Rows, int]:
    """Rows of a text, and how many of its lines are blank."""
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        every = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num}: {error}: look for a quote that is not closed"
        ) from None
    rows = [row for row in every if any(map(str.strip, row[1]))]
    return rows, len(every) - len(rows)


def short(text: str) -> str:
    """Text of a file for a message: its beginning, without controls."""
    return repr(text if len(text) <= 80 else f"{text[:80]}…")


def counted(number: int, what: str) -> str:
    """Number of things, in words."""
    return f"{number:,} {what}{'s' * (number != 1)}"
