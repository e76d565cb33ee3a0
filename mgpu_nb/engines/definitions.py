"""The notebook's classes and functions, for tasks that look for them by name without having them.

A pickle that a task reads from a file, a whole model say, names classes and functions that the task's function does not
mention. Those of the notebook are found; they come with constants, but without other data: what they use of that, the
task's function must use as well.
"""

from __future__ import annotations

import functools
import io
import operator
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any, NamedTuple

from .attachments import Attachment, Definitions, attachment, named
from .pickler import CallPickler, define_class

__all__ = ["definitions"]

MAX_DEFINITION = 2**20  # bytes of one class or function
MAX_DEFINITIONS = 200
MAX_ITEMS = 100  # of a constant
_KINDS = (types.FunctionType, type, type(functools.lru_cache(len)))
_SENT = (*_KINDS, types.ModuleType, types.BuiltinFunctionType)
_CONTAINERS = (list, tuple, set, frozenset, dict)
_PLAIN = (int, float, complex, bool, str, bytes, type(None), type(Ellipsis), slice, range)


class _State(NamedTuple):
    """The notebook at the last look at it; replaced as a whole, for any thread may look, or be interrupted."""

    look: _Look | None = None
    parts: dict[str, tuple[bytes, Attachment]] = {}  # noqa: RUF012 - nobody changes it
    used: frozenset[str] = frozenset()  # names of globals that they use
    constants: bytes = b""
    mutable: bool = False  # whether a constant may change without a change of the global
    latest: Definitions | None = None


class _Notebook:
    """Keeps the definitions of ``__main__``."""

    def __init__(self) -> None:
        self._state = _State()

    @property
    def latest(self) -> Definitions | None:
        """Definitions at the last look."""
        return self._state.latest

    def __call__(self) -> Definitions | None:
        """Definitions as they are now; None if there are none. What has not changed is not pickled again."""
        try:
            self._state = self._now(self._state, vars(sys.modules["__main__"]))
        except Exception:  # another thread changes them at this moment, or a class has ways of its own
            return self.latest
        return self.latest

    def _now(self, last: _State, space: dict[str, Any]) -> _State:
        globals_now = list(map(id, list(space.values())))
        look, parts, used = last.look, last.parts, last.used
        changed = False
        if look is None or look.globals != globals_now or not look.is_same(space):
            look = _Look(space, globals_now)
            changed = last.look is None or look.stamp != last.look.stamp
            if changed:
                parts, used = _pickled({name: space[name] for name in (*look.functions, *look.others)}, parts)
        elif not last.mutable:
            return last
        found = {name: space[name] for name in used if name in space and _is_constant(space[name], 3)}
        constants = pickle.dumps(found, 5)
        latest = last.latest
        if changed or constants != last.constants:
            latest = named({name: part for name, (_, part) in parts.items()}, constants) if parts else None
        mutable = any(type(value) in _CONTAINERS for value in found.values())
        return _State(look, parts, used, constants, mutable, latest)


def _pickled(
    things: dict[str, Any], before: dict[str, tuple[bytes, Attachment]]
) -> tuple[dict[str, tuple[bytes, Attachment]], frozenset[str]]:
    """Pickles of what is defined, and the names of the globals that it uses."""
    parts: dict[str, tuple[bytes, Attachment]] = {}
    used: set[str] = set()
    for name, thing in things.items():
        out = _Bounded()
        pickler = _DefinitionPickler(out, protocol=5)
        try:
            pickler.dump(thing)
        except Exception:  # noqa: S112 - too large, or it cannot be pickled: then it is not found by name
            continue
        used |= pickler.constants
        data, old = out.getvalue(), before.get(name)
        parts[name] = old if old is not None and old[0] == data else (data, attachment("definition", data))
    return parts, frozenset(used)


class _Look:
    """What is defined in a notebook. It has numbers, not the objects, which would be kept alive."""

    __slots__ = ("functions", "globals", "others", "stamp")

    def __init__(self, space: dict[str, Any], globals_now: list[int]) -> None:
        self.globals = globals_now
        names = [
            name
            for name, thing in list(space.items())
            if isinstance(thing, _KINDS)
            and getattr(thing, "__qualname__", "") == name
            and thing.__module__ == space.get("__name__")
        ][:MAX_DEFINITIONS]
        self.functions = [name for name in names if type(space[name]) is types.FunctionType]
        self.others = [name for name in names if type(space[name]) is not types.FunctionType]
        self.stamp = [id(space[name]) for name in names] + self._contents(space)

    def is_same(self, space: dict[str, Any]) -> bool:
        """Whether the same objects have the same contents."""
        contents = self._contents(space)
        return contents == self.stamp[len(self.stamp) - len(contents) :]

    def _contents(self, space: dict[str, Any]) -> list[int]:
        found = list(map(id, map(_code, map(space.get, self.functions))))
        for name in self.others:
            if isinstance(kind := space[name], type):
                found += map(id, list(vars(kind).values()))
        return found


definitions = _Notebook()
_code = operator.attrgetter("__code__")


def _is_constant(value: Any, depth: int) -> bool:
    """Whether a value is plain data and small."""
    kind = type(value)
    if kind in _CONTAINERS:
        items = (*value, *value.values()) if kind is dict else tuple(value)
        return depth > 0 and len(items) <= MAX_ITEMS and all(_is_constant(item, depth - 1) for item in items)
    if kind in (str, bytes):
        return len(value) < 2**16
    return kind in _PLAIN or (kind.__module__ in ("torch", "numpy") and kind.__name__ in ("dtype", "device"))


class _Bounded(io.BytesIO):
    """File that takes no more than a definition may have."""

    def write(self, data: Any) -> int:
        if self.tell() + memoryview(data).nbytes > MAX_DEFINITION:
            raise pickle.PicklingError("too large")
        return super().write(data)


class _DefinitionPickler(CallPickler):
    """Pickler of classes and functions without the data that functions use as globals; their names are `constants`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.constants: set[str] = set()

    def reducer_override(self, obj: Any) -> Any:
        """How an object is made again; tensors are not looked at."""
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(obj, torch.Tensor):
            raise pickle.PicklingError("a tensor")
        return super().reducer_override(obj)

    @property
    def _set_class(self) -> Callable[..., Any]:
        return define_class  # one that the task has, and may have changed, stays

    def _function(self, fn: Any) -> Any:
        reduced = super()._function(fn)
        if type(reduced) is tuple and len(reduced) == 6 and isinstance(reduced[2][1], dict):
            slots = reduced[2][1]
            if "__globals__" in slots:
                used = slots["__globals__"]
                kept = {name: value for name, value in used.items() if isinstance(value, _SENT)}
                if fn.__globals__ is vars(sys.modules["__main__"]):
                    self.constants |= used.keys() - kept.keys()
                else:
                    kept = used
                slots["__globals__"] = kept
        return reduced
