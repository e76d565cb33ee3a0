"""How an attempt at a call ended: as its worker reports, or concluded from the end of its process."""

from __future__ import annotations

import contextlib
import linecache
import os
import re
import signal
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Any, NamedTuple

from ..engines.base import Failure, Measured, NotPlain, Received
from ..errors import OutOfMemory, TaskError, TaskTimeout, WorkerDied, message_of
from ..output import one_line
from ..places import device_name
from ..tasks import Status

__all__ = [
    "Decoder",
    "Location",
    "Outcome",
    "RemoteTraceback",
    "describe_exit",
    "exit_reason",
    "outcome_of_exit",
    "outcome_of_failure",
    "outcome_of_value",
]


class Location(NamedTuple):
    """Where an attempt ran."""

    slot: int
    device: str
    gpu_id: int | None
    uuid: str
    pid: int | None
    host: str

    @property
    def place(self) -> str:
        """Its device for a reader: ``cuda:1``, and ``n1 cuda:1`` on another machine."""
        return device_name(self.device, self.host)


@dataclass(slots=True)
class Outcome:
    """How an attempt ended. `value` if `status` is ok, else `exception`, `error` (made one line) and `traceback`.

    `output` is the end of what the worker of a plain call that raised has written; `raised_by` is what to call the
    task where its exception needs a name to be understood.

    `lost` is not empty if that was for want of its machine: ``with node n2: REASON``; `lacking` if it was for want of
    something there, and names that.

    `decode` is there while a value or an exception is not unpickled yet: code of its class may run then, for long, so
    that is not done in the scheduler's thread. It completes the outcome.
    """

    status: Status
    value: Any = None
    exception: BaseException | None = None
    error: str = ""
    traceback: str = ""
    location: Location | None = None
    measured: Measured | None = None
    decode: Callable[[Outcome], None] | None = None
    output: str = ""
    raised_by: str = ""
    lost: str = ""
    lacking: str = ""

    def __post_init__(self) -> None:
        if self.error:
            self.error = one_line(self.error)

    def __str__(self) -> str:
        said = f"{self.status}: {self.error}" if self.error else str(self.status)
        if (measured := self.measured) is None:
            return said
        peaks = {"host": measured.peak_rss, "device": measured.peak_reserved}
        told = [f"{size / 2**20:,.0f} MiB of {where} memory at most" for where, size in peaks.items() if size]
        return ", ".join([f"{said}, {measured.seconds:.3f} s", *told])


def outcome_of_value(value: Received, measured: Measured | None) -> Outcome:
    """Outcome of a task that returned."""
    outcome = Outcome("ok", measured=measured)
    try:
        outcome.value = value.load_plain()
    except NotPlain:
        outcome.decode = _Decode(value.load).value
    except Exception as error:
        _does_not_unpickle(outcome, error)
    return outcome


def outcome_of_failure(failure: Failure, task: str = "the task") -> Outcome:
    """Outcome of a task that raised; `task` is what to call it where the exception needs a name to be understood."""
    line = f"{failure.kind}: {failure.message}".strip().removesuffix(":")
    status: Status = "out-of-memory" if failure.out_of_memory else "error"
    outcome = Outcome(status, error=line, traceback=with_source(failure.traceback), measured=failure.measured)
    outcome.raised_by = task
    if failure.exception:
        received = Received(failure.exception)
        try:
            _set_exception(outcome, received.load_plain())
        except NotPlain:
            outcome.decode = _Decode(received.load).exception
        except Exception:  # noqa: S110 - it comes as a TaskError of the same text
            pass
    if outcome.exception is None:
        _set_exception(outcome, TaskError(f"{failure.kind}: {failure.message}"))
    return outcome


