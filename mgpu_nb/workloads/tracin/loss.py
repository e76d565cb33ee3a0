"""Losses of a triple, whose gradients the influences are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional

from .conve import ConvE

__all__ = ["LOSSES", "CrossEntropy", "KnownTails", "Softplus", "TailLoss", "check_link_predictor"]


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
    """Loss of a triple by what a link predictor says of its tail: a ConvE of ours, or a model of PyKEEN.

    Attributes
    ----------
    side
        ``tail``; or ``head``, by what a model with inverse triples says of the tail of (tail, inverse relation, head).
    """

    side: Literal["tail", "head"] = "tail"

    def of(self, triples: Tensor) -> Self:
        """Same loss in the graph of training triples [n, 3], unless it has one."""
        return self

    def rows(self, triples: Tensor, model: Any) -> Tensor:
        """Queries of triples [B, 3] and what else the loss asks for [B, 3 + K]: from, relation, to, ...

        Relations are numbered as in the model: with inverse triples, PyKEEN has 2 r for a relation and 2 r + 1 for its
        inverse.

        Raises
        ------
        TypeError, ValueError
            If the model is no link predictor, or has no inverse relations to tell heads by.
        """
        check_link_predictor(model)
        if self.side == "head" and not model.use_inverse_triples:
            raise ValueError(
                "side='head' goes with a model that was trained with inverse triples: create_inverse_triples=True"
            )
        rows = self._queries(self._turned(triples))
        if model.use_inverse_triples:
            rows = rows.clone()
            rows[:, 1] = 2 * rows[:, 1] + (self.side == "head")
        return rows

    def _turned(self, triples: Tensor) -> Tensor:
        return triples.flip(1) if self.side == "head" else triples

    def _queries(self, triples: Tensor) -> Tensor:
        return triples

    @abstractmethod
    def of_hidden(self, model: ConvE, hidden: Tensor, rows: Tensor) -> Tensor:
        """Loss [B] of `rows` whose first two columns a ConvE makes hidden vectors [B, d] of."""

    @abstractmethod
    def of_pykeen(self, model: Any, rows: Tensor) -> Tensor:
        """Loss [B] of `rows` by a model of PyKEEN."""

    def __call__(self, model: Any, rows: Tensor) -> Tensor:
        """Loss [B] of each of `rows`."""
        if isinstance(model, ConvE):
            return self.of_hidden(model, model.hidden(rows[:, 0], rows[:, 1]), rows)
        return self.of_pykeen(model, rows)


def check_link_predictor(model: Any) -> None:
    """Raise a TypeError for a model that is neither a ConvE of ours nor a model of PyKEEN."""
    if not isinstance(model, ConvE) and not (hasattr(model, "score_hrt") and hasattr(model, "score_t")):
        raise TypeError(
            f"a {type(model).__name__} is neither a ConvE nor a model of PyKEEN, whose losses have names: give a loss "
            "of your own, loss(model, example)"
        )


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
        if self.known is not None:
            return self
        return replace(self, known=KnownTails.of(self._turned(triples)))

    def _queries(self, triples: Tensor) -> Tensor:
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
