"""What cloudpickle does not do for the classes, functions and tensors of a notebook.

A call goes to a worker, a value comes back. A class of the notebook arrives in a worker as it is in the notebook now,
whatever an earlier task has left of it. With a value comes no class that the process has already: nothing that arrives
changes the notebook's own.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import pickle
import sys
import types
import typing
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, cast

from cloudpickle import cloudpickle

from ..hardware.host_copy import host_copy
from ..value_of import ValueOf
from . import main_module
from .attachments import Attachment, source_of

__all__ = [
    "CallPickler",
    "CodeRefused",
    "GuestPickler",
    "ValuePickler",
    "define_class",
    "refuse_code",
    "refuses_code",
    "refusing_code",
    "tensor_bytes",
]

_Reduced = Any  # a tuple as `__reduce__` returns it, or NotImplemented


if (main := sys.modules.get("__mp_main__")) is not None:
    # A process that multiprocessing spawned: what its script defines no worker can import.
    cloudpickle.register_pickle_by_value(main)


class ValuePickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle that sends a tensor as its bytes, out of band, and a CUDA tensor as a CPU tensor.

    It notes which values of other tasks are asked for.
    """

    asks: tuple[str, ...] = ()

    def reducer_override(self, obj: Any) -> _Reduced:
        """How an object is made again; `NotImplemented` leaves that to pickle."""
        kind = type(obj)
        if kind is types.FunctionType:
            return NotImplemented if obj in _OURS else self._function(obj)
        if kind is ValueOf:
            self.asks += obj.names
        torch = sys.modules.get("torch")
        if (
            torch is not None
            and kind is torch.Tensor
            and obj.layout is torch.strided
            and not obj.is_quantized
            and not obj.is_meta
        ):
            # Only what the view shows, not the whole storage behind it.
            raw = pickle.PickleBuffer(self.bytes_of(obj))
            return _tensor, (raw, str(obj.dtype), tuple(obj.shape), obj.requires_grad)
        if (special := _SPECIAL.get(kind)) is not None:
            return special(self, obj)
        reduced = super().reducer_override(obj)
        if type(reduced) is tuple and len(reduced) == 6:
            return self._class(obj, reduced)
        if reduced is NotImplemented and kind.__module__ == "__main__" and not isinstance(obj, type):
            return self._instance(obj)
        return reduced

    def _instance(self, _: Any) -> _Reduced:
        """How an instance of a class of the notebook is made."""
        return NotImplemented

    def bytes_of(self, tensor: Any) -> Any:
        """Bytes of a tensor."""
        return tensor_bytes(tensor)

    def _function(self, fn: Any) -> _Reduced:
        if fn.__code__ is _DISPATCH:
            return _reduce_dispatch(self, fn)
        return super().reducer_override(fn)

    def _class(self, kind: type, reduced: _Reduced) -> _Reduced:
        maker, args, (attributes, slots) = reduced[:3]
        members: dict[str, dict[str, Any]] = {}
        if issubclass(kind, enum.Enum):
            args, attributes, members = _whole_enum(kind, args, attributes)
        elif not issubclass(kind, tuple) and isinstance(
            slots_of := vars(kind).get("__slots__"), (str, tuple, list, dict)
        ):
            # cloudpickle makes a class without them, whose instances the class itself cannot load.
            args = (*args[:3], {**args[3], "__slots__": slots_of}, *args[4:])
        args, state = (kind.__qualname__, maker, *args), (self._whereabouts(kind), attributes, slots, members)
        return _make_class, args, state, None, None, self._set_class

    def _whereabouts(self, _: Any, /) -> Any:
        """What is to be defined in the ``__main__`` of the worker: the thing itself, the class it is in, or None."""
        return None

    @property
    def _set_class(self) -> Callable[..., Any]:
        return _complete_class


