"""The run folder: a journal that survives crashes, exports for readers, logs and values.

::

    <folder>/journal.jsonl           a line per start or resumption of the run, a line per record
    <folder>/detailed_results.json   every record with its value
    <folder>/summary_results.csv     a row per task
    <folder>/logs/00003-name.log     output of the task's process
    <folder>/metrics.jsonl           a line per report of a task, see `store.metrics`
    <folder>/values/00003-name.npz   arrays; .safetensors tensors, .parquet tables
    <folder>/detached/               what a job of a cluster reads and writes that has the run, see `runs.submitted`
    <folder>/.shared-...             while it runs on several machines, see `store.token`
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..tasks import Record
from .export import TABLES, export
from .files import file_stem, make_private
from .lines import seal
from .lock import FolderLock
from .reading import FORMAT, JOURNAL, KEPT, NOT_STORED, Entries, Journal, Place, read_journal, record_of
from .token import PREFIX, remove_tokens, write_token

__all__ = ["FORMAT", "NOT_STORED", "Journal", "RunFolder", "export", "read_journal", "record_of", "text_of"]

ARGUMENTS = 200_000  # bytes of a header; the records have them all
# What a run's folder may have without anything of others in it.
_OWN = {
    JOURNAL,
    "journal.lock",
    "logs",
    "values",
    "metrics.jsonl",
    "samples.csv",
    "config.json",
    "detached",
    *TABLES,
}
_BLOCK = 2**20  # bytes that are copied at once
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
_REAL_FAILURES = {errno.ENOSPC, errno.EDQUOT, errno.EIO}

_encode = json.JSONEncoder(default=str).encode

_open: weakref.WeakSet[RunFolder] = weakref.WeakSet()


def _size_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # there is none, or no folder
        return 0


def text_of(record: Record, value: str) -> str:
    """JSON text of a record for the journal, given that of its value."""
    entry: dict[str, Any] = {"event": "record", **{name: getattr(record, name) for name in KEPT}}
    return f'{_encode(entry)[:-1]}, "value": {value or "null"}}}'


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
    elsewhere
        Whether its tasks run on other machines, which must find out whether they have the folder.

    Attributes
    ----------
    token
        Name of a file by which they know it; empty without other machines.

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
        elsewhere: bool = False,
    ) -> None:
        self._fd = -1
        self.token = ""
        self.path = path
        self._is_link = path.is_symlink()
        names = [task[0] for task in tasks]
        before = _size_of(path / JOURNAL)
        self.earlier = self._check(name, names)
        make_private(path)
        (path / "logs").mkdir(exist_ok=True)
        self._lock = threading.Lock()
        self._fd = os.open(path / JOURNAL, _FLAGS, 0o666)
        held: FolderLock | None = None
        try:
            held = self._held = FolderLock(path, self._fd)
            if os.fstat(self._fd).st_size != before:  # who has just released it had written more meanwhile
                self.earlier = self._check(name, names)
        except BaseException:
            if held is not None:
                held.release()
            os.close(self._fd)
            self._fd = -1
            raise
        _open.add(self)
        self._places: dict[str, Place] = {}
        self._nodes: dict[str, dict[str, Any]] = {}
        self._number = -1 if self.earlier is None else self.earlier.last
        self.logs = _names(path / "logs")
        """Names of the logs that earlier runs have left."""
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
        self._header = header
        try:
            if os.fstat(self._fd).st_size > (self.earlier.size if self.earlier is not None else 0):
                self._mend()
            self._write([json.dumps(header)])
            if self.earlier is not None:
                remove_tokens(path)  # of a process that was killed
            if elsewhere:
                self.token = write_token(path)
        except BaseException:
            self.close()
            raise

    def _check(self, name: str, tasks: list[str]) -> Journal | None:
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"{self.path} is a file; give a folder for the run")
        if not self.path.exists() or not any(self.path.iterdir()):
            return None
        if not (self.path / JOURNAL).exists():
            raise FileExistsError(
                f"{self.path} holds files that are not a run's; give a new or an empty folder"
            )
        with (self.path / JOURNAL).open("rb") as file:
            if not file.readline().endswith(b"\n"):
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
        end = size = os.fstat(self._fd).st_size
        while end > 0:
            begin = max(0, end - _BLOCK)
            if (at := os.pread(self._fd, end - begin, begin).rfind(b"\n")) >= 0:
                end = begin + at + 1
                break
            end = begin
        if end < size:
            os.ftruncate(self._fd, end)

    def kept(self, name: str, fingerprint: str) -> tuple[Record | None, str]:
        """Good record that an earlier run has left of a task, or why the task is run again; empty if there is none."""
        entry = None if self.earlier is None else self.earlier.records.get(name)
        if entry is None or entry["status"] != "ok":
            return None, ""
        if entry.get("fingerprint") != fingerprint:
            return (
                None,
                "run again: function, arguments, seed or what it waits for differ from the record there",
            )
        record = record_of(entry, self.path)
        if any(note.startswith(NOT_STORED) for note in record.notes):
            return None, f"run again: {record.notes[-1]}"
        return record, ""

    def log_file(self, index: int, name: str) -> Path:
        """Path of a task's log."""
        return self.path / "logs" / f"{file_stem(index, name)}.log"

    def append(self, record: Record, value: str) -> None:
        """Append a record; `value` is the JSON text of its value. `sync` has it on disk.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        self.append_all([(record.name, text_of(record, value))])

    def append_all(self, records: Sequence[tuple[str, str]]) -> None:
        """Append records, by their names and as `text_of` has them, at once: all or, if it raises as `append`, none."""
        places = self._write([text for _, text in records])
        self._places.update(zip((name for name, _ in records), places, strict=True))

    def append_node(self, name: str, made: Mapping[str, Any]) -> None:
        """Append what a node is made of, where tasks run on other machines. Raises as `append`."""
        self._write([json.dumps({"event": "node", "name": name, "made": dict(made)})])
        self._nodes[name] = dict(made)

    def _write(self, texts: Sequence[str]) -> list[Place]:
        with self._lock:
            lines = [seal(text, self._number + n) for n, text in enumerate(texts, 1)]
            begin = os.fstat(self._fd).st_size
            data = memoryview(b"".join(lines))
            try:
                while data:
                    data = data[os.write(self._fd, data) :]
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, begin)  # or the next line would be appended to this part
                raise
            places = []
            for line in lines:
                self._number += 1
                places.append(Place(self._number, begin, len(line)))
                begin += len(line)
            return places

    def sync(self) -> None:
        """Have on disk what was appended; others may append meanwhile."""
        with self._lock:
            if self._fd < 0:
                return
            descriptor = os.dup(self._fd)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno in _REAL_FAILURES:  # else the file system has none
                raise
        finally:
            os.close(descriptor)

    @property
    def journal(self) -> Journal:
        """What the journal says now, of this and earlier runs; nothing is read for it."""
        earlier = self.earlier
        headers = [self._header] if earlier is None else [*earlier.headers, self._header]
        before = (
            earlier.records.places if earlier is not None and isinstance(earlier.records, Entries) else {}
        )
        nodes = self._nodes if earlier is None else earlier.nodes | self._nodes
        return Journal(
            headers, Entries(self.path / JOURNAL, {**before, **self._places}), 0, self._number, nodes
        )

    @property
    def is_lost(self) -> bool:
        """Whether its place has another journal now, or none: the folder was deleted, moved or replaced."""
        if self._fd < 0:
            return False
        try:
            here = (self.path / JOURNAL).stat()
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:  # who may not look may still write
            return False
        mine = os.fstat(self._fd)
        return (here.st_dev, here.st_ino) != (mine.st_dev, mine.st_ino)

    def restore(self) -> None:
        """Write the journal again, as a whole, to a place that has lost it.

        Raises
        ------
        FileExistsError
            If somebody else's files are there now.
        BlockingIOError
            If another run has that place.
        OSError
            If it cannot be written.
        """
        theirs = {name for name in _names(self.path) - _OWN if not name.startswith(PREFIX)}
        if self.path.is_symlink() and not self._is_link and theirs:
            raise FileExistsError(f"{self.path} is a link now, to a folder with other files")
        make_private(self.path)
        (self.path / "logs").mkdir(exist_ok=True)
        new = os.open(self.path / JOURNAL, _FLAGS, 0o666)
        try:
            self._held.move(new)
            self._copy_to(new)
        except BaseException:
            self._held.move(self._fd)
            os.close(new)
            raise
        with self._lock:
            old, self._fd = self._fd, new
        os.close(old)
        if self.token:
            (self.path / self.token).touch()

    def _copy_to(self, new: int) -> None:
        """Copy the journal to a file that may hold the beginning of it."""
        at, there, end = 0, os.fstat(new).st_size, os.fstat(self._fd).st_size
        while at < there:
            mine = os.pread(self._fd, min(_BLOCK, there - at), at)
            if not mine or os.pread(new, len(mine), at) != mine:
                raise FileExistsError(f"{self.path} holds another journal now")
            at += len(mine)
        while at < end:
            at += os.write(new, os.pread(self._fd, _BLOCK, at))

    def close(self, *, sync: bool = True) -> None:
        """Release the folder; what was appended is on disk before, unless that was seen to."""
        if sync:
            with contextlib.suppress(OSError):
                self.sync()
        if self.token and self._fd >= 0:
            remove_tokens(self.path)
        with self._lock:
            if self._fd >= 0:
                self._held.release()
                os.close(self._fd)
            self._fd = -1
        _open.discard(self)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:  # who made it was interrupted: it must not keep the folder
            self.close(sync=False)

    def _close_in_child(self) -> None:
        """Give up the copy of the descriptor that a fork has: it would hold the lock when this process is gone."""
        self._lock = threading.Lock()
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def _after_fork() -> None:
    for folder in list(_open):
        folder._close_in_child()
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _names(folder: Path) -> set[str]:
    """Names in a folder; none if there is none."""
    try:
        return {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        return set()


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
