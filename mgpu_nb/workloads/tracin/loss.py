"""Losses of a triple, whose gradients the influences are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .conve import ConvE

__all__ = ["LOSSES", "TailLoss"]


@dataclass(frozen=True, slots=True)
class TailLoss:
    """Loss of a ConvE's triples [B, 3] that sees head and relation through the hidden vector alone.

    Attributes
    ----------
    of_tails
        Takes the model, hidden vectors [B, d] and tails [B]; returns losses [B].
    """

    of_tails: Callable[[ConvE, Tensor, Tensor], Tensor]

    def __call__(self, model: ConvE, triples: Tensor) -> Tensor:
        """Loss of each triple [B]."""
        heads, relations, tails = triples.unbind(-1)
        return self.of_tails(model, model.hidden(heads, relations), tails)


def _softplus(model: ConvE, hidden: Tensor, tails: Tensor) -> Tensor:
    """``softplus(-score)`` of each triple."""
    return functional.softplus(-model.score_tails(hidden, tails))


def _binary_cross_entropy(model: ConvE, hidden: Tensor, tails: Tensor, smoothing: float = 0.1) -> Tensor:
    """1-N binary cross entropy of each triple: its tail against all entities, labels smoothed.

    Labels are ``(1 - smoothing) y + smoothing / entities`` (Dettmers et al., 2018), the mean over entities.
    """
    scores = model.all_tails(hidden)
    labels = torch.full_like(scores, smoothing / scores.shape[-1])
    labels = labels.scatter(-1, tails[:, None], 1 - smoothing + smoothing / scores.shape[-1])
    return functional.binary_cross_entropy_with_logits(scores, labels, reduction="none").mean(-1)


LOSSES: dict[str, TailLoss] = {"softplus": TailLoss(_softplus), "bce": TailLoss(_binary_cross_entropy)}