class CallPickler(ValuePickler):
    """The pickler of calls: what it sends of the notebook is found in the ``__main__`` of the worker.

    `sources` are those of the functions.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sources: dict[int, Attachment] = {}
        if (main := sys.modules.get("__main__")) is not None:
            self.globals_ref[id(vars(main))] = _MainGlobals()

    def _function(self, fn: Any) -> _Reduced:
        reduced = super()._function(fn)
        if type(reduced) is not tuple or reduced[5] is not cloudpickle._function_setstate:
            return reduced
        if (source := source_of(fn.__code__)) is not None:
            self.sources[source.key] = source
        return *reduced[:5], _define_function if self._whereabouts(fn) is fn else _set_function

    def _instance(self, obj: Any) -> _Reduced:
        kind: Any = type(obj)
        if kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__:
            return NotImplemented
        reduced = obj.__reduce_ex__(5)
        if type(reduced) is not str or not _is_main(obj, reduced):
            return reduced
        # One of its kind, found by name, as a sentinel is.
        return (
            kind.__new__,
            (kind,),
            (reduced, dict(getattr(obj, "__dict__", {}))),
            None,
            None,
            _define_single,
        )

    def _whereabouts(self, thing: Any, /) -> Any:
        outer, *inner = getattr(thing, "__qualname__", "").split(".")
        found = top = vars(sys.modules["__main__"]).get(outer)
        for name in inner:
            found = getattr(found, "__dict__", {}).get(name)
        return top if found is thing else None

    @property
    def _set_class(self) -> Callable[..., Any]:
        return _update_class


class GuestPickler(ValuePickler):
    """The pickler of values that go to another numpy: arrays by what every version has, not by its private modules."""

    def reducer_override(self, obj: Any) -> _Reduced:
        """How an object is made again."""
        np = sys.modules.get("numpy")
        if np is not None and type(obj) is np.ndarray and not obj.dtype.hasobject:
            flat = np.ascontiguousarray(obj).reshape(-1).view(np.uint8) if obj.size else b""
            return _array, (pickle.PickleBuffer(flat), obj.dtype, obj.shape)
        return super().reducer_override(obj)


class _MainGlobals:
    """Stands for the globals of the notebook."""

    def __reduce__(self) -> Any:
        return main_module.main_globals, (getattr(sys.modules["__main__"], "__file__", None),)


# Functions. What goes by value is bytecode, which an interpreter of another minor version takes and then crashes.


class CodeRefused(TypeError):
    """A function would go as bytecode to, or come from, an interpreter of another minor version."""


# What it is called where it arrives says nothing more.
CodeRefused.__name__ = CodeRefused.__qualname__ = "TypeError"
CodeRefused.__module__ = "builtins"

_refusal: ContextVar[str] = ContextVar("mgpu_nb_refusal", default="")
_refusal_here = ""  # in every thread of a worker


@contextlib.contextmanager
def refusing_code(reason: str) -> Iterator[None]:
    """Within the block, bytecode is not pickled: a TypeError says the name of the function, and `reason`."""
    token = _refusal.set(reason)
    try:
        yield
    finally:
        _refusal.reset(token)


def refuse_code(reason: str) -> None:
    """Pickle no bytecode in this process from now on."""
    global _refusal_here
    _refusal_here = reason


def refuses_code() -> bool:
    """Whether bytecode is not pickled now."""
    return bool(_refusal.get() or _refusal_here)


def _reduce_code(_: ValuePickler, code: types.CodeType) -> _Reduced:
    if reason := _refusal.get() or _refusal_here:
        raise CodeRefused(f"function {code.co_name!r} {reason}")
    return NotImplemented


def _set_function(fn: types.FunctionType, state: Any) -> None:
    main_module.need(fn.__globals__, state[1]["__globals__"])
    cloudpickle._function_setstate(fn, state)


def _define_function(fn: types.FunctionType, state: Any) -> None:
    _set_function(fn, state)
    main_module.define(fn)


def _is_main(thing: Any, name: str) -> bool:
    return vars(sys.modules["__main__"]).get(name) is thing


def _define_single(obj: Any, state: Any) -> None:
    name, attributes = state
    if attributes:
        vars(obj).update(attributes)
    main_module.define(obj, name)


def _importable(thing: Any) -> bool:
    """Whether a worker finds an object under its name in a module that it can import."""
    found = cloudpickle._lookup_module_and_qualname(thing)
    return found is not None and not cloudpickle._is_registered_pickle_by_value(found[0])


# Classes. `_received` has the names of what was set of each class that came to this process.

_received: weakref.WeakKeyDictionary[type, frozenset[str]] = weakref.WeakKeyDictionary()
_incomplete: weakref.WeakSet[type] = weakref.WeakSet()


def _make_class(qualname: str, maker: Callable[..., type], *args: Any) -> type:
    """The class of this process if there is one already, else one that is still empty."""
    tracker = args[-2]
    # Before a class is made: to make one calls __init_subclass__ of its bases, which may keep a list of their own.
    with cloudpickle._DYNAMIC_CLASS_TRACKER_LOCK:
        known: type | None = cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker)
    if known is not None:
        return known
    made = _skeleton(maker, args)
    made.__qualname__ = qualname
    _received[made] = frozenset()
    _incomplete.add(made)
    return made


class _Quiet:
    """First base of a class while it is made: what its bases did when it was defined is part of their state."""

    def __init_subclass__(cls, **_: Any) -> None:
        return


def _skeleton(maker: Callable[..., type], args: tuple[Any, ...]) -> type:
    if maker is cloudpickle._make_skeleton_class:
        *first, bases, options, tracker, extra = args
        above = [kind for base in types.resolve_bases(bases) for kind in base.__mro__]
        if any("__init_subclass__" in vars(kind) for kind in above if kind in _received):
            made: type = maker(*first, (_Quiet, *bases), options, None, extra)
            try:
                made.__bases__ = types.resolve_bases(bases)
            except TypeError:  # their instances have another layout
                pass
            else:
                tracked: type = cloudpickle._lookup_class_or_track(tracker, made)
                return tracked
    return maker(*args)


def _set_state(kind: type, state: Any) -> None:
    _, attributes, slots, members = state
    cloudpickle._class_setstate(kind, (attributes, slots))
    for name, contents in members.items():
        vars(cast(Any, kind)[name]).update(contents)
    for gone in _received.get(kind, frozenset()) - attributes.keys():
        if gone in vars(kind):
            delattr(kind, gone)
    _received[kind] = frozenset(attributes)
    _incomplete.discard(kind)


def _complete_class(kind: type, state: Any) -> None:
    """Give a class that is new here its contents."""
    if kind in _incomplete:
        _set_state(kind, state)


def _update_class(kind: type, state: Any) -> None:
    """Give a class that came to this process the contents it has where it was defined; one of our own stays."""
    if kind in _received:
        _set_state(kind, state)
    if state[0] is not None:
        main_module.define(state[0])


def define_class(kind: type, state: Any) -> None:
    """Give a class that is new here its contents, and let it be found."""
    _complete_class(kind, state)
    if state[0] is not None:
        main_module.define(state[0])


def _whole_enum(kind: type[enum.Enum], args: Any, attributes: Any) -> tuple[Any, Any, Any]:
    """What cloudpickle forgets: that aliases are members, and what ``__init__`` made of the members."""
    values = {name: member.value for name, member in kind.__members__.items()}
    rest = {name: value for name, value in attributes.items() if name not in values}
    contents = {
        member.name: {name: value for name, value in vars(member).items() if name not in _OF_MEMBERS}
        for member in kind
        if vars(member).keys() - _OF_MEMBERS
    }
    return (*args[:3], values, *args[4:]), rest, contents


_OF_MEMBERS = {"_value_", "_name_", "__objclass__", "_sort_order_"}


# Caches and other objects of functools, and references that keep nothing alive.


def _reduce_cache(pickler: ValuePickler, cache: Any) -> _Reduced:
    """A function with `functools.cache` or `lru_cache`: what it has cached stays here."""
    if not hasattr(cache, "__wrapped__") or (hasattr(cache, "__qualname__") and _importable(cache)):
        return NotImplemented
    options = cache.cache_parameters()
    state = (pickler._whereabouts(cache), _extra(cache, ("__wrapped__", "cache_parameters")))
    return (
        _make_cache,
        (cache.__wrapped__, options["maxsize"], options["typed"]),
        state,
        None,
        None,
        _set_extra,
    )


def _make_cache(fn: Any, maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(fn)


def _reduce_dispatch(pickler: ValuePickler, fn: Any) -> _Reduced:
    """A function with `functools.singledispatch`."""
    if hasattr(fn, "__qualname__") and _importable(fn):
        return NotImplemented
    registry = dict(fn.registry)
    own = ("register", "dispatch", "registry", "_clear_cache", "__wrapped__")
    state = (pickler._whereabouts(fn), _extra(fn, own), registry)
    return functools.singledispatch, (registry.pop(object),), state, None, None, _set_dispatch


def _set_dispatch(fn: Any, state: Any) -> None:
    *rest, registry = state
    for kind, implementation in registry.items():
        fn.register(kind, implementation)
    _set_extra(fn, rest)


def _extra(fn: Any, own: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in vars(fn).items() if name not in own}


def _set_extra(fn: Any, state: Any) -> None:
    outer, attributes = state
    vars(fn).update(attributes)
    if outer is not None:
        main_module.define(outer)


def _reduce_cached_property(_: ValuePickler, obj: Any) -> _Reduced:
    state = {name: value for name, value in vars(obj).items() if name != "lock"}  # Python 3.11 has one
    return functools.cached_property, (obj.func,), state


def _reduce_type_name(pickler: ValuePickler, obj: Any) -> _Reduced:
    """A `typing.NewType` and its like, which are found by name."""
    name = getattr(obj, "__qualname__", obj.__name__)
    if obj.__module__ != "__main__" or (type(pickler) is ValuePickler and _is_main(obj, name)):
        return NotImplemented
    options = (obj.__supertype__,) if type(obj) is typing.NewType else ()
    named = name if _is_main(obj, name) else None
    return _make_type_name, (type(obj), obj.__name__, *options), (named, name), None, None, _set_type_name


def _make_type_name(kind: Any, *args: Any) -> Any:
    return kind(*args)


def _set_type_name(obj: Any, state: Any) -> None:
    named, qualname = state
    obj.__module__ = "__main__"
    if hasattr(obj, "__qualname__"):
        obj.__qualname__ = qualname
    if named is not None:
        main_module.define(obj, named)


def _reduce_weak(_: ValuePickler, obj: Any) -> _Reduced:
    return type(obj), (dict(obj),)


_DISPATCH = functools.singledispatch(len).__code__  # type: ignore[attr-defined]
_SPECIAL: dict[type, Callable[[ValuePickler, Any], _Reduced]] = {
    type(functools.lru_cache(len)): _reduce_cache,
    functools.cached_property: _reduce_cached_property,
    typing.NewType: _reduce_type_name,
    types.CodeType: _reduce_code,
    **{
        getattr(typing, name): _reduce_type_name
        for name in ("ParamSpec", "TypeVarTuple")  # the latter since Python 3.11
        if hasattr(typing, name)
    },
    weakref.WeakKeyDictionary: _reduce_weak,
    weakref.WeakValueDictionary: _reduce_weak,
}


# Functions that make things again: to know that a worker can import them saves a third of the time of a call.
_OURS = frozenset(
    thing
    for space in (vars(cloudpickle), globals(), vars(main_module))
    for thing in space.values()
    if type(thing) is types.FunctionType and thing.__module__.startswith(("cloudpickle.", "mgpu_nb.engines."))
)


# Tensors.


def tensor_bytes(tensor: Any) -> Any:
    """Bytes that a strided tensor shows, in order, as an array; without a copy if possible."""
    flat = host_copy(tensor).resolve_conj().resolve_neg().contiguous()
    if not (size := flat.numel()):
        return b""
    # A dimension of one element counts as contiguous whatever its stride, which `view` would refuse.
    return flat.as_strided((size,), (1,)).view(sys.modules["torch"].uint8).numpy()


def _array(buffer: Any, dtype: Any, shape: tuple[int, ...]) -> Any:
    import numpy as np

    return np.frombuffer(buffer, dtype).reshape(shape) if len(buffer) else np.empty(shape, dtype)


def _tensor(buffer: Any, dtype: str, shape: tuple[int, ...], requires_grad: bool) -> Any:
    import torch

    kind = getattr(torch, dtype.removeprefix("torch."))
    if len(view := memoryview(buffer)) == 0:
        tensor = torch.empty(shape, dtype=kind)
    else:
        tensor = (
            torch.frombuffer(bytearray(view) if view.readonly else view, dtype=torch.uint8)
            .view(kind)
            .reshape(shape)
        )
    return tensor.requires_grad_(requires_grad)
