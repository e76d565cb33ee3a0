"""Identity of tasks, by which runs are resumed and durations remembered.

A task is its function, its arguments and its seed. The function is identified by its import path and the bytecode of
its own body, defaults and closure, not by the functions it calls; arguments by their content. Line numbers, file
names, and the name, cost, memory, timeout and retries of the task do not count.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import sys
import types
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

from ..engines import payload
from ..tasks import Task
from ..value_of import ValueOf

__all__ = ["Digests", "Durations", "durations", "fingerprint"]


LARGE = 2**16  # bytes, or items; from here on what several tasks have is hashed once


class Digests:
    """Hashes of the large objects of a batch of tasks, each made once: nothing changes while the batch is planned."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[Any, bytes]] = {}
        """By the id of an object that is kept, so that no other has its id."""
        self.loops = 0
        """How often an object was met within itself; what is hashed then depends on where it was begun."""


def fingerprint(task: Task, seed: int, after: Iterable[str] = (), digests: Digests | None = None) -> str:
    """Identity of a task, 32 hexadecimal digits; `digests` are those of its batch.

    That of the tasks which it waits for, `after`, is part of it: what they gave decides what it gives.

    Arguments other than plain data, arrays, tensors, dataclasses and functions are identified by their pickle. If that
    differs between processes, the task is run again.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(b"tuple:4:")
    digests = Digests() if digests is None else digests
    digest.update(_bytes_of(task.fn, digests))
    texts = list(map(_plain_text, task.args))
    if None in texts:
        _feed(digest, task.args, set(), digests)
    else:  # most are of few plain arguments
        digest.update(f"tuple:{len(texts)}:{''.join(texts)}".encode(errors="surrogatepass"))  # type: ignore[arg-type]
    _feed(digest, task.kwargs, set(), digests)
    digest.update(f"int:{len(text := repr(seed))}:{text}".encode())
    if earlier := sorted(after):
        _feed(digest, earlier, set(), digests)
    return digest.hexdigest()


class _Tape:
    """Takes what a digest would."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def update(self, data: Any) -> None:
        self.parts.append(bytes(data))


_functions: weakref.WeakKeyDictionary[types.FunctionType, tuple[types.CodeType, Any, bytes]] = (
    weakref.WeakKeyDictionary()
)


def _bytes_of(fn: Any, digests: Digests) -> bytes:
    """What is hashed of a function; of one that closes over nothing it is kept, for its tasks may be many."""
    simple = (
        type(fn) is types.FunctionType
        and not fn.__closure__
        and not fn.__kwdefaults__
        and all(type(value) in (int, float, bool, str, type(None)) for value in fn.__defaults__ or ())
    )
    if simple and (known := _functions.get(fn)) is not None:
        code, defaults, found = known
        if code is fn.__code__ and defaults is fn.__defaults__:
            return found
    tape = _Tape()
    _feed(tape, fn, set(), digests)
    found = b"".join(tape.parts)
    if simple:
        _functions[fn] = (fn.__code__, fn.__defaults__, found)
    return found


def _feed(digest: Any, value: Any, above: set[int], digests: Digests) -> None:
    """Hash a value, each part with its type and length, so that no two values have the same bytes."""
    if id(value) in above:  # a recursive function, a list that contains itself
        digests.loops += 1
        digest.update(b"<above>")
    elif _is_large(value):
        digest.update(_short_form(value, above, digests))
    else:
        _feed_parts(digest, value, above, digests)


def _is_large(value: Any) -> bool:
    """Whether to hash it takes long: it has many bytes or items, or is pickled for it."""
    kind = type(value)
    if kind in _PLAIN:
        return False
    if kind in (str, bytes, bytearray):
        return len(value) >= LARGE
    if kind in (list, tuple, dict, set, frozenset):
        return len(value) >= LARGE // 256
    if kind is memoryview or _is_array(value):
        return bool(value.nbytes >= LARGE)
    return _is_pickled(value)


_PLAIN = frozenset({int, float, bool, complex, type(None)})
_CACHE = type(functools.cache(len))
_TAKEN_APART = (functools.partial, ValueOf, types.MethodType, types.FunctionType, types.CodeType, _CACHE)


def _is_pickled(value: Any) -> bool:
    """Whether an object that is neither plain data nor an array is identified by its pickle."""
    by_fields = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return not by_fields and type(value) not in _TAKEN_APART and not isinstance(value, PurePath)


def _short_form(value: Any, above: set[int], digests: Digests) -> bytes:
    """What is hashed of a large object: its digest, or a pickle that is short."""
    if (known := digests.known.get(id(value))) is not None:
        return known[1]
    loops, tape = digests.loops, _Tape()
    digest = hashlib.blake2b(digest_size=16)
    _feed_parts(digest if type(value) in _HASHED or _is_array(value) else tape, value, above, digests)
    found = b"".join(tape.parts)
    if len(found) >= LARGE or not found:
        digest.update(found)
        found = b"digest:" + digest.digest()
    if digests.loops == loops:
        digests.known[id(value)] = value, found
    return found


