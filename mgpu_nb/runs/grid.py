"""`grid`: tasks for every combination of the values of a function's parameters."""

from __future__ import annotations

import difflib
import functools
import inspect
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

from ..options import OptionTypeError
from ..signature import name_of, parameters, refuse_shared, value_of
from ..summary import scalar, short
from ..tasks import Task, import_path

__all__ = ["grid", "sweep_tasks"]

_OPTIONS = ("cost", "memory", "devices", "timeout", "retries", "after")
_LONGEST = 120  # characters of a name


def grid(
    fn: Callable[..., Any] | str,
    values: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    /,
    **more: Any,
) -> list[Task]:
    """Tasks that call a function with every combination of values, the last parameter varying fastest.

    Parameters
    ----------
    fn
        The function, or its import path.
    values, **more
        Values by parameter, in a mapping or as keywords. A list or a range has the values to try; anything else is
        passed to all tasks as it is. What is neither plainly one nor the other is refused: a tuple, a set, an iterator,
        an array of one dimension. Wrap a list that is one value: ``layers=[[64, 64]]``.
    options
        Options for all tasks: cost, memory, devices, timeout, retries, after.

    Returns
    -------
    list of Task
        Named after what varies: ``lr=0.1 seed=0``.

    Raises
    ------
    TypeError, ValueError
        If the function has no such parameter or needs another, a list is empty, or a value is refused.

    Examples
    --------
    >>> [task.name for task in grid(pow, exp=[2, 3], base=10)]
    ['exp=2', 'exp=3']
    """
    if twice := (values or {}).keys() & more.keys():
        raise OptionTypeError(f"{', '.join(sorted(twice))}: given twice, in the mapping and as a keyword")
    called = {**(values or {}), **more}
    if not called:
        raise ValueError("no values: give a list for at least one parameter, grid(fn, lr=[0.1, 0.01])")
    for option in options or {}:
        if option not in _OPTIONS:
            raise ValueError(f"options: {option!r} is none of {', '.join(_OPTIONS)}")
    _check_parameters(fn, called)
    axes = {name: list(value) for name, value in called.items() if _varies(name, value)}
    fixed = {name: value for name, value in called.items() if name not in axes}
    tasks = []
    for choice, name in zip(itertools.product(*axes.values()), _names(name_of(fn), axes), strict=True):
        chosen = dict(zip(axes, choice, strict=True))
        kwargs = {key: chosen.get(key, fixed.get(key)) for key in called}
        tasks.append(Task(fn, kwargs=kwargs, args=(), name=name, **(options or {})))
    return tasks


def sweep_tasks(
    fn: Callable[..., Any] | str,
    values: Mapping[str, Any] | None,
    keywords: dict[str, Any],
    options: dict[str, Any],
    defaults: Mapping[str, Any],
) -> tuple[list[Task], dict[str, Any]]:
    """Tasks of `GPUPool.sweep`, and its options.

    An option that is a list can only be meant for the function; any other that the function could want as well is
    refused, unless a mapping has the values.
    """
    function = import_path(fn) if isinstance(fn, str) else fn
    own = parameters(function)
    for name in [name for name, value in options.items() if isinstance(value, (list, range))]:
        if values is not None or not (name in own.keywords or own.any_keyword or not own.known):
            why = (
                "beside a mapping it is the sweep's"
                if values is not None
                else "the function has no such parameter"
            )
            raise OptionTypeError(f"{name}={short(options[name])}: a list to try, but {why}")
        keywords[name], options[name] = options[name], defaults[name]
    if values is None:
        stated = {name: value for name, value in options.items() if value is not defaults[name]}
        try:
            refuse_shared("pool.sweep", function, stated, exempt=("name", "folder"))
        except OptionTypeError as error:
            name = str(error).partition("=")[0]
            raise OptionTypeError(
                f"{name}={short(options[name])!r}: {name_of(fn)} could want it, and pool.sweep has an option of that "
                f"name. pool.sweep({name_of(fn)}, {{{name!r}: [...], ...}}) passes it to {name_of(fn)}; beside such a "
                f"mapping, {name}= is the option of pool.sweep"
            ) from None
    options = {name: value_of(value) for name, value in options.items()}
    of_tasks = {name: options.pop(name) for name in _OPTIONS if name in options}
    return grid(fn, values, of_tasks, **keywords), options


def _check_parameters(fn: Callable[..., Any] | str, values: Mapping[str, Any]) -> None:
    """Check that the function can be called with these keywords."""
    function = import_path(fn) if isinstance(fn, str) else fn
    if not callable(function):
        raise TypeError(f"fn must be a function or an import path, not {type(fn).__name__}")
    own, called = parameters(function), name_of(fn)
    if not own.known:
        return
    bound = function.keywords if isinstance(function, functools.partial) else {}
    for name in values:
        if not isinstance(name, str):
            raise OptionTypeError(f"values must have names of parameters as keys, got {name!r}")
        if name not in own.keywords and name not in bound and not own.any_keyword:
            near = difflib.get_close_matches(name, own.keywords, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise OptionTypeError(
                f"{called} takes no keyword {name!r}, but {', '.join(sorted(own.keywords)) or 'none at all'}{hint}"
            )
    try:
        needed = [
            p.name
            for p in inspect.signature(function).parameters.values()
            if p.default is p.empty
            and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
            and p.name not in values
        ]
    except (ValueError, TypeError):
        return
    if needed:
        names = ", ".join(needed)
        raise OptionTypeError(
            f"{called} needs {names}: give it as well, as one value for all tasks ({needed[0]}=...) or as a list"
        )


def _varies(name: str, value: Any) -> bool:
    """Whether a value is a list of values to try."""
    if isinstance(value, (list, range)):
        if not len(value):
            raise ValueError(f"{name}=[]: there is no value to try")
        return True
    one_dimension = len(shape) == 1 if isinstance(shape := getattr(value, "shape", None), tuple) else False
    if isinstance(value, (tuple, Set, Iterator)) or one_dimension or type(value).__name__.startswith("dict_"):
        kind = type(value).__name__
        raise OptionTypeError(
            f"{name} is of type {kind}, which may be values to try or one value: give {name}=list(...) to try each, "
            f"or {name}=[...] with it as the only item to pass it as it is"
        )
    return False


def _names(called: str, axes: Mapping[str, list[Any]]) -> list[str]:
    """Names of the tasks, each once."""
    parts = [[f"{name}={_text(value)}" for value in values] for name, values in axes.items()]
    names: dict[str, None] = {}
    used: Counter[str] = Counter()
    for words in itertools.product(*parts):
        name = stem = " ".join(words)[:_LONGEST].strip() or called
        while name in names:
            used[stem] += 1
            name = f"{stem} ({used[stem] + 1})"
        names[name] = None
    return list(names)


def _text(value: Any) -> str:
    """A value within a name, which is that of a file as well."""
    plain = scalar(value)
    text = f"{plain:.6g}" if type(plain) is float else str(short(plain))
    return re.sub(r"[\s/\\\0]+", "_", text.replace(", ", ","))
