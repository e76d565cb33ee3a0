"""tracin in the table of workloads."""

from __future__ import annotations

from ...pool import GPUPool
from ...runs.rerun import Rerun
from ...runs.run import Run
from .. import base
from ..base import FormerOption, Workload, lazily
from ..inputs import one_slot
from .config import FILES, OUTPUTS, BatchConfig, Config, TrainConfig

__all__ = ["WORKLOAD", "start"]

_HERE = "mgpu_nb.workloads.tracin"
_PATHS = (*FILES, *OUTPUTS, "checkpoints")
_FORMER = {
    "--test_triples": FormerOption("--test"),
    "--disable_test_gradient_caching": FormerOption("--no_cache_test_gradients"),
    "--use_optimized_tracin": FormerOption(
        note="--use_optimized_tracin: always so; gradients of a batch are multiplied by their factors, see --engine"
    ),
    "--enable_multi_gpu": FormerOption(
        note="--enable_multi_gpu: always so; all GPUs are used, or those of --gpu_ids"
    ),
    "--use_gradient_checkpointing": FormerOption(
        note="--use_gradient_checkpointing: always so; activations are kept for one batch only, see --batch_size"
    ),
    "--device cuda": FormerOption(note="--device cuda: always so on a machine with GPUs"),
    "--device cpu": FormerOption("--gpu_ids cpu"),
}


WORKLOAD = Workload(
    name="tracin",
    summary="TracIn influence of training triples on what a link predictor says of test triples.",
    config=Config,
    tasks=lazily(f"{_HERE}.plan:tasks"),
    collect=lazily(f"{_HERE}.report:collect"),
    paths=_PATHS,
    former=_FORMER,
    published={2: 1.8, 4: 3.3, 8: 5.5},
    verbs={
        "batch": Workload(
            name="tracin-batch",
            summary="TracIn influence test triple by test triple, each of the training triples near it in the graph.",
            config=BatchConfig,
            tasks=lazily(f"{_HERE}.batch:batch_tasks"),
            collect=lazily(f"{_HERE}.batch:collect_batch"),
            paths=_PATHS,
            files=("triple_*_tracin.*", "batch_tracin_summary.json"),
            former=_FORMER,
        ),
        "train": Workload(
            name="tracin-train",
            summary="Train a ConvE, with the checkpoints that an analysis sums over.",
            config=TrainConfig,
            tasks=lazily(f"{_HERE}.plan:training_tasks"),
            collect=lazily(f"{_HERE}.report:collect_training"),
            pool=one_slot,
            paths=("train", "test", "entity_to_id", "relation_to_id", "output_dir"),
        ),
    },
)


def start(
    config: Config | BatchConfig | TrainConfig,
    pool: GPUPool | None = None,
    *,
    resume: bool = True,
    rerun: Rerun = "ask",
) -> Run:
    """Start an analysis, a batch analysis or the training of a ConvE; return at once. See `base.start`."""
    return base.start(base.workload_of(config), config, pool, resume=resume, rerun=rerun)
