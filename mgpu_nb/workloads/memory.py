"""Memory of a device: the largest batch that fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from ..errors import message_of, out_of_memory

__all__ = ["in_memory"]

T = TypeVar("T")


def in_memory(draw: Callable[[int], T], batch_size: int) -> tuple[T, int]:
    """What `draw` gives for the largest batch that fits, of `batch_size` and its halves, and how often it was halved.

    Raises
    ------
    torch.OutOfMemoryError, MemoryError, RuntimeError
        If not even one sample fits; anything else that `draw` raises.
    """
    halved = 0
    while True:
        try:
            return draw(batch_size), halved
        except (MemoryError, RuntimeError) as error:
            if batch_size == 1 or not _is_of_memory(error):
                raise
        # Beyond the clause: while the exception lives, so do the tensors of its frames.
        torch.cuda.empty_cache()
        batch_size, halved = (batch_size + 1) // 2, halved + 1


def _is_of_memory(error: BaseException) -> bool:
    return out_of_memory(error) or "out of memory" in message_of(error).lower()
