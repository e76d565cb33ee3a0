"""The ``__main__`` of a task in the processes that it spawns by `multiprocessing`.

A forked process has it anyway. A spawned one imports the script that started it, which a worker has not: it is sent
what the task's ``__main__`` holds, ahead of its function and arguments.
"""

from __future__ import annotations

import io
import multiprocessing.process
import pickle
from typing import Any

from . import main_module
from .carried import carried
from .pickler import CallPickler

__all__ = ["hand_down"]


def hand_down() -> None:
    """Have every process that this one spawns get its ``__main__``."""
    # What a process starts with is pickled in this order: its configuration, which it has of this process, its
    # function, its arguments.
    config = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]
    if carried():
        config["mgpu_nb_boot"] = _Boot()  # first: what follows is of this package
    config["mgpu_nb"] = _Main()


class _Boot:
    """Stands for what lets a process find this package where it is not installed."""

    def __reduce__(self) -> Any:
        return exec, (carried(),)


class _Main:
    """Stands for the ``__main__`` of this process."""

    def __reduce__(self) -> Any:
        entries, rest = main_module.contents()
        return _restore, (_dumps_entries(entries), *rest)


def _restore(entries: bytes, *rest: Any) -> _Main:
    main_module.fill(*rest)
    main_module.main_globals(None).update(pickle.loads(entries))
    return _Main()


def _dumps_entries(entries: dict[str, Any]) -> bytes:
    """Pickle a dictionary without what cannot be pickled."""
    own = {name: value for name, value in entries.items() if not name.startswith("__") or name == "__file__"}
    try:
        return _dumps(own)
    except Exception:
        return _dumps({name: value for name, value in own.items() if _pickles(value)})


def _pickles(value: Any) -> bool:
    try:
        _dumps(value)
    except Exception:
        return False
    return True


def _dumps(value: Any) -> bytes:
    out = io.BytesIO()
    CallPickler(out, protocol=5).dump(value)
    return out.getvalue()
