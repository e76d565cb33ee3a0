"""protein: inference-time scaling of flow-matching models of protein backbones.

Spend more network evaluations per sample, get better structures: six methods, each at several branch counts,
every one an experiment of its own over a queue of devices. ::

    from mgpu_nb import GPUPool
    from mgpu_nb.workloads import protein

    config = protein.preset("quick_test")
    with GPUPool(config.gpu_ids, slots=config.slots, isolation="task") as pool:
        run = pool.run(protein.tasks(config), name="protein", folder=config.output_dir)
        run.wait()
    report = protein.collect(run)

Time runs from t = 0, noise, to t = 1, data. Models work in nm; folds, scores and files are in angstrom.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

from .config import METHODS, PRESETS, SCORES, Config, preset

if TYPE_CHECKING:
    from .experiment import run_experiment
    from .folds import generate_folds
    from .plan import tasks
    from .report import Report, collect
    from .structures import Folds, read_folds, reference_folds, write_pdb
    from .train_ca_net import TrainConfig, train

# Loaded on first use: the options alone need neither torch nor pandas.
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "experiment": ["run_experiment"],
        "folds": ["generate_folds"],
        "plan": ["tasks"],
        "report": ["Report", "collect"],
        "structures": ["Folds", "read_folds", "reference_folds", "write_pdb"],
        "train_ca_net": ["TrainConfig", "train"],
    },
)
__all__ = [
    "METHODS",
    "PRESETS",
    "SCORES",
    "Config",
    "Folds",
    "Report",
    "TrainConfig",
    "collect",
    "generate_folds",
    "preset",
    "read_folds",
    "reference_folds",
    "run_experiment",
    "tasks",
    "train",
    "write_pdb",
]
