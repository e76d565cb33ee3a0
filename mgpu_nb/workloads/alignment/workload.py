"""alignment in the table of workloads."""

from __future__ import annotations

from ...pool import GPUPool
from ...runs.rerun import Rerun
from ...runs.run import Run
from .. import base
from ..base import Workload, lazily
from ..inputs import one_slot
from .check import CheckConfig
from .config import Config, default_output
from .fit_reference import FitConfig

__all__ = ["WORKLOAD", "start"]

_HERE = "mgpu_nb.workloads.alignment"

WORKLOAD = Workload(
    name="alignment",
    summary="Post-training of language models by rounds of data, training and evaluation: PITA, Q#, DPO, GRPO.",
    config=Config,
    tasks=lazily(f"{_HERE}.plan:tasks"),
    rounds=lazily(f"{_HERE}.plan:rounds"),
    pool=lazily(f"{_HERE}.plan:pool_options"),
    collect=lazily(f"{_HERE}.report:collect"),
    module=_HERE,
    paths=("config", "output_dir"),
    files=(
        "config.yaml",
        "data.json",
        "job_states.json",
        "run.log",
        "datasets",
        "models",
        "results",
        "figures",
    ),
    output=default_output,
    listeners=lazily(f"{_HERE}.log:listeners"),
    write=lazily(f"{_HERE}.log:write"),
    published={2: 1.8, 4: 3.5, 8: 6.75},
    verbs={
        "check": Workload(
            name="alignment-check",
            summary="Check that every slot writes the same tokens, and find the largest batches that fit.",
            config=CheckConfig,
            tasks=lazily(f"{_HERE}.check:tasks"),
            pool=lazily(f"{_HERE}.check:pool_options"),
            collect=lazily(f"{_HERE}.check:collect"),
            paths=("config", "output_dir"),
            temporary=True,
        ),
        "fit": Workload(
            name="alignment-fit",
            summary="Train the reference of the embedded task: a tiny GPT-2 on a corpus most of which is wrong.",
            config=FitConfig,
            tasks=lazily(f"{_HERE}.fit_reference:tasks"),
            collect=lazily(f"{_HERE}.fit_reference:collect"),
            pool=one_slot,
            paths=("output", "output_dir"),
        ),
    },
)


def start(
    config: Config | CheckConfig | FitConfig,
    pool: GPUPool | None = None,
    *,
    resume: bool = True,
    rerun: Rerun = "ask",
) -> Run:
    """Start an alignment, or one of its verbs; return at once. See `base.start`."""
    return base.start(base.workload_of(config), config, pool, resume=resume, rerun=rerun)
