"""The emulator: weather, soil, plants and first pools in, carbon out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from .land import LAYERS, LISTS, MATRICES, PATCHES, PLANTS, POOLS, SCALARS, SERIES, STATIC, VECTORS

__all__ = ["Emulator", "Inputs", "Outputs", "errors_of", "loss_of"]


class Inputs(NamedTuple):
    """A batch of inputs, as in `Land`: [B, 240, 6], [B, 20], [B, 3, 16] and [B, 3, 18, 10], normalised."""

    series: Tensor
    static: Tensor
    lists: Tensor
    matrices: Tensor


class Outputs(NamedTuple):
    """A batch of outputs, as in `Land`: [B, 5], [B, 3, 16] and [B, 3, 18, 10], normalised.

    A tuple, because DistributedDataParallel with a static graph looks for tensors in tuples, lists and dicts alone, and
    reduces no gradient of the first step where it finds none.
    """

    scalar: Tensor
    vector: Tensor
    matrix: Tensor


class Emulator(nn.Module):
    """Four encoders make eight tokens, a Transformer lets them see one another, three heads read them.

    Parameters
    ----------
    width
        Of a token.
    layers, heads
        Of the Transformer.
    batch_norm
        Whether the encoder of the matrices normalises over the batch.
    recompute
        Whether activations of the Transformer are computed again in the backward pass instead of kept (gradient
        checkpointing).
    """

    def __init__(
        self,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        batch_norm: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.series = nn.LSTM(SERIES, width, batch_first=True)
        self.static = nn.Linear(STATIC, width)
        self.lists = nn.Linear(PLANTS, width)
        self.matrices = nn.Sequential(
            nn.Conv2d(len(MATRICES), 16, 3, padding=1),
            nn.BatchNorm2d(16) if batch_norm else nn.Identity(),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d((3, 2)),
            nn.Flatten(),
            nn.Linear(16 * 6, len(MATRICES) * width),
        )
        self.places = nn.Parameter(0.02 * torch.randn(2 + len(LISTS) + len(MATRICES), width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        tokens = len(self.places) * width
        self.scalar = nn.Linear(tokens, len(SCALARS))
        self.vector = nn.Linear(tokens, len(VECTORS) * PLANTS)
        self.matrix = nn.Linear(tokens, len(POOLS) * PATCHES * LAYERS)

    def forward(self, inputs: Inputs) -> Outputs:
        """Outputs; vectors and matrices are never below zero."""
        batch = len(inputs.series)
        _, (state, _) = self.series(inputs.series)
        matrices = self.matrices(inputs.matrices).view(batch, len(MATRICES), -1)
        tokens = torch.cat(
            [state[0][:, None], self.static(inputs.static)[:, None], self.lists(inputs.lists), matrices], 1
        )
        tokens = tokens + self.places
        for block in self.blocks:
            if self.recompute and self.training:
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        flat = tokens.flatten(1)
        return Outputs(
            self.scalar(flat),
            functional.softplus(self.vector(flat)).view(batch, len(VECTORS), PLANTS),
            functional.softplus(self.matrix(flat)).view(batch, len(POOLS), PATCHES, LAYERS),
        )


def errors_of(found: Outputs, wanted: Outputs) -> tuple[Tensor, Tensor, Tensor]:
    """Mean squared errors of each sample, [B] three times: of scalars, vectors and matrices."""
    return (
        (found.scalar - wanted.scalar).square().mean(1),
        (found.vector - wanted.vector).square().mean((1, 2)),
        (found.matrix - wanted.matrix).square().mean((1, 2, 3)),
    )


def loss_of(found: Outputs, wanted: Outputs, weights: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Tensor:
    """Loss of each sample [B]: the weighted sum of its three errors."""
    parts = errors_of(found, wanted)
    total: Tensor = weights[0] * parts[0] + weights[1] * parts[1] + weights[2] * parts[2]
    return total
