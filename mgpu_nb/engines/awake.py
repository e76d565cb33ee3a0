"""Waiting without sleeping, for a moment: a core that has gone to sleep answers some 50 us later."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["awake"]

T = TypeVar("T")

_let_others: Callable[[], object] = getattr(os, "sched_yield", bool)


def awake(look: Callable[[], T], seconds: float) -> T:
    """First true answer of a look that is repeated for so long, or its last one; whoever else can run goes first."""
    end = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < end:
        _let_others()
    return found
