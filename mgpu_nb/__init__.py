"""Multi-GPU work from a notebook: pools that heal, a record of every task, tables of what came back."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batch_size import largest_batch
    from .context import Worker, worker
    from .device import Device, DeviceTable, Slot, devices
    from .errors import OutOfMemory, SetupError, TaskError, TaskSkipped, TaskTimeout, WorkerDied
    from .gang import launch
    from .pool import GPUPool
    from .run import Progress, Run
    from .scaling import Study, compare, speedup
    from .tasks import Record, Task
    from .views.watch import watch

__version__ = "0.1.0"

# Where each public name lives. Loaded on first use, so that the import costs milliseconds and no torch.
_HOMES = {
    "Device": "device",
    "DeviceTable": "device",
    "Record": "tasks",
    "Slot": "device",
    "Task": "tasks",
    "Worker": "context",
    "GPUPool": "pool",
    "OutOfMemory": "errors",
    "Progress": "run",
    "Run": "run",
    "SetupError": "errors",
    "Study": "scaling",
    "TaskError": "errors",
    "TaskSkipped": "errors",
    "TaskTimeout": "errors",
    "WorkerDied": "errors",
    "compare": "scaling",
    "devices": "device",
    "largest_batch": "batch_size",
    "launch": "gang",
    "speedup": "scaling",
    "watch": "views.watch",
    "worker": "context",
}
__all__ = [
    "Device",
    "DeviceTable",
    "GPUPool",
    "OutOfMemory",
    "Progress",
    "Record",
    "Run",
    "SetupError",
    "Slot",
    "Study",
    "Task",
    "TaskError",
    "TaskSkipped",
    "TaskTimeout",
    "Worker",
    "WorkerDied",
    "__version__",
    "compare",
    "devices",
    "largest_batch",
    "launch",
    "speedup",
    "watch",
    "worker",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
