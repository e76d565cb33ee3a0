"""Columns of a land as tensors: normalised, split, dealt over ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from .emulator import Inputs, Outputs
from .land import Land
from .layout import INPUTS, OUTPUTS

__all__ = ["Batch", "Columns", "Shard"]


@dataclass(frozen=True, slots=True)
class Batch:
    """A rank's part of a batch.

    Attributes
    ----------
    index
        [b]: which columns.
    weight
        [b]: 1, or 0 for one that is there only because a rank cannot have none.
    count
        How many of weight 1.
    """

    index: Tensor
    weight: Tensor
    count: int


class Columns:
    """Inputs and outputs of a land, normalised by those of the training part.

    Inputs and scalars have mean 0 and standard deviation 1 by feature; vectors and matrices are only divided by their
    standard deviation, so that what is never below zero stays so.
    """

    def __init__(self, land: Land, train: np.ndarray, device: str) -> None:
        self.parts: dict[str, Tensor] = {}
        self.means: dict[str, np.ndarray] = {}
        self.stds: dict[str, np.ndarray] = {}
        for name in (*INPUTS, *OUTPUTS):
            array = getattr(land, name)
            axes = (0, 1) if name == "series" else (0,)
            if not array.size:  # the land has no such part
                std = mean = np.zeros(array.shape[len(axes) :])
            else:
                std = _spread(array[train], axes)
                mean = array[train].mean(axes) if name in (*INPUTS, "scalar") else np.zeros_like(std)
                array = (array - mean) / std
            self.parts[name] = torch.from_numpy(array).float().to(device)
            self.means[name], self.stds[name] = mean, std

    def of(self, index: Tensor) -> tuple[Inputs, Outputs]:
        """Inputs and outputs of some columns [b]."""
        inputs = [self.parts[name][index] for name in INPUTS]
        return Inputs(*inputs), Outputs(*(self.parts[name][index] for name in OUTPUTS))

    def baseline(self, train: np.ndarray, held_out: np.ndarray, weights: tuple[float, float, float]) -> float:
        """Loss of the mean of the training columns on those held out."""
        parts = [self.parts[name] for name in OUTPUTS]
        errors = [
            float((part[held_out] - part[train].mean(0)).square().mean()) if part.numel() else 0.0
            for part in parts
        ]
        return float(np.dot(weights, errors))

    def restored(self, found: Outputs) -> dict[str, np.ndarray]:
        """Outputs in the units of the land, as ``scalar``, ``vector`` and ``matrix``."""
        return {
            name: part.double().cpu().numpy() * self.stds[name] + self.means[name]
            for name, part in zip(OUTPUTS, found, strict=True)
        }


def _spread(array: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Standard deviation of each feature; of one that is constant that of its whole column, or its size, or 1.

    A layer or a plant type that is empty in all training columns may not be in others.
    """
    std, most = array.std(axes), np.abs(array).max(axes)
    if array.ndim > 2 and axes == (0,):  # lists and matrices
        rest = (0, *range(2, array.ndim))
        whole = np.broadcast_to(array.std(rest, keepdims=True)[0], std.shape)
    else:
        whole = np.zeros_like(std)
    size = np.where(most > 0, most, 1.0)
    fallback = np.where(whole > 1e-10 * size, whole, size)
    # By its own size, whatever its unit: a constant is rounding away from its mean.
    spread: np.ndarray = np.where(std > 1e-10 * most, std, fallback)
    return spread


class Shard:
    """A rank's shard of the columns: in one order for any number of ranks, so that batches are the same, too.

    Parameters
    ----------
    columns
        Numbers of the columns [n].
    size
        Per rank and batch.
    rank, world
        Which rank of how many.
    seed
        Of the order; None for none.
    """

    def __init__(
        self, columns: np.ndarray, size: int, rank: int, world: int, seed: int | None = None
    ) -> None:
        self.columns = torch.from_numpy(np.ascontiguousarray(columns))
        self.size = size
        self.world = world
        self._sampler: DistributedSampler[int] = DistributedSampler(
            range(len(columns)),  # type: ignore[arg-type]
            num_replicas=world,
            rank=rank,
            shuffle=seed is not None,
            seed=seed or 0,
        )
        self._rank = rank

    def batches(self, epoch: int, device: str = "cpu") -> list[Batch]:
        """Part of every batch of an epoch that is this rank's, moved to the device at once: each copy waits for it."""
        self._sampler.set_epoch(epoch)
        columns = self.columns[torch.tensor(list(self._sampler))]
        # The sampler repeats the first columns to give every rank as many: those, at the end, must not count twice.
        real = len(range(self._rank, len(self.columns), self.world))
        counts = [min(self.size, real - start) for start in range(0, len(columns), self.size)]
        sizes = [max(1, count) for count in counts]
        columns, weights = columns[: sum(sizes)], torch.ones(sum(sizes))
        weights[real:] = 0
        moved = (each.to(device).split(sizes) for each in (columns, weights))
        return [Batch(*each) for each in zip(*moved, counts, strict=True)]

    def counts(self) -> list[int]:
        """Number of columns of each batch over all ranks."""
        whole, size = len(self.columns), self.size * self.world
        return [min(size, whole - start) for start in range(0, whole, size)]
