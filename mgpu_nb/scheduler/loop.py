"""The event loop of the scheduler's thread: waits for descriptors, callbacks of other threads and the clock at once.

Its methods have asyncio's names. asyncio's own loop costs the same, but has no clock that can be exchanged.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import selectors
from collections import deque
from collections.abc import Callable
from typing import Any

from ..engines.base import Clock, SystemClock

__all__ = ["Loop", "Timer"]

STALE_TIMERS = 100  # cancelled ones that are kept in the heap, beside as many again as live


class Timer:
    """A callback that will be called once, unless it is cancelled."""

    __slots__ = ("_loop", "callback")

    def __init__(self, loop: Loop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Do not call it, and release what it refers to."""
        if self.callback is not None:
            self.callback = None
            self._loop.timer_cancelled()


class _Pipe:
    """A pipe that is open for as long as anyone has it.

    A thread may be about to write when the loop closes: the number of a descriptor that was closed may by then be that
    of another file.
    """

    def __init__(self, reader: int, writer: int) -> None:
        self.reader, self._writer = reader, writer
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)

    def write(self) -> None:
        """Make it readable."""
        with contextlib.suppress(BlockingIOError):  # it is full
            os.write(self._writer, b"!")

    def read(self) -> None:
        """Empty it."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.reader, 4096)

    def __del__(self) -> None:
        os.close(self.reader)
        os.close(self._writer)


class Loop:
    """Calls callbacks when they are due; sleeps until then, and costs nothing while it does.

    `call_soon_threadsafe`, `call_before_sleep` and `wake` may be called from any thread, all else from the one that
    runs the loop.

    Parameters
    ----------
    woken
        Called after every sleep, before anything that ended it is looked at.
    """

    def __init__(self, clock: Clock | None = None, woken: Callable[[], None] | None = None) -> None:
        self.clock: Clock = SystemClock() if clock is None else clock
        self.wakeups = 0
        self._after_sleep = woken
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._cancelled = 0
        self._numbers = itertools.count()
        self._inbox: deque[Callable[[], None]] = deque()
        self._before_sleep: dict[Callable[[], None], None] = {}
        self._turn = 0  # how often it has looked into the inbox and gone to sleep
        self._woken = 0  # the turn that it has left, or will because a byte was written
        self._pipe: _Pipe | None = _Pipe(*os.pipe())
        self.watch(self._pipe.reader, self._pipe.read)

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        """Have a callback called in the loop's thread, soon."""
        self._inbox.append(callback)
        self.wake()

    def call_before_sleep(self, callback: Callable[[], None]) -> None:
        """Have a callback called in the loop's thread before it sleeps the next time, once however often it is given.

        If it sleeps now, that is when it wakes.
        """
        self._before_sleep[callback] = None
        self.wake()

    def wake(self) -> None:
        """End the loop's sleep.

        An interrupt at any line leaves a loop that the next call wakes: a turn counts as woken only once the byte is
        written, and a byte too many does no harm.
        """
        turn, pipe = self._turn, self._pipe
        # A thread that is at work looks into the inbox before it sleeps; one that has closed its loop is done.
        if self._woken != turn and pipe is not None:
            pipe.write()
            self._woken = turn

    @property
    def pending(self) -> bool:
        """Whether callbacks of other threads wait."""
        return bool(self._inbox)

    def run_pending(self) -> None:
        """Call the callbacks of other threads."""
        while self._inbox:
            self._inbox.popleft()()

    def run_once(self) -> None:
        """Wait until something is due, and do it; callbacks of other threads are left to `run_pending`."""
        self._turn += 1
        self._call_before_sleep()
        timeout = 0.0 if self._inbox else self._due()
        events = self.clock.select(self._selector, timeout)
        self._woken = self._turn
        self.wakeups += 1
        if self._after_sleep is not None:
            self._after_sleep()
        self._call_before_sleep()
        watched = self._selector.get_map()
        for key, _ in events:
            # An event before this one may have ended it, and its descriptor may be another's by now.
            current = watched.get(key.fd)
            if current is not None and current is key:
                current.data()
        while self._timers and (
            self._timers[0][2].callback is None or self._timers[0][0] <= self.clock.monotonic()
        ):
            timer = heapq.heappop(self._timers)[2]
            if timer.callback is None:
                self._cancelled -= 1
            else:
                callback, timer.callback = timer.callback, None
                callback()

    def _call_before_sleep(self) -> None:
        while self._before_sleep:
            self._before_sleep.popitem()[0]()

    def _due(self) -> float | None:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
            self._cancelled -= 1
        if not self._timers:
            return None
        return min(3600.0, max(0.0, self._timers[0][0] - self.clock.monotonic()))

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Have a callback called once, `seconds` from now."""
        timer = Timer(self, callback)
        heapq.heappush(self._timers, (self.clock.monotonic() + seconds, next(self._numbers), timer))
        return timer

    def timer_cancelled(self) -> None:
        """Count a cancelled timer; when most of them are, they leave the heap: a timeout may lie days ahead."""
        self._cancelled += 1
        if self._cancelled > STALE_TIMERS and 2 * self._cancelled > len(self._timers):
            self._timers = [entry for entry in self._timers if entry[2].callback is not None]
            heapq.heapify(self._timers)
            self._cancelled = 0

    def watch(self, source: Any, action: Callable[[], None], *, writable: bool = False) -> None:
        """Call an action whenever `source` (a descriptor, or what has one) is readable, or also writable."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if writable else 0)
        try:
            self._selector.modify(source, events, action)
        except KeyError:
            self._selector.register(source, events, action)

    def unwatch(self, source: Any) -> None:
        """Stop watching `source`; one that is not watched, or closed, is ignored."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(source)

    def close(self) -> None:
        """Close the descriptors; callbacks that come from now on are never called."""
        self._selector.close()
        self._pipe = None
