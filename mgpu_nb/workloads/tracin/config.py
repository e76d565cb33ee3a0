"""The options of an influence analysis, and the checks at the door."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from ...options import (
    AtLeast,
    Between,
    NonEmpty,
    NonNegativeInt,
    OneOf,
    PositiveFloat,
    PositiveInt,
    Seed,
    Unique,
    check_options,
)
from ..inputs import GpuIds, absolute_path, check_one_gpu

__all__ = ["BatchConfig", "Config", "TrainConfig"]

LOSSES = ("softplus", "bce")
FILES = ("model_path", "train", "test", "entity_to_id", "relation_to_id", "entity_labels", "relation_labels")
OUTPUTS = ("output", "csv_output", "parquet_output", "output_dir")


@dataclass(frozen=True)
class Config:
    """Options of an influence analysis. Names and defaults are those of the scripts it replaces.

    Without files the embedded graph is analysed: generated, with planted errors, its ConvE trained by the run's first
    task.

    Raises
    ------
    TypeError, ValueError
        If an option is invalid; the message names it and the accepted values.
    """

    gpu_ids: GpuIds = None
    """GPUs to use, or cpu for none; all by default. An id given twice means two slots on that GPU."""
    slots: PositiveInt | None = None
    """Number of slots; by default one per GPU (on a machine without one, virtual CPU devices)."""
    model_path: str | None = None
    """Weights of a ConvE: .safetensors, or what torch.save wrote. PyKEEN's names are known too; a whole model of
    PyKEEN's, trained_model.pkl, is read with trust."""
    trust: bool = False
    """Read weights as the pickles that they may be, which runs code in them: PyKEEN's trained_model.pkl, whose
    model need not be a ConvE then. Only for files that you made, or from those whom you trust."""
    checkpoints: tuple[str, ...] = ()
    """Several of them, from different times of the training (TracInCP), in place of model_path."""
    learning_rate: Annotated[tuple[PositiveFloat, ...], NonEmpty()] = (0.001,)
    """Factor of the products: one for all checkpoints, or one for each."""
    train: str | None = None
    """Training triples: lines of head, relation and tail with tabs or commas."""
    test: str | None = None
    """Test triples, in the same format."""
    entity_to_id: str | None = None
    """Numbers of the entities: lines of name, tab, number."""
    relation_to_id: str | None = None
    """Numbers of the relations: lines of name, tab, number."""
    drop_unseen: bool = False
    """Leave out triples of entities or relations that the maps do not have, and count them; an error by default."""
    entity_labels: str | None = None
    """Labels of the entities in tables: lines of name, tab, label; by default the names."""
    relation_labels: str | None = None
    """Labels of the relations: lines of name, tab, label; by default the names."""
    mode: Literal["test", "self", "single"] = "test"
    """test: influence of all training triples on test triples; single: on one, of test_indices;
    self: of each training triple on itself."""
    test_indices: Annotated[tuple[NonNegativeInt, ...], NonEmpty(), Unique()] | None = None
    """Which test triples, by number from 0; all by default, the first in mode single."""
    max_test_triples: PositiveInt | None = None
    """Largest number of test triples, the first ones; all by default."""
    top_k: PositiveInt | None = 10
    """Number of the largest influences per test triple, by absolute value, and of the proponents and the opponents that
    are kept beside them; None for all."""
    loss: Annotated[str, OneOf(LOSSES, or_path="function")] = "softplus"
    """softplus(-score), bce (what a ConvE is trained with: 1-N binary cross entropy, all known tails labelled 1, label
    smoothing 0.1), or package.module:function(model, triples)."""
    model: Annotated[str, OneOf(("conve",), or_path="factory")] = "conve"
    """conve, or package.module:factory, called without arguments, which returns an nn.Module that the weights fit;
    it needs a loss of its own, for softplus and bce are of a ConvE."""
    height: PositiveInt | None = None
    """Height of the image that ConvE makes of an embedding, where the weights fit several and no configuration beside
    them tells which."""
    engine: Literal["factored", "vmap", "jvp", "loop"] = "factored"
    """How gradients are multiplied; all give the same numbers."""
    layers: tuple[str, ...] = ()
    """Layers or parameters whose gradients count; all by default."""
    use_last_layers_only: bool = False
    """Count the layers behind the convolution only: approximate, and cheaper."""
    batch_size: PositiveInt = 256
    """Triples at a time. Bounds memory, changes no answer: a worker with a ConvE of f features (10368 in one of
    200 dimensions and 32 channels) needs about 12 f bytes for each triple of a batch, and 4 f for each test
    triple and checkpoint."""
    cache_test_gradients: bool = True
    """Keep what is computed for test triples; otherwise it is done again for each batch of training triples,
    which takes longer and less memory."""
    precision: Literal["fp32", "fp64"] = "fp32"
    """Precision of weights and sums."""
    use_mixed_precision: bool = False
    """Gradients in bfloat16 where that helps, products and sums in fp32; the report tells how far ranks agree."""
    use_torch_compile: bool = False
    """Compile the gradients (engines factored and vmap): worth its minute where the analysis takes many."""
    shard_by: Literal["auto", "train", "test"] = "auto"
    """Which triples are split over the slots; by default what repeats less work."""
    seed: Seed = 0
    """Seed of the embedded graph and of its training."""
    output: str | None = None
    """File for the results as JSON; results.json in the run's folder by default."""
    csv_output: str | None = None
    """File for the results as a table with names and self-influences."""
    parquet_output: str | None = None
    """File for the results as a table that is large."""
    output_dir: str | None = None
    """Folder of the run."""

    def __post_init__(self) -> None:
        """Check what can be checked without looking at files."""
        check_options(self)
        if self.mode == "single" and self.test_indices is not None and len(self.test_indices) != 1:
            raise ValueError(f"test_indices={self.test_indices!r}: mode single takes one")
        if self.use_mixed_precision and self.precision == "fp64":
            raise ValueError("use_mixed_precision goes with precision='fp32': choose one of the two")
        if self.use_last_layers_only and self.layers:
            raise ValueError("use_last_layers_only and layers both choose layers: give one of the two")
        if self.use_torch_compile and self.engine not in ("factored", "vmap"):
            raise ValueError(
                f"use_torch_compile goes with the engines factored and vmap, not with {self.engine}"
            )
        self._check_files()

    def _check_files(self) -> None:
        if self.checkpoints and self.model_path is not None:
            raise ValueError("model_path and checkpoints both name weights: give one of the two")
        if len(self.learning_rate) not in (1, max(1, len(self.weights))) and not self.embedded:
            raise ValueError(
                f"learning_rate: there are {len(self.learning_rate)} for {len(self.weights)} checkpoints; give one "
                "for all, or one for each"
            )
        if self.embedded:
            if self.weights or self.model != "conve":
                raise ValueError(
                    "the embedded graph has its own model: give train, test and the maps of names as well"
                )
            if len(self.learning_rate) not in (1, EMBEDDED_CHECKPOINTS):
                raise ValueError(
                    f"learning_rate: the embedded model has {EMBEDDED_CHECKPOINTS} checkpoints; give one for all, or "
                    "one for each"
                )
            return
        missing = [
            name
            for name in FILES[1:5]
            if getattr(self, name) is None and (name, self.mode) != ("test", "self")
        ]
        if missing:
            raise ValueError(f"{', '.join(missing)} missing: give all files, or none for the embedded graph")
        if not self.weights:
            raise ValueError("model_path missing: give the weights of the model, or several as checkpoints")

    @property
    def embedded(self) -> bool:
        """Whether the generated graph is analysed."""
        return all(
            getattr(self, name) is None for name in ("train", "test", "entity_to_id", "relation_to_id")
        )

    @property
    def weights(self) -> tuple[str, ...]:
        """The checkpoints; none where the run trains them."""
        return self.checkpoints or ((self.model_path,) if self.model_path is not None else ())

    @property
    def stated_rate(self) -> float | list[float]:
        """The learning rate as results state it: one number where all are the same."""
        return self.rates[0] if len(set(self.rates)) == 1 else list(self.rates)

    @property
    def rates(self) -> tuple[float, ...]:
        """A learning rate for each checkpoint."""
        count = EMBEDDED_CHECKPOINTS if self.embedded else len(self.weights)
        return self.learning_rate * count if len(self.learning_rate) == 1 else self.learning_rate


