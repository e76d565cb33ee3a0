"""Log records of tasks, on their way from the worker to the handlers of the parent process."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from .protocol import Logged, pack

__all__ = ["MOST", "LogSender"]

MOST = 1000  # records a second that are sent; the others are counted
LONGEST = 10_000  # characters of a message, and of a traceback
_formatter = logging.Formatter()


class LogSender(logging.Handler):
    """Sends what tasks log, and shows it in their log as well.

    Parameters
    ----------
    send
        Called with the packed records.
    """

    def __init__(self, send: Callable[[bytes], None]) -> None:
        super().__init__()
        self._send = send
        self._pid = os.getpid()
        self._busy: int | None = None  # the thread that sends
        self._since, self._sent, self._left_out = 0.0, 0, 0

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record."""
        shown = logging.lastResort
        if shown is not None and record.levelno >= shown.level:
            shown.handle(record)
        # Not of a fork, which has no channel, and not from a signal's handler while this thread sends.
        if os.getpid() != self._pid or self._busy == threading.get_ident():
            return
        now = time.monotonic()
        if now - self._since >= 1.0:
            self._since, self._sent = now, 0
        if self._sent >= MOST:
            self._left_out += 1
            return
        self._sent += 1
        left_out, self._left_out = self._left_out, 0
        self._busy = threading.get_ident()
        try:
            self._send(pack(_logged(record, left_out)))
        except OSError:  # the parent process has gone, and so will this one
            pass
        except Exception:
            self.handleError(record)
        finally:
            self._busy = None

    def end(self) -> None:
        """Tell at the end of a task how many of its records were left out since the last that was sent."""
        if self._left_out:
            self._since = 0.0
            self.handle(logging.makeLogRecord({"name": "mgpu_nb", "levelno": logging.NOTSET, "msg": ""}))


def _logged(record: logging.LogRecord, left_out: int) -> Logged:
    text = record.exc_text or ""
    if record.exc_info and not text:
        text = _formatter.formatException(record.exc_info)
    return Logged(
        name=str(record.name)[:200],
        level=int(record.levelno),
        message=record.getMessage()[:LONGEST],
        created=float(record.created),
        path=str(record.pathname),
        line=int(record.lineno),
        function=str(record.funcName),
        thread=str(record.threadName),
        traceback=text[-LONGEST:],
        left_out=left_out,
    )
