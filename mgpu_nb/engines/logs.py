"""Logging of the parent process in its workers: its levels, and the form of its lines."""

from __future__ import annotations

import logging
import sys
from typing import Any, NamedTuple

__all__ = ["DEFAULT", "LoggingState", "Logs", "adopt_logging", "capture_logging", "logging_changed"]

PLAIN = "%(message)s"


class Logs(NamedTuple):
    """What of the logging of a process its workers take over.

    Attributes
    ----------
    levels
        Level of each logger that has one, by name; the root's is ``""``.
    disabled
        Level of ``logging.disable``.
    threshold
        Lowest level that a handler of the root shows, or of any logger if it has none.
    form, dates
        Format of a line and of its time.
    """

    levels: tuple[tuple[str, int], ...] = (("", logging.WARNING),)
    disabled: int = 0
    threshold: int = logging.WARNING
    form: str = PLAIN
    dates: str | None = None


DEFAULT = Logs()
"""Logging of a process that has set nothing."""


def _loggers() -> list[tuple[str, logging.Logger]]:
    """All loggers by name, the root first."""
    named = list(logging.root.manager.loggerDict.items())
    return [("", logging.root), *((name, one) for name, one in named if isinstance(one, logging.Logger))]


def capture_logging() -> Logs:
    """Logging of this process as it is now, and what `logging_changed` compares with."""
    _handlers[:] = _root_handlers()
    _mark("captured")
    loggers = [(name, logger) for name, logger in _loggers() if logger.level or not name]
    handlers = logging.root.handlers or [handler for _, logger in loggers for handler in logger.handlers]
    form, dates = PLAIN, None
    if logging.root.handlers:
        form, dates = _form(logging.root.handlers[0].formatter)
    return Logs(
        tuple((name, logger.level) for name, logger in loggers),
        logging.root.manager.disable,
        min((handler.level for handler in handlers), default=logging.WARNING),
        form,
        dates,
    )


def logging_changed() -> bool:
    """Whether `capture_logging` would find something else than the last time."""
    return not _marked("captured") or _handlers != _root_handlers()


_handlers: list[tuple[logging.Handler, int, Any]] = []


def _root_handlers() -> list[tuple[logging.Handler, int, Any]]:
    return [(handler, handler.level, handler.formatter) for handler in logging.root.handlers]


def _mark(name: str) -> None:
    """Put a mark where `Logger.setLevel` and `logging.disable` wipe: into what the root remembers of its levels."""
    vars(logging.root).setdefault("_cache", {})[name] = True


def _marked(name: str) -> bool:
    return name in vars(logging.root).get("_cache", ())


def _form(formatter: logging.Formatter | None) -> tuple[str, str | None]:
    """Format of a formatter and of its times; logging's own for one whose code would have to be sent."""
    if formatter is None:
        return PLAIN, None
    style = getattr(formatter, "_style", None)
    if type(formatter) is logging.Formatter and type(style) is logging.PercentStyle:
        return str(formatter._fmt), formatter.datefmt
    return logging.BASIC_FORMAT, None


class _LastResort(logging.StreamHandler):  # type: ignore[type-arg]  # no generic before Python 3.11
    """Writes what no handler of the task's own takes to whatever stderr is at that time."""

    def __init__(self, logs: Logs) -> None:
        logging.Handler.__init__(self, logs.threshold)
        self.setFormatter(logging.Formatter(logs.form, logs.dates))

    @property
    def stream(self) -> Any:
        return sys.stderr


def adopt_logging(logs: Logs, before: Logs) -> None:
    """Take over the logging of the parent process, but what has not changed since `before`.

    It is not a handler of the root's that shows the records, so that ``logging.basicConfig`` works in a task.
    """
    was, now = dict(before.levels), dict(logs.levels)
    for name in was.keys() | now.keys():
        level = now.get(name, logging.NOTSET)
        if was.get(name, logging.NOTSET) != level:
            logging.getLogger(name).setLevel(level)
    if logs.disabled != before.disabled:
        logging.disable(logs.disabled)
    if logs[2:] != before[2:]:
        logging.lastResort = _LastResort(logs)


class LoggingState:
    """Levels, handlers and switches of all loggers at one moment, to which they can be set back."""

    def __init__(self) -> None:
        self._loggers = {name: (logger, self._of(logger)) for name, logger in _loggers()}
        self._disabled = logging.root.manager.disable
        self._last, self._factory = logging.lastResort, logging.getLogRecordFactory()
        self._root_handlers = list(logging.root.handlers)
        self._handlers = self._all_handlers()
        _mark("set back")

    @staticmethod
    def _of(logger: logging.Logger) -> tuple[int, list[logging.Handler], bool, bool, list[Any]]:
        return logger.level, list(logger.handlers), logger.propagate, logger.disabled, list(logger.filters)

    @staticmethod
    def _all_handlers() -> list[Any]:
        """Every handler there is, as logging knows them for its end."""
        return list(getattr(logging, "_handlerList", ()))

    def restore(self) -> None:
        """Set back what has changed, where a look at little of it says that something has."""
        if (
            _marked("set back")
            and logging.root.handlers == self._root_handlers
            and getattr(logging, "_handlerList", []) == self._handlers
            and logging.lastResort is self._last
            and logging.getLogRecordFactory() is self._factory
        ):
            return
        fresh: tuple[int, list[logging.Handler], bool, bool, list[Any]] = (
            logging.NOTSET,
            [],
            True,
            False,
            [],
        )
        for name, logger in _loggers():
            if name in self._loggers:
                wanted = self._loggers[name][1]
            elif (package := name.partition(".")[0]) in sys.modules and package != "__main__":
                continue  # a library has set it up when it was imported, and will not do so again
            else:
                wanted = fresh
            if self._of(logger) != wanted:
                logger.setLevel(wanted[0])
                logger.handlers[:], logger.filters[:] = wanted[1], wanted[4]
                logger.propagate, logger.disabled = wanted[2:4]
        if logging.root.manager.disable != self._disabled:
            logging.disable(self._disabled)
        logging.lastResort = self._last
        logging.setLogRecordFactory(self._factory)
        self._handlers = self._all_handlers()
        _mark("set back")
