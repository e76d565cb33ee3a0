"""How a task can fail, as exceptions. `Run.results` and futures raise these."""

from __future__ import annotations

import contextlib
import sys
import warnings

__all__ = [
    "Interrupted",
    "NoSlots",
    "OutOfMemory",
    "SetupError",
    "TaskError",
    "TaskSkipped",
    "TaskTimeout",
    "WorkerDied",
    "add_note",
    "message_of",
    "out_of_host_memory",
    "out_of_memory",
    "warn_user",
]

_PACKAGE = __name__.partition(".")[0]


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


class NoSlots(TaskError):
    """No slot is left where the task could run, and no more will come: the message says what became of the nodes."""


class Interrupted(KeyboardInterrupt):
    """An interrupt of a wait, whose message says what goes on; a notebook shows that line alone."""

    def _render_traceback_(self) -> list[str]:
        return [f"KeyboardInterrupt: {self}"]


# It is shown under the name that users know.
Interrupted.__name__ = Interrupted.__qualname__ = "KeyboardInterrupt"
Interrupted.__module__ = "builtins"


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an exception, once; its class may be frozen, or have an `add_note` of its own."""
    notes = getattr(error, "__notes__", None)
    if isinstance(notes, list) and note in notes:
        return
    try:
        BaseException.add_note(error, note)  # since Python 3.11
    except Exception:
        with contextlib.suppress(Exception):
            BaseException.__setattr__(error, "__notes__", [*(notes if isinstance(notes, list) else ()), note])


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out: Python's, torch's on a device, torch's on a CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    message = message_of(error) if isinstance(error, RuntimeError) else ""
    return "not enough memory" in message or "can't allocate memory" in message  # torch's CPU allocators


def out_of_host_memory(error: BaseException | None) -> bool:
    """Whether an exception means that RAM ran out, not a device's memory."""
    return error is not None and out_of_memory(error) and type(error).__name__ != "OutOfMemoryError"


def message_of(error: BaseException) -> str:
    """Message of an exception, also of one whose ``__str__`` raises; a plain string, whatever kind that gives."""
    try:
        # That of KeyError is the repr of its argument, and a loader process of torch has it return a class of torch.
        return str.__str__(str(error))
    except BaseException as broken:
        return f"<its message raised {type(broken).__name__}>"


def warn_user(message: str, cell: int | None = None) -> None:
    """Warn of the line outside of this package that called it, however deep within it we are.

    With `cell`, the number of a notebook's cell, warn of that: it has ended.
    """
    if cell is not None:
        warnings.warn_explicit(message, UserWarning, f"cell [{cell}]", 1)
        return
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
