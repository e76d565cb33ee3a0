"""A channel that a loop watches: for what comes, and for room as long as something waits to be sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .base import Watcher

__all__ = ["Watched"]


class _Outlet(Protocol):
    @property
    def pending(self) -> bool:
        """Whether something waits for the socket to take it."""


class Watched:
    """A channel or link in a loop; what comes from there, and room for what is pending, calls `ready`.

    Room is waited for only while something is pending: a socket that takes more would wake the loop for ever.
    """

    __slots__ = ("_awaits_room", "_loop", "_on", "_outlet", "_ready")

    def __init__(self, loop: Watcher, outlet: _Outlet, ready: Callable[[], None]) -> None:
        self._loop, self._outlet, self._ready = loop, outlet, ready
        self._on = self._awaits_room = False

    def begin(self) -> None:
        """Watch it from now on."""
        self._on, self._awaits_room = True, self._outlet.pending
        self._loop.watch(self._outlet, self._ready, writable=self._awaits_room)

    def renew(self) -> None:
        """Await room, or no more; after whatever may have sent something."""
        pending = self._outlet.pending
        if pending != self._awaits_room and self._on:
            self._awaits_room = pending
            self._loop.watch(self._outlet, self._ready, writable=pending)

    def end(self) -> None:
        """Watch it no more."""
        self._on = False
        self._loop.unwatch(self._outlet)
