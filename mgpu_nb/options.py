"""Constraints of options as annotations (``batch_size: Annotated[int, AtLeast(1)]``), and the checks they stand for.

`check_options` reads the annotations of a dataclass, `check_arguments` those of a function; they are compiled once.
A check returns the plain value: integers of numpy become int, lists and arrays tuples, paths strings.
"""

from __future__ import annotations

import functools
import math
import operator
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

__all__ = [
    "Above",
    "AtLeast",
    "Between",
    "Check",
    "Constraint",
    "FileName",
    "Finite",
    "Function",
    "Matches",
    "NonEmpty",
    "NonNegativeFloat",
    "NonNegativeInt",
    "OneOf",
    "OptionTypeError",
    "PositiveFloat",
    "PositiveInt",
    "Seconds",
    "Seed",
    "Unique",
    "check_arguments",
    "check_choice",
    "check_options",
    "check_value",
    "checks_of",
]


class OptionTypeError(TypeError, ValueError):
    """An option of the wrong type. A ValueError as well: one ``except ValueError`` catches every invalid option."""


@dataclass(frozen=True)
class AtLeast:
    """A number not below `low`."""

    low: float


@dataclass(frozen=True)
class Above:
    """A number above `low`."""

    low: float


@dataclass(frozen=True)
class Between:
    """A number from `low` to `high`, without the ends that are open."""

    low: float
    high: float
    low_open: bool = False
    high_open: bool = False


class Finite:
    """A number that is neither infinite nor NaN."""


class NonEmpty:
    """A sequence with at least one item."""


class Unique:
    """A sequence in which no item comes twice."""


@dataclass(frozen=True)
class Matches:
    """A string that matches the whole of a regular expression; `wanted` says in words what that is."""

    pattern: re.Pattern[str]
    wanted: str


@dataclass(frozen=True)
class OneOf:
    """One of some strings, or an import path where `or_path` names what it leads to, a factory say."""

    choices: tuple[str, ...]
    or_path: str = ""


Constraint = AtLeast | Above | Between | Finite | NonEmpty | Unique | Matches | OneOf


def _test(constraint: Constraint) -> Callable[[Any], object]:
    """Function that is true of values that meet the constraint; in C where it can be, for tasks are many."""
    match constraint:
        case AtLeast(low):
            return functools.partial(operator.le, low)
        case Above(low):
            return functools.partial(operator.lt, low)
        case Between(low, high, low_open, high_open):
            if not low_open and not high_open:
                return lambda value: low <= value <= high
            ends = [low] * low_open + [high] * high_open
            return lambda value: low <= value <= high and value not in ends
        case Finite():
            return math.isfinite
        case NonEmpty():
            return len
        case Unique():
            return lambda value: len(set(value)) == len(value)
        case Matches(pattern):
            return pattern.fullmatch
        case OneOf(choices, or_path):
            path = re.compile(r"[^:]*[^\s:][^:]*:.*\S.*" if or_path else r"(?!)")
            return lambda value: value in choices or path.fullmatch(value)


def _describe(what: str, constraints: tuple[Constraint, ...], optional: bool) -> str:
    """Accepted values in words: "an integer" becomes "an integer >= 1 or None"."""
    for constraint in constraints:
        match constraint:
            case AtLeast(low):
                what = f"{what} >= {low}"
            case Above(low):
                what = f"{what} > {low}"
            case Between(low, high, low_open, high_open):
                what = f"{what} {'>' if low_open else '>='} {low} and {'<' if high_open else '<='} {high}"
            case Finite():
                what = f"a finite {what.removeprefix('a ')}"
            case NonEmpty():
                what = f"a non-empty {what.removeprefix('a ')}"
            case Unique():
                what = f"{what} without duplicates"
            case Matches(_, wanted):
                what = wanted
            case OneOf(choices, or_path):
                parts = [f"one of {', '.join(choices)}"] * bool(choices)
                parts += [f"'package.module:name' of a {or_path}"] * bool(or_path)
                what = " or ".join(parts)
    return f"{what} or None" if optional else what


