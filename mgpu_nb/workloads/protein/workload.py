"""protein in the table of workloads."""

from __future__ import annotations

from ...pool import GPUPool
from ...runs.rerun import Rerun
from ...runs.run import Run
from .. import base
from ..base import FormerOption, Workload, lazily
from ..inputs import one_slot
from .config import PRESETS, Config
from .train_ca_net import TrainConfig

__all__ = ["WORKLOAD", "start"]

_PLAN, _REPORT = "mgpu_nb.workloads.protein.plan", "mgpu_nb.workloads.protein.report"

WORKLOAD = Workload(
    name="protein",
    summary="Inference-time scaling of protein backbones: more network evaluations per sample, six methods.",
    config=Config,
    tasks=lazily(f"{_PLAN}:tasks"),
    collect=lazily(f"{_REPORT}:collect"),
    presets=PRESETS,
    pool={"isolation": "task"},  # the GPU memory of an experiment is given back with its process
    paths=("references", "checkpoint", "output_dir"),
    former={"--experiment": FormerOption("--preset")},
    published={3: 3.0},
    aliases=(),
    verbs={
        "train": Workload(
            name="protein-train",
            summary="Train ca_net, the small network that the model of this name is shipped with.",
            config=TrainConfig,
            tasks=lazily(f"{_PLAN}:training_tasks"),
            collect=lazily(f"{_REPORT}:collect_training"),
            pool=one_slot,
            paths=("output", "output_dir"),
        )
    },
)


def start(
    config: Config | TrainConfig, pool: GPUPool | None = None, *, resume: bool = True, rerun: Rerun = "ask"
) -> Run:
    """Start the experiments of a config, or the training of `ca_net`; return at once. See `base.start`."""
    return base.start(base.workload_of(config), config, pool, resume=resume, rerun=rerun)