EMBEDDED_CHECKPOINTS = 5
TEST_TILE = 64
"""Test triples are worked on by so many at a time, however they are split: sums come in the same order then."""


def tile_of(config: Config) -> int:
    """Number of test triples that stay together when they are split over slots."""
    return 1 if config.engine in ("jvp", "loop") else min(config.batch_size, TEST_TILE)


@dataclass(frozen=True)
class BatchConfig(Config):
    """Options of a batch analysis: test triple by test triple, each against the training triples near it."""

    n_hops: PositiveInt = 2
    """Hops of the breadth-first search for training triples, from head and tail."""
    min_degree: NonNegativeInt = 2
    """A triple that touches neither head nor tail stays if one of its ends has this many of the triples found."""
    strict_hop_constraint: bool = False
    """Both ends are within n_hops of the head and of the tail."""
    max_total_path_length: PositiveInt | None = None
    """Longest walk from head to tail that a triple may be part of, in triples; None for no limit."""
    start_index: NonNegativeInt = 0
    """The first test triple."""
    max_triples: PositiveInt | None = None
    """Number of test triples; all by default."""
    skip_existing: bool = False
    """Leave out the test triples whose files are in output_dir already, by number and names; whether model or options
    were others then is not looked at."""

    def __post_init__(self) -> None:
        """Check what can be checked without looking at files."""
        super().__post_init__()
        for name in ("output", "csv_output", "parquet_output"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name}: a batch writes two files per test triple into output_dir")
        if self.shard_by != "auto":
            raise ValueError("shard_by: a batch is split by test triples")
        if self.mode != "test":
            raise ValueError(f"mode={self.mode!r}: the batch analysis is of test triples")


