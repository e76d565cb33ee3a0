"""The package in an interpreter where it is not installed: found by its folder, and nothing else beside it is."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

__all__ = ["adopt_numpy", "carried", "carry"]

# The folder that this package is in may hold others that were built for another Python: it is not put on sys.path.
_SOURCE = """\
import sys
import importlib.util
class _MgpuNb:
    mgpu_nb = {folder!r}
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "mgpu_nb":
            init = cls.mgpu_nb + "/__init__.py"
            return importlib.util.spec_from_file_location(name, init, submodule_search_locations=[cls.mgpu_nb])
sys.meta_path.append(_MgpuNb)
"""


def carry(folder: str) -> str:
    """Source text by which an interpreter finds this package in `folder`, unless it is installed there."""
    return _SOURCE.format(folder=folder)


def carried() -> str:
    """The text that this process was started with; empty if it was not."""
    folders = [folder for finder in sys.meta_path if (folder := getattr(finder, "mgpu_nb", None))]
    return carry(folders[0]) if folders else ""


class _NumpyCore:
    """Finder of ``numpy._core`` in a numpy before 1.26, where it is ``numpy.core``: pickles of newer ones name it."""

    @classmethod
    def find_spec(cls, name: str, *_: Any) -> ModuleSpec | None:
        """Spec of a module under its later name."""
        if name == "numpy._core":
            former = PathFinder.find_spec(name, sys.modules["numpy"].__path__) is None
        else:
            top = sys.modules.get("numpy._core") if name.startswith("numpy._core.") else None
            former = top is not None and top is sys.modules.get("numpy.core")
        return importlib.util.spec_from_loader(name, cls) if former else None  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> Any:
        """Nothing: a module is made for the moment."""

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Put the module of the former name in its place."""
        name = module.__name__
        sys.modules[name] = importlib.import_module(name.replace("._core", ".core", 1))


def adopt_numpy() -> None:
    """Let arrays of a newer numpy be unpickled here."""
    if _NumpyCore not in sys.meta_path:
        # First: by the path of numpy.core its modules would be found, and loaded, a second time.
        sys.meta_path.insert(0, _NumpyCore)
