"""Machines that have nothing to do: given back after a while, and asked for again when jobs wait."""

from __future__ import annotations

from collections.abc import Callable

from ..engines.base import GivesBack
from .admission import Admission
from .loop import Loop, Timer
from .state import SlotState
from .workers import WorkerSet

__all__ = ["IdleMachines"]


class IdleMachines:
    """Gives machines back whose slots have had no job for `seconds`, while no job waits.

    Parameters
    ----------
    engine, seconds
        See `GivesBack`.
    needed
        Whether jobs wait, or will in a moment: then no machine is given back.
    """

    def __init__(
        self,
        loop: Loop,
        engine: GivesBack,
        seconds: float,
        admission: Admission,
        workers: WorkerSet,
        needed: Callable[[], bool],
    ) -> None:
        self._loop = loop
        self._engine = engine
        self._seconds = seconds
        self._admission = admission
        self._workers = workers
        self._needed = needed
        self._timer: Timer | None = None

    @property
    def given_back(self) -> str:
        """What was given back, as a sentence; empty for nothing. Any thread may ask."""
        return self._engine.given_back

    def came_or_went(self) -> None:
        """Look at the machines in time."""
        if self._timer is None and any(not slot.draining for slot in self._admission.slots):
            self._timer = self._loop.call_later(self._seconds, self._look)

    def ask_again(self, slots: int) -> None:
        """Ask for machines that were given back: jobs wait for so many slots."""
        if slots > 0 and self._engine.given_back:
            self._engine.ask_again(slots)

    def _look(self) -> None:
        """Give back what has been idle for long enough, and look again when the next may have been."""
        now = self._loop.clock.monotonic()
        needed = self._needed()
        hosts: dict[str, list[SlotState]] = {}
        for slot in self._admission.slots:
            hosts.setdefault(slot.slot.host, []).append(slot)
        due = []
        for host, slots in hosts.items():
            if any(slot.draining for slot in slots):
                continue
            busy = needed or any(slot.taken_by is not None or slot.starts for slot in slots)
            ends = self._seconds + (now if busy else max(slot.used for slot in slots))
            if ends > now:
                due.append(ends)
            else:
                reason = f"it had nothing to do for {self._seconds:g} s"
                self._workers.draining([slot.slot for slot in slots], reason)
                self._engine.give_back(host, reason)
        self._timer = self._loop.call_later(min(due) - now, self._look) if due else None
