"""Values on the wire: cloudpickle, large buffers through shared memory.

A payload is a small ``body`` for the pipe and, where the value is large, a `Segment` that holds the rest.
Only processes of one pool exchange payloads; nothing here reads a pickle from disk or from the network.
"""

from __future__ import annotations

import builtins
import dis
import errno
import io
import operator
import os
import pickle
import sys
import types
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cloudpickle

from ..errors import add_note, message_of, warn_user
from ..signature import name_of
from .attachments import Attachment, Definitions
from .definitions import definitions
from .pickler import CallPickler, CodeRefused, ValuePickler, refuses_code, tensor_bytes
from .protocol import unpack
from .segment import NO_DESCRIPTOR, SMALL, Segment, map_segment, read_segment
from .unpicklable import why_unpicklable

__all__ = [
    "Draft",
    "NotPlain",
    "Payload",
    "Received",
    "dumps",
    "dumps_call",
    "dumps_value",
    "loads",
    "segment_sizes",
    "tensor_bytes",
]

LARGE = 2**18  # bytes; from here on shared memory is faster than the pipe
HEAVY = 10 * 2**20  # bytes; a function that carries more gets a warning

_PLAIN = frozenset({int, float, complex, bool, str, bytes, type(None)})


class Payload:
    """A value ready to be sent: `body` for the pipe, `segment` for what is large (or None).

    `shared` are segments with what other payloads have as well: the last that gives them up closes them. `read` is
    False where somebody may still read it when it is given up. `asks` are the tasks whose values it asks for, by
    `ValueOf`; `sources` and `definitions` what its worker must have been sent before, see `attachments.Sent`.
    """

    __slots__ = ("asks", "body", "definitions", "read", "segment", "shared", "sources")

    def __init__(self, body: bytes, segment: Segment | None = None) -> None:
        self.body = body
        self.segment = segment
        self.shared: tuple[Segment, ...] = ()
        self.read = True
        self.asks: tuple[str, ...] = ()
        self.sources: tuple[Attachment, ...] = ()
        self.definitions: Definitions | None = None

    @property
    def size(self) -> int:
        """Bytes in all, but those that are shared."""
        return len(self.body) + (self.segment.size if self.segment else 0)

    @property
    def small(self) -> bool:
        """Whether its shared memory may be used again."""
        return self.segment is not None and self.segment.small

    @property
    def fds(self) -> tuple[int, ...]:
        """Descriptors that travel with the body."""
        own = () if self.segment is None else (self.segment.fd,)
        return (*own, *(segment.fd for segment in self.shared)) if self.shared else own

    @property
    def segments(self) -> tuple[tuple[int, int], ...]:
        """Descriptors that travel with the body, each with the bytes of it that count."""
        own = () if self.segment is None else (self.segment,)
        return tuple((segment.fd, segment.size) for segment in (*own, *self.shared))

    def close(self) -> None:
        """Give the shared memory up."""
        self.shared = ()
        if self.segment is not None:
            self.segment.close()
            self.segment = None

    def release(self) -> None:
        """Give the shared memory up, for the next value where it is small: who was sent it has loaded it."""
        self.shared = ()
        if not self.read:
            self.close()
        elif self.segment is not None:
            self.segment.release()
            self.segment = None


class _Parts:
    """File that the pickler writes to. Large bytes objects arrive here uncopied and are kept so."""

    def __init__(self) -> None:
        self.parts: list[Any] = []
        self.size = 0

    def write(self, data: Any) -> int:
        self.parts.append(data)
        self.size += (n := memoryview(data).nbytes)
        return n


def dumps(value: Any, pickler: Callable[..., ValuePickler] = CallPickler) -> Payload:
    """Pickle what goes to a worker, or by `ValuePickler` what comes back.

    Errors of its own ``__reduce__`` and of what cannot be pickled come through.
    """
    if type(value) in _PLAIN:
        body = pickle.dumps(value, 5)
        if len(body) < LARGE:
            return Payload(body)
    return draft(value, pickler).place()


