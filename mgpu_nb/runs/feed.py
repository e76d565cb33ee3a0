"""The thread that tells listeners of a run: from the run's file of metrics and its records, never in its way."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..listeners import Listener, Started
from ..store.metrics import History, Points
from ..tasks import Record
from .batch import RecordedJob

__all__ = ["Feed", "check_listeners"]

log = logging.getLogger("mgpu_nb")

PERIOD = 0.5  # seconds between two looks
PORTION = 2**20  # bytes that are read at once


class Source(Protocol):
    """What a feed asks of a run: a ledger has it."""

    name: str
    folder: Path
    tasks: tuple[str, ...]
    history: History

    @property
    def done(self) -> bool:
        """Whether no further record will come."""

    @property
    def running(self) -> Sequence[RecordedJob]:
        """Jobs of the tasks that run now."""

    def arguments_of(self, task: str) -> dict[str, Any]:
        """Arguments of a task by the names of the parameters."""

    def ended_since(self, seen: int) -> Sequence[Record]:
        """Records in the order in which tasks ended, without the first `seen`."""

    def wait_for(self, what: Callable[[], bool], timeout: float | None = None) -> None:
        """Wait until `what` is true; raises TimeoutError."""


def check_listeners(listeners: Sequence[Any]) -> None:
    """Check that all can listen.

    Raises
    ------
    TypeError
        If one lacks a method of `Listener`.
    """
    for listener in listeners:
        lacks = [
            name
            for name in ("started", "reported", "ended", "close")
            if not callable(getattr(listener, name, None))
        ]
        if lacks or isinstance(listener, type):
            reason = (
                "is a class: make one of it" if isinstance(listener, type) else f"has no {', '.join(lacks)}"
            )
            raise TypeError(f"listener {listener!r} {reason}; derive it from mgpu_nb.listeners.Listener")


class Feed:
    """Tells listeners all of a run from its beginning, in order, until it is over."""

    def __init__(self, ledger: Source, listeners: Sequence[Listener]) -> None:
        self._ledger = ledger
        self._listeners = listeners
        self._failed: set[int] = set()  # whose exception was logged
        self._told: dict[str, int] = {}  # the last attempt of each task
        self._points = Points(ledger.folder)
        self._ended = 0
        self._thread = threading.Thread(target=self._run, name="mgpu_nb-listeners", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self, timeout: float) -> bool:
        """Wait until all is told; whether it is."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._follow()
        except Exception:
            log.exception("run %r: its listeners hear no more of it", self._ledger.name)
        finally:
            self._tell("close")

    def _follow(self) -> None:
        ledger = self._ledger
        over = False
        while not over:
            with contextlib.suppress(TimeoutError):
                ledger.wait_for(lambda: ledger.done or bool(ledger.ended_since(self._ended)), PERIOD)
            over = ledger.done  # before looking: what is told then is all
            records = ledger.ended_since(self._ended)
            # Before the points are read: what an attempt reported comes before the next one begins.
            running = [(job.name, job.attempt) for job in ledger.running]
            ledger.history.flush()
            self._report()
            for name, attempt in running:
                self._start(name, attempt)
            for record in records:
                if record.attempt:
                    self._start(record.name, record.attempt)
                self._tell("ended", record)
            self._ended += len(records)

    def _report(self) -> None:
        """Tell the points that are new."""
        tasks = set(self._ledger.tasks)
        while True:
            entries, _ = self._points.read(PORTION)
            if not entries:
                return
            for entry in entries:
                if (task := entry["task"]) in tasks and entry["attempt"] >= self._told.get(task, 0):
                    self._start(task, entry["attempt"])
                    self._tell("reported", task, entry["step"], entry["values"])

    def _start(self, task: str, attempt: int) -> None:
        ledger = self._ledger
        for number in range(self._told.get(task, 0) + 1, attempt + 1):  # one may have ended between two looks
            self._told[task] = number
            self._tell(
                "started", Started(task, number, ledger.arguments_of(task), ledger.name, ledger.folder)
            )

    def _tell(self, what: str, *facts: Any) -> None:
        for place, listener in enumerate(self._listeners):
            try:
                getattr(listener, what)(*facts)
            except Exception as error:
                if place not in self._failed:
                    self._failed.add(place)
                    log.warning(
                        "run %r: %s.%s failed (%s: %s); the run goes on, further errors of it are not told",
                        self._ledger.name, type(listener).__name__, what, type(error).__name__, error, exc_info=True,
                    )  # fmt: skip
