"""What a journal says: the newest header of the run and the newest record of every task.

A journal is read from line to line. Of its lines only the places are kept, and those that are short: the values of a
run may be larger than the memory that is left.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..tasks import Record
from .lines import LineReader, is_header, unseal
from .values import NotStored, brief_value, load_value, scalars

__all__ = [
    "FORMAT",
    "JOURNAL",
    "KEPT",
    "NOT_STORED",
    "Entries",
    "Journal",
    "Place",
    "read_journal",
    "record_of",
]

FORMAT = 1
JOURNAL = "journal.jsonl"
SHORT = 4096  # bytes of a line that is kept
KEPT = [f.name for f in fields(Record) if f.name not in {"value", "exception"}]
NOT_STORED = "value not on disk"


@dataclass(slots=True)
class Place:
    """Where the newest record of a task is, and its line if that is short."""

    number: int
    start: int
    size: int
    line: bytes = b""


class Entries(Mapping[str, dict[str, Any]]):
    """Newest record of every task, read from the journal when it is asked for.

    Raises
    ------
    ValueError
        From its items, if the file is another than it was.
    """

    def __init__(self, file: Path, places: Mapping[str, Place]) -> None:
        self._file = file
        self._descriptor = -1
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def __getitem__(self, name: str) -> dict[str, Any]:
        place = self.places[name]
        line = place.line
        if not line:
            if self._descriptor < 0:
                self._descriptor = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
            line = os.pread(self._descriptor, place.size, place.start)
        entry = unseal(line)
        if entry is None or entry.get("name") != name:
            raise ValueError(f"the journal {self._file} was changed while it was read")
        return entry

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


class Journal:
    """Content of a journal: the newest header of the run and the newest record of every task.

    The header's tasks are those of all calls, in their first order, unless a later call names the whole of the run.

    Attributes
    ----------
    size
        Bytes up to the end of the last line that is whole.
    last
        Number of the last line; the next has a higher one.
    begins, end
        Byte at which the newest header begins, and that after the last line that is complete.
    sealed
        Whether its lines have sums.
    nodes
        What the nodes are made of on which tasks ran, by name; none where all ran on the machine of the run.
    """

    begins = end = 0
    sealed = False

    def __init__(
        self,
        headers: Sequence[dict[str, Any]],
        records: Mapping[str, dict[str, Any]],
        size: int,
        last: int = -1,
        nodes: Mapping[str, dict[str, Any]] | None = None,
    ) -> None:
        tasks: dict[str, Any] = {}
        for header in headers:
            if header.get(
                "whole", True
            ):  # older versions did not say; then the last call was all that is shown
                tasks = {}
            tasks |= {task["name"]: task for task in header["tasks"]}
        self.headers = headers
        self.header = {**headers[-1], "tasks": list(tasks.values())}
        self.records = records
        self.size, self.last = size, last
        self.nodes = dict(nodes or {})

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of their first submission."""
        return tuple(task["name"] for task in self.header["tasks"])

    @property
    def arguments(self) -> dict[str, dict[str, Any]]:
        """Arguments by task, of those that the header has."""
        return {task["name"]: task["arguments"] for task in self.header["tasks"] if "arguments" in task}

    @property
    def after(self) -> dict[str, tuple[str, ...]]:
        """Names of the tasks that each task waits for."""
        return {task["name"]: tuple(task.get("after", ())) for task in self.header["tasks"]}

    def record(self, folder: Path, name: str) -> Record:
        """A record with its value; see `record_of`."""
        return record_of(self.records[name], folder)

    def brief(self, name: str) -> Record:
        """A record whose value is what a table shows of it; no file but the journal is read."""
        entry = self.records[name]
        return Record(**_known(entry), value=brief_value(entry.get("value")))


def record_of(entry: Mapping[str, Any], folder: Path) -> Record:
    """The record of a line of a journal, with its value.

    For a value that is missing or damaged it has a note and None; for one that is not stored whole a note, and the
    scalars of a dict, a dataclass or a named tuple as a dict.
    """
    known, encoded = _known(entry), entry.get("value")
    try:
        value = load_value(folder, encoded)
    except NotStored as error:
        known["notes"] = (*known["notes"], f"{NOT_STORED}: {error}")
        value = scalars(folder, encoded)
    except Exception as error:
        known["notes"] = (*known["notes"], f"{NOT_STORED}: {type(error).__name__}: {error}")
        value = None
    return Record(**known, value=value)


