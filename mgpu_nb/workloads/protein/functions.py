"""Functions of the user's: a model's factory, a score, the steps of designability; themselves or by their paths."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ...tasks import import_path

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
    try:
        found: Any = import_path(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"{option}={error}") from error
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
