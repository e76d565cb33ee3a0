"""Changes of a run as a coroutine waits for them: without a thread that blocks, and without polling."""

from __future__ import annotations

import asyncio
import contextlib
from asyncio import CancelledError as Cancelled
from types import TracebackType

from .ledger import Ledger

__all__ = ["Cancelled", "Changes"]


class Changes:
    """Wakes a coroutine when a run has changed. Made, and entered, in a running event loop.

    Parameters
    ----------
    ledger
        State of the run.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._on_its_way = False  # so that thousands of changes are one callback

    def __enter__(self) -> Changes:
        self._ledger.watch(self._changed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ledger.unwatch(self._changed)

    async def wait(self, seconds: float | None = None) -> None:
        """Wait for a change since the last one that was waited for, at most some seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), seconds)
        self._event.clear()

    def _changed(self) -> None:
        """Pass a change on; from any thread."""
        if not self._on_its_way:
            self._on_its_way = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._arrived)

    def _arrived(self) -> None:
        self._on_its_way = False
        self._event.set()
