"""Which part of a value does not pickle: ``kwargs['model'].hook is a generator``."""

from __future__ import annotations

import functools
import io
import time
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from cloudpickle import cloudpickle

__all__ = ["unpicklable_part", "why_unpicklable"]

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
    found = _Search(fails).leaf(iter(parts.items()))
    return "" if found is None else f"{found.path} is {_kind_of(found.value)}"


def why_unpicklable(parts: Mapping[str, Any], fails: Callable[[Any], bool]) -> str:
    """Which part of some values does not pickle, and what to do instead; empty if all of them pickle."""
    found = _Search(fails).leaf(iter(parts.items()))
    if found is None:
        return ""
    return f"{found.path} is {_kind_of(found.value)}, which does not pickle: {_advice(found.value)}"


class _Found(NamedTuple):
    """A part that does not pickle; `last` says that none of its own parts is the reason."""

    path: str
    value: Any
    last: bool


class _Search:
    """Tries parts until one fails, within bounds."""

    def __init__(self, fails: Callable[[Any], bool]) -> None:
        self._fails = fails
        self._seen: set[int] = set()
        self._kept: list[Any] = []  # what was made for the search: no other may get its number
        self._left = TRIALS
        self._end = time.monotonic() + SECONDS

    def leaf(self, parts: Iterator[tuple[str, Any]], depth: int = DEPTH) -> _Found | None:
        """The innermost part that does not pickle, by way of the first that leads to one."""
        best, circle = None, False
        for name, value in self._failing(parts):
            if id(value) in self._seen:
                circle = True
                continue
            self._seen.add(id(value))
            found = _Found(name, value, True)
            # A pool, a run: of no use in a worker as a whole.
            whole = type(value).__module__.startswith(f"{_PACKAGE}.") or _is_shell(value)
            if depth and not whole:
                inner = self.leaf(_children(value), depth - 1)
                if inner is not None:
                    found = _Found(name + inner.path, inner.value, inner.last)
            if found.last:
                return found
            best = best or found
        if best is None and circle:  # what it refers to is looked at already: the reason is elsewhere
            return _Found("", None, False)
        return best

    def _failing(self, parts: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        try:
            for name, value in parts:
                if self._left <= 0 or time.monotonic() > self._end:
                    return
                if type(value) in (int, float, str, bytes, bool, type(None)):
                    continue
                self._kept.append(value)
                if id(value) in self._seen:
                    yield name, value
                    continue
                self._left -= 1
                if self._fails(value):
                    yield name, value
        except Exception:  # code of a class of the value's: what was found so far is the answer
            return


def _kind_of(value: Any) -> str:
    if _is_shell(value):
        return "the notebook's own (lines with ! and % use it)"
    kind = type(value)
    return (
        f"a {kind.__qualname__}"
        if kind.__module__ == "builtins"
        else f"a {kind.__module__}.{kind.__qualname__}"
    )


def _advice(value: Any) -> str:
    if _is_shell(value):
        return "call subprocess.run in place of !, and leave % lines to the cell"
    if isinstance(value, io.IOBase):
        return "open it within the function, or pass its name"
    if isinstance(value, (types.GeneratorType, types.AsyncGeneratorType, types.CoroutineType)):
        return "make it within the function, or pass a list"
    return "make it within the function, or pass what it is made from"


def _is_shell(value: Any) -> bool:
    """Whether it is ``get_ipython`` or what that returns."""
    owner = getattr(value, "__self__", None) if isinstance(value, types.MethodType) else value
    return any(
        kind.__name__ == "InteractiveShell" and kind.__module__.startswith("IPython.")
        for kind in type(owner).__mro__
    )


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value consists of, with what to write behind the value's name for it."""
    if isinstance(value, Mapping):
        for key, entry in list(value.items()):
            yield f"[{_key(key)}]", entry
            yield f": key {_key(key)}", key
        if type(value) is not dict:  # a default, say
            yield from _of_reduced(value)
    elif isinstance(value, (list, tuple, deque)):
        yield from ((f"[{n}]", entry) for n, entry in enumerate(value))
    elif isinstance(value, (set, frozenset)):
        yield from ((f": item {_key(entry)}", entry) for entry in value)
    elif isinstance(value, functools.partial):
        yield from ((f".{name}", getattr(value, name)) for name in ("func", "args", "keywords"))
    elif isinstance(value, (types.MethodType, types.BuiltinMethodType)):
        yield ".__self__", value.__self__
    elif isinstance(value, types.FunctionType):
        yield from _of_function(value)
    elif isinstance(value, type):
        yield from _of_class(value)
    elif isinstance(value, (staticmethod, classmethod)):
        yield "", value.__func__
    elif isinstance(value, property):
        yield from ((f".{name}", getattr(value, name)) for name in ("fget", "fset", "fdel"))
    else:
        yield from _of_object(value)
        return
    yield from _attributes(value)


def _of_object(value: Any) -> Iterator[tuple[str, Any]]:
    kind: Any = type(value)
    if kind.__module__ == "numpy" and hasattr(value, "flat"):
        yield from ((f"[{n}]", entry) for n, entry in enumerate(value.flat))
    if kind.__getstate__ is object.__getstate__:  # else its attributes may not be among what is pickled
        yield from _attributes(value)
    if kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__:
        yield f": class {kind.__qualname__}", kind
    yield from _of_reduced(value)


def _of_reduced(value: Any) -> Iterator[tuple[str, Any]]:
    """What an object of its own ways gives pickle."""
    reduced = value.__reduce_ex__(5)
    if isinstance(reduced, tuple):
        names = ("made by", "arguments", "state", "items", "items")
        for name, part in zip(names, reduced, strict=False):
            if name == "items" and part is not None:
                yield from ((f"[{n}]", item) for n, item in enumerate(part))
            else:
                yield f": {name} ", part


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


def _of_class(kind: type) -> Iterator[tuple[str, Any]]:
    yield from ((f".{name}", entry) for name, entry in list(vars(kind).items()) if name not in _OF_TYPES)
    yield from ((f": base {base.__qualname__}", base) for base in kind.__bases__)


_OF_TYPES = frozenset({"__dict__", "__weakref__", "_abc_impl", "__module__", "__qualname__", "__doc__"})


def _of_function(fn: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=False):
        try:
            yield f": variable {name}", cell.cell_contents
        except ValueError:  # it has no value yet
            continue
    yield from ((f": default {n}", entry) for n, entry in enumerate(fn.__defaults__ or ()))
    yield from ((f": default {name}", entry) for name, entry in (fn.__kwdefaults__ or {}).items())
    for name in cloudpickle._extract_code_globals(fn.__code__):
        if name in fn.__globals__ and not isinstance(fn.__globals__[name], types.ModuleType):
            yield f": global {name}", fn.__globals__[name]


def _key(key: object) -> str:
    text = repr(key)
    return text if len(text) <= 40 else f"{text[:37]}..."
