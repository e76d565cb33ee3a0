"""Influence of training triples on test triples, four exact ways.

``TracInCP(z, z') = sum over checkpoints c of eta_c grad L(w_c, z) . grad L(w_c, z')`` (Pruthi et al., 2020). Here one
checkpoint's products of gradients; `loop` is the reference, `factored` the fast one, all give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .engines import ENGINES, Engine

__all__ = ["batches", "blocks", "chosen", "make_engine", "products", "self_products"]

Loss = Callable[[Any, Tensor], Tensor]


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
    """Return the products [n, m] of the gradients of training triples with those of test triples.

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
    found = torch.zeros(len(train), len(test), dtype=_dtype(model), device=train.device)
    for rows, columns, values in blocks(made, train, test, batch_size):
        found[rows, columns] = values
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
    """Return an engine for a model and a loss; parameters and errors as `products`."""
    if engine not in ENGINES:
        raise ValueError(f"engine={engine!r}: there is {', '.join(ENGINES)}")
    if model.training:
        raise ValueError("the model is in training mode, where samples change one another: call model.eval()")
    return ENGINES[engine](model, loss, chosen(model, layers), mixed_precision, compiled)


def blocks(
    engine: Engine, train: Tensor, test: Tensor, batch_size: int, cache: bool = True
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield ``(rows, columns, products)``, a batch of training triples by a batch of test triples at a time.

    The work of the training side is done once. That of the test side is kept with `cache`, which holds it in
    memory for all test triples, and otherwise done again for every batch of training triples.

    Raises
    ------
    ValueError
        For a batch size below one.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r}: give one or more")
    kept: dict[int, Any] = {}
    for rows in batches(len(train), batch_size):
        ours = engine.train_side(train[rows])
        for columns in batches(len(test), batch_size):
            theirs = kept.get(columns.start)
            if theirs is None:
                theirs = engine.test_side(test[columns])
            if cache:
                kept[columns.start] = theirs
            yield rows, columns, engine.product(ours, theirs)


def chosen(model: nn.Module, layers: Collection[str] | None) -> list[str]:
    """Return the names of the parameters that `layers` chooses.

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
    """Return the product [n] of each triple's gradient with itself; parameters and errors as `products`."""
    made = make_engine(
        model, loss, engine=engine, layers=layers, mixed_precision=mixed_precision, compiled=compiled
    )
    found = torch.zeros(len(triples), dtype=_dtype(model), device=triples.device)
    for rows in batches(len(triples), batch_size):
        found[rows] = made.squares(triples[rows])
    return found


def batches(count: int, size: int) -> Iterator[slice]:
    """Yield the slices of `size` that make up `count`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype
