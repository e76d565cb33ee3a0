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

from typing import TYPE_CHECKING

import lazy_loader

from .config import CONFIGS, Config, named

if TYPE_CHECKING:
    from .command import batch_job
    from .emulator import Emulator
    from .files import read_land, write_land
    from .land import Land, generate
    from .report import Report, collect, speedup_table
    from .start import start
    from .trainer import Trainer
    from .views import show

# Loaded on first use: the options alone need no torch.
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "command": ["batch_job"],
        "emulator": ["Emulator"],
        "files": ["read_land", "write_land"],
        "land": ["Land", "generate"],
        "report": ["Report", "collect", "speedup_table"],
        "start": ["start"],
        "trainer": ["Trainer"],
        "views": ["show"],
    },
)
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
