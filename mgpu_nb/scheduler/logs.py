"""Log records of tasks and of the scheduler, given to the handlers of this process by a thread of their own."""

from __future__ import annotations

import logging
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..engines.base import Logged
from ..output import clean
from .job import Job
from .outcome import Location

__all__ = ["LogForwarder"]

log = logging.getLogger("mgpu_nb")
ours = logging.getLogger("mgpu_nb.scheduler")

WAITING = 10_000  # records that wait for a slow handler; others are counted
ENDS = 5.0  # seconds in which a pool that closes has them handled


class _Entry(NamedTuple):
    record: Logged
    where: Location
    task: str
    run: str


class LogForwarder:
    """Hands records to the loggers of this process. A handler is a user's code: it may wait, raise and log itself.

    The thread starts with the first record.
    """

    def __init__(self) -> None:
        self._entries: deque[_Entry | logging.LogRecord] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._left_out = 0
        self._closed = False

    def put(self, record: Logged, where: Location, job: Job | None) -> None:
        """Take a record of a job, or of a worker that has none; returns at once."""
        with self._changed:
            if len(self._entries) >= WAITING:
                self._left_out += 1 + record.left_out
                return
            if self._left_out:
                record, self._left_out = record._replace(left_out=record.left_out + self._left_out), 0
            task, run = ("", "") if job is None else (job.name, job.run_name)
            self._add(_Entry(record, where, task, run))

    @property
    def asked(self) -> bool:
        """Whether anybody wants to know what `debug` says."""
        return ours.isEnabledFor(logging.DEBUG)

    def debug(self, who: object, text: str, *values: object) -> None:
        """Say what the scheduler does with a job or a worker; costs nothing where nobody asks."""
        if not self.asked:
            return
        name = (who.name or f"{who.label}, number {who.ident}") if isinstance(who, Job) else str(who)
        line = clean(f"[{name}] {text % values}")
        record = ours.makeRecord(ours.name, logging.DEBUG, __file__, 0, line, (), None, "debug")
        with self._changed:
            if len(self._entries) >= WAITING:
                self._left_out += 1
            else:
                self._add(record)

    def _add(self, entry: _Entry | logging.LogRecord) -> None:
        self._entries.append(entry)
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="mgpu_nb-logs", daemon=True)
            with suppress(RuntimeError):  # no thread is left: the next record tries again
                thread.start()
                self._thread = thread
        self._changed.notify()

    def close(self) -> None:
        """End the thread once it has handled what there is; wait for that a moment."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(ENDS)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._entries and not self._closed:
                    self._changed.wait()
                if not self._entries:
                    return
                entry = self._entries.popleft()
            # What a handler raises is the business of whoever made it, and no reason to leave out the next record.
            if isinstance(entry, logging.LogRecord):
                with suppress(Exception):
                    ours.handle(entry)
                continue
            if entry.record.left_out:
                with suppress(Exception):
                    log.warning(
                        "[%s] %d log records are left out: they came too fast",
                        _who(entry),
                        entry.record.left_out,
                    )
            if entry.record.level:  # else it only tells that number
                with suppress(Exception):
                    _handle(entry)


def _who(entry: _Entry) -> str:
    return entry.task or f"slot {entry.where.slot}"


def _handle(entry: _Entry) -> None:
    record, where = entry.record, entry.where
    logger = logging.getLogger(record.name if record.name != "root" else None)
    who = _who(entry)
    if not logger.isEnabledFor(record.level):
        return
    lines = "\n".join(map(clean, record.message.splitlines()))
    file = Path(record.path)
    fields: dict[str, Any] = {
        "name": record.name,
        "levelno": record.level,
        "levelname": logging.getLevelName(record.level),
        "msg": f"[{who}] {lines}",
        "created": record.created,
        "msecs": record.created % 1 * 1000,
        "pathname": record.path,
        "filename": file.name,
        "module": file.stem,
        "lineno": record.line,
        "funcName": record.function,
        "process": where.pid,
        "processName": who,
        "threadName": record.thread,
        "exc_text": "\n".join(map(clean, record.traceback.splitlines())) or None,
        "task": entry.task,
        "run": entry.run,
        "slot": where.slot,
        "device": where.device,
        "uuid": where.uuid,
        "host": where.host,
    }
    logger.handle(logging.makeLogRecord(fields))
