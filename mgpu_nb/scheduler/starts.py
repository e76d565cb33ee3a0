"""Starts that failed: whose fault that is, and when the next is tried."""

from __future__ import annotations

import errno
import os
import signal

__all__ = ["FAULT", "MOST_FAULTS", "PAUSES", "pause", "reason_of", "weight"]

PAUSES = (0.0, 0.1, 1.0, 10.0)  # seconds before the next start, after one, two, three and more in a row
FAULT = 2  # weight of a start that will hardly go better the next time
MOST_FAULTS = 6  # a slot is given up then, for a while

_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
_PERMANENT = (errno.ENOENT, errno.EACCES, errno.ENOEXEC, None)


def pause(lost: int) -> float:
    """Seconds before the next start after so many in a row that failed."""
    return PAUSES[min(lost, len(PAUSES)) - 1]


def weight(status: int | None) -> int:
    """Weight of a start that ended with a wait status.

    An exit code is a fault: of setup, or of a library. A crash is half of one. Who was killed, or ended with its server
    (None), did nothing wrong: memory may have been short for a moment.
    """
    if status is None:
        return 0
    if not os.WIFSIGNALED(status):
        return FAULT
    return 1 if os.WTERMSIG(status) in _CRASHES else 0


def reason_of(error: OSError) -> tuple[str, int]:
    """Reason and weight of a start that the system refused: for a shortage, or because something is not there."""
    return f"no process could be started: {error}", FAULT if error.errno in _PERMANENT else 0
