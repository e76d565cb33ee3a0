"""The thread that writes the folder of a run, so that nobody else waits for a disk.

Records, logs and what else is to be written are handed over and come to the disk in their order. What cannot be
written is kept, said once and tried again: while the run goes on, at its end, and after it until it is there or the
process ends. While a disk stands still only so much text is kept: that of values is made anew from the records, whose
values are in memory anyway, and output of tasks is left out, which the log says.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from ..tasks import Record
from .export import TABLES
from .files import file_stem, remove_parts
from .journal import RunFolder, text_of
from .reading import JOURNAL
from .values import has_files, store_value, unwritten

__all__ = ["FolderWriter", "LogFile", "wait_for_writers"]

log = logging.getLogger("mgpu_nb")

GATHER = 0.002  # seconds between two turns while there is always more to write
TOGETHER = 64  # records that are written at once
SYNC = 1.0  # seconds after which records are on disk, and a folder that was deleted is noticed
AGAIN = 1.0  # seconds until what could not be written is tried again, while the run goes on
LATER = 15.0  # the same after its end
MOST = 2**26  # bytes of values, and of logs, that wait to be written
_LASTING = {errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG}

_writers: set[FolderWriter] = set()


class LogFile:
    """Log of a task, appended to by the writer's thread.

    Attributes
    ----------
    begins
        Byte at which the output of this run begins; None before any is written.
    """

    __slots__ = ("_descriptor", "_ends", "_left_out", "_noted", "_path", "_pending", "_writer", "begins")

    def __init__(self, writer: FolderWriter, path: Path) -> None:
        self._writer, self._path = writer, path
        self.begins: int | None = None
        self._descriptor = -1
        self._pending: deque[bytes] = deque()
        self._left_out = self._noted = 0  # bytes; counted by the caller and by the writer's thread
        self._ends = False

    def write(self, data: bytes) -> None:
        """Append what a task wrote, soon."""
        if self._writer._takes_output(len(data)):
            self._writer.call(lambda: self._add(data))
        else:
            self._left_out += len(data)

    def close(self) -> None:
        """Close the file once all is written."""
        self._writer.call(self._end)

    # In the writer's thread.

    def _add(self, data: bytes) -> None:
        self._pending.append(data)
        self._writer._logs[self] = None

    def _end(self) -> None:
        self._ends = True
        self._writer._logs[self] = None

    def _flush(self) -> None:
        if self._descriptor < 0:
            with contextlib.suppress(OSError):  # deleted, and the folder of the run is there
                self._path.parent.mkdir(exist_ok=True)
            self._descriptor = os.open(
                self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666
            )
            if self.begins is None:
                self.begins = os.fstat(self._descriptor).st_size
        while self._pending:
            written = os.write(self._descriptor, self._pending[0])
            self._writer._output_taken += written
            if written < len(self._pending[0]):
                self._pending[0] = self._pending[0][written:]
            else:
                self._pending.popleft()
        if missing := self._left_out - self._noted:
            os.write(self._descriptor, b"\n... %d bytes are left out: the disk was too slow\n" % missing)
            self._noted += missing
        if self._ends:
            self._release()

    def _release(self) -> None:
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):  # a quota may be reported only now
                os.close(self._descriptor)
        self._descriptor = -1


class FolderWriter:
    """Writes the folder of a run. Its methods may be called from any thread and wait for no disk.

    Parameters
    ----------
    store
        The folder; closed when all is written.
    records
        Records of the run that are in memory: from these values are written again, should the folder be deleted.
    """

    def __init__(self, store: RunFolder, records: Callable[[], Iterable[Record]]) -> None:
        self._store, self._in_memory = store, records
        self._post: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._records: deque[tuple[Record, str | None]] = deque()  # that are not in the journal
        self._nodes: deque[tuple[str, Mapping[str, Any]]] = deque()  # that are not in the journal
        self._values: deque[Record] = deque()  # whose values are not on disk
        self._logs: dict[LogFile, None] = {}  # that have something to write, or end
        self._with_files: dict[str, None] = {}  # tasks whose values are in files
        self._late: list[tuple[float, Callable[[], None]]] = []
        self._tried: list[threading.Event] = []
        # Bytes of text and of output that were handed over, counted by one thread, and written, counted by the other.
        self._text_given = self._text_taken = self._output_given = self._output_taken = 0
        self._due: float | None = None  # when the journal is synchronised
        self._again: float | None = None  # when what has failed is tried again
        self._turned = 0.0
        self._failing: set[str] = set()
        self._told: set[str] = set()
        self._failure = self._lasting = ""
        self._end: tuple[Callable[[], bool], Callable[[bool], None]] | None = None
        self._syncing: threading.Thread | None = None
        self._unrestored = ""  # why the journal could not be written again
        self._finished = self._leaving = self._over = False
        self._ended = threading.Event()
        self.thread = threading.Thread(target=self._run, name="mgpu_nb-writer", daemon=True)
        _writers.add(self)
        self.thread.start()

    # Called from any thread.

    def record(self, record: Record, value: str | None) -> None:
        """Write a record; `value` is the JSON text of its value, None to have it made when the record is written."""
        text = value
        if text is not None and self._text_given - self._text_taken > MOST:
            text = None  # the disk stands still
        self._text_given += 0 if text is None else len(text)
        self._post.put(lambda: self._records.append((record, text)))

    def node(self, name: str, made: Mapping[str, Any]) -> None:
        """Write what a node is made of."""
        self._post.put(lambda: self._nodes.append((name, made)))

    def keep(self, index: int, name: str, value: Any, kept: Callable[[str], None]) -> None:
        """Write the value of a task that no worker has written; `kept` is called, in its thread, with its JSON text."""

        def keep() -> None:
            try:
                text = store_value(self._store.path, file_stem(index, name), value)
            except Exception as error:  # whatever is in it: somebody waits for this
                self._lose(f"the value of {name!r} could not be written ({type(error).__name__}: {error})")
                text = "null"
            kept(text)

        self._post.put(keep)

    def log(self, path: Path) -> LogFile:
        """File for the output of a task."""
        return LogFile(self, path)

    def call(self, action: Callable[[], None], after: float = 0.0) -> None:
        """Call a function that may wait for the disk, some seconds later."""
        if after:
            self._post.put(lambda: self._late.append((time.monotonic() + after, action)))
        else:
            self._post.put(action)

    def flush(self, timeout: float) -> bool:
        """Wait until what was handed over is written or has failed; False if that takes longer than some seconds."""
        if not self.thread.is_alive():
            return True
        written = threading.Event()
        self._post.put(lambda: self._late.append((0.0, written.set)))
        return written.wait(timeout)

    def flush_logs(self, timeout: float) -> bool:
        """Wait until what tasks wrote so far is in their logs; False if that takes longer than some seconds."""
        return self._output_given == self._output_taken or self.flush(timeout)

    def finish(self, export: Callable[[], bool], settled: Callable[[bool], None]) -> None:
        """End the run once what was handed over is written or has failed.

        `export` writes the rest and says whether that worked. If anything is not written, all of it is tried again
        later: the folder stays locked until that works, or it is gone, or `leave`. `settled` is called after the first
        attempt, and once the folder is closed if that comes later; with whether it is closed.
        """

        def finish() -> None:
            self._end = export, settled
            self._failing.clear()

        self._post.put(finish)

    def try_again(self, timeout: float) -> None:
        """Write now what could not be written before; waits some seconds at most."""
        tried = threading.Event()

        def again() -> None:
            self._again = 0.0
            self._tried.append(tried)

        if self.thread.is_alive():
            self._post.put(again)
            end = time.monotonic() + timeout
            while self.thread.is_alive() and time.monotonic() < end and not tried.wait(0.05):
                pass

    def leave(self, timeout: float) -> None:
        """Try once more and close the folder, whatever is not written; waits some seconds at most."""

        def leave() -> None:
            self._leaving, self._again = True, 0.0

        if self.thread.is_alive():
            self._post.put(leave)
            self._ended.wait(timeout)

    @property
    def problem(self) -> str:
        """What is not on disk, and why; empty if all is."""
        logs = sum(1 for log in list(self._logs) if log._pending)
        counts = (("record", len(self._records)), ("value", len(self._values)), ("log", logs))
        left = [f"{count} {what}{'s' * (count > 1)}" for what, count in counts if count]
        found = [text for text in (self._lasting, self._unrestored) if text]
        if left:
            which = "the journal" if self._records else "the folder"
            why = self._failure or "the disk takes nothing"
            found.append(f"{which} could not be written ({why}): {', '.join(left)} in memory only")
        elif "journal" in self._failing:
            found.append(f"the journal may not be on the disk itself ({self._failure})")
        return "; ".join(found)

    def _takes_output(self, size: int) -> bool:
        """Count output that is handed over; False if too much of it waits already."""
        if self._output_given - self._output_taken > MOST:
            return False
        self._output_given += size
        return True

    # In its thread.

    def _run(self) -> None:
        try:
            while not self._over:
                try:
                    self._turn()
                except Exception:  # a fault of ours must not become a hang of theirs
                    log.exception("run folder %s: a fault of its writer", self._store.path)
                    time.sleep(0.1)
        finally:
            self._ended.set()
            _writers.discard(self)

    def _turn(self) -> None:
        """Do what was handed over, then what is due."""
        for action in self._take():
            self._do(action)
        self._turned = now = time.monotonic()
        if self._again is not None and now >= self._again:
            self._again = None
            self._failing.clear()
            self._check()
            if self._over:
                return
        self._write()
        for action in [action for at, action in self._late if at <= now]:
            self._do(action)
        self._late = [(at, action) for at, action in self._late if at > now]
        if self._due is not None and now >= self._due:
            self._due = None
            self._check()
            self._sync_soon()
        if self._end is not None and (self._leaving or not self._failing or not self._finished):
            self._finish(*self._end)
        elif self._leaving:
            self._close()
        for tried in self._tried:
            tried.set()
        self._tried.clear()

    def _do(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:  # what was handed over after it is not its fault
            log.exception("run folder %s: something could not be written", self._store.path)

    def _take(self) -> deque[Callable[[], None]]:
        """What was handed over; waits for it until something is due."""
        times = [at for at in (self._due, self._again, *(at for at, _ in self._late)) if at is not None]
        left = min(times) - time.monotonic() if times else None
        actions: deque[Callable[[], None]] = deque()
        if time.monotonic() - self._turned < GATHER:  # many come: a turn for each would cost the others time
            time.sleep(GATHER)
        with contextlib.suppress(Empty):
            actions.append(self._post.get(timeout=None if left is None else max(0.0, left)))
            while len(actions) < 64:
                actions.append(self._post.get_nowait())
        return actions

    def _write(self) -> None:
        """Write records, values and output; what has failed waits until it is tried again."""
        self._try("records", self._write_records)
        self._try("values", self._write_values)
        self._try("logs", self._write_logs)
        if self._failure and not self._failing and not (self._records or self._values or self._logs):
            log.info("run folder %s: all that could not be written is written now", self._store.path)
            self._failure = ""

    def _try(self, what: str, write: Callable[[], None]) -> None:
        if what in self._failing:
            return
        try:
            write()
        except OSError as error:
            self._failed(what, error)

    def _write_records(self) -> None:
        while self._nodes:
            self._store.append_node(*self._nodes[0])
            self._nodes.popleft()
        while self._records:
            together = [self._text(*entry) for entry in islice(self._records, TOGETHER)]
            self._store.append_all([(record.name, text) for record, _, text in together if text])
            for record, value, _ in together:
                taken = self._records.popleft()[1]
                self._text_taken += 0 if taken is None else len(taken)
                if has_files(value):
                    self._with_files[record.name] = None
                if record.ok and (reason := unwritten(value)):
                    self._values.append(record)
                    self._tell(reason)
            self._due = self._due or time.monotonic() + SYNC

    def _text(self, record: Record, value: str | None) -> tuple[Record, str, str]:
        """A record with the JSON text of its value and its own; that is empty if it has none."""
        try:
            value = self._stored(record) if value is None else value
            return record, value, text_of(record, value)
        except OSError:
            raise
        except Exception as error:  # whatever is in it: the others must not wait for it
            self._lose(
                f"the journal could not be written for {record.name!r} ({type(error).__name__}: {error})"
            )
            return record, "null", ""

    def _write_values(self) -> None:
        """Write values that workers could not write, or that were deleted."""
        while self._values:
            value = self._stored(self._values[0])
            if reason := unwritten(value):
                raise OSError(reason)
            self._store.append(self._values[0], value)
            self._with_files[self._values.popleft().name] = None

    def _stored(self, record: Record) -> str:
        return store_value(self._store.path, file_stem(record.index, record.name), record.value)

    def _write_logs(self) -> None:
        failure: OSError | None = None
        for each in list(self._logs):
            try:
                each._flush()
                del self._logs[each]
            except OSError as error:
                failure = error
                if self._end is not None and error.errno in _LASTING:  # it would be tried for ever
                    del self._logs[each]
                    self._lose(f"logs are incomplete ({error.strerror})")
        if failure is not None and self._logs:
            raise failure

    def _failed(self, what: str, error: OSError) -> None:
        self._failing.add(what)
        self._again = time.monotonic() + (LATER if self._finished else AGAIN)
        self._tell(error.strerror or str(error))

    def _tell(self, reason: str) -> None:
        """Say why something cannot be written, once."""
        self._failure = reason
        if reason not in self._told:
            self._told.add(reason)
            log.warning(
                "run folder %s cannot be written (%s): what is not written is kept in memory and tried again",
                self._store.path,
                reason,
            )

    def _lose(self, what: str) -> None:
        """Note what is lost for good."""
        if what not in self._lasting:
            self._lasting = "; ".join(filter(None, (self._lasting, what)))
            log.warning("run folder %s: %s", self._store.path, what)

    def _check(self) -> None:
        """Write the journal again if the folder was deleted, moved or replaced."""
        try:
            if not self._store.is_lost:
                return
            if self._finished and not self._store.path.exists():  # deleted after the run had ended
                self._close()
                return
            self._store.restore()
        except OSError as error:
            self._unrestored = f"its folder is gone, the journal cannot be written there again ({error})"
            self._failed("records", error)
            if self._finished and isinstance(error, FileExistsError):
                self._close()
            return
        for each in self._logs:
            each._release()
        self._unrestored = ""
        self._lose(
            "its folder was deleted or replaced while it ran: the journal was written again, and values from memory, "
            "but logs and metrics until then are lost"
        )
        names, self._with_files = self._with_files, {}
        self._values.extend(record for record in self._in_memory() if record.name in names)

    def _sync_soon(self) -> None:
        """Have the journal on disk, by a thread of its own: records that come meanwhile are written."""
        if self._syncing is not None and self._syncing.is_alive():
            self._due = time.monotonic() + SYNC
            return
        self._syncing = threading.Thread(target=self._sync, name="mgpu_nb-sync", daemon=True)
        # At the end of the interpreter no thread is started any more: done when the run has ended.
        with contextlib.suppress(RuntimeError):
            self._syncing.start()

    def _sync(self) -> None:
        with contextlib.suppress(OSError):  # told at the end, or when something is written
            self._store.sync()

    def _finish(self, export: Callable[[], bool], settled: Callable[[bool], None]) -> None:
        """Write the rest; the thread ends if nothing is left, or nothing will be tried any more."""
        self._check()
        if self._over:
            return
        self._write()
        self._try("journal", self._store.sync)
        if not self._finished:
            remove_parts(self._store.path / "values")
            remove_parts(self._store.path, JOURNAL, *TABLES)
        if not export():
            self._failing.add("tables")
        if self._leaving or not self._failing:
            self._close()
            return
        self._again = time.monotonic() + LATER
        if not self._finished:
            self._finished = True
            settled(False)

    def _close(self) -> None:
        """Close the folder; this thread ends."""
        self._over = True
        for each in self._logs:
            each._release()
        self._store.close(sync=False)
        if self._end is not None:
            self._end[1](True)


def wait_for_writers(timeout: float = 60.0) -> None:
    """Wait, at the end of the process, until all runs are written; what is not then is lost, and named."""
    end = time.monotonic() + timeout
    for writer in list(_writers):
        writer.leave(max(0.0, end - time.monotonic()))
        if writer.thread.is_alive() and not writer._ended.is_set():
            writer._tell("the disk takes nothing")
        if problem := writer.problem:
            log.warning("run folder %s: the process ends, and %s", writer._store.path, problem)