@dataclass(frozen=True)
class TrainConfig:
    """Options of a ConvE's training. Without files, on the embedded graph."""

    output_dir: str = "tracin-model"
    """Folder for the checkpoints."""
    gpu_ids: GpuIds = None
    """GPU to use, by its id, or cpu for none; the first by default."""
    train: str | None = None
    """Training triples: lines of head, relation and tail with tabs or commas."""
    test: str | None = None
    """Test triples, in the same format; their filtered ranks are reported at the end."""
    entity_to_id: str | None = None
    """Numbers of the entities: lines of name, tab, number."""
    relation_to_id: str | None = None
    """Numbers of the relations: lines of name, tab, number."""
    drop_unseen: bool = False
    """Leave out triples of entities or relations that the maps do not have, and count them; an error by default."""
    height: PositiveInt = 8
    """Height of the image that ConvE makes of an embedding."""
    width: PositiveInt = 8
    """Width of that image; an embedding has height times width numbers."""
    channels: PositiveInt = 8
    """Channels of the convolution."""
    epochs: PositiveInt = 40
    """Passes over the training triples."""
    checkpoints: PositiveInt = EMBEDDED_CHECKPOINTS
    """Number of checkpoints, evenly spaced over the epochs; the last is the model."""
    batch_size: Annotated[int, AtLeast(2)] = 16
    """Pairs of head and relation per step."""
    learning_rate: PositiveFloat = 3e-3
    """Learning rate of Adam."""
    label_smoothing: Annotated[float, Between(0, 1, high_open=True)] = 0.1
    """Label smoothing of the 1-N binary cross entropy."""
    seed: Seed = 0
    """Seed of graph, weights and order."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_options(self)
        check_one_gpu(self.gpu_ids)
        if self.checkpoints > self.epochs:
            raise ValueError(
                f"checkpoints={self.checkpoints}: give at most one for each of the {self.epochs} epochs"
            )
        files = [getattr(self, name) for name in ("train", "entity_to_id", "relation_to_id")]
        if any(file is None for file in files) and any(file is not None for file in (*files, self.test)):
            raise ValueError(
                "give train, entity_to_id and relation_to_id, or none of them for the embedded graph"
            )


def canonical(config: Config) -> Config:
    """Config of what decides the results, with absolute paths: where and beside what it runs is left out."""
    changes: dict[str, Any] = {name: absolute_path(getattr(config, name)) for name in FILES}
    changes |= dict.fromkeys(OUTPUTS)
    changes["checkpoints"] = tuple(str(absolute_path(path)) for path in config.checkpoints)
    return replace(config, gpu_ids=None, slots=None, shard_by="auto", **changes)
