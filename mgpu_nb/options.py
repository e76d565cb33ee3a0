"""Checks of options, at the door: what is wrong, and what is wanted instead."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any

__all__ = ["check_choice", "check_int", "check_real"]


def check_choice(value: object, choices: Iterable[str], what: str) -> str:
    """Return `value` where it is one of `choices`; raise with the nearest of them where it is not."""
    there = list(choices)
    if isinstance(value, str) and value in there:
        return value
    near = difflib.get_close_matches(str(value), there, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown {what} {value!r}: {hint}There is {', '.join(there)}")


def check_int(name: str, value: Any, least: int, most: float = math.inf) -> None:
    """Raise where a value is no whole number from `least` to `most`."""
    if isinstance(value, bool) or not hasattr(type(value), "__index__") or not least <= value <= most:
        raise ValueError(f"{name}={value!r}: give a whole number, {least} or more")


def check_real(
    name: str,
    value: Any,
    wanted: str,
    low: float,
    high: float,
    *,
    low_open: bool = False,
    high_open: bool = False,
) -> None:
    """Raise with what is `wanted` where a value is no finite number from `low` to `high`."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high or (low_open and value == low) or (high_open and value == high):
        raise ValueError(f"{name}={value!r}: give {wanted}")
