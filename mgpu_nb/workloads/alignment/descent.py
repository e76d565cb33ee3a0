"""Epochs over rows of training data: batches in an order of their own, loaded ahead, one way for all algorithms."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from .optimiser import Optimiser

if TYPE_CHECKING:
    from .settings import AlgoSettings, System, Training

__all__ = ["Descended", "Rows", "descend", "loaded"]

REPORTS = 100
"""Most reports of a training."""


class Rows(Dataset[Any]):
    """Rows of training data by index, and how those of a micro-batch become tensors on the CPU.

    With ``num_workers`` > 0 both are pickled where processes are not forked, so `collate` is best an instance of a
    class.
    """

    def __init__(self, rows: Sequence[Any], collate: Callable[[list[Any]], Any]) -> None:
        self.rows, self.collate = rows, collate

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


class Descended(NamedTuple):
    """What a training was.

    Attributes
    ----------
    steps
        Steps of the optimiser.
    loss
        Mean loss of the last epoch.
    """

    steps: int
    loss: float


def loaded(data: Rows, order: Sequence[list[int]], num_workers: int) -> Generator[Any]:
    """Micro-batches by the indices of their rows, in the order given, whoever loads them.

    With ``num_workers`` > 0 as many processes prepare them ahead. They end with the iteration, also if it is left
    early: close it.
    """
    loader = DataLoader(
        data,
        batch_sampler=order,
        num_workers=num_workers,
        collate_fn=data.collate,
        generator=torch.Generator(),  # its seeds are not drawn from the numbers of the training
    )
    batches = iter(loader)
    try:
        yield from batches
    finally:
        del batches, loader  # the last reference: this ends and awaits the processes


def descend(
    model: nn.Module,
    data: Rows,
    loss: Callable[[Mapping[str, Tensor]], Tensor],
    weights: Sequence[float],
    *,
    algo: AlgoSettings,
    training: Training,
    system: System,
    seed: int | Sequence[int],
    report: Callable[..., None],
) -> Descended:
    """Train all parameters of a model that ask for a gradient, by AdamW without weight decay.

    A step takes the gradient of the weighted mean of the losses of ``batch_size`` rows, computed
    ``micro_batch_size`` rows at a time; it is clipped to the norm 1. The learning rate falls linearly from
    ``learning_rate`` to nothing. Rows come in an order that depends on `seed` alone, anew each epoch.

    Parameters
    ----------
    model
        In train mode, on its device.
    data
        Rows and how they are put together.
    loss
        Sum over the rows of a micro-batch of weight times loss, of the tensors of `Rows.collate` on the model's device.
    weights
        Weight of each row: 1 for a mean over rows, its number of tokens for a mean over tokens.
    algo, training, system
        ``batch_size``, ``epochs``, ``learning_rate``, ``num_workers``; ``micro_batch_size``;
        ``clear_cache_interval``, steps between two times that unused memory of a GPU is given back, 0 for never.
    seed
        Seed of the order.
    report
        Takes ``step``, ``loss`` (mean since the report before) and ``progress``, at most a hundred times.

    Raises
    ------
    ValueError
        If there are no rows, or the loss is no number any more.
    """
    if not len(data):
        raise ValueError(
            "there are no data to train on; raise data_collection.samples_per_example or max_examples"
        )
    steps = _order(len(data), algo.batch_size, algo.epochs, seed)
    micro = [_parts(step, training.micro_batch_size) for step in steps]
    optimiser = Optimiser(model, algo.learning_rate, len(steps), system.clear_cache_interval)
    every = math.ceil(len(steps) / REPORTS)
    with closing(loaded(data, [part for parts in micro for part in parts], algo.num_workers)) as batches:
        for step, parts in enumerate(micro, 1):
            weight = sum(weights[index] for part in parts for index in part)
            optimiser.step(
                loss({name: value.to(optimiser.device) for name, value in batch.items()}) / weight
                for batch in islice(batches, len(parts))
            )
            if step % every == 0 or step == len(steps):
                recent = optimiser.losses[(step - 1) // every * every :]
                report(step=step, loss=sum(recent) / len(recent), progress=step / len(steps))
    tail = optimiser.losses[-(len(steps) // algo.epochs) :]
    return Descended(len(steps), sum(tail) / len(tail))


def _order(rows: int, batch_size: int, epochs: int, seed: int | Sequence[int]) -> list[list[int]]:
    """Rows of each step, shuffled anew each epoch; the last step of an epoch has what is left."""
    rng = np.random.default_rng(seed)
    steps: list[list[int]] = []
    for _ in range(epochs):
        order = rng.permutation(rows).tolist()
        steps += [order[at : at + batch_size] for at in range(0, rows, batch_size)]
    return steps


def _parts(step: list[int], size: int) -> list[list[int]]:
    return [step[at : at + size] for at in range(0, len(step), size)]
