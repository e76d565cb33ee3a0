"""How an attempt at a call ended: told by its worker, or concluded from the end of its process."""

from __future__ import annotations

import linecache
import os
import pickle
import re
import signal
import traceback
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..engines import payload
from ..engines.channel import Frame
from ..engines.oom import oom_kills
from ..engines.protocol import Failure, Measured, Message
from ..errors import OutOfMemory, TaskError, TaskTimeout, WorkerDied
from ..tasks import Status

__all__ = ["Coroner", "Location", "Outcome", "died", "told"]


class Location(NamedTuple):
    """Where an attempt ran."""

    slot: int
    device: str
    gpu_id: int | None
    uuid: str
    pid: int | None


@dataclass(slots=True)
class Outcome:
    """How an attempt ended. `value` where `status` is ok, else `exception`, `error` (a line) and `traceback`."""

    status: Status
    value: Any = None
    exception: BaseException | None = None
    error: str = ""
    traceback: str = ""
    place: Location | None = None
    measured: Measured | None = None


def told(frame: Frame) -> Outcome:
    """Return the outcome that a worker sent: a value, or an error of the task."""
    if frame.kind == Message.VALUE:
        measured: Measured | None = pickle.loads(frame.meta) if frame.meta else None
        try:
            return Outcome("ok", payload.loads(frame.body, frame.fds), measured=measured)
        except BaseException as broken:
            line = f"its value does not unpickle here: {type(broken).__name__}: {broken}"
            text = traceback.format_exc()
            return Outcome("error", None, TaskError(line), line, text, measured=measured)
    failure: Failure = pickle.loads(frame.meta)
    error, text = revive(failure)
    line = f"{failure.kind}: {failure.message}".strip().removesuffix(":")
    status: Status = "out-of-memory" if failure.out_of_memory else "error"
    return Outcome(status, None, error, line, text, measured=failure.measured)


class Coroner:
    """Says how processes came to their end; remembers how many the kernel killed for want of memory."""

    def __init__(self) -> None:
        self._oom_kills = oom_kills()

    def cause(self, exit_status: int | None) -> tuple[Status, str]:
        """Return status and words for a process that nobody of ours ended; `exit_status` as ``waitpid`` gives it."""
        if (
            exit_status is not None
            and os.WIFSIGNALED(exit_status)
            and os.WTERMSIG(exit_status) == signal.SIGKILL
        ):
            before, self._oom_kills = self._oom_kills or 0, oom_kills()
            if (self._oom_kills or 0) > before:
                return "out-of-memory", "killed by the system: the memory limit of its cgroup was reached"
        return "killed", describe_exit(exit_status)


_ERRORS: dict[str, type[TaskError]] = {
    "timeout": TaskTimeout,
    "out-of-memory": OutOfMemory,
    "killed": WorkerDied,
}


def died(task: str, status: Status, words: str, place: Location, output: str, measured: Measured) -> Outcome:
    """Return the outcome of a task whose process ended under it, with the end of what it wrote."""
    where = f"on {place.device} (slot {place.slot}, pid {place.pid})"
    error = _ERRORS.get(status, TaskError)(f"{f'task {task!r}' if task else 'the task'} {where}: {words}")
    if output:
        error.add_note(f"Its output ended with:\n{output}")
    return Outcome(status, None, error, words, output, place, measured)


class RemoteTraceback(Exception):
    """Carries the traceback text of the worker as the cause of an exception."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0].rstrip()}\n"""'


def revive(failure: Failure) -> tuple[BaseException, str]:
    """Return the worker's exception with its remote traceback as cause, and that traceback.

    An exception that does not survive pickling comes as a `TaskError` of the same text.
    """
    text = with_source(failure.traceback)
    error: BaseException | None = None
    if failure.exception:
        try:
            error = pickle.loads(failure.exception)
        except BaseException:
            error = None
    if not isinstance(error, BaseException):
        error = TaskError(f"{failure.kind}: {failure.message}")
    BaseException.__setattr__(error, "__cause__", RemoteTraceback(text))  # its class may be a frozen one
    return error, text


def with_source(text: str) -> str:
    """Fill in the source lines of notebook cells, which only the kernel knows."""
    lines = text.splitlines()
    out = []
    for i, line in enumerate(lines):
        out.append(line)
        match = re.match(r'  File "(.+)", line (\d+), in ', line)
        if match and not (i + 1 < len(lines) and lines[i + 1].startswith("    ")):
            source = linecache.getline(match[1], int(match[2])).strip()
            out.extend([f"    {source}"] if source else [])
    return "\n".join(out) + "\n"


def describe_exit(status: int | None) -> str:
    """Tell how a process ended, from its wait status; None where its server ended first."""
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
    said = {
        "SIGSEGV": "segmentation fault (SIGSEGV); the stack is in its log",
        "SIGBUS": "bus error (SIGBUS); the stack is in its log",
        "SIGABRT": "abort (SIGABRT); a library gave up, its log may say why",
        "SIGKILL": "killed (SIGKILL), by a person, a job scheduler or the system",
        "SIGTERM": "ended from outside (SIGTERM)",
        "SIGFPE": "arithmetic error (SIGFPE); the stack is in its log",
        "SIGILL": "illegal instruction (SIGILL): a library built for another processor?",
    }
    return said.get(name, f"ended by {name}")
