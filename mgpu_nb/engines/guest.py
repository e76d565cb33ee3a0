"""A worker in an interpreter that is not its parent's: other packages, perhaps another Python, perhaps no torch."""

from __future__ import annotations

import importlib
import platform
import sys
from typing import Any

from .carried import adopt_numpy
from .pickler import GuestPickler, ValuePickler, refuse_code

__all__ = ["enter", "explain", "numpy", "torch", "value_pickler"]

_is_guest = False


def enter(python: str) -> None:
    """Note that this worker's parent process is of another interpreter, of this version of Python."""
    global _is_guest
    _is_guest = True
    adopt_numpy()
    here = platform.python_version()
    if here.split(".")[:2] != python.split(".")[:2]:
        refuse_code(
            f"is not importable by name, and would go back as bytecode, which another minor version of Python does not "
            f"run: this worker is Python {here}, its parent process {python}. Return data, or put it into a module"
        )


def value_pickler() -> type[ValuePickler]:
    """The pickler of what tasks return."""
    return GuestPickler if _is_guest else ValuePickler


def torch() -> Any:
    """The module; None where this worker's interpreter has none."""
    return _module("torch")


def numpy() -> Any:
    """The module; None where this worker's interpreter has none."""
    return _module("numpy")


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not _is_guest or error.name != name:
            raise
        return None


def explain(error: BaseException) -> None:
    """Say of a module that is missing where it is missing, and what to do."""
    if (
        _is_guest
        and isinstance(error, ModuleNotFoundError)
        and error.name
        and sys.executable not in str(error)
    ):
        top = error.name.partition(".")[0]
        text = (
            f"{error.msg} in {sys.executable} (Python {platform.python_version()}, see python= of the pool): install "
            f"it there ({sys.executable} -m pip install {top}, if its package has that name); a module of your own is "
            "found in a folder on sys.path of the parent process"
        )
        error.msg, error.args = text, (text,)
