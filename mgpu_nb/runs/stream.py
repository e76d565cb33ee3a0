"""What tasks print, passed on while they run, from their log files: neither tasks nor scheduler do anything for it."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..notebook import in_notebook
from ..output import Lines, clean
from .ledger import Ledger

if TYPE_CHECKING:
    from ..scheduler.dispatcher import Dispatcher

__all__ = ["LogStream", "SlotStream"]

# Bytes of a round, four times a second. Jupyter takes a million a second from a kernel, and a page less.
IN_A_CELL, ELSEWHERE = 2**17, 2**23
FLUSH = 0.5  # seconds that are waited for a disk
PIECE = 2**20  # bytes that are read at once where lines are only counted


class _Progress(NamedTuple):
    """How far a stream has come.

    Attributes
    ----------
    seen
        Number of records.
    ended
        Tasks whose output is not all in their logs yet.
    read
        By task: bytes read of its log, and its unfinished line.
    unwritten
        What was read and is to be written.
    """

    seen: int
    ended: Sequence[str]
    read: Mapping[str, tuple[int, Lines]]
    unwritten: list[str]


class LogStream:
    """Whole lines of the tasks of a run, each once, also if an interrupt comes between.

    Parameters
    ----------
    ledger
        State of the run.
    task
        The only task to follow, whose lines have no prefix; None for all, each with ``name | `` before its lines.
    """

    def __init__(self, ledger: Ledger, task: str | None = None) -> None:
        self._ledger = ledger
        self._task = task
        self._progress = _Progress(0, (), {}, [])  # replaced as one
        self._lock = threading.RLock()  # if an interrupt leaves it locked, its thread can go on all the same

    def pump(self, write: Callable[[str], object]) -> None:
        """Write what is new, unless another thread is doing that."""
        if self._lock.acquire(blocking=False):
            try:
                self._progress = self._read_on()
                unwritten = self._progress.unwritten
                while unwritten:
                    write(unwritten.pop(0))
            finally:
                self._lock.release()

    def _read_on(self) -> _Progress:
        before = self._progress
        running = [job.name for job in self._ledger.running]
        new = self._ledger.ended_since(before.seen)
        ended = [*before.ended, *(record.name for record in new if record.log)]  # most write nothing
        late: list[str] = []
        if ended and not self._ledger.flush_logs(FLUSH):  # the disk is slow: the next time, or in `Run.logs`
            late, ended = ended, []
        over, reads = set(ended), dict(before.read)
        left = IN_A_CELL if in_notebook() else ELSEWHERE
        out: list[str] = []
        omitted: dict[str, int] = {}
        colours = in_notebook() or sys.stdout.isatty()
        for name in dict.fromkeys([*ended, *running]):
            begin = self._ledger.log_begins(name)
            if self._task == name and name in over and begin is None:
                begin = 0  # it was taken over from an earlier run
            if begin is None or self._task not in (None, name):
                continue
            at, lines = reads.pop(name, (begin, Lines()))
            lines = copy.copy(lines)
            data, at, skipped = _read(self._ledger.log_file(name), at, left)
            left -= len(data)
            if skipped:
                omitted[name] = skipped
                lines.end()
            found = lines.feed(data)
            if name in over:
                found += lines.end()
            else:
                reads[name] = at, lines
            prefix = "" if self._task is not None else f"{clean(name)} | "
            out += [f"{prefix}{clean(line, colours)}\n" for line in found]
        if omitted:
            out.insert(0, _note(omitted))
        text = ["".join(out)] if out else []
        return _Progress(before.seen + len(new), late, reads, before.unwritten + text)


def _note(omitted: dict[str, int]) -> str:
    first, *others = omitted
    of = f"of {len(omitted)} tasks " if others else ""
    where = "run.logs(task)" if others else f"run.logs({first!r})"
    return f"... {sum(omitted.values()):,} lines {of}left out, see {where}\n"


def _read(file: Path, at: int, most: int) -> tuple[bytes, int, int]:
    """What is new in a file from a place on, the end of it if that is more than `most` bytes.

    Returns
    -------
    tuple
        The data, the place after it, and the number of lines that were left out.
    """
    try:
        log = file.open("rb")
    except OSError:  # nothing was written yet
        return b"", at, 0
    with log:
        size = log.seek(0, 2)
        log.seek(at)
        skipped = 0
        while size - log.tell() > most:
            skipped += log.read(min(PIECE, size - log.tell() - most)).count(b"\n")
            if size - log.tell() <= most and most:  # to the next whole line
                log.readline(most)
                skipped += 1
        data = log.read(max(0, size - log.tell()))
        return data, log.tell(), skipped


class SlotStream:
    """Whole lines that plain calls write from now on, each after the number of its slot."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._read = {slot: (slot.output[0], Lines()) for slot in dispatcher.slots}

    def pump(self, write: Callable[[str], object]) -> None:
        """Write what is new."""
        self._pump(write, last=False)

    def end(self, write: Callable[[str], object]) -> None:
        """Write what calls that have ended wrote, with lines that have no end."""
        self._dispatcher.read_output()
        self._pump(write, last=True)

    def _pump(self, write: Callable[[str], object], last: bool) -> None:
        for slot in self._dispatcher.slots:  # some may have come
            self._read.setdefault(slot, (0, Lines()))
        colours = in_notebook() or sys.stdout.isatty()
        out: list[str] = []
        for slot, (at, lines) in self._read.items():
            written, kept = slot.output
            prefix = f"slot {slot.slot.index} | "
            if written - at > len(kept):
                out.append(f"{prefix}... {written - at - len(kept):,} bytes left out\n")
                lines.end()
            found = lines.feed(kept[-(written - at) :]) if written > at else []
            found += lines.end() if last else []
            out += [f"{prefix}{clean(line, colours)}\n" for line in found]
            self._read[slot] = written, lines
        if out:
            write("".join(out))