def _known(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What a line says of a record, without its value."""
    known = {key: entry[key] for key in KEPT if key in entry}
    log = known.get("log", "")
    if log and (
        log[0] == "/" or ".." in log.split("/")
    ):  # a journal is data and must not have files elsewhere read
        known["log"] = ""
    return {**known, "notes": tuple(known.get("notes", ()))}


class _Scan:
    """What was found in the lines of a journal so far, and what is wrong with them."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.headers: list[tuple[int, int, dict[str, Any]]] = []  # number, byte, content
        self.places: dict[str, Place] = {}
        self.nodes: dict[str, dict[str, Any]] = {}
        self.size = self.end = 0
        self._reader = LineReader()
        self._numbers: set[int] = set()
        self._without = 0  # lines without a number, as older versions wrote them
        self._dropped = self._bytes = self._doubled = 0

    def take(self, line: bytes, start: int) -> None:
        """Take a line that begins at some byte."""
        if line.endswith(b"\n"):
            self.end = start + len(line)
        entry = self._reader.entry(line)
        event = None if entry is None else entry.get("event")
        if entry is not None and event == "run":
            if entry.get("format") != FORMAT:
                raise ValueError(
                    f"{self.file}: format {entry.get('format')}, this version reads format {FORMAT}"
                )
            if not is_header(entry):
                entry = None
        if entry is None:
            self._dropped += 1
            self._bytes += len(line)
            return
        self.size += len(line)
        number = entry.get("n", -1)
        if number < 0:
            self._without += 1
        elif number in self._numbers:
            self._doubled += 1
            return
        else:
            self._numbers.add(number)
        if event == "run":
            self.headers.append((number, start, entry))
        elif event == "node":
            self.nodes[entry["name"]] = entry["made"]
        elif event == "record":
            before = self.places.get(entry["name"])
            if before is None or number < 0 or number > before.number:  # lines may have changed places
                kept = line if len(line) <= SHORT else b""
                self.places[entry["name"]] = Place(number, start, len(line), kept)

    @property
    def sealed(self) -> bool:
        """Whether a line had a sum."""
        return self._reader.sealed

    @property
    def last(self) -> int:
        """Number of the last line."""
        return max(self._numbers, default=self._without - 1)

    @property
    def damage(self) -> str:
        """What is wrong with the lines; empty if nothing is."""
        found = []
        if self._dropped == 1:
            found.append(f"dropped a damaged or truncated line of {self._bytes} bytes")
        elif self._dropped:
            found.append(f"dropped {self._dropped} damaged or truncated lines of {self._bytes} bytes")
        if self._doubled:
            found.append(f"lines that are there twice: {self._doubled}")
        missing = self.last + 1 - self._without - len(self._numbers) - self._dropped if self._numbers else 0
        if missing > 0:
            found.append(f"lines that are missing: {missing}")
        return ", ".join(found)


def read_journal(path: Path) -> Journal:
    """Read a journal. Of lines that are damaged, truncated (the writer was killed), doubled or missing it warns.

    Raises
    ------
    FileNotFoundError
        If there is none: `path` is not a run's folder.
    ValueError
        If it is a journal of another program or of a newer version, or its header is damaged.
    """
    file = path / JOURNAL
    if path.is_file():
        raise FileNotFoundError(
            f"{path} is a file, not a run's folder: give the folder that holds its {JOURNAL}"
        )
    if not file.is_file():
        raise FileNotFoundError(
            f"{path} is not a run's folder: it has no {JOURNAL}; mgpu-nb runs FOLDER lists the runs below a folder"
        )
    scan, start = _Scan(file), 0
    with file.open("rb") as lines:
        for line in lines:
            scan.take(line, start)
            start += len(line)
    if text := scan.damage:
        warnings.warn(f"{file}: {text}", stacklevel=2)
    if not scan.headers:
        raise ValueError(f"{file}: not the journal of a run (it has no header); choose another folder")
    scan.headers.sort(key=lambda header: header[0])
    headers = [header for *_, header in scan.headers]
    journal = Journal(headers, Entries(file, scan.places), scan.size, scan.last, scan.nodes)
    journal.begins, journal.end, journal.sealed = scan.headers[-1][1], scan.end, scan.sealed
    return journal
