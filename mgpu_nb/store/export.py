"""The tables of a run folder, for readers: every record with its value, and a row per task."""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from ..summary import short
from ..tasks import Record
from .files import atomic_write, escape_formula
from .reading import Journal, read_journal
from .values import readable

__all__ = ["TABLES", "TIMES", "export"]

TABLES = ("detailed_results.json", "summary_results.csv")
TIMES = ("queued", "started", "finished")

# A line for a record: indented it takes five times as long, and leaves 29 objects for the garbage collector.
_encode = json.JSONEncoder(ensure_ascii=False).encode


def export(
    folder: Path, records: Iterable[Record], rows: Sequence[dict[str, Any]], journal: Journal | None = None
) -> None:
    """Write detailed_results.json and summary_results.csv from the journal, a task at a time.

    `rows` are those of `Run.frame`; their times are written as UTC. The journal's records of their tasks are written as
    well if they are not among `records`. It works during interpreter shutdown,
    when no large library can be imported any more.
    """
    journal = read_journal(folder) if journal is None else journal
    wanted = {record.name for record in records} | {row["name"] for row in rows} & journal.records.keys()
    with _text_file(folder / TABLES[0]) as file:
        file.write("[")
        for number, name in enumerate(name for name in journal.tasks if name in wanted):
            entry = dict(journal.records.get(name, {}))
            entry.pop("event", None)
            entry.pop("n", None)
            entry["value"] = readable(entry.get("value"))
            entry["metrics"] = {
                key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in entry.get("metrics", {}).items()
            }
            file.write(",\n" if number else "\n")
            file.write(_encode(entry))
        file.write("\n]" if wanted else "]")
    with _text_file(folder / TABLES[1]) as file:
        columns = list(dict.fromkeys(column for row in rows for column in row))
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(map(escape_formula, columns))
        for row in rows:
            writer.writerow([_cell(column, row.get(column)) for column in columns])


def _cell(column: str, value: Any) -> Any:
    if value is None:
        return ""
    return _utc(value) if column in TIMES else escape_formula(short(value))


def _utc(at: float) -> str:
    fraction, whole = math.modf(at)
    carry, microseconds = divmod(round(1e6 * fraction), 10**6)
    return f"{_utc_second(int(whole) + carry)}.{microseconds // 1000:03d}+00:00"


@functools.lru_cache(1024)
def _utc_second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")


@contextlib.contextmanager
def _text_file(path: Path) -> Iterator[TextIO]:
    with (
        atomic_write(path) as part,
        part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        yield file