PositiveInt = Annotated[int, AtLeast(1)]
NonNegativeInt = Annotated[int, AtLeast(0)]
Seed = Annotated[int, Between(0, 2**63 - 1)]
PositiveFloat = Annotated[float, Above(0), Finite()]
NonNegativeFloat = Annotated[float, AtLeast(0), Finite()]
Seconds = Annotated[float, Above(0)]
"""A duration; infinite where there is no limit."""
Function = Callable[..., Any] | Annotated[str, OneOf((), or_path="function")]
"""A function, or its import path; a command line takes the path."""
FileName = Annotated[
    str,
    Matches(
        re.compile(r"(?!\s*\Z)(?!\.\.?\Z)[^/\\\0]+"),
        r"a string that can name a file (not blank, no '/' or '\', not '.' or '..')",
    ),
]


def check_options(options: object) -> None:
    """Check the fields of a dataclass instance by its class's annotations, and make them plain: for ``__post_init__``.

    Raises
    ------
    OptionTypeError
        If a field has the wrong type.
    ValueError
        If a field is invalid. Either message names it, its value and the accepted values.
    """
    owner: Any = type(options)  # typeshed: a class is not Hashable
    for name, check in checks_of(owner).items():
        value = getattr(options, name)
        plain = check.apply(name, value)
        if plain is not value:
            object.__setattr__(options, name, plain)


def check_arguments(function: Callable[..., Any], /, **arguments: Any) -> tuple[Any, ...]:
    """Plain values of some arguments of a function, in the order given, checked by its annotations.

    Raises
    ------
    OptionTypeError, ValueError
        As `check_options`.
    """
    checks = checks_of(function)
    return tuple(checks[name].apply(name, value) for name, value in arguments.items())


def check_value(name: str, value: Any, annotation: Any) -> Any:
    """Plain value, checked by one annotation.

    Raises
    ------
    OptionTypeError, ValueError
        As `check_options`.
    """
    check = _compiled(annotation)
    if check is None:
        raise NotImplementedError(f"no check is known for {annotation}")
    return check.apply(name, value)


def check_choice(value: object, choices: Iterable[str], what: str) -> str:
    """The value if it is one of `choices`; the error's message names the nearest of them."""
    return str(check_value(what, value, Annotated[str, OneOf(tuple(choices))]))


class Check(NamedTuple):
    """A compiled annotation: the accepted values in words, and the function (name, value) -> plain value."""

    wanted: str
    apply: Callable[[str, Any], Any]


@functools.cache
def checks_of(owner: type | Callable[..., Any]) -> dict[str, Check]:
    """Checks of a class or a function, by name; annotations without one (callables, mappings, Any) are left out."""
    hints = typing.get_type_hints(owner, include_extras=True)
    return {name: check for name, hint in hints.items() if (check := _compile(hint)) is not None}


