"""Training a ConvE, with the checkpoints that TracInCP sums over."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .conve import ConvE, Shape
from .graph import Graph, Triples

__all__ = ["Checkpoint", "evaluate", "train"]


@dataclass(frozen=True)
class Checkpoint:
    """Weights of a model at the end of an epoch, and the learning rate of that time."""

    state: dict[str, Tensor]
    learning_rate: float
    epoch: int


def train(
    graph: Graph,
    shape: Shape,
    *,
    epochs: int = 40,
    checkpoints: int = 5,
    batch_size: int = 16,
    learning_rate: float = 3e-3,
    smoothing: float = 0.1,
    seed: int = 0,
    device: str = "cpu",
) -> list[Checkpoint]:
    """Train a ConvE by 1-N binary cross entropy (Dettmers et al., 2018); return evenly spaced checkpoints.

    Raises
    ------
    ValueError
        Where a number cannot be.
    """
    if not 1 <= checkpoints <= epochs:
        raise ValueError(f"checkpoints={checkpoints}: give from one to the {epochs} epochs there are")
    if batch_size < 2:
        raise ValueError(f"batch_size={batch_size}: batch norm needs two or more")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ConvE(shape).to(device)
        pairs, labels = _queries(graph.train, shape.entities, device)
        optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
        wanted = {round(epochs * (n + 1) / checkpoints) for n in range(checkpoints)}
        kept = []
        for epoch in range(1, epochs + 1):
            model.train()
            order = torch.randperm(len(pairs), generator=generator).to(device)
            for start in range(0, len(pairs), batch_size):
                batch = order[start : start + batch_size]
                if len(batch) < 2:
                    continue
                target = labels[batch] * (1 - smoothing) + smoothing / shape.entities
                scores = model(pairs[batch, 0], pairs[batch, 1])
                loss = functional.binary_cross_entropy_with_logits(scores, target)
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
            if epoch in wanted:
                state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
                kept.append(Checkpoint(state, learning_rate, epoch))
    return kept


def _queries(triples: Triples, entities: int, device: str) -> tuple[Tensor, Tensor]:
    """Return the distinct (head, relation) pairs [Q, 2] and which entities are their tails [Q, entities]."""
    pairs, place = np.unique(triples[:, :2], axis=0, return_inverse=True)
    labels = torch.zeros(len(pairs), entities, device=device)
    labels[torch.from_numpy(place.reshape(-1)), torch.from_numpy(triples[:, 2])] = 1.0
    return torch.from_numpy(pairs).to(device), labels


def evaluate(model: ConvE, triples: Triples, known: Triples) -> dict[str, float]:
    """Return filtered mean reciprocal rank (``mrr``) and ``hits_at_10`` of tails (Bordes et al., 2013).

    Other tails that are known to be right are left out of the ranking; ties count by their mean rank.
    """
    device = model.bias.weight.device
    model.eval()
    with torch.no_grad():
        batch = torch.from_numpy(triples).to(device)
        scores = model(batch[:, 0], batch[:, 1]).double().cpu().numpy()
    right: dict[tuple[int, int], list[int]] = {}
    for head, relation, tail in np.concatenate([known, triples]).tolist():
        right.setdefault((head, relation), []).append(tail)
    ranks = np.empty(len(triples))
    for n, (head, relation, tail) in enumerate(triples.tolist()):
        others = np.ones(scores.shape[1], bool)
        others[right[head, relation]] = False
        better = (scores[n, others] > scores[n, tail]).sum()
        same = (scores[n, others] == scores[n, tail]).sum()
        ranks[n] = 1 + better + same / 2
    return {"mrr": float((1 / ranks).mean()), "hits_at_10": float((ranks <= 10).mean())}
