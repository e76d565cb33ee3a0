"""Rows of data files that users have: JSON lines, CSV and Parquet, with what is wrong with them by file and line."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...options import OptionTypeError
from ...output import safe

__all__ = ["Row", "csv_rows", "decoded", "read_rows"]

SUFFIXES = (".jsonl", ".csv", ".parquet")
_WIDEST = 2**31 - 1  # characters of a cell; csv takes 131,072 by default
_REMEDIES = {
    ".json": 'write an object a line: pandas.read_json(FILE).to_json("data.jsonl", orient="records", lines=True)',
    ".tsv": "write it with commas: pandas.read_csv(FILE, sep='\\t').to_csv('data.csv', index=False)",
    ".gz": "unpack it: gunzip FILE",
    ".zip": "unpack it",
    ".arrow": "write it by datasets: datasets.Dataset.from_file(FILE).to_parquet('data.parquet')",
}
_FOLDER = (
    "it is a folder, give one of its files; of one that datasets' save_to_disk has written make one by "
    "datasets.load_from_disk(FOLDER)['train'].to_parquet('train.parquet')"
)


class Row(NamedTuple):
    """A row of a file.

    Attributes
    ----------
    where
        Its place for a reader: ``line 3``, of a Parquet file ``row 3``; both count from 1.
    values
        Texts by column.
    """

    where: str
    values: dict[str, str]


def read_rows(path: str | Path, columns: Sequence[str]) -> list[Row]:
    """Rows of a file as text.

    Parameters
    ----------
    path
        A file of `SUFFIXES`: JSON lines have an object each; CSV has names in its first line. Empty lines are no rows.
    columns
        Columns to read; others are left out.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    OSError
        If it cannot be opened.
    ValueError
        If it cannot be read, has no rows, lacks a column or has one twice, or has no text in one of these somewhere;
        the message names the file, the line or row, and what to do.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        raise FileNotFoundError(f"{file}: there is no such file: {_FOLDER}")
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: there is no such file; give the path of a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file"
        )
    readers = {".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}
    suffix = file.suffix.lower()
    if suffix not in readers:
        remedy = _REMEDIES.get(suffix, "save it as one of these, and name it so").replace(
            "FILE", repr(file.name)
        )
        raise ValueError(f"{file}: data must be {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}: {remedy}")
    rows = readers[suffix](file, columns)
    if not rows:
        raise ValueError(f"{file} has no rows: give a file with at least one example")
    return [
        Row(where, {name: _text(row[name], file, where, name) for name in columns}) for where, row in rows
    ]


def _text(value: Any, file: Path, where: str, name: str) -> str:
    if isinstance(value, (bool, int, float)) and math.isfinite(value):  # NaN is a missing value
        return str(value)
    if not isinstance(value, str):
        raise OptionTypeError(
            f"{file}, {where}: {name} must be a text or a number, got {value!r:.100}; mend the row or take it out"
        )
    if not value.strip():
        raise ValueError(f"{file}, {where}: {name} is empty; fill it in, or take the row out")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{file}, {where}: {name} has half a character, {value[error.start]!r}; write the whole character"
        ) from error
    return value


def _check_columns(file: Path, where: str, columns: Sequence[str], there: Sequence[object]) -> None:
    """Raise if one of the columns that are asked for is not there, or twice."""
    counts = Counter(there)
    for name in columns:
        if not counts[name]:
            listed = safe(", ".join(map(str, there)) or "none")
            raise ValueError(
                f"{file}{where} has no column {name}; it has {listed:.300}. Rename one to {name}, or name another "
                "in the settings of the data set if its kind has a key for it"
            )
        if counts[name] > 1:
            raise ValueError(f"{file}{where} has the column {name} twice: keep one of them")


def decoded(data: bytes, file: Path, line: int = 1, errors: str = "strict") -> str:
    """Text of some lines of a file, of which the first has this number, in UTF-8 with or without its mark.

    Raises
    ------
    ValueError
        If it is in another encoding; the message names the line.
    """
    try:
        return data.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        line += error.object.count(b"\n", 0, error.start)
        raise ValueError(
            f"{file}, line {line}: it is not text in UTF-8, {error.reason}: save the file in UTF-8; if it is "
            "compressed, unpack it"
        ) from error


def _json_lines(file: Path, columns: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    rows = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            where = f"line {number}"
            text = decoded(line, file, number)
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                reason = getattr(error, "msg", error)
                raise ValueError(
                    f"{file}, {where}: no valid JSON: {reason}; write an object in one line, such as "
                    f"{json.dumps(dict.fromkeys(columns, '...'))}"
                ) from error
            if not isinstance(row, dict):
                raise OptionTypeError(
                    f"{file}, {where}: it must be a JSON object, got {text.strip()[:100]!r}; write one of "
                    f"{', '.join(columns)} in each line"
                )
            _check_columns(file, f", {where},", columns, list(row))
            rows.append((where, row))
    return rows


def csv_rows(text: str, file: Path) -> list[tuple[str, list[str]]]:
    """Rows of CSV text, each with the line on which it begins; in quotes there may be line breaks.

    Raises
    ------
    ValueError
        If a quote is not closed or stands in the wrong place; the message names the line.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    found, where = [], "line 1"
    before = csv.field_size_limit(_WIDEST)
    try:
        for cells in reader:
            if cells:
                found.append((where, cells))
            where = f"line {reader.line_num + 1}"
    except csv.Error as error:
        raise ValueError(
            f"{file}, {where}: no valid CSV: {error}; write a cell with commas, quotes or line breaks in quotes, "
            '"so", and a quote in it twice, ""'
        ) from error
    finally:
        csv.field_size_limit(before)
    return found


def _csv(file: Path, columns: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    lines = csv_rows(decoded(file.read_bytes(), file), file)
    if not lines:
        return []
    where, head = lines[0]
    _check_columns(file, f", {where},", columns, head)
    rows = []
    for where, cells in lines[1:]:
        if len(cells) > len(head):
            raise ValueError(
                f"{file}, {where}: no valid CSV: it has {len(cells)} cells, and the first line names {len(head)}; "
                'write a cell with a comma in it in quotes, "so, say"'
            )
        rows.append((where, dict(zip(head, cells + [""] * (len(head) - len(cells)), strict=True))))
    return rows


def _parquet(file: Path, columns: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    import pyarrow
    from pyarrow import parquet

    try:
        names = parquet.read_schema(file).names
        _check_columns(file, "", columns, names)
        table = parquet.read_table(file, columns=list(columns))
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file}: no valid Parquet: {error}; write it anew, or copy it again") from error
    return [(f"row {number}", row) for number, row in enumerate(table.to_pylist(), 1)]
