"""Exponential moving average of the weights of a model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .sharding import gathered, load, local

__all__ = ["Average"]


class Average:
    """Average of a model's weights, ``decay * average + (1 - decay) * weight`` after each step.

    Buffers are the model's. A rank holds averages of its shards alone.

    Parameters
    ----------
    model
        The model, whose weights of now the average begins with.
    decay
        How much of the average stays; None for no average, which changes nothing.
    """

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self._model, self._decay = model, decay
        self._averages = [] if decay is None else [weight.clone() for weight in self._weights()]

    def _weights(self) -> list[Tensor]:
        return [local(weight) for weight in self._model.parameters()]

    def update(self) -> None:
        """Move the average towards the weights of now."""
        if self._decay is not None:
            torch._foreach_lerp_(self._averages, self._weights(), 1 - self._decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Have the model take the averages of its weights, if there are any."""
        if self._decay is None:
            yield
            return
        weights = self._weights()
        kept = [weight.clone() for weight in weights]
        torch._foreach_copy_(weights, self._averages)
        try:
            yield
        finally:
            torch._foreach_copy_(weights, kept)

    def state(self, keep: bool) -> dict[str, Any] | None:
        """Averages by the names of the weights, whole; called by all ranks, see `gathered`."""
        if self._decay is None:
            return None
        with self.applied():
            names = self._model.named_parameters(remove_duplicate=False)
            whole: dict[str, Any] = gathered({name: weight.detach().clone() for name, weight in names}, keep)
        return whole

    def load(self, weights: Mapping[str, Tensor], averages: Mapping[str, Tensor] | None) -> None:
        """Take averages of a checkpoint, or begin with its weights; those of the model are then these."""
        if self._decay is not None:
            load(self._model, {**weights, **(averages or {})})
            self._averages = [weight.clone() for weight in self._weights()]
