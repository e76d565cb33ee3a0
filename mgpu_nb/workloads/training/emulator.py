"""The emulator: weather, soil, plants and first pools in, carbon out."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from .land import Sizes

__all__ = ["Emulator", "Inputs", "Outputs", "errors_of", "loss_of"]

MONTHS_KEPT = 16  # months of the series between two states that are kept if activations are computed again


class Inputs(NamedTuple):
    """A batch of inputs, as in `Land`: [B, T, S], [B, K], [B, L, P] and [B, M, R, C], normalised."""

    series: Tensor
    static: Tensor
    lists: Tensor
    matrices: Tensor


class Outputs(NamedTuple):
    """A batch of outputs, as in `Land`: [B, k], [B, v, p] and [B, m, r, c], normalised.

    A tuple, because DistributedDataParallel with a static graph looks for tensors in tuples, lists and dicts alone, and
    reduces no gradient of the first step where it finds none.
    """

    scalar: Tensor
    vector: Tensor
    matrix: Tensor


class Emulator(nn.Module):
    """Four encoders make tokens, a Transformer lets them see one another, three heads read them.

    Series and static inputs are a token each, lists and matrices one for each column; what a land does not have has
    neither token nor head.

    Parameters
    ----------
    width
        Of a token.
    layers, heads
        Of the Transformer.
    batch_norm
        Whether the encoder of the matrices normalises over the batch.
    recompute
        Whether activations of the LSTM and the Transformer are computed again in the backward pass instead of kept
        (gradient checkpointing): of 240 months the states of every 16th are kept.
    sizes
        Sizes of inputs and outputs; by default those of a generated land.
    """

    def __init__(
        self,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        batch_norm: bool = False,
        recompute: bool = False,
        sizes: Sizes = Sizes(),  # noqa: B008 (a tuple of numbers)
    ) -> None:
        super().__init__()
        self.recompute, self.sizes, self.width = recompute, sizes, width
        self._shape = {"width": width, "layers": layers, "heads": heads, "batch_norm": batch_norm}
        lists, items = sizes.lists
        matrices = sizes.matrices[0]
        self.series = nn.LSTM(sizes.series, width, batch_first=True) if sizes.series else None
        self.static = nn.Linear(sizes.static, width) if sizes.static else None
        self.lists = nn.Linear(items, width) if lists else None
        self.matrices = (
            nn.Sequential(
                nn.Conv2d(matrices, 16, 3, padding=1),
                nn.BatchNorm2d(16) if batch_norm else nn.Identity(),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d((3, 2)),
                nn.Flatten(),
                nn.Linear(16 * 6, matrices * width),
            )
            if matrices
            else nn.Sequential()
        )
        count = bool(sizes.series) + bool(sizes.static) + lists + matrices
        self.places = nn.Parameter(0.02 * torch.randn(count, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.scalar = self._head(count * width, (sizes.scalar,))
        self.vector = self._head(count * width, sizes.vector)
        self.matrix = self._head(count * width, sizes.matrix)

    @staticmethod
    def _head(width: int, shape: tuple[int, ...]) -> nn.Linear | None:
        size = math.prod(shape)
        return nn.Linear(width, size) if size else None

    def metadata(self) -> dict[str, str]:
        """Texts that `of` makes the same emulator of, without its weights."""
        return {name: str(value) for name, value in self._shape.items()} | {
            "sizes": json.dumps(self.sizes._asdict())
        }

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Emulator:
        """Emulator of what `metadata` returned; of a former file, that of a generated land."""
        width, layers, heads = (int(metadata[name]) for name in ("width", "layers", "heads"))
        sizes: dict[str, Any] = {
            name: tuple(size) if isinstance(size, list) else size
            for name, size in json.loads(metadata.get("sizes", "{}")).items()
        }
        return cls(width, layers, heads, metadata["batch_norm"] == "True", sizes=Sizes(**sizes))

    def forward(self, inputs: Inputs) -> Outputs:
        """Outputs; vectors and matrices are never below zero, unless those of the data are."""
        batch = len(inputs.series)
        again = self.recompute and self.training
        tokens = []
        if self.series is not None:
            tokens.append(self._last_state(inputs.series, again)[:, None])
        if self.static is not None:
            tokens.append(self.static(inputs.static)[:, None])
        if self.lists is not None:
            tokens.append(self.lists(inputs.lists))
        if self.sizes.matrices[0]:
            tokens.append(self.matrices(inputs.matrices).view(batch, -1, self.width))
        each = torch.cat(tokens, 1) + self.places
        for block in self.blocks:
            each = checkpoint(block, each, use_reentrant=False) if again else block(each)
        flat = each.flatten(1)
        return Outputs(
            self._out(self.scalar, flat, (self.sizes.scalar,), signed=True),
            self._out(self.vector, flat, self.sizes.vector, signed="vector" in self.sizes.signed),
            self._out(self.matrix, flat, self.sizes.matrix, signed="matrix" in self.sizes.signed),
        )

    @staticmethod
    def _out(head: nn.Linear | None, flat: Tensor, shape: tuple[int, ...], signed: bool) -> Tensor:
        if head is None:
            return flat.new_zeros(len(flat), *shape)
        found: Tensor = head(flat)
        return (found if signed else functional.softplus(found)).view(len(flat), *shape)

    def _last_state(self, series: Tensor, again: bool) -> Tensor:
        """State of the LSTM after the last month [B, width]."""
        state = memory = series.new_zeros(1, len(series), self.width)
        if not again:
            return self._months(series, state, memory)[0][0]
        for months in series.split(MONTHS_KEPT, 1):
            found = checkpoint(self._months, months, state, memory, use_reentrant=False)
            state, memory = (each.to(series.dtype) for each in found)  # as they are between months
        return state[0]

    def _months(self, months: Tensor, state: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """State and memory [1, B, width] of the LSTM after some months [B, t, S]."""
        assert self.series is not None  # noqa: S101 (the caller looked)
        whole = months.is_cpu and not _has_bf16_lstm()
        with torch.autocast("cpu", enabled=False) if whole else contextlib.nullcontext():
            _, (state, memory) = self.series(months, (state, memory))
        return state, memory


def _has_bf16_lstm() -> bool:
    """Whether this processor computes an LSTM in bf16: oneDNN, which torch takes where it is there, needs AVX-512."""
    mkldnn = torch.backends.mkldnn
    return not mkldnn.is_available() or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def errors_of(found: Outputs, wanted: Outputs) -> tuple[Tensor, Tensor, Tensor]:
    """Mean squared errors of each sample, [B] three times: of scalars, vectors and matrices; 0 of what a land lacks."""
    return (
        _error(found.scalar, wanted.scalar),
        _error(found.vector, wanted.vector),
        _error(found.matrix, wanted.matrix),
    )


def _error(found: Tensor, wanted: Tensor) -> Tensor:
    if not found[0].numel():
        return found.new_zeros(len(found))
    return (found - wanted).square().mean(tuple(range(1, found.ndim)))


def loss_of(found: Outputs, wanted: Outputs, weights: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Tensor:
    """Loss of each sample [B]: the weighted sum of its three errors."""
    parts = errors_of(found, wanted)
    total: Tensor = weights[0] * parts[0] + weights[1] * parts[1] + weights[2] * parts[2]
    return total
