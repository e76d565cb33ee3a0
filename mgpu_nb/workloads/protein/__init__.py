"""protein: inference-time scaling of flow-matching models of protein backbones.

Spend more network calls per sample, get better structures: six methods, each at several branch counts or budgets of
calls, every one an experiment of its own over a queue of devices. What a search is worth is told by best_of_n with as
many calls: paired differences, and their standard errors. ::

    from mgpu_nb.workloads import protein

    run = protein.start(protein.preset("quick_test", output_dir="results"))
    report = protein.collect(run.wait())
    report.save()

What goes in, and what comes out:

- References: a folder of .pdb, .ent, .cif, .mmcif or .bcif files, each also .gz; first models, first alternative
  locations, C-alpha atoms of unbroken chains.
- A model: ``package.module:factory`` of an nn.Module, ``forward(x [B, L, 3], t [B])`` to a velocity [B, L, 3] in nm;
  with frames as in `mgpu_nb.workloads.protein.frames`.
- A score: a function, or its path, of positions [B, L, 3] in angstrom to [B] numbers, of which higher is better; with a
  parameter ``backbone`` also of atoms [B, L, 4, 3].
- Designability: two functions, as `mgpu_nb.workloads.protein.designability` says.
- ``results/summary_results.csv``: method, num_branches, mean_score, std_score (of the population), max_score,
  min_score, total_time, time_per_sample (seconds), num_samples, scoring_function, gpu_id, nfe (network calls per
  sample), status, and with designability mean_sc_tm, mean_sc_rmsd (angstrom), designable (share).
- ``results/detailed_results.json``: the same with the scores of all samples, what `run_experiment` returns.
- ``structures/EXPERIMENT/sample_000.pdb``: C-alpha atoms, or N, CA, C and O.

A model that needs another Python or torch than this process, FoldFlow-2 for one, runs in an environment of its own:
``Config(model="foldflow2", python="foldflow-env/bin/python")``; `foldflow2.check` says how that is made.

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
