"""Training a ConvE, with the checkpoints that TracInCP sums over."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..threads import one_thread
from .checkpoints import save_checkpoint
from .config import TrainConfig
from .conve import ConvE, Shape
from .graph import Graph, Triples, community_graph, read_graph, write_graph
from .rows import told
from .source import CHECKPOINTS

__all__ = ["evaluate", "fit", "graph_of"]

log = logging.getLogger("mgpu_nb.tracin")
EVALUATED = 256  # test triples at a time


def graph_of(config: TrainConfig) -> Graph:
    """Graph that a training is about.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is missing or malformed.
    """
    if config.train is None:
        return community_graph(seed=config.seed)
    return read_graph(
        config.train, config.test, str(config.entity_to_id), str(config.relation_to_id),
        drop_unseen=config.drop_unseen,
    )  # fmt: skip


def fit(
    config: TrainConfig,
    folder: Path,
    device: str = "cpu",
    report: Callable[..., None] = lambda **values: None,
) -> dict[str, Any]:
    """Train a ConvE by 1-N binary cross entropy (Dettmers et al., 2018).

    Writes ``checkpoints/checkpoint_0.pt`` and so on, evenly spaced over the epochs, the graph as files beside them, and
    ``training.json``. The same on any number of threads.

    Parameters
    ----------
    config
        What to train.
    folder
        Folder for the files.
    device
        Of torch.
    report
        Called with ``progress`` and ``loss`` after every epoch.

    Returns
    -------
    dict
        ``checkpoints`` (files relative to the folder), ``epochs`` of each, ``loss`` of each epoch, ``seconds``,
        ``left_out`` (what was left out of the files, in words), and with test triples ``mrr`` and ``hits_at_10``.
    """
    graph = graph_of(config)
    shape = Shape(len(graph.entities), len(graph.relations), config.height, config.width, config.channels)
    began = time.perf_counter()
    with one_thread(device), torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        losses, files, epochs, model = _train(config, graph, shape, folder, device, report)
    result: dict[str, Any] = {"checkpoints": files, "epochs": epochs, "loss": losses}
    result |= {"seconds": time.perf_counter() - began, "left_out": told(graph.files)}
    if len(graph.test):
        result |= evaluate(model, graph.test, graph.train)
    write_graph(graph, folder)
    about = {**asdict(config), **result}
    (folder / "training.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return result


def _train(
    config: TrainConfig, graph: Graph, shape: Shape, folder: Path, device: str, report: Callable[..., None]
) -> tuple[list[float], list[str], list[int], ConvE]:
    model = ConvE(shape).to(device)
    pairs, tails, starts = _queries(graph.train, device)
    low = config.label_smoothing / shape.entities
    optimiser = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    wanted = [round(config.epochs * (n + 1) / config.checkpoints) for n in range(config.checkpoints)]
    losses: list[float] = []
    files: list[str] = []
    for epoch in range(1, config.epochs + 1):
        model.train()
        total = 0.0
        order = torch.randperm(len(pairs)).to(device)
        for start in range(0, len(order), config.batch_size):
            batch = order[start : start + config.batch_size]
            if len(batch) < 2:  # batch norm needs two
                continue
            scores = model(pairs[batch, 0], pairs[batch, 1])
            labels = torch.full_like(scores, low)
            for row, pair in enumerate(batch.tolist()):
                labels[row, tails[starts[pair] : starts[pair + 1]]] = 1 - config.label_smoothing + low
            loss = functional.binary_cross_entropy_with_logits(scores, labels)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            total += float(loss.detach()) * len(batch)
        losses.append(total / len(pairs))
        if not math.isfinite(losses[-1]):
            raise ValueError(f"the loss is {losses[-1]} after epoch {epoch}: give a smaller learning_rate")
        log.debug("epoch %d of %d: loss %.4f", epoch, config.epochs, losses[-1])
        report(epoch=epoch, loss=losses[-1], progress=epoch / config.epochs)
        if epoch in wanted:
            state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
            files.append(f"{CHECKPOINTS}/checkpoint_{len(files)}.pt")
            save_checkpoint(folder / files[-1], state, shape, epoch=epoch, learning_rate=config.learning_rate)
    return losses, files, wanted, model.eval()


def _queries(triples: Triples, device: str) -> tuple[Tensor, Tensor, list[int]]:
    """Distinct (head, relation) pairs [Q, 2], all their tails [n], and where those of each begin [Q + 1]."""
    pairs, place = np.unique(triples[:, :2], axis=0, return_inverse=True)
    order = np.argsort(place.reshape(-1), kind="stable")
    starts = np.searchsorted(place.reshape(-1)[order], np.arange(len(pairs) + 1))
    return torch.from_numpy(pairs).to(device), torch.from_numpy(triples[order, 2]).to(device), starts.tolist()


def evaluate(model: ConvE, triples: Triples, known: Triples) -> dict[str, float]:
    """Filtered mean reciprocal rank (``mrr``) and ``hits_at_10`` of tails (Bordes et al., 2013).

    Other tails that are known to be right are left out of the ranking; ties count by their mean rank.
    """
    device = model.bias.weight.device
    model.eval()
    right: dict[tuple[int, int], list[int]] = {}
    for head, relation, tail in np.concatenate([known, triples]).tolist():
        right.setdefault((head, relation), []).append(tail)
    ranks = np.empty(len(triples))
    for start in range(0, len(triples), EVALUATED):
        part = triples[start : start + EVALUATED]
        with torch.no_grad():
            batch = torch.from_numpy(part).to(device)
            scores = model(batch[:, 0], batch[:, 1]).double().cpu().numpy()
        if not np.isfinite(scores).all():
            raise ValueError("the model's scores are not finite: its weights hold NaN or infinity")
        for n, (head, relation, tail) in enumerate(part.tolist()):
            others = np.ones(scores.shape[1], bool)
            others[right[head, relation]] = False
            better = (scores[n, others] > scores[n, tail]).sum()
            same = (scores[n, others] == scores[n, tail]).sum()
            ranks[start + n] = 1 + better + same / 2
    return {"mrr": float((1 / ranks).mean()), "hits_at_10": float((ranks <= 10).mean())}
