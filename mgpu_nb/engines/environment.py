"""What a task finds around it: variables, folder and import path of the parent process."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

from .logs import DEFAULT, Logs, capture_logging, logging_changed

__all__ = ["Environment", "capture_environment", "import_path"]


@dataclass(frozen=True, slots=True)
class Environment:
    """Environment variables, working directory, ``sys.path`` and logging of the parent process at a submission."""

    variables: dict[str, str]
    folder: str
    path: tuple[str, ...]
    logs: Logs = DEFAULT


_captured: tuple[Any, Environment] | None = None


def import_path() -> list[str]:
    """``sys.path`` of this process with the working directory by its name."""
    try:
        here = os.getcwd()
    except OSError:  # it was removed
        return [entry for entry in sys.path if entry]
    return [entry or here for entry in sys.path]


def capture_environment() -> Environment:
    """Environment of this process; the same object for as long as nothing of it changes."""
    global _captured
    # The dictionary behind os.environ compares in a microsecond, os.environ itself decodes every entry.
    variables = getattr(os.environ, "_data", None) or dict(os.environ)
    try:
        folder = os.getcwd()
    except FileNotFoundError:
        folder = os.path.expanduser("~")
    if _captured is not None:
        (last_variables, last_folder, last_path), environment = _captured
        same = variables == last_variables and folder == last_folder and sys.path == last_path
        if same and (not logging_changed() or environment.logs == capture_logging()):
            return environment
    environment = Environment(dict(os.environ), folder, tuple(import_path()), capture_logging())
    _captured = ((dict(variables), folder, list(sys.path)), environment)
    return environment
