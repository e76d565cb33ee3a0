"""Lines of a journal: JSON objects, numbered and with a sum, so that whatever happens to the file is seen.

::

    {"n": 7, "event": "record", "name": "fit-0", ..., "crc": "5d2f09ab"}

The sum is the CRC-32 of the line before it. Older versions wrote neither number nor sum.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from ..tasks import STATUSES

__all__ = ["LineReader", "is_header", "seal", "unseal"]

_SUM = b', "crc": "'
_TAIL = len(_SUM) + 11  # with the sum, what closes the line, and its end


def seal(text: str, number: int) -> bytes:
    """Line of a journal from the JSON text of an object that is not empty."""
    body = f'{{"n": {number}, {text[1:-1]}'.encode()
    return body + _SUM + _end(body)


def unseal(line: bytes) -> dict[str, Any] | None:
    """Content of a line that was checked before; None if it is another line now."""
    if line[-_TAIL : len(_SUM) - _TAIL] == _SUM and line[len(_SUM) - _TAIL :] != _end(line[:-_TAIL]):
        return None
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if isinstance(entry, dict):
        entry.pop("crc", None)
        return entry
    return None


def _end(body: bytes) -> bytes:
    """What comes after the name of the sum."""
    return b'%08x"}\n' % zlib.crc32(body)


class LineReader:
    """Reads the lines of one journal, in their order.

    Once one of them had a sum, those without one are damaged.
    """

    def __init__(self) -> None:
        self.sealed = False
        """Whether a line had a sum."""

    def entry(self, line: bytes) -> dict[str, Any] | None:
        """Content of a line; None if it is incomplete, damaged or not what a journal has."""
        entry = unseal(line) if line.endswith(b"\n") else None
        if entry is None or not _is_sound(entry):
            return None
        sealed = line[-_TAIL : len(_SUM) - _TAIL] == _SUM
        if not sealed and (self.sealed or "n" in entry):
            return None
        self.sealed = self.sealed or sealed
        return entry


# What is checked of a line: one of an older version may be damaged, and anybody can write one with a sum.


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_whole(value: object) -> bool:
    return type(value) is int


def _is_number(value: object) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _are_tasks(value: object) -> bool:
    return isinstance(value, list) and all(_is_dict(task) and _has(task, _TASK, _TASK_MAY) for task in value)


def _or_none(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or check(value)


_Checks = Mapping[str, Callable[[object], bool]]
_TASK: _Checks = {"name": _is_text, "kind": _is_text, "fingerprint": _is_text}
_TASK_MAY: _Checks = {"arguments": _is_dict, "after": _is_texts}
_HEADER: _Checks = {"name": _is_text, "at": _is_number, "tasks": _are_tasks}
_HEADER_MAY: _Checks = {
    "seed": _is_whole,
    "host": _is_text,
    "pid": _is_whole,
    "made": _is_dict,
    "whole": lambda value: isinstance(value, bool),
}
_NODE: _Checks = {"name": _is_text, "made": _is_dict}
_RECORD: _Checks = {"name": _is_text, "index": _is_whole, "kind": _is_text, "status": STATUSES.__contains__}
_RECORD_MAY: _Checks = {
    **dict.fromkeys(("arguments", "metrics"), _is_dict),
    **dict.fromkeys(("error", "traceback", "device", "uuid", "host", "log", "fingerprint"), _is_text),
    **dict.fromkeys(("slot", "gpu_id", "pid"), _or_none(_is_whole)),
    **dict.fromkeys(("queued", "started", "finished", "seconds"), _or_none(_is_number)),
    **dict.fromkeys(("peak_memory", "peak_allocated", "peak_reserved"), _or_none(_is_number)),
    "attempt": _is_whole,
    "notes": _is_texts,
}


def _has(entry: Mapping[str, Any], wanted: _Checks, allowed: _Checks) -> bool:
    """Whether all that is wanted is there, and everything known is of its type."""
    for name, check in wanted.items():
        if name not in entry or not check(entry[name]):
            return False
    # A loop takes two thirds of what an expression does, and every line is asked.
    for name, value in entry.items():  # noqa: SIM110
        if name in allowed and not allowed[name](value):
            return False
    return True


def _is_sound(entry: Mapping[str, Any]) -> bool:
    event = entry.get("event")
    if event == "run":
        return "format" in entry  # who reads it compares that first
    if event == "node":
        return _has(entry, _NODE, {})
    return event != "record" or _has(entry, _RECORD, _RECORD_MAY)


def is_header(entry: Mapping[str, Any]) -> bool:
    """Whether a header of this format has what it needs."""
    return _has(entry, _HEADER, _HEADER_MAY)
