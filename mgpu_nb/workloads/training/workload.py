"""training in the table of workloads."""

from __future__ import annotations

from pathlib import Path

from ...distributed.slurm import BatchJob
from ...pool import GPUPool
from ...runs.rerun import Rerun
from ...runs.run import Run
from .. import base, command
from ..base import FormerOption, Workload, lazily
from .config import PRESETS, CheckConfig, Config

__all__ = ["WORKLOAD", "batch_job", "start"]

_HERE = "mgpu_nb.workloads.training"
_FORMER = {"--backend": FormerOption("--distributed_backend")}

WORKLOAD = Workload(
    name="training",
    summary="One model on many GPUs, by DDP or FSDP: one of your own (--model, --data, --loss), or a land's emulator.",
    config=Config,
    launch=lazily(f"{_HERE}.plan:launch_training"),
    join=lazily(f"{_HERE}.ranks:train_as_rank"),
    collect=lazily(f"{_HERE}.report:collect"),
    module=_HERE,
    # The first step of an optimizer imports torch._dynamo, for two seconds.
    pool={"isolation": "task", "grace": 2.0, "preload": ("torch._dynamo",)},
    presets=PRESETS,
    default_preset="multi_gpu",
    files=("checkpoint.pt", "*.safetensors", "normalisation.npz", "training_*", "predictions", ".meeting-*"),
    aliases=("train",),
    former={
        **_FORMER,
        "--check": FormerOption(verb="check"),
        "--check_all": FormerOption("--every_device", verb="check"),
    },
    published={2: 1.8, 4: 3.5, 8: 6.5},
    verbs={
        "check": Workload(
            name="training-check",
            summary="Check that ranks find each other and agree, by ten steps of a tiny model; and data.",
            config=CheckConfig,
            launch=lazily(f"{_HERE}.plan:launch_check"),
            join=lazily(f"{_HERE}.ranks:check_as_rank"),
            collect=lazily(f"{_HERE}.report:collect_check"),
            pool={"isolation": "task", "grace": 2.0},
            paths=("data", "output_dir"),
            temporary=True,
            former=_FORMER,
        )
    },
)


def start(
    config: Config | CheckConfig, pool: GPUPool | None = None, *, resume: bool = True, rerun: Rerun = "ask"
) -> Run:
    """Start a training, or a check of the set-up; return at once. See `base.start`.

    All files of a training go to the folder of its run. A training that the folder holds already goes on from its
    checkpoint.
    """
    return base.start(base.workload_of(config), config, pool, resume=resume, rerun=rerun)


def batch_job(job: BatchJob, arguments: list[str]) -> tuple[str, Path]:
    """Batch script of a training, and the folder of its files. See `command.batch_job`.

    The script goes on from the checkpoint that it finds: the same script, submitted again, continues.
    """
    return command.batch_job(job, WORKLOAD, arguments)
