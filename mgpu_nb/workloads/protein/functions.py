"""Functions of the user's: a model's factory, a score, the steps of designability; themselves or by their paths."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["load_function", "wants_backbone"]


def load_function(value: str | Callable[..., Any], option: str, wanted: str) -> Callable[..., Any]:
    """Function that an option gives, itself or as ``package.module:name``.

    Parameters
    ----------
    value
        The option's value.
    option
        Its name, for messages.
    wanted
        What the function is, for messages: "a factory is a callable that returns an nn.Module".

    Raises
    ------
    TypeError, ValueError
        If it does not import, or is no function.
    """
    found: Any = value
    if isinstance(value, str):
        name, _, attribute = value.partition(":")
        try:
            found = functools.reduce(getattr, attribute.split("."), importlib.import_module(name))
        except Exception as error:  # whatever the user's module raises while it is imported
            reason = f"{type(error).__name__}: {error}"
            what = wanted.split()[1]
            raise ValueError(
                f"{option}={value!r} does not import ({reason}); give 'package.module:{what}', importable from here"
            ) from error
    if not callable(found):
        raise TypeError(f"{option}={value!r} is a {type(found).__name__}; {wanted}")
    function: Callable[..., Any] = found
    return function


def wants_backbone(function: Callable[..., Any]) -> bool:
    """Whether a function has a parameter ``backbone``: it is then given N, CA, C and O atoms, too."""
    try:
        return "backbone" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # some that are written in C have no signature
        return False
