"""Threads of torch while a result is made that must not depend on their number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["one_thread"]


@contextmanager
def one_thread(device: str) -> Iterator[None]:
    """Compute with one thread where the device is a CPU: sums of several threads come in another order."""
    threads = torch.get_num_threads()
    if device.startswith("cpu"):
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
