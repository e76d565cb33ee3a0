"""Multi-GPU work from a notebook: pools that heal, a record of every task, tables of what came back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

from . import renamed
from .version import __version__

if TYPE_CHECKING:
    from .cluster.agents import Agents
    from .cluster.allocation import Allocation
    from .cluster.ray import Ray
    from .cluster.slurm import Slurm
    from .context import Worker, worker
    from .distributed.launch import launch
    from .errors import NoSlots, OutOfMemory, SetupError, TaskError, TaskSkipped, TaskTimeout, WorkerDied
    from .hardware.slots import Device, DeviceTable, Slot, devices
    from .pool import GPUPool, pools
    from .runs.grid import grid
    from .runs.past import find_runs as runs
    from .runs.run import Run
    from .studies.batch_size import largest_batch
    from .studies.speedup import compare, speedup
    from .studies.study import Study
    from .tasks import Progress, Record, Task
    from .value_of import ValueOf
    from .views.watch import watch


# Loaded on first use, so that the import costs milliseconds and no torch.
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submodules={"runs"},  # which is a function as well
    submod_attrs={
        "cluster.agents": ["Agents"],
        "cluster.allocation": ["Allocation"],
        "cluster.ray": ["Ray"],
        "cluster.slurm": ["Slurm"],
        "context": ["Worker", "worker"],
        "distributed.launch": ["launch"],
        "errors": [
            "NoSlots",
            "OutOfMemory",
            "SetupError",
            "TaskError",
            "TaskSkipped",
            "TaskTimeout",
            "WorkerDied",
        ],
        "hardware.device": ["Device", "DeviceTable"],
        "hardware.slots": ["Slot", "devices"],
        "pool": ["GPUPool", "pools"],
        "runs.grid": ["grid"],
        "runs.run": ["Run"],
        "studies.batch_size": ["largest_batch"],
        "studies.speedup": ["compare", "speedup"],
        "studies.study": ["Study"],
        "tasks": ["Progress", "Record", "Task"],
        "value_of": ["ValueOf"],
        "views.watch": ["watch"],
    },
)
__all__ = [
    "Agents",
    "Allocation",
    "Device",
    "DeviceTable",
    "GPUPool",
    "NoSlots",
    "OutOfMemory",
    "Progress",
    "Ray",
    "Record",
    "Run",
    "SetupError",
    "Slot",
    "Slurm",
    "Study",
    "Task",
    "TaskError",
    "TaskSkipped",
    "TaskTimeout",
    "ValueOf",
    "Worker",
    "WorkerDied",
    "__version__",
    "compare",
    "devices",
    "grid",
    "largest_batch",
    "launch",
    "pools",
    "runs",
    "speedup",
    "watch",
    "worker",
]

renamed.install()
