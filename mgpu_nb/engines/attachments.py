"""What a worker is sent once, ahead of the first call that may ask for it: sources of cells, definitions of notebooks.

A function of a cell has no file that a worker could read. `inspect.getsource`, ``torch.jit.script``, debuggers and
tracebacks find its lines in `linecache`, in the worker as in the notebook.
"""

from __future__ import annotations

import itertools
import linecache
import pickle
import types
from typing import Any, NamedTuple

from . import main_module

__all__ = ["Attachment", "Definitions", "Sent", "attachment", "named", "source_of", "take"]

MAX_SOURCE = 2**20  # characters of one cell
MAX_SENT = 2**26  # bytes that one worker keeps; then it forgets them, and is sent again what it needs
MAX_SOURCES = 1000
_keys = itertools.count(1)


class Attachment(NamedTuple):
    """Something that a worker is sent once; `body` is what `take` takes."""

    key: int
    body: bytes


class Definitions(NamedTuple):
    """Classes and functions of the notebook at some time; `names` says which of them there are."""

    names: bytes
    parts: tuple[Attachment, ...]


def attachment(kind: str, *content: Any) -> Attachment:
    """Something new to send, see `take`."""
    key = next(_keys)
    return Attachment(key, pickle.dumps((kind, key, *content), 5))


def named(parts: dict[str, Attachment], constants: bytes) -> Definitions:
    """Definitions by name, with a pickle of the constants that they use."""
    keys = {name: part.key for name, part in parts.items()}
    return Definitions(pickle.dumps(("names", keys, constants), 5), tuple(parts.values()))


class Sent:
    """What one worker has been sent."""

    __slots__ = ("_definitions", "_keys", "_size")

    def __init__(self) -> None:
        self._keys: set[int] = set()
        self._definitions: Definitions | None = None
        self._size = 0

    def missing(
        self, sources: tuple[Attachment, ...], definitions: Definitions | None
    ) -> list[tuple[int, bytes]]:
        """Frames, 0 and a body each, that the worker must have before a call with these; they count as sent."""
        if not sources and (definitions is None or definitions is self._definitions):
            return []
        bodies = []
        new = definitions is not None and definitions is not self._definitions
        parts = (*sources, *definitions.parts) if definitions is not None and new else sources
        if self._size > MAX_SENT and not self._keys.issuperset(part.key for part in parts):
            self._keys, self._size = set(), 0
            bodies.append(pickle.dumps(("forget",)))
            new, parts = definitions is not None, (*sources, *(definitions.parts if definitions else ()))
        for part in parts:
            if part.key not in self._keys:
                self._keys.add(part.key)
                self._size += len(part.body)
                bodies.append(part.body)
        if definitions is not None and new:
            self._definitions = definitions
            bodies.append(definitions.names)
        return [(0, body) for body in bodies]


_sources: dict[str, tuple[list[str], Attachment]] = {}


def source_of(code: types.CodeType) -> Attachment | None:
    """Source of the cell that a code is from; None where it is from a file, or none is known."""
    entry: Any = linecache.cache.get(code.co_filename)
    if entry is None or len(entry) != 4 or entry[1] is not None or entry[0] > MAX_SOURCE:
        return None
    lines = entry[2]
    known = _sources.get(code.co_filename)
    if known is None or known[0] is not lines:
        if len(_sources) >= MAX_SOURCES:
            _sources.clear()
        known = _sources[code.co_filename] = lines, attachment("source", code.co_filename, lines)
    return known[1]


def take(body: bytes) -> None:
    """Keep, in a worker, what it was sent."""
    kind, *content = pickle.loads(body)
    if kind == "source":
        _, name, lines = content
        main_module.add_source(name, lines)
    elif kind == "definition":
        main_module.add_definition(*content)
    elif kind == "names":
        main_module.set_definitions(*content)
    else:
        main_module.forget()
