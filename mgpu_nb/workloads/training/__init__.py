"""training: a gang of processes that train one model, the emulator of a land column.

DistributedDataParallel, with every setting doing what it says, and the same loss curve on any number of ranks. ::

    from mgpu_nb.workloads import training

    run = training.start(training.preset("minimal", world_size=2, output_dir="results"))
    training.show(run)                  # live curves, in a notebook
    report = training.collect(run.wait())
    report.plot()

The same from a shell is ``mgpu-nb training --preset minimal --world_size 2 --output_dir results``, under torchrun or
srun ``python -m mgpu_nb.workloads.training ...``; ``mgpu-nb slurm training ...`` writes the script for a cluster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

from .config import CONFIGS, PRESETS, CheckConfig, Config, named, preset

if TYPE_CHECKING:
    from .emulator import Emulator
    from .files import read_land, write_land
    from .land import Land, generate
    from .report import CheckReport, Report, collect, collect_check, speedup_table
    from .trainer import Trainer
    from .views import show
    from .workload import WORKLOAD, batch_job, start

# Loaded on first use: the options alone need no torch.
__getattr__, _, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "emulator": ["Emulator"],
        "files": ["read_land", "write_land"],
        "land": ["Land", "generate"],
        "report": ["CheckReport", "Report", "collect", "collect_check", "speedup_table"],
        "trainer": ["Trainer"],
        "views": ["show"],
        "workload": ["WORKLOAD", "batch_job", "start"],
    },
)
__all__ = [
    "CONFIGS",
    "PRESETS",
    "WORKLOAD",
    "CheckConfig",
    "CheckReport",
    "Config",
    "Emulator",
    "Land",
    "Report",
    "Trainer",
    "batch_job",
    "collect",
    "collect_check",
    "generate",
    "named",
    "preset",
    "read_land",
    "show",
    "speedup_table",
    "start",
    "write_land",
]


def __dir__() -> list[str]:
    return sorted(__all__)
