"""Losses of a triple, whose gradients the influences are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional

from .conve import ConvE

__all__ = ["LOSSES", "CrossEntropy", "KnownTails", "Softplus", "TailLoss"]


class KnownTails(NamedTuple):
    """Tails of each (head, relation) among some triples.

    Attributes
    ----------
    keys
        Of the Q distinct pairs, ``head * stride + relation``, ascending [Q].
    starts, counts
        Which of `tails` are those of each pair [Q].
    tails
        [n], by pair.
    stride
        Number of relations.
    """

    keys: Tensor
    starts: Tensor
    counts: Tensor
    tails: Tensor
    stride: int

    @classmethod
    def of(cls, triples: Tensor) -> KnownTails:
        """Tails in triples [n, 3]."""
        distinct = torch.unique(triples, dim=0)
        stride = int(triples[:, 1].max()) + 1 if len(triples) else 1
        keys, counts = torch.unique_consecutive(distinct[:, 0] * stride + distinct[:, 1], return_counts=True)
        return cls(keys, counts.cumsum(0) - counts, counts, distinct[:, 2], stride)

    def beside(self, triples: Tensor) -> Tensor:
        """Known tails [B, K] of the heads and relations of triples [B, 3], filled up with their own tails.

        K is the number of tails of the pair that has most, or the next power of two: code that is compiled for it
        is seldom compiled again.
        """
        heads, relations, own = triples.unbind(-1)
        if not len(self.keys):
            return own[:, None][:, :0]
        keys, starts, counts, tails = (part.to(triples.device) for part in self[:4])
        place = torch.searchsorted(keys, wanted := heads * self.stride + relations).clamp(max=len(keys) - 1)
        counts = counts[place] * ((keys[place] == wanted) & (relations < self.stride))
        most = int(counts.max())
        steps = torch.arange(1 << (most - 1).bit_length() if most else 0, device=triples.device)
        found = tails[(starts[place][:, None] + steps).clamp(max=len(tails) - 1)]
        return torch.where(steps < counts[:, None], found, own[:, None])


@dataclass(frozen=True, slots=True)
class TailLoss(ABC):
    """Loss of a triple by what a link predictor says of its tail: a ConvE of ours, or a model of PyKEEN."""

    def of(self, triples: Tensor) -> Self:
        """Same loss in the graph of training triples [n, 3], unless it has one."""
        return self

    def rows(self, triples: Tensor) -> Tensor:
        """Triples [B, 3] with what else the loss asks for in further columns [B, 3 + K]."""
        return triples

    @abstractmethod
    def of_hidden(self, model: ConvE, hidden: Tensor, rows: Tensor) -> Tensor:
        """Loss [B] of rows whose heads and relations a ConvE makes hidden vectors [B, d] of."""

    @abstractmethod
    def of_pykeen(self, model: Any, rows: Tensor) -> Tensor:
        """Loss [B] of rows by a model of PyKEEN, relations numbered as in the model."""

    def __call__(self, model: Any, rows: Tensor) -> Tensor:
        """Loss [B] of each of `rows`."""
        if isinstance(model, ConvE):
            return self.of_hidden(model, model.hidden(rows[:, 0], rows[:, 1]), rows)
        if not hasattr(model, "score_hrt"):
            raise TypeError(
                f"a {type(model).__name__} is neither a ConvE nor a model of PyKEEN: give a loss of your own, "
                "loss(model, example)"
            )
        if getattr(
            model, "use_inverse_triples", False
        ):  # it numbers a relation and its inverse 2 r and 2 r + 1
            rows = rows * torch.tensor([1, 2, *[1] * (rows.shape[1] - 2)], device=rows.device)
        return self.of_pykeen(model, rows)


@dataclass(frozen=True, slots=True)
class Softplus(TailLoss):
    """``softplus(-score)`` of each triple."""

    def of_hidden(self, model: ConvE, hidden: Tensor, rows: Tensor) -> Tensor:
        """By the score of the tail."""
        return functional.softplus(-model.score_tails(hidden, rows[:, 2]))

    def of_pykeen(self, model: Any, rows: Tensor) -> Tensor:
        """By the score of the triple."""
        return functional.softplus(-model.score_hrt(rows[:, :3])[:, 0])


@dataclass(frozen=True, slots=True)
class CrossEntropy(TailLoss):
    """1-N binary cross entropy, the loss that a ConvE is trained with: head and relation against all entities.

    Labels are ``(1 - smoothing) y + smoothing / entities``, the mean is taken over entities (Dettmers et al., 2018).
    ``y`` is 1 for the triple's tail and for every other tail that the training triples know of its head and relation;
    so those that share both have the same loss.

    Attributes
    ----------
    known
        What the training triples know: see `of`.
    smoothing
        Label smoothing.
    """

    known: KnownTails | None = None
    smoothing: float = 0.1

    def of(self, triples: Tensor) -> CrossEntropy:
        """Same loss in the graph of training triples [n, 3], unless it has one."""
        return self if self.known is not None else replace(self, known=KnownTails.of(triples))

    def rows(self, triples: Tensor) -> Tensor:
        """Triples with the known tails."""
        if self.known is None:
            raise ValueError("bce labels all known tails: say by LOSSES['bce'].of(train) which there are")
        return torch.cat([triples, self.known.beside(triples)], 1)

    def of_hidden(self, model: ConvE, hidden: Tensor, rows: Tensor) -> Tensor:
        """By the scores of all entities."""
        return self._of_scores(model.all_tails(hidden), rows)

    def of_pykeen(self, model: Any, rows: Tensor) -> Tensor:
        """By the scores of all entities."""
        return self._of_scores(model.score_t(rows[:, :2]), rows)

    def _of_scores(self, scores: Tensor, rows: Tensor) -> Tensor:
        low = self.smoothing / scores.shape[-1]
        labels = torch.full_like(scores, low).scatter(-1, rows[:, 2:], 1 - self.smoothing + low)
        return functional.binary_cross_entropy_with_logits(scores, labels, reduction="none").mean(-1)


LOSSES: dict[str, TailLoss] = {"softplus": Softplus(), "bce": CrossEntropy()}
