"""The run folder: a journal that survives crashes, exports for readers, logs and values.

::

    <folder>/journal.jsonl           a line per start or resumption of the run, a line per record
    <folder>/detailed_results.json   every record with its value
    <folder>/summary_results.csv     a row per task
    <folder>/logs/00003-name.log     output of the task's process
    <folder>/metrics.jsonl           a line per report of a task, see `store.metrics`
    <folder>/values/00003-name.npz   arrays; .safetensors tensors, .parquet tables
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..summary import short
from ..tasks import Record
from .files import atomic_write, escape_formula, file_stem
from .lock import FolderLock
from .values import NotStored, brief_value, load_value, scalars

__all__ = ["FORMAT", "Journal", "RunFolder", "export", "read_journal", "record_of"]

FORMAT = 1
ARGUMENTS = 200_000  # bytes of a header; the records have them all
TIMES = ("queued", "started", "finished")
_KEPT = [f.name for f in fields(Record) if f.name not in {"value", "exception"}]


class Journal:
    """Content of a journal: the newest header of the run and the newest record of every task.

    The header's tasks are those of all calls, in their first order, unless a later call names the whole of the run.
    """

    def __init__(
        self, headers: Sequence[dict[str, Any]], records: dict[str, dict[str, Any]], size: int
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
        self.size = size  # bytes up to the end of the last complete line

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
        """A record whose value is what a table shows of it; no file is read."""
        entry = self.records[name]
        return Record(**_known(entry), value=brief_value(entry.get("value")))


NOT_STORED = "value not on disk"


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
    known = {key: entry[key] for key in _KEPT if key in entry}
    return {**known, "notes": tuple(known.get("notes", ()))}


def read_journal(path: Path) -> Journal:
    """Read a journal; a truncated last line (the writer was killed) is dropped with a warning.

    Raises
    ------
    FileNotFoundError
        If there is none: `path` is not a run's folder.
    ValueError
        If it is a journal of another program or of a newer version.
    """
    file = path / "journal.jsonl"
    if not file.is_file():
        raise FileNotFoundError(f"{path} is not a run's folder: it has no journal.jsonl")
    headers: list[dict[str, Any]] = []
    records: dict[str, dict[str, Any]] = {}
    size = 0
    for line in file.read_bytes().splitlines(keepends=True):
        try:
            entry = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            entry = None
        if not isinstance(entry, dict):
            warnings.warn(f"{file}: dropped a truncated line of {len(line)} bytes", stacklevel=2)
            continue
        if entry.get("event") == "run":
            if entry.get("format") != FORMAT:
                raise ValueError(f"{file}: format {entry.get('format')}, this version reads format {FORMAT}")
            headers.append(entry)
        elif entry.get("event") == "record":
            records[entry["name"]] = entry
        size += len(line)
    if not headers:
        raise ValueError(f"{file}: not the journal of a run (it has no header); choose another folder")
    return Journal(headers, records, size)


class RunFolder:
    """The folder of a run that is being written. One writer at a time.

    Parameters
    ----------
    path
        The folder; created if missing.
    name
        The run's name.
    seed
        The run's seed.
    tasks
        Name, kind and fingerprint of every task, in order.
    whole
        Whether these are all tasks of the run; otherwise tasks of earlier calls stay beside them.
    arguments
        Arguments by task, in short plain form. Of many tasks only the records have them.
    made
        What the run is made with, see `runs.provenance`.
    after
        Names of the tasks that each task waits for.

    Raises
    ------
    NotADirectoryError
        `path` is a file.
    FileExistsError
        It holds another run, or files that are not a run's.
    BlockingIOError
        Another process, or another run of this one, is writing to it.
    OSError
        The file system refuses.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        seed: int,
        tasks: Sequence[tuple[str, str, str]],
        *,
        whole: bool = False,
        arguments: Mapping[str, Mapping[str, Any]] | None = None,
        made: Mapping[str, Any] | None = None,
        after: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.path = path
        self.earlier = self._check(name, [task[0] for task in tasks])
        (path / "logs").mkdir(parents=True, exist_ok=True)
        self._fd = os.open(
            path / "journal.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666
        )
        try:
            self._held = FolderLock(path, self._fd)
        except BaseException:
            os.close(self._fd)
            raise
        if os.fstat(self._fd).st_size > (self.earlier.size if self.earlier is not None else 0):
            self._mend()
        self._lock = threading.Lock()
        self._sync: threading.Timer | None = None
        header = {
            "event": "run",
            "format": FORMAT,
            "name": name,
            "seed": seed,
            "at": time.time(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "whole": whole or self.earlier is None,
            "made": made or {},
            "tasks": _tasks(tasks, arguments or {}, after or {}),
        }
        try:
            self._write(json.dumps(header))
        except BaseException:
            self.close()
            raise

    def _check(self, name: str, tasks: list[str]) -> Journal | None:
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"{self.path} is a file; give a folder for the run")
        if not self.path.exists() or not any(self.path.iterdir()):
            return None
        if not (self.path / "journal.jsonl").exists():
            raise FileExistsError(
                f"{self.path} holds files that are not a run's; give a new or an empty folder"
            )
        if b"\n" not in (self.path / "journal.jsonl").read_bytes():
            return None  # killed while writing its first line
        journal = read_journal(self.path)
        if journal.header["name"] != name:
            raise FileExistsError(
                f"{self.path} holds the run {journal.header['name']!r}, not {name!r}: give that name to resume it, "
                "or another folder"
            )
        known = {task["name"] for task in journal.header["tasks"]} | journal.records.keys()
        if not known & set(tasks):
            raise FileExistsError(
                f"{self.path} holds a run {name!r} of other tasks ({', '.join(sorted(known)[:3])}, ...): "
                "give another folder"
            )
        return journal

    def _mend(self) -> None:
        """Truncate an incomplete last line, or the next would be appended to it."""
        file = self.path / "journal.jsonl"
        whole = file.read_bytes()
        if not whole.endswith(b"\n"):
            os.truncate(file, whole.rfind(b"\n") + 1)

    def kept(self, name: str, fingerprint: str) -> tuple[Record | None, str]:
        """Good record that an earlier run has left of a task, or why the task is run again; empty if there is none."""
        entry = None if self.earlier is None else self.earlier.records.get(name)
        if self.earlier is None or entry is None or entry["status"] != "ok":
            return None, ""
        if entry["fingerprint"] != fingerprint:
            return (
                None,
                "run again: function, arguments, seed or what it waits for differ from the record there",
            )
        record = self.earlier.record(self.path, name)
        if any(note.startswith(NOT_STORED) for note in record.notes):
            return None, f"run again: {record.notes[-1]}"
        return record, ""

    def log_file(self, index: int, name: str) -> Path:
        """Path of a task's log."""
        return self.path / "logs" / f"{file_stem(index, name)}.log"

    def append(self, record: Record, value: str) -> None:
        """Append a record; `value` is the JSON text of its value. It is on disk within a second.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        entry: dict[str, Any] = {"event": "record", **{name: getattr(record, name) for name in _KEPT}}
        text = json.dumps(entry, default=str)
        self._write(f'{text[:-1]}, "value": {value or "null"}}}')

    def _write(self, line: str) -> None:
        with self._lock:
            data = memoryview(line.encode() + b"\n")
            before = os.fstat(self._fd).st_size
            try:
                while data:
                    data = data[os.write(self._fd, data) :]
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, before)  # or the next line would be appended to this part
                raise
            if self._sync is None:
                self._sync = threading.Timer(1.0, self._flush)
                self._sync.daemon = True
                self._sync.start()

    def _flush(self) -> None:
        with self._lock:
            self._sync = None
            if self._fd >= 0:
                with contextlib.suppress(OSError):  # not supported by every file system
                    os.fsync(self._fd)

    def close(self) -> None:
        """Flush to disk and release the folder."""
        if self._sync is not None:
            self._sync.cancel()
        self._flush()
        with self._lock:
            if self._fd >= 0:
                self._held.release()
                os.close(self._fd)
            self._fd = -1


def _tasks(
    tasks: Sequence[tuple[str, str, str]],
    arguments: Mapping[str, Mapping[str, Any]],
    after: Mapping[str, Sequence[str]],
) -> list[dict[str, Any]]:
    """Tasks as the header has them, with arguments as long as these take less than `ARGUMENTS` bytes."""
    entries: list[dict[str, Any]] = []
    room = ARGUMENTS
    for task in tasks:
        entry: dict[str, Any] = dict(zip(("name", "kind", "fingerprint"), task, strict=True))
        if room > 0 and (own := arguments.get(task[0])):
            room -= len(json.dumps(own))
            entry["arguments"] = own
        if others := after.get(task[0]):
            entry["after"] = others
        entries.append(entry)
    return entries


def export(folder: Path, records: Iterable[Record], rows: Sequence[dict[str, Any]]) -> None:
    """Write detailed_results.json and summary_results.csv from the journal.

    `rows` are those of `Run.frame`; their times are written as UTC. The journal's records of their tasks are written as
    well if they are not among `records`. It works during interpreter shutdown,
    when no large library can be imported any more.
    """
    journal = read_journal(folder)
    entries = []
    wanted = {record.name for record in records} | {row["name"] for row in rows} & journal.records.keys()
    for name in [name for name in journal.tasks if name in wanted]:
        entry = dict(journal.records.get(name, {}))
        entry.pop("event", None)
        entry["metrics"] = {
            key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in entry.get("metrics", {}).items()
        }
        entries.append(entry)
    _write_text(folder / "detailed_results.json", json.dumps(entries, indent=1, ensure_ascii=False))
    table = io.StringIO()
    columns = list(dict.fromkeys(column for row in rows for column in row))
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writerow({column: escape_formula(column) for column in columns})
    for row in rows:
        times = {key: _utc(row[key]) for key in TIMES if row.get(key) is not None}
        writer.writerow({key: escape_formula(short(cell)) for key, cell in {**row, **times}.items()})
    _write_text(folder / "summary_results.csv", table.getvalue())


def _utc(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(sep=" ", timespec="milliseconds")


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")
