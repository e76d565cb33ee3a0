"""What a task reports, on its way from the worker to the parent process: in batches, thinned."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from ..store.metrics import Thinning, format_points, is_number
from .protocol import pack

__all__ = ["Reports"]

PERIOD = 0.1  # seconds between two messages; what a process that is killed loses at most
_STEPS = ("step", "epoch")

Point = tuple[int | float, float, dict[str, Any]]


class Reports:
    """Collects what the task of this worker reports.

    The first report is sent at once and so is any that comes `PERIOD` after the last, so a task that reports rarely
    needs no thread; those between are sent together by a thread. Points are thinned here: a tight loop sends ten
    messages a second and some ten thousand points, however long it runs.

    Parameters
    ----------
    send
        Called with the number of the job, and the meta and body of the message.
    """

    def __init__(self, send: Callable[[int, bytes, bytes], None]) -> None:
        self._send = send
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._told = self._sending = False
        self._job: int | None = None
        self._sent = -math.inf
        self._values: dict[str, Any] = {}  # since the last message
        self._kept: list[Point] = []

    def begin(self, job: int, task: str, attempt: int, began: float) -> None:
        """Take the reports of an attempt from now on; `began` is its start by `time.perf_counter`."""
        with self._lock:
            self._job, self._task, self._attempt, self._began = job, task, attempt, began
            self._step: int | float = -1
            self._thinned: dict[str, Thinning] = {}
            self._values, self._kept = {}, []
            self._last: dict[str, tuple[int | float, float, Any]] = {}  # where it is not among those kept

    def add(self, job: int, values: dict[str, Any]) -> None:
        """Take a report of the task that runs; one of a thread that an earlier task has left is dropped.

        So is one of a fork: two processes cannot write to one channel.
        """
        if os.getpid() != self._pid:
            if not self._told:
                self._told = True
                print("what a fork of a task reports is not recorded: report from the task", file=sys.stderr)
            return
        now = time.perf_counter()
        with self._lock:
            if job != self._job:
                return
            of = next((name for name in _STEPS if _is_step(values.get(name))), None)
            self._step = step = self._step + 1 if of is None else values[of]
            self._values.update(values)
            kept = {}
            for name, value in values.items():
                if name == of or not is_number(value):
                    continue
                thinning = self._thinned.get(name)
                if thinning is None:
                    thinning = self._thinned[name] = Thinning()
                if thinning.keeps():
                    kept[name] = value
                    self._last.pop(name, None)
                else:
                    self._last[name] = (step, now - self._began, value)
            if kept:
                self._kept.append((step, now - self._began, kept))
            if now - self._sent >= PERIOD:
                self._flush(now)
            elif self._thread is None:
                self._thread = threading.Thread(target=self._run, name="mgpu_nb-reports", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:  # no thread is left: the next report is sent by itself
                    self._thread = None

    def end(self) -> None:
        """Send what is left of the attempt."""
        with self._lock:
            if self._job is not None:
                self._flush(time.perf_counter())
            self._job = None

    def _flush(self, now: float) -> None:
        if not self._values or self._job is None or self._sending:
            return
        last = [(step, at, {name: value}) for name, (step, at, value) in self._last.items()]
        meta = pack((self._values, format_points(self._task, self._attempt, last)))
        body = format_points(self._task, self._attempt, self._kept)
        self._values, self._kept, self._sent = {}, [], now
        self._sending = (
            True  # a signal's handler that reports now is sent later: this thread cannot wait for itself
        )
        try:
            self._send(self._job, meta, body)
        finally:
            self._sending = False

    def _run(self) -> None:
        """Send what there is, until there was nothing for a while."""
        idle = 0
        while idle < 1 / PERIOD:
            time.sleep(PERIOD)
            with self._lock:
                idle = 0 if self._values else idle + 1
                try:
                    self._flush(time.perf_counter())
                except OSError:  # the parent process has gone, and so will this one
                    return
                if idle >= 1 / PERIOD:
                    self._thread = None


def _is_step(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)
