"""What an analysis will do: which triples are split over the slots, and why."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...hardware.slots import resolve_slots
from ...tasks import Task
from ..inputs import check_output
from .config import Config, TrainConfig, canonical, tile_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .graph import Graph
    from .rows import FileRead

__all__ = ["Sharding", "sharding", "sharding_of", "tasks", "training_task", "training_tasks"]

log = logging.getLogger("mgpu_nb.tracin")
RETRIES = 1  # of a shard whose worker is killed: a neighbour on the machine may have taken the memory


@dataclass(frozen=True, slots=True)
class Sharding:
    """How the work is split.

    Attributes
    ----------
    side
        ``train`` or ``test``: the triples that are dealt out; those of the other side are in every shard.
    ranges
        The part of each shard, see `analysis.run_shard`.
    reason
        Why, in words.
    """

    side: str
    ranges: tuple[tuple[int, int], ...]
    reason: str


def sharding(config: Config, train: int, test: int, slots: int) -> Sharding:
    """Split `train` and `test` triples over slots so that the longest shard does the least work.

    Every triple of a shard costs a forward and a backward pass, whichever side it is on; what both sides are
    multiplied with is cheap beside that. With ``jvp`` every pair costs a forward pass, and a test triple one gradient
    more.
    """
    unit = tile_of(config)
    blocks, tiles = -(-train // config.batch_size), -(-test // unit)
    by_train, by_test = min(slots, blocks), min(slots, tiles)
    rows = {
        "train": -(-blocks // by_train) * config.batch_size + test if by_train else 0,
        "test": train + min(test, -(-tiles // by_test) * unit) if by_test else train,
    }
    rows["train"] = min(rows["train"], train + test)
    side = "train" if not test or rows["train"] <= rows["test"] else "test"
    reason = f"a shard passes {rows[side]:,} triples through the model"
    if config.engine == "jvp" and test:
        side = "test" if by_test >= by_train else "train"
        reason = "with jvp every pair is a pass, and test gradients are best made once"
    elif test:
        other = "test" if side == "train" else "train"
        reason += f", with the {other} triples split it would be {rows[other]:,}"
    if config.shard_by != "auto" and test:
        side, reason = config.shard_by, "as shard_by says"
    count, parts = (blocks, by_train) if side == "train" else (tiles, by_test)
    bounds = [count * n // parts for n in range(parts + 1)]
    words = f"{side} triples are split over {parts} shard{'s' if parts > 1 else ''}: {reason}"
    return Sharding(side, tuple(itertools.pairwise(bounds)), words)


def tasks(config: Config, slots: int | None = None) -> list[Task]:
    """Tasks of an analysis: its shards, after the training of the model if that is embedded.

    Parameters
    ----------
    config
        What to do.
    slots
        Number of shards; by default the number of slots that the config's pool has.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is missing or malformed, or weights, layers or test triples are not there: no task is started.
    """
    from .worker import run_shard

    for option in ("output", "csv_output", "parquet_output"):
        check_output(option, getattr(config, option))
    options = canonical(config)
    inputs, graph = read_inputs(options)
    split = _split(config, graph, slots)
    log.info("%s", split.reason)
    first, after = training_first(options)
    return first + [
        Task(
            run_shard,
            options,
            inputs,
            split.side,
            start,
            stop,
            name=f"{split.side}-{start}-{stop}",
            cost=float(stop - start),
            seed=config.seed,
            retries=RETRIES,
            after=after,
        )
        for start, stop in split.ranges
    ]


def sharding_of(config: Config, slots: int | None = None) -> Sharding:
    """How the work of a config is split; parameters and errors as `tasks`."""
    from .source import inputs_digest, load_graph

    options = canonical(config)
    return _split(config, load_graph(options, inputs_digest(options)), slots)


def _split(config: Config, graph: Graph, slots: int | None) -> Sharding:
    from .source import chosen_tests

    tests = len(chosen_tests(config, len(graph.test)))
    count = slots if slots is not None else len(resolve_slots(config.gpu_ids, config.slots))
    return sharding(config, len(graph.train), tests, count)


def training_first(options: Config) -> tuple[list[Task], list[str]]:
    """Task that trains the embedded model, and its name; nothing where weights are given."""
    from .worker import run_training

    if not options.embedded:
        return [], []
    return [Task(run_training, options, name="train", seed=options.seed)], ["train"]


def training_task(config: TrainConfig) -> Task:
    """Make the training of a ConvE into a task; its value is what `training.fit` returns.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is missing or malformed.
    """
    from .training import graph_of
    from .worker import run_training

    tell(graph_of(config).files)
    return Task(run_training, replace(config, gpu_ids=None, output_dir=""), name="train", seed=config.seed)


def training_tasks(config: TrainConfig, slots: int | None = None) -> list[Task]:
    """`training_task` as the one task of a run."""
    return [training_task(config)]


def read_inputs(options: Config) -> tuple[str, Graph]:
    """Digest of the files that the options name, and their graph; what is wrong with them is found here.

    Raises
    ------
    OSError, ValueError
        If a file is missing or malformed, or weights or layers are not there.
    """
    from .source import files_read, inputs_digest, load_graph

    inputs = inputs_digest(options)
    graph = load_graph(options, inputs)
    tell(files_read(options, graph))
    _check_models(options, graph)
    return inputs, graph


def tell(files: Iterable[FileRead]) -> None:
    """Log what was read of files, and what was left out."""
    for file in files:
        log.info("%s", file)


def _check_models(options: Config, graph: Graph) -> None:
    """Load the weights, and choose layers of them: what cannot be is found here, not in a worker."""
    from .conve import ConvE
    from .dot_products import chosen
    from .source import EMBEDDED_SHAPE, load_models, loss_of
    from .worker import LAST_LAYERS

    loss_of(options, graph)
    models = [ConvE(EMBEDDED_SHAPE)] if options.embedded else load_models(options, graph, None, "cpu")
    for path, model in zip(options.weights or ("the embedded model",), models, strict=True):
        names = chosen(model, (LAST_LAYERS if options.use_last_layers_only else options.layers) or None)
        numbers = sum(dict(model.named_parameters())[name].numel() for name in names)
        log.info("%s: a %s, gradients of %d of its numbers", path, type(model).__name__, numbers)
