"""Rows of data files that users have: JSON lines, CSV and Parquet, with what is wrong with them by file and line."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...options import OptionTypeError

__all__ = ["read_rows"]

SUFFIXES = (".jsonl", ".csv", ".parquet")


def read_rows(path: str | Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a file as text.

    Parameters
    ----------
    path
        A file of `SUFFIXES`: JSON lines have an object each; CSV has names in its first line.
    columns
        Columns to read; others are left out.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it cannot be read, has no rows, lacks a column, or has no text in one of these somewhere; the message names
        the file and the line or row.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such file" + " (it is a folder)" * file.is_dir())
    readers = {".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}
    if file.suffix.lower() not in readers:
        raise ValueError(f"{file}: data must be {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    rows = readers[file.suffix.lower()](file, columns)
    if not rows:
        raise ValueError(f"{file} has no rows")
    return [{name: _text(row[name], file, where, name) for name in columns} for where, row in rows]


def _text(value: Any, file: Path, where: str, name: str) -> str:
    if isinstance(value, (bool, int, float)) and math.isfinite(value):  # NaN is a missing value
        return str(value)
    if not isinstance(value, str):
        raise OptionTypeError(f"{file}, {where}: {name} must be a text or a number, got {value!r:.100}")
    if not value.strip():
        raise ValueError(f"{file}, {where}: {name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{file}, {where}: {name} has half a character, {value[error.start]!r}") from error
    return value


def _lacking(file: Path, where: str, name: str, there: Sequence[object]) -> ValueError:
    listed = ", ".join(map(str, there)) or "none"
    return ValueError(f"{file}{where} has no column {name}; it has {listed:.300}")


def _json_lines(file: Path, columns: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    rows = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            where = f"line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if not text.strip():
                    continue
                row = json.loads(text)
            except UnicodeDecodeError as error:
                raise ValueError(f"{file}, {where}: it is not text in UTF-8") from error
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{file}, {where}: no valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise OptionTypeError(
                    f"{file}, {where}: it must be a JSON object, got {line.strip()[:100]!r}"
                )
            for name in columns:
                if name not in row:
                    raise _lacking(file, f", {where},", name, list(row))
            rows.append((where, row))
    return rows


def _csv(file: Path, columns: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    import pandas as pd

    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "error", pd.errors.ParserWarning
            )  # of rows that are longer than the first line
            frame = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: it is not text in UTF-8") from error
    except pd.errors.EmptyDataError:
        return []
    except (ValueError, pd.errors.ParserWarning) as error:
        raise ValueError(f"{file}: no valid CSV: {str(error).strip()}") from error
    return _rows_of(file, frame, columns)


def _parquet(file: Path, columns: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    import pyarrow
    from pyarrow import parquet

    try:
        names = parquet.read_schema(file).names
        table = parquet.read_table(file, columns=[name for name in columns if name in names])
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file}: no valid Parquet: {error}") from error
    for name in columns:
        if name not in names:
            raise _lacking(file, "", name, names)
    return [(f"row {number}", row) for number, row in enumerate(table.to_pylist(), 1)]


def _rows_of(file: Path, frame: Any, columns: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    for name in columns:
        if name not in frame.columns:
            raise _lacking(file, "", name, list(frame.columns))
    rows = frame[list(columns)].to_dict("records")
    return [(f"row {number}", row) for number, row in enumerate(rows, 1)]
