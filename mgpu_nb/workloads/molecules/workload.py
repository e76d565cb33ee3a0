"""molecules in the table of workloads."""

from __future__ import annotations

from ...pool import GPUPool
from ...runs.rerun import Rerun
from ...runs.run import Run
from .. import base
from ..base import FormerOption, Workload, lazily
from ..inputs import one_slot
from .config import PRESETS, Config, default_output
from .forces.fit_potential import FitConfig
from .train import TrainConfig

__all__ = ["WORKLOAD", "start"]

_HERE = "mgpu_nb.workloads.molecules"
_BY_TORCHRUN = "torchrun and srun say it; without them a pool takes the GPUs of --gpu_ids or all there are"

WORKLOAD = Workload(
    name="molecules",
    summary="Molecules of a diffusion model, guided by a force field beside unguided: one sample set, sharded.",
    config=Config,
    tasks=lazily(f"{_HERE}.plan:tasks"),
    join=lazily("mgpu_nb.workloads.ranks:join_tasks"),
    collect=lazily(f"{_HERE}.report:collect"),
    module=_HERE,
    presets=PRESETS,
    paths=("model_path", "output_dir"),
    files=(
        "eval",
        "baseline*",
        "guided_scale_*",
        "relaxed*",
        "chain_*",
        "metrics.json",
        "summary.csv",
        "times.json",
    ),
    output=default_output,
    listeners=lazily(f"{_HERE}.tracking:listeners"),
    former={
        "--n_gpus": FormerOption("--slots"),
        "--use_distributed": FormerOption(
            note="--use_distributed: always so; all GPUs are used, or those of --gpu_ids, or the ranks of torchrun"
        ),
        "--local_rank": FormerOption(value=True, note=f"--local_rank: {_BY_TORCHRUN}"),
        "--world_size": FormerOption(value=True, note=f"--world_size: {_BY_TORCHRUN}"),
        "--dist_backend": FormerOption(
            value=True, note="--dist_backend: not needed; ranks exchange no tensors, and a pool none either"
        ),
    },
    verbs={
        "train": Workload(
            name="molecules-train",
            summary="Train the small diffusion model that is shipped, on small molecules of H, C, N, O and F.",
            config=TrainConfig,
            launch=lazily(f"{_HERE}.ranks:launch_training"),
            join=lazily(f"{_HERE}.ranks:train_as_rank"),
            collect=lazily(f"{_HERE}.report:collect_training"),
            paths=("init", "output", "output_dir"),
        ),
        "fit": Workload(
            name="molecules-fit",
            summary="Fit the potential that guides by default, to forces of GFN1-xTB.",
            config=FitConfig,
            tasks=lazily(f"{_HERE}.plan:fit_tasks"),
            collect=lazily(f"{_HERE}.report:collect_fit"),
            pool=one_slot,
            paths=("output", "output_dir"),
        ),
    },
)


def start(
    config: Config | TrainConfig | FitConfig,
    pool: GPUPool | None = None,
    *,
    resume: bool = True,
    rerun: Rerun = "ask",
) -> Run:
    """Start an evaluation, a training of the model or a fit of the potential; return at once. See `base.start`."""
    return base.start(base.workload_of(config), config, pool, resume=resume, rerun=rerun)
