"""Metrics of a run over time: ``metrics.jsonl`` in its folder, a line for each report of a task.

::

    {"task": "fit-0", "attempt": 1, "step": 3, "time": 1.25, "values": {"loss": 0.5}}

The parent process appends what its workers send; whoever shows the run reads on from where it was. Times are seconds
since the attempt began, numbers have their type, and NaN and Infinity are written as Python's json does.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import os
import sys
import threading
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .files import atomic_write, whole_lines

__all__ = [
    "FILE",
    "MOST",
    "History",
    "Points",
    "Series",
    "SeriesKey",
    "Thinning",
    "format_points",
    "is_number",
]

log = logging.getLogger("mgpu_nb")

FILE = "metrics.jsonl"
MOST = 10_000  # points of one metric that are kept of an attempt; even, so that halves stay in step
WRITE_EVERY = 0.2  # seconds
_LARGEST = int(sys.float_info.max)
UNWRITTEN = 2**24  # bytes that are kept while they cannot be written
_EXACT = 2**53  # up to here a double holds every integer

Number = int | float


def is_number(value: object) -> bool:
    """Whether a value is a point of a metric: a double, NaN too, or an integer that one could hold, no bool."""
    return type(value) is float or (type(value) is int and -_LARGEST <= value <= _LARGEST)


class Thinning:
    """Which points of a metric are kept: all of the first `MOST`, then every 2nd, every 4th and so on.

    The first is always kept. Whoever keeps the points removes every second of them when there are `MOST` and another
    comes, so that at any time they are evenly spaced.
    """

    __slots__ = ("_kept", "_seen", "_stride")

    def __init__(self) -> None:
        self._seen, self._stride, self._kept = 0, 1, 0

    def keeps(self) -> bool:
        """Whether the next point is kept."""
        place, self._seen = self._seen, self._seen + 1
        if place % self._stride:
            return False
        self._kept += 1
        if self._kept == MOST:
            self._stride *= 2
            self._kept //= 2
        return True


class SeriesKey(NamedTuple):
    """What was reported, and by which attempt at which task."""

    name: str
    task: str
    attempt: int


class Series:
    """Points of one metric of one attempt, in the order in which they were reported; 24 bytes each.

    Attributes
    ----------
    steps, times, values
        Integers stay integers, of any size. Times in seconds since the attempt began.
    """

    __slots__ = ("steps", "times", "values")

    def __init__(self) -> None:
        self.steps: array[Any] | list[Number] = array("q")
        self.times = array("d")
        self.values: array[Any] | list[Number] = array("q")

    def append(self, step: Number, time: float, value: Number) -> None:
        """Add a point; beyond `MOST` every second of those before it is removed."""
        if len(self.times) >= MOST:
            self.steps, self.times, self.values = self.steps[::2], self.times[::2], self.values[::2]
        self.steps = _appended(self.steps, step)
        self.times.append(time)
        self.values = _appended(self.values, value)

    def copy(self) -> Series:
        """The same points, which stay as they are."""
        other = Series()
        other.steps, other.times, other.values = self.steps[:], self.times[:], self.values[:]
        return other

    def __len__(self) -> int:
        return len(self.times)


def _appended(numbers: array[Any] | list[Number], number: Number) -> array[Any] | list[Number]:
    """The numbers and one more, in an array of integers or of doubles while that is exact."""
    if isinstance(numbers, list):
        fits = True
    elif numbers.typecode == "q":
        fits = isinstance(number, int) and -(2**63) <= number < 2**63
    else:
        fits = isinstance(number, float) or abs(number) <= _EXACT
    if not fits:
        exact = isinstance(number, float) and all(abs(n) <= _EXACT for n in numbers)
        numbers = array("d", numbers) if exact else list(numbers)
    numbers.append(number)
    return numbers


def format_points(
    task: str, attempt: int, points: Iterable[tuple[Number, float, Mapping[str, Number]]]
) -> bytes:
    """Lines of the file for the points (step, time, values) of an attempt."""
    head = f'{{"task": {json.dumps(task)}, "attempt": {attempt}, "step": '
    return "".join(
        f'{head}{step!r}, "time": {time:.6f}, "values": {json.dumps(values)}}}\n'
        for step, time, values in points
    ).encode()


class Points:
    """Reads the file of metrics on from where it was."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self._inode, self._at = 0, 0

    def read(self, most: int = -1) -> tuple[list[dict[str, Any]], bool]:
        """New lines as mappings, of at most about so many bytes, and whether the file is another than before."""
        with contextlib.suppress(FileNotFoundError), self._file.open("rb") as file:
            found = os.fstat(file.fileno())
            replaced = found.st_ino != self._inode or found.st_size < self._at
            if replaced:
                self._inode, self._at = found.st_ino, 0
            lines, self._at = whole_lines(file, self._at, most)
            return [entry for entry in _parsed(lines) if entry is not None], replaced
        return [], False

    @property
    def behind(self) -> int:
        """Bytes that were not read."""
        try:
            return max(0, self._file.stat().st_size - self._at)
        except FileNotFoundError:
            return 0


