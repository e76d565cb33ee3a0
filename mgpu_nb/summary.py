"""What a table can hold of any value: scalars as they are, named columns, short texts."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import functools
import re
import reprlib
import types
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from .signature import name_of

__all__ = ["columns", "is_scalar", "scalar", "short"]

WIDTH = 100  # characters of a text that stands for something else
TEXT = 200  # characters of a text
COLUMNS = 100  # of one value; more are no table

_PLAIN = frozenset({bool, int, float, str, type(None)})
_SCALARS = (
    bool, int, float, complex, str, type(None), enum.Enum, PurePath, decimal.Decimal, datetime.date, datetime.time,
    datetime.timedelta,
)  # fmt: skip

_AS_TEXT = (decimal.Decimal, datetime.date, datetime.time, datetime.timedelta, complex)


def scalar(value: Any) -> Any:
    """The value; of an array or tensor without dimensions, or a number of numpy, what it holds."""
    if type(value) in _PLAIN:
        return value
    if getattr(value, "shape", None) == () and callable(item := getattr(value, "item", None)):
        try:
            return item()
        except Exception:  # a meta tensor holds nothing
            return value
    return value


def is_scalar(value: Any) -> bool:
    """Whether a value is a scalar: a number, a text, a date, an entry of an enumeration, a path, None."""
    return isinstance(scalar(value), _SCALARS)


def columns(value: Any) -> dict[str, Any]:
    """Columns that a task's value has in a table.

    A dict whose keys are strings, a dataclass or a named tuple has a column per entry if any of them is a scalar:
    scalars as they are, anything else as an object. All other values are one column, ``value``; None has none.
    """
    if value is None:
        return {}
    try:
        entries = _entries(value)
        if entries is not None and 0 < len(entries) <= COLUMNS and any(map(is_scalar, entries.values())):
            return {name: scalar(entry) for name, entry in entries.items()}
    except Exception:  # noqa: S110 - code of the value's class: it stays one object
        pass
    return {"value": scalar(value)}


def _entries(value: Any) -> Mapping[str, Any] | None:
    if isinstance(value, Mapping):
        return value if all(isinstance(key, str) for key in value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name, None) for f in dataclasses.fields(value)}
    if isinstance(value, tuple) and isinstance(names := getattr(value, "_fields", None), tuple):
        return dict(zip(names, value, strict=False))
    return None


def short(value: Any) -> bool | int | float | str | None:
    """The value if it is plain and short, else a text for it that JSON and a table can hold.

    Texts end after 200 characters. An array is its type and shape, a function its name, an object its ``repr`` in
    one line of 100 characters, without addresses.
    """
    kind = type(value)
    if kind is str:
        return _cut(value, TEXT)
    if kind is int:
        return value if value.bit_length() <= 4096 else f"<an integer of {value.bit_length()} bits>"
    if kind in _PLAIN:
        return value  # type: ignore[no-any-return]
    plain = scalar(value)
    if type(plain) in _PLAIN:
        return short(plain)
    if isinstance(value, PurePath) or (isinstance(value, str) and not isinstance(value, enum.Enum)):
        return _cut(str(value), TEXT)
    return _cut(_text.repr(value), WIDTH)


class _Text(reprlib.Repr):
    """`repr` of anything, of bounded length and cost."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist, self.maxtuple, self.maxset = 3, 8, 8, 8, 8
        self.maxstring = self.maxother = self.maxlong = WIDTH

    def repr1(self, x: Any, level: int) -> str:
        kind = type(x)
        if kind.__module__ == "builtins" and kind.__name__ in (
            "list",
            "tuple",
            "dict",
            "set",
            "frozenset",
            "str",
        ):
            return super().repr1(x, level)
        return self.repr_instance(x, level)

    def repr_instance(self, x: Any, level: int) -> str:
        if (plain := scalar(x)) is not x:
            return self.repr1(plain, level)
        try:
            return self._instance(x, level)
        except Exception as error:
            return f"<{type(x).__name__}, its repr raised {type(error).__name__}>"

    def _instance(self, x: Any, level: int) -> str:
        kind = type(x)
        if kind is int and x.bit_length() > 4096:
            return f"<an integer of {x.bit_length()} bits>"
        if isinstance(x, enum.Enum):
            return f"{kind.__name__}.{x.name}"
        if isinstance(x, _AS_TEXT) or (kind.__module__ == "torch" and kind.__name__ in ("device", "dtype")):
            return str(x)
        if isinstance(x, (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType)):
            return name_of(x)
        if isinstance(x, functools.partial):
            return f"partial({name_of(x)})"
        if isinstance(x, (bytes, bytearray, memoryview)):
            return f"<{len(x)} bytes>"
        if isinstance(shape := getattr(x, "shape", None), tuple):
            dtype = str(getattr(x, "dtype", kind.__name__)).removeprefix("torch.")
            return f"{dtype}[{', '.join(map(str, shape))}]"
        if dataclasses.is_dataclass(x) or (isinstance(x, tuple) and hasattr(x, "_fields")):
            if level <= 0:
                return f"{kind.__name__}(...)"
            parts = [f"{name}={self.repr1(entry, level - 1)}" for name, entry in (_entries(x) or {}).items()]
            return (
                f"{kind.__name__}({', '.join(parts[: self.maxdict])}{', ...' * (len(parts) > self.maxdict)})"
            )
        if vars(object)["__repr__"] is getattr(kind, "__repr__", None):
            return f"<{kind.__name__}>"
        return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(x)[: 10 * WIDTH])


_text = _Text()


def _cut(text: str, most: int) -> str:
    text = text if most == TEXT else " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"
