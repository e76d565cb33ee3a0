"""Losses of a triple, whose gradients the influences are made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from .conve import ConvE

__all__ = ["LOSSES", "Loss", "binary_cross_entropy", "softplus"]

Loss = Callable[[ConvE, Tensor], Tensor]
"""Takes a model and triples [B, 3], returns the loss of each [B]."""


def softplus(model: ConvE, triples: Tensor) -> Tensor:
    """Return ``softplus(-score)`` of each triple [B]."""
    return functional.softplus(-model.score(triples))


def binary_cross_entropy(model: ConvE, triples: Tensor, smoothing: float = 0.1) -> Tensor:
    """Return the 1-N binary cross entropy of each triple [B]: its tail against all entities, labels smoothed.

    Labels are ``(1 - smoothing) y + smoothing / entities`` (Dettmers et al., 2018), the mean over entities.
    """
    scores = model(triples[:, 0], triples[:, 1])
    labels = torch.full_like(scores, smoothing / scores.shape[-1])
    tails = triples[:, 2:3]
    labels = labels.scatter(-1, tails, 1 - smoothing + smoothing / scores.shape[-1])
    return functional.binary_cross_entropy_with_logits(scores, labels, reduction="none").mean(-1)


LOSSES: dict[str, Loss] = {"softplus": softplus, "bce": binary_cross_entropy}
