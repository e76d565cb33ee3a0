"""molecules: a diffusion model draws molecules, a force field guides it, another judges what comes of it.

The samples of each guidance scale are shared out in chunks over any number of devices, and are the same for any. ::

    from mgpu_nb.workloads import molecules

    run = molecules.start(molecules.preset("quick_test", output_dir="results"))
    report = molecules.collect(run.wait())
    report.save()

The same from a shell is ``mgpu-nb molecules --preset quick_test --output_dir results``, under torchrun or srun
``python -m mgpu_nb.workloads.molecules ...``. Positions are in angstrom, energies in eV, forces in eV/angstrom.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

from .config import PRESETS, Config, preset

if TYPE_CHECKING:
    from .checkpoint import load_model, save_model
    from .files import write_molecules
    from .forces import check_field, evaluate, load_field
    from .guidance import Guide
    from .metrics import METRICS, compare, summarise
    from .molecule import ALPHABET, Molecule
    from .plan import check_inputs, tasks
    from .reader import read_xyz
    from .relaxation import relax
    from .report import Report, collect
    from .rows import measure
    from .sampler import Samples, sample
    from .train import TrainConfig, train
    from .turnable import show_molecules
    from .views import draw_molecules
    from .workload import WORKLOAD, start

# Loaded on first use: the options alone need neither torch nor pandas.
__getattr__, _, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "checkpoint": ["load_model", "save_model"],
        "files": ["write_molecules"],
        "forces": ["check_field", "evaluate", "load_field"],
        "guidance": ["Guide"],
        "metrics": ["METRICS", "compare", "summarise"],
        "molecule": ["ALPHABET", "Molecule"],
        "plan": ["check_inputs", "tasks"],
        "reader": ["read_xyz"],
        "relaxation": ["relax"],
        "report": ["Report", "collect"],
        "rows": ["measure"],
        "sampler": ["Samples", "sample"],
        "train": ["TrainConfig", "train"],
        "turnable": ["show_molecules"],
        "views": ["draw_molecules"],
        "workload": ["WORKLOAD", "start"],
    },
)
__all__ = [
    "ALPHABET",
    "METRICS",
    "PRESETS",
    "WORKLOAD",
    "Config",
    "Guide",
    "Molecule",
    "Report",
    "Samples",
    "TrainConfig",
    "check_field",
    "check_inputs",
    "collect",
    "compare",
    "draw_molecules",
    "evaluate",
    "load_field",
    "load_model",
    "measure",
    "preset",
    "read_xyz",
    "relax",
    "sample",
    "save_model",
    "show_molecules",
    "start",
    "summarise",
    "tasks",
    "train",
    "write_molecules",
]


def __dir__() -> list[str]:
    return sorted(__all__)
