"""training: a gang of processes that train one model, the emulator of a land column.

DistributedDataParallel, with every setting doing what it says, and the same loss curve on any number of ranks. ::

    from mgpu_nb.workloads import training

    run = training.start(training.named("minimal", world_size=2, output_dir="results"))
    training.show(run)                  # live curves, in a notebook
    report = training.collect(run.wait())
    report.plot()

The same from a shell is ``mgpu-nb train --config minimal --world_size 2 --output_dir results``, under torchrun or srun
``python -m mgpu_nb.workloads.training ...``; ``mgpu-nb slurm train ...`` writes the script for a cluster.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .config import CONFIGS, Config, named

if TYPE_CHECKING:
    from ...views.training import show
    from .command import batch_job
    from .emulator import Emulator
    from .files import read_land, write_land
    from .land import Land, generate
    from .report import Report, collect, speedup_table
    from .start import start
    from .trainer import Trainer

# Where the rest lives. Loaded on first use: the options alone need no torch.
_HOMES = {
    "Emulator": ".emulator",
    "Land": ".land",
    "Report": ".report",
    "Trainer": ".trainer",
    "batch_job": ".command",
    "collect": ".report",
    "generate": ".land",
    "read_land": ".files",
    "show": "...views.training",
    "speedup_table": ".report",
    "start": ".start",
    "write_land": ".files",
}

__all__ = [
    "CONFIGS",
    "Config",
    "Emulator",
    "Land",
    "Report",
    "Trainer",
    "batch_job",
    "collect",
    "generate",
    "named",
    "read_land",
    "show",
    "speedup_table",
    "start",
    "write_land",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
