"""Influence of training triples on test triples, four exact ways.

``TracInCP(z, z') = sum over checkpoints c of eta_c grad L(w_c, z) . grad L(w_c, z')`` (Pruthi et al., 2020). Here one
checkpoint's products of gradients; `loop` is the reference, `factored` the fast one, all give the same numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .config import TEST_TILE
from .engines import ENGINES, Engine, Loss

__all__ = ["batches", "blocks", "chosen", "make_engine", "products", "self_products"]


def products(
    model: nn.Module,
    loss: Loss,
    train: Tensor,
    test: Tensor,
    *,
    engine: str = "factored",
    layers: Collection[str] | None = None,
    batch_size: int = 256,
    mixed_precision: bool = False,
    compiled: bool = False,
) -> Tensor:
    """Products [n, m] of the gradients of training triples with those of test triples.

    Parameters
    ----------
    model
        In eval mode.
    loss
        Takes model and triples [B, 3], returns losses [B].
    train, test
        Triples [n, 3] and [m, 3] on the model's device.
    engine
        One of `ENGINES`.
    layers
        Names of parameters, or of modules whose parameters count; all by default.
    batch_size
        Triples at a time; bounds memory, changes no answer.
    mixed_precision
        Gradients in bfloat16 where autocast allows, their products in the model's own precision.
    compiled
        Through torch.compile; not with ``jvp`` and ``loop``.

    Raises
    ------
    ValueError
        For an engine or a layer that does not exist, a batch size below one, a model in training mode, or, with
        ``factored``, a layer it does not know.
    """
    made = make_engine(
        model, loss, engine=engine, layers=layers, mixed_precision=mixed_precision, compiled=compiled
    )
    found = torch.zeros(len(train), len(test), dtype=made.dtype, device=train.device)
    for rows, _, values in blocks([(made, 1.0)], train, test, batch_size, own=False):
        found[rows] = values
    return found


def make_engine(
    model: nn.Module,
    loss: Loss,
    *,
    engine: str = "factored",
    layers: Collection[str] | None = None,
    mixed_precision: bool = False,
    compiled: bool = False,
) -> Engine:
    """Engine for a model and a loss; parameters and errors as `products`."""
    if engine not in ENGINES:
        raise ValueError(f"engine={engine!r}: there is {', '.join(ENGINES)}")
    if any(module.training for module in model.modules()):
        raise ValueError("the model is in training mode, where samples change one another: call model.eval()")
    return ENGINES[engine](model, loss, chosen(model, layers), mixed_precision, compiled)


def blocks(
    engines: Sequence[tuple[Engine, float]],
    train: Tensor,
    test: Tensor,
    batch_size: int,
    *,
    cache: bool = True,
    own: bool = True,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield ``(rows, self-influences [B], influences [B, m])`` of one batch of training triples after the other.

    Parameters
    ----------
    engines
        One for each checkpoint, and the factor that its products count with.
    train, test
        Triples [n, 3] and [m, 3].
    batch_size
        Triples at a time.
    cache
        Keep what is computed for the test triples, all of them in memory, instead of doing it again for each batch of
        training triples. What is computed for those is computed once in any case.
    own
        Whether self-influences are wanted; zeros otherwise.

    Raises
    ------
    ValueError
        For a batch size below one.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r}: give one or more")
    kept: dict[tuple[int, int], Any] = {}
    dtype = engines[0][0].dtype
    for rows in batches(len(train), batch_size):
        batch = train[rows]
        selves = torch.zeros(len(batch), dtype=dtype, device=train.device)
        total = torch.zeros(len(batch), len(test), dtype=dtype, device=train.device)
        for number, (engine, rate) in enumerate(engines):
            ours = engine.train_side(batch)
            if own:
                selves += rate * engine.squares(ours)
            for columns in batches(len(test), min(batch_size, TEST_TILE)):
                theirs = kept.get((number, columns.start))
                if theirs is None:
                    theirs = engine.test_side(test[columns])
                if cache:
                    kept[number, columns.start] = theirs
                total[:, columns] += rate * engine.product(ours, theirs)
        yield rows, selves, total


def chosen(model: nn.Module, layers: Collection[str] | None) -> list[str]:
    """Names of the parameters that `layers` chooses.

    Raises
    ------
    ValueError
        For a layer that does not exist: lists those that do.
    """
    every = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if layers is None:
        return every
    names = []
    for layer in layers:
        found = [name for name in every if name == layer or name.startswith(f"{layer}.")]
        if not found:
            there = ", ".join(dict.fromkeys(name.rpartition(".")[0] or name for name in every))
            raise ValueError(f"layers: the model has no {layer!r}; it has {there}")
        names += [name for name in found if name not in names]
    return names


def self_products(
    model: nn.Module,
    loss: Loss,
    triples: Tensor,
    *,
    engine: str = "factored",
    layers: Collection[str] | None = None,
    batch_size: int = 256,
    mixed_precision: bool = False,
    compiled: bool = False,
) -> Tensor:
    """Product [n] of each triple's gradient with itself; parameters and errors as `products`."""
    made = make_engine(
        model, loss, engine=engine, layers=layers, mixed_precision=mixed_precision, compiled=compiled
    )
    found = torch.zeros(len(triples), dtype=made.dtype, device=triples.device)
    for rows, selves, _ in blocks([(made, 1.0)], triples, triples[:0], batch_size):
        found[rows] = selves
    return found


def batches(count: int, size: int) -> Iterator[slice]:
    """Yield the slices of `size` that make up `count`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