class _Decode:
    """Completes an outcome with what `load` returns."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load

    def value(self, outcome: Outcome) -> None:
        try:
            outcome.value = self._load()
        except BaseException as error:
            _does_not_unpickle(outcome, error)

    def exception(self, outcome: Outcome) -> None:
        with contextlib.suppress(BaseException):
            _set_exception(outcome, self._load())


def _does_not_unpickle(outcome: Outcome, error: BaseException) -> None:
    outcome.status = "error"
    message = f"its value does not unpickle here: {type(error).__name__}: {message_of(error)}"
    outcome.error, outcome.exception, outcome.traceback = (
        one_line(message),
        TaskError(message),
        traceback.format_exc(),
    )


# Raised where a value is asked for, these would end the driver in silence (SystemExit), pass for the user's own
# interrupt, or end the loop or the coroutine that asks: they are the task's, and come as the cause of an error. So does
# all else that is no Exception.
_CONTROL_FLOW = (StopIteration, StopAsyncIteration, CancelledError)


def _set_exception(outcome: Outcome, error: object) -> None:
    if not isinstance(error, BaseException):
        return
    # Its class may be a frozen one.
    BaseException.__setattr__(error, "__cause__", RemoteTraceback(outcome.traceback))
    if not isinstance(error, Exception) or isinstance(error, _CONTROL_FLOW):
        raised, error = error, TaskError(f"{outcome.raised_by} raised {outcome.error}")
        error.__cause__ = raised
    outcome.exception = error


class Decoder:
    """Threads that unpickle what is not plain data. They start at the first such value.

    Parameters
    ----------
    done
        Called from a thread with a key and its outcome once that is complete.
    """

    THREADS = 4  # one value that takes for ever keeps one of them

    def __init__(self, done: Callable[[Any, Outcome], None]) -> None:
        self._done = done
        self._queue: deque[tuple[Any, Outcome]] = deque()
        self._changed = Condition()
        self._idle = 0
        self._threads = 0
        self._closed = False

    def submit(self, key: Any, outcome: Outcome) -> None:
        """Complete an outcome."""
        with self._changed:
            self._queue.append((key, outcome))
            if self._idle < len(self._queue) and self._threads < self.THREADS:
                with contextlib.suppress(RuntimeError):  # Python 3.12 starts no thread any more when it ends
                    Thread(target=self._run, name="mgpu_nb-decoder", daemon=True).start()
                    self._threads += 1
            if not self._threads:
                self._queue.pop()
                self._decode(key, outcome)
            self._changed.notify()

    def close(self) -> None:
        """End the threads once they have done what they were given."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                while not self._queue and not self._closed:
                    self._changed.wait()
                self._idle -= 1
                if not self._queue:
                    return
                key, outcome = self._queue.popleft()
            self._decode(key, outcome)
            key = outcome = None  # type: ignore[assignment]  # a waiting thread must not keep a value

    def _decode(self, key: Any, outcome: Outcome) -> None:
        decode, outcome.decode = outcome.decode, None
        if decode is not None:
            decode(outcome)
        self._done(key, outcome)


def exit_reason(status: int | None, out_of_memory: bool = False) -> tuple[Status, str]:
    """Status and reason of a process that nobody here ended; `status` as ``waitpid`` gives it."""
    if out_of_memory:
        return "out-of-memory", "killed by the system for want of memory"
    return "killed", describe_exit(status)


_ERRORS: dict[str, type[TaskError]] = {
    "timeout": TaskTimeout,
    "out-of-memory": OutOfMemory,
    "killed": WorkerDied,
}


def outcome_of_exit(
    task: str, status: Status, reason: str, location: Location, output: str, measured: Measured
) -> Outcome:
    """Outcome of a task whose process ended under it, with the end of what it wrote."""
    where = f"on {location.place} (slot {location.slot}, pid {location.pid})"
    error = _ERRORS.get(status, TaskError)(f"{f'task {task!r}' if task else 'the task'} {where}: {reason}")
    if output:
        error.add_note(f"Its output ended with:\n{output}")
    return Outcome(status, None, error, reason, output, location, measured)


LONG = 2**18  # characters of a traceback whose lines are looked through


class RemoteTraceback(Exception):
    """Carries the traceback text of the worker as the cause of an exception."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0].rstrip()}\n"""'


def with_source(text: str) -> str:
    """Traceback with the source lines of notebook cells, which only the parent process knows."""
    if len(text) > LONG:  # this is the scheduler's thread
        return text
    lines = text.splitlines()
    out = []
    for i, line in enumerate(lines):
        out.append(line)
        match = re.match(r'  File "(.+)", line (\d+), in ', line)
        if match and not (i + 1 < len(lines) and lines[i + 1].startswith("    ")):
            source = _line_of_cell(match[1], int(match[2])).strip()
            out.extend([f"    {source}"] if source else [])
    return "\n".join(out) + "\n"


def _line_of_cell(file: str, number: int) -> str:
    """Line of a cell; no file is read here: a traceback can name any, a pipe or one of a disk that hangs."""
    entry = linecache.cache.get(file, ())
    lines = entry[2] if len(entry) == 4 else []
    return lines[number - 1] if 0 < number <= len(lines) else ""


def describe_exit(status: int | None) -> str:
    """How a process ended, from its wait status; None if its server ended first."""
    if status is None:
        return "its process ended with the server that started it"
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return "its process ended with exit code 0 before the task did (os._exit was called?)"
    if code > 0:
        return (
            f"its process ended with exit code {code} before the task did (os._exit, or a library ended it)"
        )
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    meaning = {
        "SIGSEGV": "segmentation fault (SIGSEGV); the stack is in its log",
        "SIGBUS": "bus error (SIGBUS); the stack is in its log",
        "SIGABRT": "abort (SIGABRT); a library gave up, its log may say why",
        "SIGKILL": "killed (SIGKILL), by a person, a job scheduler or the system",
        "SIGTERM": "ended from outside (SIGTERM)",
        "SIGFPE": "arithmetic error (SIGFPE); the stack is in its log",
        "SIGILL": "illegal instruction (SIGILL): a library built for another processor?",
    }
    return meaning.get(name, f"ended by {name}")
