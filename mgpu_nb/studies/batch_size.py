"""The largest batch that fits: found by trying."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Executor, wait
from functools import partial
from typing import Annotated, Any

from ..errors import out_of_memory
from ..options import Between, PositiveInt, check_arguments
from ..pool import GPUPool
from ..views.progress import steps
from .remembered import Bracket, Remembered

__all__ = ["largest_batch"]


def largest_batch(
    fn: Callable[[int], Any],
    pool: Executor,
    *,
    start: PositiveInt = 1,
    limit: PositiveInt = 2**20,
    tolerance: Annotated[float, Between(0, 1, high_open=True)] = 0.0,
    progress: bool | None = None,
    fresh: bool = False,
) -> int:
    """Largest batch size with which ``fn(batch_size)`` does not run out of memory in a worker.

    Doubles from `start` until a call runs out of memory (as an exception, or by the system's hand), then halves
    the gap. In a pool with ``isolation="task"`` every trial finds the device empty.

    What a `GPUPool` found is kept in a file of the user's cache folder (``$MGPU_NB_CACHE``, else
    ``~/.cache/mgpu_nb``) for this function, model and size of the devices, and version of torch. The next time that
    size is tried once: if it fits it is the answer, or where the search goes on; if not, smaller ones are tried.

    Parameters
    ----------
    fn
        Called in a worker with a batch size; should do what the real work does at its peak: a training step, say.
    pool
        Where to try, a `GPUPool` or another executor; one trial at a time.
    start
        First size to try.
    limit
        Largest size to try.
    tolerance
        Stop when the answer is known to this share of itself: 0.1 saves most of the trials.
    progress
        Whether to show which sizes are tried; by default in the main thread, in a notebook or if stderr is a terminal.
    fresh
        Whether to measure anew, whatever was found earlier.

    Returns
    -------
    int
        The size; 0 where not even one fits.

    Raises
    ------
    ValueError
        If `start`, `limit` or `tolerance` is invalid.
    Exception
        What `fn` raised that was no want of memory.
    """
    start, limit, tolerance = check_arguments(largest_batch, start=start, limit=limit, tolerance=tolerance)
    if start > limit:
        raise ValueError(f"start must be at most limit={limit}, got {start}")
    kept = Remembered(fn, pool.wait_for_slots(1)) if isinstance(pool, GPUPool) else None
    earlier = known = None if kept is None or fresh else kept.recall()
    fits, too_large, size = 0, limit + 1, start if known is None else min(known.fits, limit)
    with steps("largest batch", progress) as shown:
        while too_large - fits > max(1, tolerance * fits):
            said = f"at least {fits}" if too_large > limit else f"at least {fits}, below {too_large}"
            said = said if known is None else f"{known.fits} fitted earlier"
            tell = partial(shown.update, _share(fits, too_large, tolerance), f"{said}; trying {size}")
            if _fits(fn, pool, size, tell):
                fits = size
                if known is not None and known.too_large is not None:
                    too_large = min(too_large, known.too_large)
                size = min(2 * size, limit) if too_large > limit else (fits + too_large) // 2
            else:
                too_large = size
                size = (fits + too_large) // 2
            known = None  # it was tried
        bounded = (
            too_large > limit and earlier is not None and earlier.fits >= fits
        )  # less is known than before
        if kept is not None and not bounded:
            kept.remember(Bracket(fits, too_large if too_large <= limit else None))
        shown.close(f"largest batch: {fits}")
    return fits


def _share(fits: int, too_large: int, tolerance: float) -> float:
    """Share of the digits of the answer that are known: each trial halves or doubles what is left."""
    wanted = max(1.0, tolerance * fits)
    return 1 - math.log2(max(1.0, (too_large - fits) / wanted)) / math.log2(max(2.0, too_large / wanted))


def _fits(fn: Callable[[int], Any], pool: Executor, size: int, tell: Callable[[], None]) -> bool:
    trial = pool.submit(_discard, fn, size)
    tell()
    while not wait([trial], timeout=1.0).done:
        tell()
    try:
        trial.result()
    except Exception as error:
        if out_of_memory(error):
            return False
        raise
    return True


def _discard(fn: Callable[[int], Any], size: int) -> None:
    fn(size)
