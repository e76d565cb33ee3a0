"""How an attempt at a call ended: told by its worker, or concluded from the end of its process."""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from dataclasses import dataclass
from typing import Any, NamedTuple

from .engines import payload
from .engines.channel import Frame
from .engines.oom import oom_kills
from .engines.protocol import Failure, Measured, Message
from .errors import OutOfMemory, TaskError, TaskTimeout, WorkerDied, exit_in_words, revive
from .tasks import Status

__all__ = ["Coroner", "Outcome", "Place", "died", "told"]


class Place(NamedTuple):
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
    place: Place | None = None
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
        return "killed", exit_in_words(exit_status)


_ERRORS: dict[str, type[TaskError]] = {
    "timeout": TaskTimeout,
    "out-of-memory": OutOfMemory,
    "killed": WorkerDied,
}


def died(task: str, status: Status, words: str, place: Place, output: str, measured: Measured) -> Outcome:
    """Return the outcome of a task whose process ended under it, with the end of what it wrote."""
    where = f"on {place.device} (slot {place.slot}, pid {place.pid})"
    error = _ERRORS.get(status, TaskError)(f"{f'task {task!r}' if task else 'the task'} {where}: {words}")
    if output:
        error.add_note(f"Its output ended with:\n{output}")
    return Outcome(status, None, error, words, output, place, measured)
