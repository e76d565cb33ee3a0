"""The options of a training, its named configs, and the checks at the door."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from ...distributed.rendezvous import LONGEST
from ...options import (
    Between,
    NonEmpty,
    NonNegativeFloat,
    NonNegativeInt,
    OneOf,
    PositiveFloat,
    PositiveInt,
    check_choice,
    check_options,
)

__all__ = ["CONFIGS", "Config", "named"]


@dataclass(frozen=True)
class Config:
    """Options of a training. Names and defaults are those of the scripts it replaces.

    Raises
    ------
    ValueError, TypeError
        If an option is invalid; the message names it and the accepted values.
    """

    data: str | None = None
    """A land as .npz or .parquet, batches as .pkl, or a folder of such files; by default a generated one."""
    trust: bool = False
    """Whether .pkl files may be read: what they hold runs code."""
    static_columns: tuple[str, ...] = ()
    """Of a table the 20 static columns; by default those that hold a number a row and are no output."""
    scalar_columns: tuple[str, ...] = ()
    """Of a table the 5 scalar outputs; by default those that hold a number a row and begin with Y_."""
    columns: PositiveInt = 512
    """Columns of the generated land."""
    validation_share: Annotated[float, Between(0, 1, low_open=True, high_open=True)] = 0.2
    """Share of the columns that are kept for validation."""
    seed: NonNegativeInt = 0
    """Of land, weights and order."""
    output_dir: str | None = None
    """Folder for all files; by default a new one below runs."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """INFO: a line per epoch; DEBUG: one per optimizer step, of every rank."""
    use_multi_gpu: bool = True
    """Whether several ranks train; otherwise one."""
    world_size: PositiveInt | None = None
    """Number of ranks; by default one per id of gpu_ids, per slot of a pool, per GPU, or one."""
    gpu_ids: Annotated[tuple[NonNegativeInt, ...], NonEmpty()] | Literal["cpu"] | None = None
    """GPUs to use, or cpu for none; all by default."""
    timeout: Annotated[float, Between(0, LONGEST, low_open=True)] = 600.0
    """Seconds that a rank waits for the others in a collective."""
    distributed_backend: Annotated[str, OneOf(("nccl", "gloo"))] | None = None
    """nccl or gloo; by default nccl on GPUs, gloo elsewhere."""
    width: PositiveInt = 64
    """Of a token of the emulator."""
    layers: PositiveInt = 2
    """Of its Transformer."""
    heads: PositiveInt = 4
    """Of its attention."""
    batch_norm: bool = False
    """Whether the encoder of the matrices normalises over the batch."""
    epochs: PositiveInt = 20
    """Passes over the training columns at the most."""
    batch_size: PositiveInt = 64
    """Columns per step, see batch_mode."""
    batch_mode: Literal["global", "per_rank"] = "global"
    """global: batch_size columns over all ranks; per_rank: batch_size columns on each."""
    gradient_accumulation_steps: PositiveInt = 1
    """Batches whose gradients are added up before an optimizer step."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """How gradients become steps; sgd with momentum 0.9."""
    learning_rate: PositiveFloat = 1e-3
    """For batch_size columns per optimizer step."""
    lr_scaling: Literal["linear", "sqrt", "none"] = "none"
    """How it grows where a optimizer step sees more than batch_size columns."""
    warmup_steps: NonNegativeInt = 0
    """Optimizer steps in which it grows from zero."""
    weight_decay: NonNegativeFloat = 0.01
    """Of the optimizer."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradients are scaled down to this norm; None for no limit."""
    loss_weights: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (1.0, 1.0, 1.0)
    """Of scalars, vectors and matrices."""
    patience: PositiveInt | None = None
    """Epochs without a better validation loss after which it stops; None for never."""
    min_delta: NonNegativeFloat = 0.0
    """How much better counts as better."""
    use_amp: bool = False
    """Mixed precision."""
    amp_dtype: Literal["bf16", "fp16"] = "bf16"
    """Its type; fp16 with a gradient scaler."""
    gradient_checkpointing: bool = False
    """Compute activations of the Transformer again instead of keeping them."""
    find_unused_parameters: bool = False
    """Look for parameters without a gradient in every step, as DistributedDataParallel's options below."""
    gradient_as_bucket_view: bool = True
    """Gradients are views of the buckets that are reduced."""
    broadcast_buffers: bool = True
    """Buffers of rank 0 before every forward pass."""
    bucket_cap_mb: PositiveInt = 25
    """Size of a bucket."""
    static_graph: bool = True
    """The same parameters take part in every iteration."""
    fp16_allreduce: bool = False
    """Gradients travel as fp16."""
    bf16_allreduce: bool = False
    """Gradients travel as bf16; on GPUs."""
    sync_batch_norm: bool = False
    """Batch norm over all ranks; on GPUs."""
    distributed_sampler: bool = True
    """Ranks share the columns; otherwise each goes over all of them."""
    resume: bool = False
    """Go on from the checkpoint in the output folder."""
    checkpoint_every: PositiveInt = 1
    """Epochs between two checkpoints."""
    checkpoint_steps: PositiveInt | None = None
    """Optimizer steps between two more of them within an epoch; None for none."""

    def __post_init__(self) -> None:
        """Check what can be checked without looking at devices; make paths absolute and numbers plain."""
        for name in ("data", "output_dir"):
            if getattr(self, name) is not None:
                path = Path(getattr(self, name)).expanduser().absolute()
                object.__setattr__(self, name, str(path))
        check_options(self)
        if not sum(self.loss_weights):
            raise ValueError("loss_weights are all 0: there is nothing to learn")
        if self.width % self.heads:
            raise ValueError(f"width={self.width} must be a multiple of heads={self.heads}")
        if not self.use_multi_gpu and self.world_size not in (None, 1):
            raise ValueError(f"use_multi_gpu=False is one rank, world_size={self.world_size} is more: choose")
        if self.fp16_allreduce and self.bf16_allreduce:
            raise ValueError("fp16_allreduce and bf16_allreduce: gradients travel as one of the two")
        if self.sync_batch_norm and not self.batch_norm:
            raise ValueError("sync_batch_norm: the model has no batch norm; set batch_norm as well")

    def check_device(self, device: str) -> None:
        """Check what depends on the kind of device.

        Raises
        ------
        ValueError
            Where an option needs GPUs: says what else there is.
        """
        if device.startswith("cuda"):
            return
        for name, instead in (("sync_batch_norm", "leave it out"), ("bf16_allreduce", "use fp16_allreduce")):
            if getattr(self, name):
                raise ValueError(f"{name} needs GPUs: {instead} on a CPU")
        if self.use_amp and self.amp_dtype == "fp16":
            raise ValueError("amp_dtype='fp16' needs GPUs: use bf16 on a CPU")

    def check_world(self, world: int, kind: str) -> None:
        """Check what depends on the number of ranks and the kind of their devices, ``cuda`` or ``cpu``.

        Raises
        ------
        ValueError
            Where they do not go together.
        """
        if self.world_size not in (None, world):
            raise ValueError(f"world_size={self.world_size}, and there are {world} ranks: leave it out")
        if not self.use_multi_gpu and world > 1:
            raise ValueError(f"use_multi_gpu=False is one rank, and there are {world}")
        if self.distributed_backend == "nccl" and kind == "cpu":
            raise ValueError("distributed_backend='nccl' needs a GPU for each rank: use gloo on a CPU")
        self.check_device(kind)
        self.per_rank(world)

    def per_rank(self, world: int) -> int:
        """Columns per rank and batch.

        Raises
        ------
        ValueError
            Where the global batch is smaller than the world, or no multiple of it.
        """
        if self.batch_mode == "per_rank" or not self.distributed_sampler:
            return self.batch_size
        if self.batch_size < world:
            raise ValueError(f"batch_size={self.batch_size} over {world} ranks: give each at least one")
        if self.batch_size % world:
            near = self.batch_size // world * world
            raise ValueError(f"batch_size={self.batch_size} cannot be dealt over {world} ranks: {near} can")
        return self.batch_size // world

    def whole_batch(self, world: int) -> int:
        """Columns per batch over all ranks; without distributed_sampler every rank has the same ones."""
        return self.per_rank(world) * (world if self.distributed_sampler else 1)

    def effective(self, world: int) -> int:
        """Columns per optimizer step."""
        return self.whole_batch(world) * self.gradient_accumulation_steps

    def rate(self, world: int) -> float:
        """Learning rate after the warm-up."""
        larger = self.effective(world) / self.batch_size
        return (
            self.learning_rate * {"linear": larger, "sqrt": math.sqrt(larger), "none": 1.0}[self.lr_scaling]
        )


CONFIGS: dict[str, dict[str, Any]] = {
    "minimal": {"columns": 512, "epochs": 15, "batch_size": 32, "width": 32, "learning_rate": 3e-3},
    "full_dataset": {"columns": 4096, "epochs": 50, "batch_size": 128, "patience": 8},
    "multi_gpu": {
        "columns": 4096, "epochs": 50, "batch_size": 128, "batch_mode": "per_rank", "lr_scaling": "sqrt",
        "warmup_steps": 100, "use_amp": True, "fp16_allreduce": True, "patience": 8,
    },
    "extended": {"columns": 8192, "epochs": 100, "batch_size": 128, "width": 128, "layers": 4, "patience": 15},
}  # fmt: skip
"""What each named config changes."""


def named(name: str, **changes: Any) -> Config:
    """Return a named config, with `changes` on top.

    Raises
    ------
    ValueError
        Where there is no such config: names the nearest.
    """
    return replace(Config(**CONFIGS[check_choice(name, CONFIGS, "config")]), **changes)