class Draft:
    """A pickled value whose large parts are not copied yet: `parts` of the stream, and `buffers` beside it."""

    __slots__ = ("buffers", "made_by", "parts", "size", "value")

    def __init__(
        self, value: Any, parts: list[Any], size: int, buffers: list[memoryview], made_by: ValuePickler
    ) -> None:
        self.value = value
        self.parts = parts
        self.size = size  # bytes of the parts
        self.buffers = buffers
        self.made_by = made_by

    @property
    def large(self) -> bool:
        """Whether it takes shared memory."""
        return self.size >= LARGE or bool(self.buffers)

    def place(self) -> Payload:
        """Payload with a copy of it."""
        found = self._copied()
        self.annotate(found)
        return found

    def annotate(self, payload: Payload) -> None:
        """Note in its payload what it asks for, and what its worker must have been sent."""
        payload.asks = self.made_by.asks
        if isinstance(self.made_by, CallPickler):
            payload.sources = tuple(self.made_by.sources.values())
            payload.definitions = None if refuses_code() else definitions()

    def _copied(self) -> Payload:
        if not self.large:
            return Payload(b"".join(self.parts))
        try:
            segment = Segment.of(self.size + sum(view.nbytes for view in self.buffers))
        except OSError:  # no descriptor left, or no memory files here: the pipe takes it, more slowly
            back = not isinstance(self.made_by, CallPickler)
            return dumps_in_band(self.value, ValuePickler if back else CallPickler)
        stream = segment.append(b"")[0]
        for part in self.parts:
            segment.append(part, align=1)
        places = [(stream, self.size), *(segment.append(view) for view in self.buffers)]
        return Payload(pickle.dumps(places, 5), segment)


def draft(value: Any, pickler: Callable[..., ValuePickler] = CallPickler) -> Draft:
    """Pickle a value, without a copy of its arrays and tensors."""
    out = _Parts()
    buffers: list[memoryview] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < LARGE:
            return True
        buffers.append(view)
        return False

    made = pickler(out, protocol=5, buffer_callback=keep_in_band)
    made.dump(value)
    return Draft(value, out.parts, out.size, buffers, made)


def dumps_in_band(value: Any, pickler: Callable[..., ValuePickler] = CallPickler) -> Payload:
    """Pickle a value without shared memory; see `dumps`."""
    out = _Parts()
    made = pickler(out, protocol=5)
    made.dump(value)
    found = Payload(b"".join(out.parts))
    if isinstance(made, CallPickler):
        found.sources = tuple(made.sources.values())
    return found


def why_not(parts: Mapping[str, Any]) -> str:
    """Which part of some values does not pickle, to be said of an error; empty if that is not found."""
    return why_unpicklable(parts, _fails)


def _fails(value: Any) -> bool:
    try:
        CallPickler(_Nowhere(), protocol=5, buffer_callback=lambda _: False).dump(value)
    except Exception:
        return True
    return False


class _Nowhere:
    """File that keeps nothing."""

    def write(self, data: Any) -> int:
        return memoryview(data).nbytes