_HASHED = frozenset({str, bytes, bytearray, memoryview, list, tuple, dict, set, frozenset})


def _feed_parts(digest: Any, value: Any, above: set[int], digests: Digests) -> None:
    kind = type(value)
    if value is None or kind in (bool, int, float, complex, str) or isinstance(value, PurePath):
        digest.update(_text(kind, value).encode(errors="surrogatepass"))
        return
    if kind in (bytes, bytearray, memoryview):
        digest.update(f"bytes:{len(value)}:".encode())
        digest.update(value)
        return
    above = above | {id(value)}
    if kind in (list, tuple):
        digest.update(f"{kind.__name__}:{len(value)}:".encode())
        for item in value:
            _feed(digest, item, above, digests)
    elif kind in (set, frozenset):
        digest.update(f"{kind.__name__}:{len(value)}:".encode())
        for part in sorted(_digest(item, above, digests) for item in value):
            digest.update(part)
    elif kind is dict:
        digest.update(f"dict:{len(value)}:".encode())
        for part in sorted(_digest(item, above, digests) for item in value.items()):
            digest.update(part)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        digest.update(f"{kind.__module__}.{kind.__qualname__}".encode())
        _feed(digest, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, above, digests)
    elif kind is functools.partial:
        _feed(digest, ("partial", value.func, value.args, value.keywords), above, digests)
    elif kind is ValueOf:
        _feed(digest, ("value of", value.names), above, digests)
    elif kind is _CACHE:
        _feed(digest, ("cached", value.__wrapped__), above, digests)
    elif kind is types.MethodType:
        _feed(digest, ("method", value.__func__, value.__self__), above, digests)
    elif kind is types.FunctionType:
        cells = [_contents(cell) for cell in value.__closure__ or ()]
        defaults = (value.__defaults__, value.__kwdefaults__)
        module = "" if value.__module__ == "__main__" else value.__module__
        _feed(
            digest, ("function", module, value.__qualname__, value.__code__, defaults, cells), above, digests
        )
    elif kind is types.CodeType:
        n = value.co_argcount + value.co_kwonlyargcount
        stars = value.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)
        signature = (value.co_varnames[:n], value.co_posonlyargcount, value.co_argcount, stars)
        _feed(digest, (value.co_code, value.co_names, value.co_consts, signature), above, digests)
    elif _is_array(value):
        _feed_array(digest, value)
    else:
        digest.update(payload.dumps_in_band(value).body)


def _plain_text(value: Any) -> str | None:
    """What is hashed of plain data that is short, the same as `_feed` gives; None for anything else."""
    kind = type(value)
    short = kind in _PLAIN or (kind is str and len(value) < LARGE)
    return _text(kind, value) if short else None


def _text(kind: type, value: Any) -> str:
    text = str(value) if isinstance(value, PurePath) else hex(value) if _huge(value) else repr(value)
    return f"{kind.__name__}:{len(text)}:{text}"


def _is_array(value: Any) -> bool:
    """Whether it is a dense array or tensor, whose content is its identity."""
    np, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if torch is not None and type(value) is torch.Tensor:
        return value.layout is torch.strided and not value.is_meta
    return np is not None and type(value) is np.ndarray and not value.dtype.hasobject


def _feed_array(digest: Any, value: Any) -> None:
    if type(value).__module__ == "torch":
        data = payload.tensor_bytes(value)
    else:
        np = sys.modules["numpy"]
        data = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    digest.update(f"array:{(value.dtype, value.shape)}:".encode())
    digest.update(data)


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name without a value yet
        return Ellipsis


def _huge(value: Any) -> bool:
    return type(value) is int and value.bit_length() > 10_000  # Python refuses to write it in decimals


def _digest(value: Any, above: set[int], digests: Digests) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest, value, above, digests)
    return bytes(digest.digest())


class Durations:
    """Seconds that tasks took, by fingerprint; kept in this process for the most recent tasks.

    Of each kind of task there is the mean as well, for those that have not run with these arguments.
    """

    def __init__(self, size: int = 100_000) -> None:
        self._size = size
        self._seconds: OrderedDict[str, float] = OrderedDict()
        self._kinds: dict[str, tuple[int, float]] = {}

    def learn(self, task: str, seconds: float, kind: str = "") -> None:
        """Remember the duration of a task, seconds."""
        number, mean = self._kinds.get(kind, (0, 0.0))
        self._kinds[kind] = number + 1, mean + (seconds - mean) / (number + 1)
        self._seconds[task] = seconds
        self._seconds.move_to_end(task)
        if len(self._seconds) > self._size:
            self._seconds.popitem(last=False)

    def __call__(self, task: str) -> float | None:
        """Duration of the task's last run, seconds; None if it has not run."""
        return self._seconds.get(task)

    def of_kind(self, kind: str) -> float | None:
        """Mean duration of the tasks of a kind, seconds; None if none has run."""
        return self._kinds[kind][1] if kind in self._kinds else None


durations = Durations()
