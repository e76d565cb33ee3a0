"""How a task can fail, as exceptions. `Run.results` and futures raise these."""

from __future__ import annotations

import linecache
import os
import pickle
import re
import signal

from .engines.protocol import Failure

__all__ = [
    "OutOfMemory",
    "RemoteTraceback",
    "SetupError",
    "TaskError",
    "TaskSkipped",
    "TaskTimeout",
    "WorkerDied",
    "exit_in_words",
    "message_of",
    "out_of_memory",
    "revive",
]


class TaskError(RuntimeError):
    """A task failed."""


class WorkerDied(TaskError):
    """The process that ran the task ended before the task did."""


class TaskTimeout(TaskError, TimeoutError):
    """The task ran longer than its timeout and was ended."""


class OutOfMemory(TaskError, MemoryError):
    """The system killed the task's process for want of memory, or what it asked for did not become free.

    An error that the task itself raised, ``torch.OutOfMemoryError`` or ``MemoryError``, comes as it is:
    ``record.status == "out-of-memory"`` tells all of them.
    """


class TaskSkipped(TaskError):
    """The task did not start, for one that it waits for was not ok."""


class SetupError(TaskError):
    """The pool's setup failed, so no task could run."""


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


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out: Python's, torch's on a device, torch's on a CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = message_of(error) if isinstance(error, RuntimeError) else ""
    return "not enough memory" in said or "can't allocate memory" in said  # torch's CPU allocators


def message_of(error: BaseException) -> str:
    """Return an exception's message, also of one that cannot say it."""
    try:
        return str(error)
    except BaseException as broken:
        return f"<its message raised {type(broken).__name__}>"


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


def exit_in_words(status: int | None) -> str:
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
