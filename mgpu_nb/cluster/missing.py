"""A module that a node lacks: where it is missing, what it is in the parent process, and what to do."""

from __future__ import annotations

import pickle
import re
import sys
from dataclasses import replace
from pathlib import Path

from ..engines.interpreter import Interpreter
from ..engines.protocol import Failure
from ..installation import is_installed

__all__ = ["explain", "missing_module"]

_ABSENT = re.compile(r"No module named '([\w.]+)'")


def missing_module(failure: Failure) -> str:
    """Name of the module for want of which a worker failed; empty if it was something else."""
    found = _ABSENT.match(failure.message) if failure.kind == "ModuleNotFoundError" else None
    return "" if found is None else found[1]


def explain(failure: Failure, node: str, interpreter: Interpreter) -> Failure:
    """A failure of a worker of a node; of a module that is missing there it says what to do. Reads no file."""
    if not (name := missing_module(failure)):
        return failure
    message = f"no module {name!r} on node {node}: {_remedy(name, interpreter)}"
    head, line, tail = failure.traceback.rpartition(failure.message)
    return replace(
        failure,
        message=message,
        traceback=f"{head}{message}{tail}" if line else failure.traceback,
        exception=pickle.dumps(ModuleNotFoundError(message, name=name), 5),
    )


def _remedy(name: str, interpreter: Interpreter) -> str:
    top = name.partition(".")[0]
    install = (
        f"install it there ({interpreter.pip} {top}, if its package has that name), or use an environment that all "
        "nodes share"
    )
    if (file := _file_of(top)) is None or is_installed(str(file)):
        return install
    return (
        f"here it is {file}, a file of yours and no installed package. Put its folder where all nodes have it, or have "
        "its functions sent with the tasks: define them in a cell, or call "
        f"cloudpickle.register_pickle_by_value({top}) before the tasks are submitted"
    )


def _file_of(module: str) -> Path | None:
    """File of a module of this process, or its folder; None if it is not imported here, or is built in."""
    here = sys.modules.get(module)
    file = getattr(here, "__file__", None)
    places = [file] if isinstance(file, str) else [str(place) for place in getattr(here, "__path__", ())]
    return Path(places[0]) if places else None
