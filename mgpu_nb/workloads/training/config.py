"""The options of a training, its named configs, and the checks at the door."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from ...distributed.rendezvous import LONGEST
from ...options import (
    Between,
    Function,
    NonNegativeFloat,
    NonNegativeInt,
    OneOf,
    PositiveFloat,
    PositiveInt,
    check_options,
    check_value,
)
from ...tasks import path_of
from ..inputs import GpuIds, LogLevel, with_preset
from .reading import Reading

__all__ = ["CONFIGS", "PRESETS", "CheckConfig", "Config", "named", "preset"]

OPTIMIZERS = ("adamw", "adam", "sgd")
OF_DDP = (
    "find_unused_parameters",
    "gradient_as_bucket_view",
    "broadcast_buffers",
    "bucket_cap_mb",
    "static_graph",
)
FUNCTIONS = ("model", "loss", "metrics", "forward", "collate", "predict")  # of a model of one's own


@dataclass(frozen=True)
class Config(Reading):
    """Options of a training. Names and defaults are those of the scripts it replaces.

    Without `model` it trains the emulator of a land; `data`, `loss` and so on of a model of your own are functions, or
    ``package.module:name``, and described in `mgpu_nb.workloads.training`.

    Raises
    ------
    ValueError, TypeError
        If an option is invalid; the message names it and the accepted values.
    """

    data: Callable[..., Any] | str | None = None
    """A land as .npz or .parquet, batches as .pkl, a folder or pattern of such files; by default a generated one. For a
    model of your own the function of its data, data() -> (train, validation)."""
    trust: bool = False
    """Whether pickles (.pkl) may be read: what they hold runs code."""
    columns: PositiveInt = 512
    """Columns of the generated land."""
    validation_share: Annotated[float, Between(0, 1, low_open=True, high_open=True)] = 0.2
    """Share of the columns that are kept for validation."""
    seed: NonNegativeInt = 0
    """Seed of land, weights and order."""
    output_dir: str | None = None
    """Folder for all files; by default a new one below runs."""
    log_level: LogLevel = "INFO"
    """INFO: a line per epoch; DEBUG: one per optimizer step, of every rank."""
    use_multi_gpu: bool = True
    """Whether several ranks train; otherwise one."""
    world_size: PositiveInt | None = None
    """Number of ranks; by default one per id of gpu_ids, per slot of a pool, per GPU, or one."""
    gpu_ids: GpuIds = None
    """GPUs to use, or cpu for none; all by default."""
    timeout: Annotated[float, Between(0, LONGEST, low_open=True)] = 600.0
    """Seconds that a rank waits for the others in a collective."""
    distributed_backend: Annotated[str, OneOf(("nccl", "gloo"))] | None = None
    """Communication backend, nccl or gloo; by default nccl on GPUs, gloo elsewhere."""
    width: PositiveInt = 64
    """Features of a token of the emulator."""
    layers: PositiveInt = 2
    """Layers of its Transformer encoder."""
    heads: PositiveInt = 4
    """Attention heads."""
    batch_norm: bool = False
    """Whether the encoder of the matrices normalises over the batch."""
    epochs: PositiveInt = 20
    """Largest number of passes over the training columns."""
    batch_size: PositiveInt = 64
    """Columns per step, see batch_mode."""
    batch_mode: Literal["global", "per_rank"] = "global"
    """global: batch_size columns over all ranks; per_rank: batch_size columns on each."""
    gradient_accumulation_steps: PositiveInt = 1
    """Batches whose gradients are added up before an optimizer step."""
    optimizer: Callable[..., Any] | Annotated[str, OneOf(OPTIMIZERS, or_path="function")] = "adamw"
    """How gradients become steps; sgd with momentum 0.9; or optimizer(parameters, lr=) as in torch.optim."""
    learning_rate: PositiveFloat = 1e-3
    """Learning rate for batch_size columns per optimizer step."""
    lr_scaling: Literal["linear", "sqrt", "none"] = "none"
    """Scaling of the learning rate if an optimizer step sees more than batch_size columns."""
    warmup_steps: NonNegativeInt = 0
    """Optimizer steps in which the learning rate grows from zero."""
    weight_decay: NonNegativeFloat = 0.01
    """Weight decay of the optimizer."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradients are scaled down to this norm; None for no limit."""
    loss_weights: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (1.0, 1.0, 1.0)
    """Weights of the losses of scalars, vectors and matrices."""
    patience: PositiveInt | None = None
    """Epochs without a better validation loss after which it stops; None for never."""
    min_delta: NonNegativeFloat = 0.0
    """Smallest decrease of the validation loss that counts as better."""
    use_amp: bool = False
    """Mixed precision."""
    amp_dtype: Literal["bf16", "fp16"] = "bf16"
    """Type for mixed precision; fp16 uses a gradient scaler."""
    gradient_checkpointing: bool = False
    """Compute activations of the blocks of a model (items of a ModuleList; of the emulator its LSTM as well) again
    instead of keeping them."""
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
    checkpoint_every: PositiveInt = 1
    """Epochs between two checkpoints."""
    checkpoint_steps: PositiveInt | None = None
    """Optimizer steps between two checkpoints within an epoch; None for none."""
    model: Function | None = None
    """Function that makes a model of your own, model() -> Module; by default the emulator is trained."""
    loss: Function | None = None
    """Loss of a model of your own, loss(outputs, targets): a mean, one per sample, or (sum, count)."""
    metrics: Function | None = None
    """Metrics of a model of your own, metrics(outputs, targets) -> mapping of what a loss may be."""
    forward: Function | None = None
    """Call of a model of your own, forward(model, batch) -> outputs; by default model(*batch[:-1])."""
    collate: Function | None = None
    """Function that makes a batch of a list of samples; by default torch's default_collate."""
    predict: Function | None = None
    """What predictions/held_out.npz holds of a batch, predict(outputs, targets) -> mapping of arrays [b, ...]."""
    loader_workers: NonNegativeInt = 0
    """Processes of each rank that load samples; 0 for the rank itself."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """ddp: each rank has the whole model; fsdp: weights, gradients and optimizer states are sharded (fully_shard)."""
    schedule: Literal["constant", "cosine", "plateau"] = "constant"
    """Learning rate after the warm-up: constant, a cosine to the last epoch, or less after a plateau of validation."""
    final_rate: Annotated[float, Between(0, 1)] = 0.0
    """Share of the learning rate at which the cosine ends."""
    plateau_patience: NonNegativeInt = 5
    """Epochs without a better validation loss that a plateau may last."""
    plateau_factor: Annotated[float, Between(0, 1, low_open=True, high_open=True)] = 0.1
    """Factor of the learning rate after a plateau."""
    ema_decay: Annotated[float, Between(0, 1, low_open=True, high_open=True)] | None = None
    """Decay of an exponential moving average of the weights, which is validated and kept; None for no average."""

    def __post_init__(self) -> None:
        """Check what can be checked without looking at devices; make paths absolute and numbers plain."""
        for name in ("output_dir",) if self.model is not None else ("data", "output_dir"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                path = Path(getattr(self, name)).expanduser().absolute()
                object.__setattr__(self, name, str(path))
        check_options(self)
        self.check_reading(self.data is not None)
        if not sum(self.loss_weights):
            raise ValueError("loss_weights are all 0: there is nothing to learn")
        if self.width % self.heads:
            raise ValueError(f"width={self.width} must be a multiple of heads={self.heads}")
        if not self.use_multi_gpu and self.world_size not in (None, 1):
            raise ValueError(f"use_multi_gpu=False is one rank, world_size={self.world_size} is more: choose")
        if self.fp16_allreduce and self.bf16_allreduce:
            raise ValueError("fp16_allreduce and bf16_allreduce: gradients travel as one of the two")
        self._check_model()
        self._check_strategy()

    def _check_model(self) -> None:
        """Check that the functions of a model of one's own are all there."""
        if self.model is None:
            own = (*FUNCTIONS[1:], *("data",) * callable(self.data))
            if given := [name for name in own if getattr(self, name) is not None]:
                raise ValueError(
                    f"{', '.join(given)}: of a model of your own; give model, data and loss together"
                )
            if self.sync_batch_norm and not self.batch_norm:
                raise ValueError("sync_batch_norm: the model has no batch norm; set batch_norm as well")
            return
        if missing := [name for name in ("data", "loss") if getattr(self, name) is None]:
            raise ValueError(f"{', '.join(missing)} missing: a model of your own needs model, data and loss")
        if hasattr(self.model, "state_dict") and not isinstance(self.model, type):
            raise ValueError("model: give the function that makes it, so that every rank has one of its own")
        if isinstance(self.data, str):
            check_value("data", self.data, Function)

    def _check_strategy(self) -> None:
        """Check that options of DistributedDataParallel are not given to FSDP."""
        of_ddp = {each.name: each.default for each in fields(self) if each.name in OF_DDP}
        given = [name for name, default in of_ddp.items() if getattr(self, name) != default]
        if self.strategy == "fsdp" and given:
            raise ValueError(
                f"{', '.join(given)}: of DistributedDataParallel; leave it out with strategy='fsdp'"
            )

    def stated(self) -> dict[str, Any]:
        """Options by name, functions by their import paths."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: path_of(value) if callable(value) else value for name, value in values.items()}

    def check_device(self, device: str) -> None:
        """Check what depends on the kind of device.

        Raises
        ------
        ValueError
            If an option needs GPUs; the message says what to use instead.
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
            If they do not go together.
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
            If the global batch is smaller than the world, or no multiple of it.
        """
        if self.batch_mode == "per_rank" or not self.distributed_sampler:
            return self.batch_size
        if self.batch_size < world:
            raise ValueError(f"batch_size={self.batch_size} over {world} ranks: give each at least one")
        if self.batch_size % world:
            near = self.batch_size // world * world
            raise ValueError(f"batch_size={self.batch_size} cannot be dealt over {world} ranks: {near} can")
        return self.batch_size // world

    def global_batch(self, world: int) -> int:
        """Columns per batch over all ranks; without distributed_sampler every rank has the same ones."""
        return self.per_rank(world) * (world if self.distributed_sampler else 1)

    def effective(self, world: int) -> int:
        """Columns per optimizer step."""
        return self.global_batch(world) * self.gradient_accumulation_steps

    def rate(self, world: int) -> float:
        """Learning rate after the warm-up."""
        larger = self.effective(world) / self.batch_size
        return (
            self.learning_rate * {"linear": larger, "sqrt": math.sqrt(larger), "none": 1.0}[self.lr_scaling]
        )


PRESETS: dict[str, dict[str, Any]] = {
    "minimal": {"columns": 512, "epochs": 15, "batch_size": 32, "width": 32, "learning_rate": 3e-3},
    "full_dataset": {"columns": 4096, "epochs": 50, "batch_size": 128, "patience": 8},
    "multi_gpu": {
        "columns": 4096, "epochs": 50, "batch_size": 128, "batch_mode": "per_rank", "lr_scaling": "sqrt",
        "warmup_steps": 100, "use_amp": True, "fp16_allreduce": True, "patience": 8,
    },
    "extended": {"columns": 8192, "epochs": 100, "batch_size": 128, "width": 128, "layers": 4, "patience": 15},
    "plain": {},
}  # fmt: skip
"""What each preset changes."""


def preset(name: str, **changes: Any) -> Config:
    """`Config` of a preset, with `changes` on top.

    Raises
    ------
    ValueError
        If there is no such preset; the message names the nearest.
    """
    return with_preset(Config, PRESETS, name, changes)


named, CONFIGS = preset, PRESETS  # former names


@dataclass(frozen=True)
class CheckConfig(Reading):
    """Options of a check of the set-up, and of data: they are read and described, and nothing is trained.

    Raises
    ------
    ValueError, TypeError
        If an option is invalid; the message names it and the accepted values.
    """

    data: tuple[str, ...] = ()
    """Files, folders or patterns with data to read, as a training would; by default none."""
    trust: bool = False
    """Whether pickles (.pkl) may be read: what they hold runs code."""
    world_size: PositiveInt | None = None
    """Number of ranks; by default one, or with every_device one per device."""
    every_device: bool = False
    """Check a rank on every device."""
    gpu_ids: GpuIds = None
    """GPUs to use, or cpu for none; all by default."""
    distributed_backend: Annotated[str, OneOf(("nccl", "gloo"))] | None = None
    """Communication backend, nccl or gloo; by default nccl on GPUs, gloo elsewhere."""
    timeout: Annotated[float, Between(0, LONGEST, low_open=True)] = 60.0
    """Seconds that a rank waits for the others in a collective."""
    output_dir: str | None = None
    """Folder of the run; by default none is kept."""

    def __post_init__(self) -> None:
        """Check what can be checked without looking at devices; make paths absolute."""
        check_options(self)
        self.check_reading(bool(self.data))
        paths = tuple(str(Path(path).expanduser().absolute()) for path in self.data)
        object.__setattr__(self, "data", paths)

    def check_world(self, world: int, kind: str) -> None:
        """Check what depends on the number of ranks and the kind of their devices, ``cuda`` or ``cpu``.

        Raises
        ------
        ValueError
            If they do not go together.
        """
        if self.world_size not in (None, world):
            raise ValueError(f"world_size={self.world_size}, and there are {world} ranks: leave it out")
        if self.distributed_backend == "nccl" and kind == "cpu":
            raise ValueError("distributed_backend='nccl' needs a GPU for each rank: use gloo on a CPU")
