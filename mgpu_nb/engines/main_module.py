"""The ``__main__`` of a task: what its function brought of the notebook's, where pickle and others look for it by name.

In the notebook a class, a function or a global of a cell is an attribute of ``__main__``. In a worker every task has a
module of that name to itself: the functions that are sent have its dictionary as their globals, and what the notebook
finds there by name is found there by name, also by the processes that the task starts, forked or spawned. The script or
the notebook itself is never run again.
"""

from __future__ import annotations

import importlib.machinery
import linecache
import pickle
import sys
import types
from collections.abc import Iterable
from typing import Any

__all__ = [
    "MainModule",
    "add_definition",
    "add_source",
    "adopt",
    "contents",
    "define",
    "fill",
    "forget",
    "keep",
    "load_all",
    "main_globals",
    "need",
    "renew",
    "set_definitions",
]


# By this multiprocessing knows that a child has nothing to import, whatever __file__ says.
_SPEC = importlib.machinery.ModuleSpec("__main__", None)


class MainModule(types.ModuleType):
    """A module ``__main__`` without a file of its own.

    Attributes
    ----------
    __mgpu_added__
        Names under which something stands that is only looked for by name.
    __mgpu_needed__
        Names that functions refer to as globals.
    """

    # Whatever else is set of it is a global of the functions, which may have any other name.
    __slots__ = ("__mgpu_added__", "__mgpu_needed__")

    def __init__(self) -> None:
        super().__init__("__main__")
        self.__mgpu_added__: set[str] = set()
        self.__mgpu_needed__: set[str] = set()
        self.__spec__ = _SPEC

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            if (key := _here.definitions.get(name)) is not None:
                return _here.load(key)
            if _here.kept is not None and name in vars(_here.kept):
                return vars(_here.kept)[name]
        raise AttributeError(f"module '__main__' has no attribute {name!r}")


class _Here:
    """What this process has as its ``__main__``.

    Attributes
    ----------
    main
        The module of the present task; None in a process that is not a worker's, whose own ``__main__`` stays.
    kept
        That of the pool's setup.
    pickles, definitions, constants
        Pickles by number of the notebook's classes and functions; their numbers by name, as they are for the present
        task; and a pickle of the constants that they use.
    sources
        Lines of the notebook's cells, by the names of their code.
    """

    def __init__(self) -> None:
        self.first: types.ModuleType | None = None
        self.main: MainModule | None = None
        self.kept: MainModule | None = None
        self.pickles: dict[int, bytes] = {}
        self.definitions: dict[str, int] = {}
        self.constants = b""
        self.sources: dict[str, list[str]] = {}

    def install(self) -> None:
        self.main = MainModule()
        sys.modules["__main__"] = sys.modules["__mp_main__"] = self.main

    def load(self, key: int) -> Any:
        """A class or function of the notebook, that the task's function did not bring."""
        space = vars(self.main)
        before = dict(space)
        found = pickle.loads(self.pickles[key])
        space.update(before)  # what the task has stays as it is
        for name, value in (pickle.loads(self.constants) if self.constants else {}).items():
            space.setdefault(name, value)
        return found


_here = _Here()
_EMPTY = len(vars(MainModule()))


def adopt() -> None:
    """Give this process, a worker or what one has spawned, a ``__main__`` for its tasks."""
    _here.first = sys.modules.get("__main__")  # it is not to be taken apart while its code runs
    _here.install()


def renew() -> None:
    """Forget what a task brought; the next one finds nothing of it."""
    main = _here.main
    if main is None or (len(vars(main)) == _EMPTY and sys.modules.get("__main__") is main):
        return
    _here.install()
    # A function under its own name among its globals would keep them until the next garbage collection. What is
    # referred to as a global stays: something of the task may live on, a thread or what it has cached.
    for name in main.__mgpu_added__ - main.__mgpu_needed__:
        vars(main).pop(name, None)


def keep() -> None:
    """Keep what setup brought: it is found where a task has nothing of that name."""
    _here.kept = _here.main
    if _here.main is not None:
        _here.install()


def main_globals(file: str | None) -> dict[str, Any]:
    """Globals of functions of the notebook in this process."""
    if _here.main is None:
        return {"__name__": "__main__"}
    space = vars(_here.main)
    if file is not None:
        space["__file__"] = file
    return space


def need(space: dict[str, Any], names: Iterable[str]) -> None:
    """Note that a function with the globals `space` refers to these."""
    if _here.main is not None and space is vars(_here.main):
        _here.main.__mgpu_needed__.update(names)


def define(thing: Any, name: str = "") -> None:
    """Let a class, a function or another object of the notebook be found by its name."""
    if _here.main is not None:
        name = name or thing.__qualname__
        _here.main.__mgpu_added__.add(name)
        vars(_here.main)[name] = thing


def add_source(name: str, lines: list[str]) -> None:
    """Keep the source of a cell."""
    _here.sources[name] = lines
    linecache.cache[name] = (sum(map(len, lines)), None, lines, name)


def add_definition(key: int, data: bytes) -> None:
    """Keep a pickle of a class or function of the notebook."""
    _here.pickles[key] = data


def set_definitions(keys: dict[str, int], constants: bytes) -> None:
    """Say which classes and functions there are in the notebook of the tasks that follow."""
    _here.definitions, _here.constants = keys, constants


def load_all() -> None:
    """Have all of them in ``__main__`` now, as in the notebook: for a process that stands in for it."""
    for name in _here.definitions:
        getattr(_here.main, name, None)


def forget() -> None:
    """Keep none of them."""
    for name in _here.sources:
        linecache.cache.pop(name, None)
    _here.sources, _here.pickles, _here.definitions, _here.constants = {}, {}, {}, b""


def contents() -> tuple[dict[str, Any], tuple[Any, ...]]:
    """What is in ``__main__`` now, and what `fill` takes of the rest."""
    main = {} if _here.main is None else vars(_here.main)
    pickles = {key: _here.pickles[key] for key in _here.definitions.values()}
    return main, (pickles, _here.definitions, _here.constants, _here.sources)


def fill(
    pickles: dict[int, bytes], keys: dict[str, int], constants: bytes, sources: dict[str, list[str]]
) -> None:
    """Let this process find what another one finds by name."""
    if _here.main is None:
        adopt()
    _here.pickles = pickles
    set_definitions(keys, constants)
    for name, lines in sources.items():
        add_source(name, lines)
