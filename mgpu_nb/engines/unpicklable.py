"""Which part of a value does not pickle: ``kwargs['model'].hook is a generator``."""

from __future__ import annotations

import functools
import time
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

__all__ = ["unpicklable_part"]

_PACKAGE = __name__.partition(".")[0]
TRIALS, SECONDS, DEPTH = 2000, 2.0, 20  # bounds of the search; it ends with the part that it has reached


def unpicklable_part(parts: Mapping[str, Any], fails: Callable[[Any], bool]) -> str:
    """Where in some values the part is that does not pickle, and of what type it is; empty if all of them pickle.

    Parameters
    ----------
    parts
        Values by the names that the answer has for them.
    fails
        Whether a value does not pickle.
    """
    search = _Search(fails)
    found = search.first((name, value) for name, value in parts.items())
    if found is None:
        return ""
    path, value = found
    for _ in range(DEPTH):
        if type(value).__module__.startswith(
            f"{_PACKAGE}."
        ):  # a pool, a run: of no use in a worker as a whole
            break
        inner = search.first(_children(value))
        if inner is None:
            break
        path, value = path + inner[0], inner[1]
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{path} is a {name}"


class _Search:
    """Tries parts until one fails, within bounds."""

    def __init__(self, fails: Callable[[Any], bool]) -> None:
        self._fails = fails
        self._seen: set[int] = set()
        self._left = TRIALS
        self._end = time.monotonic() + SECONDS

    def first(self, parts: Iterator[tuple[str, Any]]) -> tuple[str, Any] | None:
        """First part that does not pickle and was not met before."""
        try:
            for name, value in parts:
                if self._left <= 0 or time.monotonic() > self._end:
                    return None
                if id(value) in self._seen or type(value) in (int, float, str, bytes, bool, type(None)):
                    continue
                self._left -= 1
                if self._fails(value):
                    self._seen.add(id(value))
                    return name, value
        except Exception:  # code of a class of the value's: what was found so far is the answer
            return None
        return None


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value consists of, with what to write behind the value's name for it."""
    if isinstance(value, Mapping):
        for key, entry in list(value.items()):
            yield f"[{_key(key)}]", entry
            yield f": key {_key(key)}", key
    elif isinstance(value, (list, tuple)):
        yield from ((f"[{n}]", entry) for n, entry in enumerate(value))
    elif isinstance(value, (set, frozenset)):
        yield from ((f": item {_key(entry)}", entry) for entry in value)
    elif isinstance(value, functools.partial):
        yield from ((f".{name}", getattr(value, name)) for name in ("func", "args", "keywords"))
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
    elif isinstance(value, types.FunctionType):
        yield from _of_function(value)
    yield from _attributes(value)


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, type):
        return
    for name, entry in list(getattr(value, "__dict__", {}).items()):
        yield f".{name}", entry
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                yield f".{name}", getattr(value, name)


def _of_function(fn: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=False):
        try:
            yield f": variable {name}", cell.cell_contents
        except ValueError:  # it has no value yet
            continue
    yield from ((f": default {n}", entry) for n, entry in enumerate(fn.__defaults__ or ()))
    for name in fn.__code__.co_names:
        if name in fn.__globals__ and not isinstance(fn.__globals__[name], types.ModuleType):
            yield f": global {name}", fn.__globals__[name]


def _key(key: object) -> str:
    text = repr(key)
    return text if len(text) <= 40 else f"{text[:37]}..."
