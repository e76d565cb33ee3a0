"""Former names of modules: an import of one gives the module that took its place, with a warning."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["install"]

_PACKAGE = __name__.rpartition(".")[0]
RENAMED = {
    "batch": "runs.batch",
    "batch_size": "studies.batch_size",
    "device": "hardware.slots",
    "device_table": "hardware.device",
    "gang": "distributed.launch",
    "host": "hardware.host",
    "identity": "runs.fingerprint",
    "rank": "distributed.rank",
    "rendezvous": "distributed.rendezvous",
    "run": "runs.run",
    "scaling": "studies.speedup",
    "telemetry.nvml": "hardware.nvml",
    "values": "store.values",
    "views.protein": "workloads.protein.views",
    "views.tracin": "workloads.tracin.views",
    "views.training": "workloads.training.views",
    "visible": "hardware.visible",
    "workloads.protein.experiment": "workloads.protein.worker",
    "workloads.protein.results": "workloads.protein.files",
    "workloads.tracin.analysis": "workloads.tracin.worker",
    "workloads.tracin.results": "workloads.tracin.files",
    "workloads.training.check": "distributed.check",
    "workloads.training.command": "workloads.command",
    "workloads.training.environment": "distributed.environment",
    "workloads.training.rank": "workloads.training.worker",
    "workloads.training.results": "workloads.training.files",
    "workloads.training.start": "workloads.training.plan",
}


class _Finder:
    """Last finder of `sys.meta_path`: it is asked only for what is not there under its name."""

    def find_spec(self, name: str, _path: Sequence[str] | None, _target: object = None) -> ModuleSpec | None:
        package, _, former = name.partition(".")
        if package != _PACKAGE or former not in RENAMED:
            return None
        return ModuleSpec(name, _Loader(f"{_PACKAGE}.{RENAMED[former]}"))  # type: ignore[arg-type]  # no need for its ABC


class _Loader:
    """Gives the module of the new name; it keeps the attributes that it has from its own import."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        warnings.warn(f"{spec.name} is now {self._name}", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(self._name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


def install() -> None:
    """Have former names found, after all others have looked."""
    if not any(type(finder).__qualname__ == _Finder.__qualname__ for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
