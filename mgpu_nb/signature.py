"""Parameters of functions: what the arguments of a call are called, and which keywords are a function's own.

Options stand beside the arguments of a function in ``Task(fit, x, seed=3)`` and ``launch(fit, x, timeout=60)``. If
`fit` has a parameter ``seed`` as well, nobody can tell whose it is: `refuse_shared` says so.
"""

from __future__ import annotations

import functools
import inspect
import types
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar, cast

from .options import OptionTypeError

__all__ = [
    "Parameters", "join", "left_out", "name_of", "named_arguments", "parameters", "refusal", "refuse_shared",
    "value_of",
]  # fmt: skip

T = TypeVar("T")


class _LeftOut:
    """A default that is not the same as its value given: ``seed=0`` may be meant for the function."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __repr__(self) -> str:
        return repr(self.value)  # in signatures


def left_out(value: T) -> T:
    """A default of an option that functions may have as well; `value_of` has its value."""
    return _LeftOut(value)  # type: ignore[return-value]


def value_of(value: T) -> T:
    """The value of an option, whether it was given or left out."""
    return cast(T, value.value) if isinstance(value, _LeftOut) else value


class Parameters(NamedTuple):
    """Parameters of a function.

    Attributes
    ----------
    positional
        Names of those that a positional argument can fill, in order.
    keywords
        Names of those that a keyword argument can fill.
    star
        Name of its ``*args``; empty if it takes none.
    any_keyword
        Whether it takes ``**kwargs``.
    known
        Whether it has a signature; some functions written in C have none.
    """

    positional: tuple[str, ...] = ()
    keywords: frozenset[str] = frozenset()
    star: str = ""
    any_keyword: bool = False
    known: bool = True


_UNKNOWN = Parameters(star="args", known=False)
_cache: weakref.WeakKeyDictionary[Any, Parameters] = weakref.WeakKeyDictionary()


def parameters(fn: Callable[..., Any]) -> Parameters:
    """Parameters of a function, a method, a class or any other callable; of a partial those that are left."""
    if type(fn) is types.FunctionType and not fn.__dict__:  # else it may be a wrapper of another
        return _of_code(fn.__code__)
    if isinstance(fn, functools.partial):
        inner = parameters(fn.func)
        filled = {*inner.positional[: len(fn.args)], *fn.keywords}
        return inner._replace(
            positional=tuple(name for name in inner.positional[len(fn.args) :] if name not in fn.keywords),
            keywords=inner.keywords - filled,
        )
    if isinstance(fn, types.MethodType):
        inner = parameters(fn.__func__)
        return inner._replace(
            positional=inner.positional[1:], keywords=inner.keywords - {*inner.positional[:1]}
        )
    try:
        if (found := _cache.get(fn)) is None:
            found = _cache[fn] = _of_signature(fn)
        return found
    except TypeError:  # it cannot be hashed, or not be referred to weakly
        return _of_signature(fn)


@functools.lru_cache(4096)
def _of_code(code: types.CodeType) -> Parameters:
    names = code.co_varnames
    positional, total = code.co_argcount, code.co_argcount + code.co_kwonlyargcount
    star = names[total] if code.co_flags & inspect.CO_VARARGS else ""
    keywords = frozenset(names[code.co_posonlyargcount : total])
    return Parameters(names[:positional], keywords, star, bool(code.co_flags & inspect.CO_VARKEYWORDS))


def _of_signature(fn: Callable[..., Any]) -> Parameters:
    try:
        found = inspect.signature(fn).parameters.values()
    except Exception:  # none is known, or an object's own __signature__ fails
        return _UNKNOWN
    return Parameters(
        tuple(p.name for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)),
        frozenset(p.name for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)),
        next((p.name for p in found if p.kind is p.VAR_POSITIONAL), ""),
        any(p.kind is p.VAR_KEYWORD for p in found),
    )


def refusal(fn: Callable[..., Any], /, *args: object, **kwargs: object) -> str:
    """Why a function cannot be called with these arguments, in Python's words.

    Empty if it can, and if that is not known: some that are written in C have no signature.
    """
    try:
        signature = inspect.signature(fn)
    except Exception:  # as in `_of_signature`
        return ""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return str(error)
    return ""


def name_of(fn: Callable[..., Any] | str) -> str:
    """Name of a function for messages; of a partial that of what it calls."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    if isinstance(fn, str):
        return fn.rpartition(":")[2]
    return str(getattr(fn, "__qualname__", type(fn).__qualname__)).rpartition("<locals>.")[2]