def parts_of_call(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The function and the arguments of a call, by the names that messages have for them."""
    parts = {f"args[{n}]": value for n, value in enumerate(args)}
    parts |= {f"kwargs[{name!r}]": value for name, value in kwargs.items()}
    return parts | {f"the function {name_of(fn)}": fn}


def dumps_call(
    fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], pack: Callable[[Any], Payload] = dumps
) -> Payload:
    """Pickle a call, by `pack`. Where plain pickle is safe it is taken: it costs a tenth of cloudpickle.

    Raises
    ------
    Exception
        What pickling raised, with a note that names the part of the call that does not pickle.
    """
    try:
        return _dumps_call(fn, args, kwargs, pack)
    except Exception as error:
        if reason := why_not(parts_of_call(fn, args, kwargs)):
            add_note(error, f"in this call {reason}")
        raise


def dumps_value(value: Any, pickler: Callable[..., ValuePickler] = ValuePickler) -> Payload:
    """Pickle what a task returned.

    Raises
    ------
    TypeError
        If it does not pickle; the message names the part of it that does not.
    Exception
        What code of its classes raised otherwise.
    """
    try:
        return dumps(value, pickler)
    except CodeRefused as error:
        raise TypeError(f"what the task returned cannot be sent back: {error}") from None
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        reason = why_not({"value": value}) or f"it does not pickle ({message_of(error)})"
        raise TypeError(f"what the task returned cannot be sent back: {reason}") from error


def _dumps_call(
    fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], pack: Callable[[Any], Payload]
) -> Payload:
    callee = fn if _importable(fn) else _self_contained(fn)
    if callee is not None and not kwargs and _PLAIN.issuperset(map(type, args)):
        body = pickle.dumps((callee, args, kwargs), 5)
        if len(body) < LARGE:
            payload = Payload(body)
            payload.definitions = None if refuses_code() else definitions.latest
            if type(callee) is _Pickled:
                callee.annotate(payload)
            return payload
    payload = pack((fn if callee is None else callee, args, kwargs))
    if type(callee) is _Pickled:
        callee.annotate(payload)
    if payload.size > HEAVY and (weight := dumps(fn).size) > HEAVY:
        warn_user(
            f"{getattr(fn, '__qualname__', fn)!s} carries {weight / 2**20:.0f} MB with it to every task (what it "
            "closes over, or globals it uses): pass them as arguments, or load them once in the pool's setup",
        )
    return payload


def _places(body: bytes, count: int) -> tuple[Sequence[Any], Sequence[tuple[int, int, int]], list[int]]:
    """Where the parts of a value are in its segments: its stream, its buffers, and where each segment ends."""
    places = unpack(body)
    if type(places) is not tuple:  # all of it in one segment
        places = [(0, *places[0])], [(0, *place) for place in places[1:]]
    stream, buffers = places
    ends = [0] * count
    for at, start, size in (*(piece for piece in stream if type(piece) is tuple), *buffers):
        ends[at] = max(ends[at], start + size)
    return stream, buffers, ends


def segment_sizes(body: bytes, count: int) -> list[int]:
    """Bytes that count of each of the segments of a value: the rest is of a value before, or nothing.

    Raises
    ------
    Exception
        If the body is that of no value.
    """
    return _places(body, count)[2]


class NotPlain(Exception):
    """A pickle names a class or function whose code would run when it is loaded."""


class Received:
    """A value that has arrived in this process and is not unpickled yet.

    Its shared memory is mapped, or copied where it is small: the sender may use that again (`Payload.release`).
    """

    __slots__ = ("_body", "_buffers", "_error")

    def __init__(
        self, body: bytes, fds: tuple[int, ...] = (), memory: Sequence[memoryview] | None = None
    ) -> None:
        self._body: bytes | memoryview = body
        self._buffers: list[memoryview] = []
        self._error: OSError | None = None
        if memory is not None:  # its segments came by another way than as descriptors
            if memory:
                stream, buffers, ends = _places(body, len(memory))
                if any(len(view) < end for view, end in zip(memory, ends, strict=True)):
                    self._error = OSError(errno.EMFILE, NO_DESCRIPTOR)
                else:
                    self._take(stream, buffers, memory)
            return
        if not fds:
            return
        try:
            stream, buffers, ends = _places(body, len(fds))
        except BaseException:  # whoever sent it is not to be believed
            for fd in fds:
                if fd >= 0:
                    os.close(fd)
            raise
        read: list[memoryview] = []
        try:
            for fd, end in zip(fds, ends, strict=True):
                read.append(read_segment(fd, end) if end <= SMALL else map_segment(fd))
        except OSError as error:  # no descriptor or no memory was left: the fault of this value alone
            self._error = error
            for fd in fds[len(read) + 1 :]:
                if fd >= 0:
                    os.close(fd)
            return
        self._take(stream, buffers, read)

    def _take(
        self, stream: Sequence[Any], buffers: Sequence[tuple[int, int, int]], memory: Sequence[memoryview]
    ) -> None:
        pieces = [
            memory[piece[0]][piece[1] : piece[1] + piece[2]] if type(piece) is tuple else piece
            for piece in stream
        ]
        self._body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._buffers = [memory[at][start : start + size] for at, start, size in buffers]

    def load(self) -> Any:
        """Unpickle it; runs whatever code its classes ask for."""
        if self._error is not None:
            raise self._error
        return pickle.loads(self._body, buffers=self._buffers)

    def load_plain(self) -> Any:
        """Unpickle a value of plain data, arrays and tensors, which takes no time and runs no code but theirs.

        Raises
        ------
        NotPlain
            If it is anything else, or large: `load` may take long.
        """
        if self._error is not None:
            raise self._error
        if (size := len(self._body)) < 6 and _SHORT.get(bytes(self._body[2:3])) == size:
            return pickle.loads(self._body)
        if size > LARGE:
            raise NotPlain
        return _PlainUnpickler(io.BytesIO(self._body), buffers=self._buffers).load()


_SHORT = {b"N": 4, b"\x88": 4, b"\x89": 4, b"K": 5}
"""Lengths of the pickles that can name nothing, by their first code: None, bools, small integers."""


class _PlainUnpickler(pickle.Unpickler):
    """Unpickler that refuses all classes but those of plain data."""

    def find_class(self, module: str, name: str) -> Any:
        plain = (module, name) in _PLAIN_NAMES or (module.startswith("numpy") and name in _NUMPY_NAMES)
        imported = sys.modules.get(module)  # else it is left to `load`: to import torch takes seconds
        if getattr(getattr(imported, "__spec__", None), "_initializing", False):
            raise NotPlain  # another thread imports it, and has only a part of it by now
        if plain and imported is not None and (name != "_tensor" or "torch" in sys.modules):
            return getattr(imported, name)
        raise NotPlain


_PLAIN_NAMES = {
    ("mgpu_nb.engines.pickler", "_array"),
    ("mgpu_nb.engines.pickler", "_tensor"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    *(
        ("builtins", name)
        for name, kind in vars(builtins).items()
        if name in ("bytearray", "complex", "frozenset", "range", "set", "slice")
        or (isinstance(kind, type) and issubclass(kind, BaseException))
    ),
}
_NUMPY_NAMES = ("_frombuffer", "_reconstruct", "dtype", "ndarray", "scalar")


def loads(body: bytes, fds: tuple[int, ...] = ()) -> Any:
    """Unpickle what `dumps` made. Large arrays look straight into the shared memory, copied on write."""
    if not fds:
        return pickle.loads(body)
    return Received(body, fds).load()


class _Pickled:
    """A function of a notebook cell that refers to nothing outside itself, pickled once for all its calls."""

    def __init__(self, fn: types.FunctionType) -> None:
        self.parts = self.parts_of(fn)
        packed = dumps_in_band(fn)
        self.data, self.sources = packed.body, packed.sources
        # One that imports may read a pickle that names what is defined in the notebook.
        self.imports = any(step.opname == "IMPORT_NAME" for step in dis.get_instructions(fn.__code__))

    def annotate(self, payload: Payload) -> None:
        """Note what a worker must have been sent before a call of it."""
        payload.sources += self.sources
        if self.imports:
            payload.definitions = definitions()

    @staticmethod
    def parts_of(fn: types.FunctionType) -> tuple[Any, ...]:
        """All that can change in a function whose code names nothing but builtins."""
        return fn.__code__, fn.__defaults__, fn.__name__, fn.__qualname__, fn.__doc__, fn.__module__

    def __reduce__(self) -> Any:
        return pickle.loads, (self.data,)


_pickled: weakref.WeakKeyDictionary[types.FunctionType, _Pickled] = weakref.WeakKeyDictionary()


def _self_contained(fn: Any) -> _Pickled | None:
    """Pickle of a function that closes over nothing and uses no globals; None for any other."""
    if (
        type(fn) is not types.FunctionType
        or fn.__closure__
        or fn.__kwdefaults__
        or fn.__dict__
        or fn.__annotations__
        or refuses_code()  # no pickle of it that was made before
    ):
        return None
    if not fn.__globals__.keys().isdisjoint(fn.__code__.co_names):
        return None
    if (pickled := _pickled.get(fn)) is not None and all(
        map(operator.is_, pickled.parts, _Pickled.parts_of(fn))
    ):
        return pickled
    nested = any(isinstance(constant, types.CodeType) for constant in fn.__code__.co_consts)
    if nested or not _PLAIN.issuperset(map(type, fn.__defaults__ or ())):
        return None
    pickled = _pickled[fn] = _Pickled(fn)
    return pickled


def _importable(fn: Any) -> bool:
    """Whether plain pickle sends `fn` by reference, to a module that a worker can import."""
    if not isinstance(fn, (types.FunctionType, types.BuiltinFunctionType)):
        return False
    name = fn.__module__
    if name in (None, "__main__") or fn.__qualname__ != fn.__name__:
        return False
    by_value = cloudpickle.list_registry_pickle_by_value()
    if by_value and any(name == other or name.startswith(other + ".") for other in by_value):
        return False
    return getattr(sys.modules.get(name), fn.__name__, None) is fn