def _compile(hint: Any, constraints: tuple[Constraint, ...] = (), optional: bool = False) -> Check | None:
    """Check of a type hint; None if there is none."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _compile(arguments[0], tuple(c for c in arguments[1:] if isinstance(c, Constraint)), optional)
    if origin is Literal:
        return _scalar(str, (OneOf(arguments),), optional)
    if hint in _SCALARS:
        return _scalar(hint, constraints, optional)
    if origin in (typing.Union, types.UnionType):
        return _union(arguments)
    if origin in (tuple, Sequence, Iterable):
        return _sequence(origin, arguments, constraints, optional)
    return None


_compiled = functools.cache(_compile)


def _scalar(kind: type, constraints: tuple[Constraint, ...], optional: bool) -> Check:
    what, convert = _SCALARS[kind]
    wanted = _describe(what, constraints, optional)
    tests = [_test(constraint) for constraint in constraints]
    accepts = tests[0] if len(tests) == 1 else lambda plain: all(test(plain) for test in tests)

    def apply(name: str, value: Any) -> Any:
        if value is None and optional:
            return None
        try:
            plain = value if type(value) is kind else convert(value)
        except (TypeError, OverflowError):
            raise OptionTypeError(_message(name, wanted, value)) from None
        if not accepts(plain):
            raise ValueError(_message(name, wanted, value) + _nearest(value, constraints))
        return plain

    return Check(wanted, apply)


def _sequence(
    kind: Any, arguments: tuple[Any, ...], constraints: tuple[Constraint, ...], optional: bool
) -> Check | None:
    """Check of a sequence of one kind of items; for ``tuple[X, ...]`` one X is a sequence of one."""
    if (item := _compile(arguments[0])) is None:
        return None
    count = len(arguments) if kind is tuple and Ellipsis not in arguments else None
    what = f"a sequence{'' if count is None else f' of {count} items'} (each {item.wanted})"
    wanted = _describe(what, constraints, optional)
    tests, apply_item = [_test(constraint) for constraint in constraints], item.apply

    def apply(name: str, value: Any) -> tuple[Any, ...] | None:
        if value is None and optional:
            return None
        if type(value) is not tuple:
            value = value.tolist() if hasattr(value, "tolist") else value  # an array
            if isinstance(value, str) or not isinstance(value, Iterable):
                if kind is not tuple or count is not None:
                    raise OptionTypeError(_message(name, wanted, value))
                return (apply_item(name, value),)
            value = tuple(value)
        try:
            plain = tuple([apply_item(name, entry) for entry in value])
        except ValueError:
            for n, entry in enumerate(value):  # once more, to say which
                apply_item(f"{name}[{n}]", entry)
            raise
        if count not in (None, len(plain)) or not all(accepts(plain) for accepts in tests):
            raise ValueError(_message(name, wanted, plain))
        return plain

    return Check(wanted, apply)


def _union(members: tuple[Any, ...]) -> Check | None:
    """Check of ``X | None`` or ``X | Y | Literal["z"] | None``: by the first member of the value's type."""
    kinds = [member for member in members if member is not types.NoneType]
    optional = len(kinds) < len(members)
    if len(kinds) == 1:
        return _compile(kinds[0], optional=optional)
    literals = [kind for kind in kinds if typing.get_origin(kind) is Literal]
    constants = [constant for kind in literals for constant in typing.get_args(kind)]
    functions = [_FUNCTION for kind in kinds if typing.get_origin(kind) is Callable]
    checks = [check for kind in kinds if kind not in literals and (check := _compile(kind)) is not None]
    checks += functions
    if len(checks) + len(literals) < len(kinds):
        return None
    wanted = _describe(
        " or ".join([*(check.wanted for check in checks), *map(repr, constants)]), (), optional
    )

    def apply(name: str, value: Any) -> Any:
        if (value is None and optional) or (isinstance(value, str) and value in constants):
            return value
        for check in checks:
            try:
                return check.apply(name, value)
            except OptionTypeError:
                continue
        raise OptionTypeError(_message(name, wanted, value))

    return Check(wanted, apply)


def _function(name: str, value: Any) -> Any:
    if not callable(value):
        raise OptionTypeError(_message(name, "a function", value))
    return value


_FUNCTION = Check("a function", _function)


def _message(name: str, wanted: str, value: object) -> str:
    text = repr(value)
    return f"{name} must be {wanted}, got {text if len(text) <= 200 else text[:197] + '...'}"


def _nearest(value: object, constraints: tuple[Constraint, ...]) -> str:
    import difflib

    choices = [
        choice for constraint in constraints if isinstance(constraint, OneOf) for choice in constraint.choices
    ]
    near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _integer(value: Any) -> int:
    if _is_bool(value):
        raise TypeError
    return operator.index(value)


def _number(value: Any) -> float:
    if _is_bool(value) or not hasattr(type(value), "__float__"):  # float() would read a string
        raise TypeError
    return float(value)


def _string(value: Any) -> str:
    if not isinstance(text := os.fspath(value), str):
        raise TypeError
    return text


def _bool(_value: Any) -> bool:
    raise TypeError  # there is no other kind of bool


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")  # of numpy, of torch


_SCALARS: dict[Any, tuple[str, Callable[[Any], Any]]] = {
    int: ("an integer", _integer),
    float: ("a number", _number),
    str: ("a string", _string),
    bool: ("True or False", _bool),
}
