"""The runs of this process: those under way, and ended ones for as long as somebody has them."""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path
from typing import Generic, Protocol, TypeVar

__all__ = ["Registry"]


class Entry(Protocol):
    """What is asked of a run."""

    folder: Path
    pool: int
    cell: str
    execution: str

    @property
    def done(self) -> bool:
        """Whether it has ended."""


E = TypeVar("E", bound=Entry)


class Registry(Generic[E]):
    """Runs in the order in which they began.

    A run under way is kept, so that one whose handle is lost can be found. One that has ended is not: its values would
    be kept for ever. Who reads takes copies without the lock, which an interrupt of the main thread could leave locked.
    """

    def __init__(self) -> None:
        self._under_way: list[E] = []
        self._ended: list[weakref.ref[E]] = []
        self._lock = threading.Lock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)  # the parent's runs are not the child's

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._under_way, self._ended = [], []

    def add(self, run: E) -> None:
        """Take a run that begins."""
        with self._lock:
            self._under_way.append(run)

    def end(self, run: E) -> None:
        """Keep a run no longer: it has ended, and all of it is written. One that was opened was never kept."""
        if run not in self._under_way.copy():  # without the lock: the main thread may be the one that opens
            return
        with self._lock:
            if run in self._under_way:
                self._ended = [*(ref for ref in self._ended if ref() is not None), weakref.ref(run)]
                self._under_way.remove(run)

    def discard(self, run: E) -> None:
        """Remove a run that could not begin."""
        with self._lock:
            if run in self._under_way:
                self._under_way.remove(run)

    @property
    def under_way(self) -> list[E]:
        """Runs that have not ended."""
        return [run for run in self._under_way.copy() if not run.done]

    def of_pool(self, pool: int) -> list[E]:
        """Runs of a pool: those under way as they began, then ended ones, the last first."""
        known = [run for run in self._under_way.copy() if run.pool == pool]
        gone = [run for ref in self._ended if (run := ref()) is not None and run.pool == pool]
        gone = [run for run in gone if run not in known]
        ended = [*gone, *(run for run in known if run.done)]
        return [run for run in known if not run.done] + ended[::-1]

    def of_folder(self, folder: Path) -> list[E]:
        """The run that writes into a folder: under way, or not all written yet."""
        return [run for run in self._under_way.copy() if run.folder == folder]

    def left_behind(self, cell: str, execution: str) -> list[E]:
        """Runs under way that another execution of the same cell started."""
        if not cell:
            return []
        return [run for run in self.under_way if run.cell == cell and run.execution != execution]
