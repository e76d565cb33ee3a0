"""The loop of the dispatcher's thread: waits for descriptors, messages of other threads and the clock at once."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import selectors
import time
from collections import deque
from collections.abc import Callable
from typing import Any

__all__ = ["Loop"]


class Loop:
    """Calls what was asked for when it is due; sleeps until then, and costs nothing while it does.

    `tell` may be called from any thread, all else from the one that turns the loop.
    """

    def __init__(self) -> None:
        self.wakeups = 0
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._inbox: deque[Callable[[], None]] = deque()
        self._awake = False
        self._wake, self._waker = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self._waker, False)
        self.watch(self._wake, self._woken)

    def tell(self, message: Callable[[], None]) -> None:
        """Have a function called in the loop's thread, soon."""
        self._inbox.append(message)
        if not self._awake:  # a thread that is at work looks into the inbox before it sleeps
            self._awake = True
            with contextlib.suppress(OSError):  # full: it will wake; closed: it is done
                os.write(self._waker, b"!")

    @property
    def told(self) -> bool:
        """Whether messages wait."""
        return bool(self._inbox)

    def listen(self) -> None:
        """Call what other threads have told."""
        while self._inbox:
            self._inbox.popleft()()

    def turn(self) -> None:
        """Wait until there is something to do, and do it; messages are left to `listen`."""
        self._awake = False
        timeout = 0.0 if self._inbox else self._due()
        events = self._selector.select(timeout)
        self._awake = True
        self.wakeups += 1
        watched = self._selector.get_map()
        for key, _ in events:
            # An event before this one may have ended it, and its descriptor may be another's by now.
            if watched.get(key.fd) is key:
                key.data()
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()

    def _due(self) -> float | None:
        return min(3600.0, max(0.0, self._timers[0][0] - time.monotonic())) if self._timers else None

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Have a function called once, so many seconds from now."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), action))

    def watch(self, source: Any, action: Callable[[], None], *, writable: bool = False) -> None:
        """Call a function whenever `source` (a descriptor, or what has one) can be read, or also written."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if writable else 0)
        try:
            self._selector.modify(source, events, action)
        except KeyError:
            self._selector.register(source, events, action)

    def unwatch(self, source: Any) -> None:
        """Watch it no longer; one that is not watched, or closed, may be named."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(source)

    def close(self) -> None:
        """Give the descriptors back; what is told from now on is not heard."""
        self._awake = True
        self._selector.close()
        os.close(self._wake)
        os.close(self._waker)