class History:
    """Metrics of a run over time, appended to and read from its folder; thread-safe.

    The owner of the run calls `forget` and `add`; anyone may call `refresh` and then look at `series`. The main thread
    does so within `interrupts.uninterruptible` alone: an interrupt would lose points that are read but not taken in,
    write lines twice, or leave a lock locked.

    Parameters
    ----------
    folder
        Folder of the run.
    tasks
        Its tasks: an earlier run may have left others in the folder. None for all.
    """

    def __init__(self, folder: Path, tasks: Collection[str] | None = None) -> None:
        self._tasks = None if tasks is None else frozenset(tasks)
        self._file = folder / FILE
        self._pending: list[bytes] = []
        self._size = 0  # bytes that are pending
        self._failure = ""
        self.later: Callable[[Callable[[], None], float], None] | None = None
        """Calls a function some seconds later, from a thread that may wait for a disk; a timer's by default."""
        self._soon = False  # whether it was asked to flush
        self._adding, self._writing, self._reading = threading.Lock(), threading.Lock(), threading.RLock()
        self._points = Points(folder)
        self._series: dict[str, dict[SeriesKey, Series]] = {}  # by name; last the one that was added to last

    # For the owner.

    def forget(self, tasks: Collection[str]) -> None:
        """Remove what an earlier run wrote of tasks that are run again, and a truncated last line.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        if not self._file.exists():
            return
        lines = self._file.read_bytes().splitlines(keepends=True)
        kept = [
            line
            for line, entry in zip(lines, _parsed(lines), strict=True)
            if entry and entry["task"] not in tasks and line.endswith(b"\n")
        ]
        if len(kept) < len(lines):
            with atomic_write(self._file) as part:
                part.write_bytes(b"".join(kept))

    def add(self, lines: bytes) -> None:
        """Append lines soon, from another thread."""
        if not lines:
            return
        with self._adding:
            if self._size > UNWRITTEN:  # the disk takes nothing
                self._failure = self._failure or "the disk takes nothing"
                return
            self._pending.append(lines)
            self._size += len(lines)
            if self._soon:
                return
            self._soon = True
        if self.later is not None:
            self.later(self.flush, WRITE_EVERY)
            return
        timer = threading.Timer(WRITE_EVERY, self.flush)
        timer.daemon = True
        with contextlib.suppress(RuntimeError):  # the interpreter shuts down; the end of the run writes them
            timer.start()

    def flush(self) -> None:
        """Append now what was added; what cannot be written is tried again with the next."""
        with self._writing:
            with self._adding:
                data = b"".join(self._pending)
                self._pending = [data] if data else []
                self._soon = False
            if not data:
                return
            try:
                self._append(data)
            except OSError as error:  # a full disk must not end the run
                if not self._failure:
                    log.warning(
                        "%s cannot be written (%s): the run's metrics are incomplete until that works",
                        self._file,
                        error,
                    )
                self._failure = error.strerror or str(error)
                return
            with self._adding:
                self._failure = ""
                self._size -= len(data)
                del self._pending[0]

    def _append(self, data: bytes) -> None:
        """Append lines, all or none."""
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            before, view = os.fstat(descriptor).st_size, memoryview(data)
            try:
                while view:
                    view = view[os.write(descriptor, view) :]
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)

    @property
    def problem(self) -> str:
        """Why lines are not in the file; empty if all are, or will be soon."""
        return self._failure if self._pending else ""

    # For readers.

    def refresh(self, most: int = -1) -> None:
        """Read what was added since, at most about so many bytes; a file that was replaced is read anew."""
        self.flush()
        with self._reading:
            entries, replaced = self._points.read(most)
            if replaced:
                self._series.clear()
            for entry in entries:
                self._take(entry)

    @property
    def behind(self) -> int:
        """Bytes of the file that were not read."""
        return self._points.behind

    def _take(self, entry: Mapping[str, Any]) -> None:
        if self._tasks is not None and entry["task"] not in self._tasks:
            return
        for name, value in entry["values"].items():
            key, own = SeriesKey(name, entry["task"], entry["attempt"]), self._series.setdefault(name, {})
            series = own.pop(key, None) or Series()
            series.append(entry["step"], entry["time"], value)
            own[key] = series

    @property
    def names(self) -> list[str]:
        """Names of the metrics, in the order in which they were first reported."""
        with self._reading:
            return list(self._series)

    def keys(self, name: str) -> list[SeriesKey]:
        """Keys of the series of a metric."""
        with self._reading:
            return list(self._series.get(name, ()))

    def latest(self, name: str, most: int) -> list[SeriesKey]:
        """Keys of the series of a metric that were added to last, the last first."""
        with self._reading:
            return list(itertools.islice(reversed(self._series.get(name, {})), most))

    def count(self, name: str) -> int:
        """Number of the series of a metric."""
        return len(self._series.get(name, ()))

    def last(self, key: SeriesKey) -> Number | None:
        """Last value of a series; None if there is none."""
        with self._reading:
            series = self._series.get(key.name, {}).get(key)
            return None if series is None else series.values[-1]

    def series(self, key: SeriesKey) -> Series:
        """A copy of a series as far as it was read."""
        with self._reading:
            return self._series.get(key.name, {}).get(key, Series()).copy()


def _parsed(lines: Sequence[bytes]) -> list[dict[str, Any] | None]:
    """Content of lines; None for one that is damaged."""
    try:
        found = json.loads(b"[" + b",".join(lines) + b"]")
    except (ValueError, RecursionError):
        found = []
    if len(found) != len(lines):  # one of them is damaged
        found = [_one(line) for line in lines]
    return [entry if _sound(entry) else None for entry in found]


def _one(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _sound(entry: object) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("values"), dict):
        return False
    if not isinstance(entry.get("task"), str) or type(entry.get("attempt")) is not int:
        return False
    # An infinite step or time has no place in a picture; values may be anything.
    placed = all(is_number(entry.get(key)) and math.isfinite(entry[key]) for key in ("step", "time"))
    return placed and all(map(is_number, entry["values"].values()))