def refuse_shared(
    caller: str,
    fn: Callable[..., Any],
    given: Mapping[str, object],
    exempt: Collection[str] = (),
    filled: int = 0,
) -> None:
    """Refuse options that are parameters of the function, too.

    Parameters
    ----------
    caller
        What takes the options, as users write it: ``"Task"``.
    fn
        The function that stands beside them.
    given
        The options that were given, and their values.
    exempt
        Options that are the caller's own if the function merely takes any keyword, by ``**kwargs``.
    filled
        Number of positional arguments: the parameters that they fill take no keyword.

    Raises
    ------
    OptionTypeError
        If one is; the message has the form that is never ambiguous.
    """
    if type(fn) is types.FunctionType and not fn.__dict__:  # the quick way, for tasks are many
        code = fn.__code__
        if not code.co_flags & inspect.CO_VARKEYWORDS and not any(map(code.co_varnames.__contains__, given)):
            return
    own, bound = parameters(fn), fn.keywords if isinstance(fn, functools.partial) else ()
    wanted = own.keywords.difference(own.positional[:filled])
    for option, value in given.items():
        if option in wanted:
            reason = f"has a parameter of that name, and {caller} an option"
        elif own.any_keyword and option not in exempt and option not in bound and option not in own.keywords:
            reason = f"takes any keyword, and {caller} has an option of that name"
        else:
            continue
        name, shown = name_of(fn), repr(value)
        shown = shown if len(shown) <= 60 else "..."
        if option in ("args", "kwargs"):
            how = f"pass it to {name} by position, {caller}({name}, {shown}), or bind it: functools.partial"
        else:
            how = (
                f"{caller}({name}, args=(...), kwargs={{{option!r}: {shown}, ...}}) passes it to {name}; "
                f"beside args= or kwargs=, {option}={shown} is the option of {caller}"
            )
        raise OptionTypeError(f"{option}={shown}: {name} {reason}. {how}")


def join(
    positional: tuple[Any, ...],
    keywords: dict[str, Any],
    args: Any = None,
    kwargs: Any = None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a call that were given one by one, as ``args=`` and ``kwargs=``, or both.

    Raises
    ------
    OptionTypeError
        If `args` is not a tuple or list, `kwargs` not a mapping with string keys, or one argument is given twice.
    """
    if args is not None:
        if positional:
            raise OptionTypeError("positional arguments are given twice: one by one, and as args=")
        if not isinstance(args, (tuple, list)):
            raise OptionTypeError(f"args must be a tuple of arguments, got {_short(args)}: args=(x,) for one")
        positional = tuple(args)
    if kwargs is not None:
        if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
            raise OptionTypeError(f"kwargs must be a mapping of names to arguments, got {_short(kwargs)}")
        if twice := keywords.keys() & kwargs.keys():
            raise OptionTypeError(f"{', '.join(sorted(twice))}: given twice, as a keyword and within kwargs=")
        keywords = {**keywords, **kwargs}
    return positional, keywords


def named_arguments(fn: Callable[..., Any], args: Iterable[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a call by the names of the parameters; what ``*args`` takes is ``args[0]`` and so on.

    What a partial binds is among them. Arguments that the function would refuse are there as well. A function that
    calls another may have an attribute `named_arguments`, a function that is called with its arguments instead.
    """
    args = tuple(args)
    if (show := getattr(fn, "named_arguments", None)) is not None:
        return dict(show(*args, **kwargs))
    while isinstance(fn, functools.partial):
        args, kwargs = (*fn.args, *args), {**fn.keywords, **kwargs}
        fn = fn.func
    own = parameters(fn)
    named = dict(zip(own.positional, args, strict=False))
    if len(args) > len(named):
        star = own.star or "args"
        named |= {f"{star}[{n}]": value for n, value in enumerate(args[len(named) :])}
    named.update(kwargs)
    return named


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
