"""protein: inference-time scaling of flow-matching models of protein backbones.

Spend more network evaluations per sample, get better structures: six methods, each at several branch counts,
every one an experiment of its own over a queue of devices. ::

    from mgpu_nb.workloads import protein

    run = protein.start(protein.preset("quick_test", output_dir="results"))
    report = protein.collect(run.wait())
    report.save()

Time runs from t = 0, noise, to t = 1, data. Models work in nm; folds, scores and files are in angstrom.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

from .config import METHODS, PRESETS, SCORES, Config, preset

if TYPE_CHECKING:
    from .folds import generate_folds
    from .plan import check_inputs, tasks
    from .report import Report, collect
    from .structures import Folds, read_folds, reference_folds, write_pdb
    from .train_ca_net import TrainConfig, train
    from .worker import run_experiment
    from .workload import WORKLOAD, start

# Loaded on first use: the options alone need neither torch nor pandas.
__getattr__, _, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "folds": ["generate_folds"],
        "plan": ["check_inputs", "tasks"],
        "report": ["Report", "collect"],
        "structures": ["Folds", "read_folds", "reference_folds", "write_pdb"],
        "train_ca_net": ["TrainConfig", "train"],
        "worker": ["run_experiment"],
        "workload": ["WORKLOAD", "start"],
    },
)
__all__ = [
    "METHODS",
    "PRESETS",
    "SCORES",
    "WORKLOAD",
    "Config",
    "Folds",
    "Report",
    "TrainConfig",
    "check_inputs",
    "collect",
    "generate_folds",
    "preset",
    "read_folds",
    "reference_folds",
    "run_experiment",
    "start",
    "tasks",
    "train",
    "write_pdb",
]


def __dir__() -> list[str]:
    return sorted(__all__)
