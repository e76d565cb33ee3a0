"""Values of `GPUPool.map` in their order, and what is shown and printed while they are waited for."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future
from typing import TypeVar

from ..errors import Interrupted
from ..views.waiting import PERIOD, waiting_for_calls
from .stream import SlotStream

__all__ = ["in_order", "number_of_items"]

T = TypeVar("T")

LOOKED_AT = 10_000  # futures among which a bar counts those that are done; they end about in order


def in_order(
    futures: deque[Future[list[T]]],
    more: Iterator[Future[list[T]]],
    end: float | None,
    *,
    name: str,
    total: int | None,
    size: int,
    progress: bool | None,
    stream: SlotStream | None,
) -> Iterator[T]:
    """Values of futures as they are consumed, one more future for each; what is left is cancelled.

    Parameters
    ----------
    futures, more
        The first, and those that are made as these are consumed.
    end
        When the wait is given up, by the monotonic clock; None for never.
    name, total
        What a bar is called, and the number of items, if it is known.
    size
        Items of a future.
    progress, stream
        As `GPUPool.map` takes them.
    """
    __tracebackhide__ = True
    consumed = 0

    def count() -> tuple[int, int | None]:
        return consumed + size * sum(map(Future.done, itertools.islice(futures, LOOKED_AT))), total

    with waiting_for_calls(name, count, progress) as shown:

        def update() -> None:
            shown.update()
            if stream is not None:
                stream.pump(shown.write)

        watched = stream is not None or shown.period is not None
        due = time.monotonic() + PERIOD
        try:
            while futures:
                values = _result(futures[0], end, update if watched else None)
                if watched and time.monotonic() >= due:
                    update()
                    due = time.monotonic() + PERIOD
                futures.popleft()
                futures.extend(itertools.islice(more, 1))
                consumed += len(values)
                yield from values
        except KeyboardInterrupt as error:
            if error.__cause__ is not None:  # a call raised it
                raise
            raise Interrupted(
                f"stopped waiting for {name}: {consumed} values were taken, calls that have not begun are cancelled"
            ) from None
        finally:
            for future in futures:
                future.cancel()
        total = consumed
        if stream is not None:
            stream.end(shown.write)


def _result(future: Future[T], end: float | None, update: Callable[[], None] | None) -> T:
    """Value of a future; `update` is called now and then while it is not there."""
    while True:
        left = None if end is None else max(0.0, end - time.monotonic())
        try:
            return future.result(left if update is None else min(PERIOD, PERIOD if left is None else left))
        except TimeoutError:
            if future.done():  # just now, or it is its own error
                return future.result()
            if update is None or (end is not None and time.monotonic() >= end):
                raise
            update()


def number_of_items(iterables: Sequence[Iterable[object]]) -> int | None:
    """Number of items that `zip` takes of these; None if one of them does not say."""
    sized = [len(each) for each in iterables if isinstance(each, Sized)]
    return min(sized) if sized and len(sized) == len(iterables) else None
