"""Influence of training examples on test examples, four exact ways.

``TracInCP(z, z') = sum over checkpoints c of eta_c grad L(w_c, z) . grad L(w_c, z')`` (Pruthi et al., 2020). Here one
checkpoint's products of gradients; `loop` is the reference, `factored` the fast one, all give the same numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from .config import TEST_TILE
from .engines import ENGINES, Engine, Loss
from .examples import Examples, count, take
from .loss import TailLoss

__all__ = ["batches", "blocks", "chosen", "dtype_of", "make_engine", "products", "self_products"]


def products(
    model: nn.Module,
    loss: Loss,
    train: Examples,
    test: Examples,
    *,
    engine: str = "factored",
    layers: Collection[str] | None = None,
    batch_size: int = 256,
    mixed_precision: bool = False,
    compiled: bool = False,
) -> Tensor:
    """Products [n, m] of the gradients of training examples with those of test examples.

    Parameters
    ----------
    model
        In eval mode.
    loss
        One of `LOSSES`, whose graph is that of `train` if it has none; or a function that takes model and a batch,
        triples [B, 3] say, and returns losses [B].
    train, test
        Triples [n, 3] and [m, 3], or other `examples.Examples` that the loss takes.
    engine
        One of `ENGINES`.
    layers
        Names of parameters, or of modules whose parameters count; all by default.
    batch_size
        Examples at a time; bounds memory, changes no answer.
    mixed_precision
        Gradients in bfloat16 where autocast allows; their products are in the precision of the parameters that count,
        float32 at least.
    compiled
        Through torch.compile; not with ``jvp`` and ``loop``.

    Raises
    ------
    ValueError
        For an engine or a layer that does not exist, a batch size below one, a model in training mode, or, with
        ``factored``, a layer it does not know.
    """
    loss = _with_graph(loss, train)
    made = make_engine(
        model, loss, engine=engine, layers=layers, mixed_precision=mixed_precision, compiled=compiled
    )
    found = torch.zeros(count(train), count(test), dtype=made.dtype, device=made.device)
    train, order = _ordered(made, train)
    for rows, _, values in blocks([(made, 1.0)], train, test, batch_size, own=False):
        found[rows if order is None else order[rows]] = values
    return found


def _with_graph(loss: Loss, train: Examples) -> Loss:
    """Loss that knows the graph of the training triples, if it is one that asks for it."""
    return loss.of(train) if isinstance(loss, TailLoss) else loss


def _ordered(engine: Engine, examples: Examples) -> tuple[Examples, Tensor | None]:
    """Examples in the order in which they cost least, and that order."""
    order = engine.order(examples) if count(examples) else None
    return (examples, None) if order is None else (take(examples, order), order)


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
    train: Examples,
    test: Examples,
    batch_size: int,
    *,
    cache: bool = True,
    own: bool = True,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield ``(rows, self-influences [B], influences [B, m])`` of one batch of training examples after the other.

    Parameters
    ----------
    engines
        One for each checkpoint, and the factor that its products count with.
    train, test
        Of n and m examples.
    batch_size
        Examples at a time.
    cache
        Keep what is computed for the test examples, all of them in memory, instead of doing it again for each batch of
        training examples. What is computed for those is computed once in any case.
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
    dtype, device, tests = dtype_of(engines), engines[0][0].device, count(test)
    for rows in batches(count(train), batch_size):
        batch = take(train, rows)
        selves = torch.zeros(rows.stop - rows.start, dtype=dtype, device=device)
        total = torch.zeros(rows.stop - rows.start, tests, dtype=dtype, device=device)
        for number, (engine, rate) in enumerate(engines):
            ours = engine.train_side(engine.rows(batch, engine.train_multiple))
            if own:
                selves += rate * _first(engine.squares(ours), len(selves))
            for columns in batches(tests, min(batch_size, TEST_TILE)):
                theirs = kept.get((number, columns.start))
                if theirs is None:
                    theirs = engine.test_side(engine.rows(take(test, columns), engine.test_multiple))
                if cache:
                    kept[number, columns.start] = theirs
                values = engine.product(ours, theirs)
                total[:, columns] += rate * _first(values, len(total), columns.stop - columns.start)
        yield rows, selves, total


def dtype_of(engines: Sequence[tuple[Engine, float]]) -> torch.dtype:
    """Type that holds the products of all checkpoints."""
    return reduce(torch.promote_types, (engine.dtype for engine, _ in engines))


def _first(values: Tensor, *sizes: int) -> Tensor:
    """What the first rows and columns hold. Layers that are not used give one zero, of any shape."""
    return values[tuple(slice(size) for size in sizes)] if values.dim() else values


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
    examples: Examples,
    *,
    engine: str = "factored",
    layers: Collection[str] | None = None,
    batch_size: int = 256,
    mixed_precision: bool = False,
    compiled: bool = False,
) -> Tensor:
    """Product [n] of each example's gradient with itself; parameters and errors as `products`."""
    loss = _with_graph(loss, examples)
    made = make_engine(
        model, loss, engine=engine, layers=layers, mixed_precision=mixed_precision, compiled=compiled
    )
    found = torch.zeros(count(examples), dtype=made.dtype, device=made.device)
    examples, order = _ordered(made, examples)
    for rows, selves, _ in blocks([(made, 1.0)], examples, torch.empty(0), batch_size):
        found[rows if order is None else order[rows]] = selves
    return found


def batches(count: int, size: int) -> Iterator[slice]:
    """Yield the slices of `size` that make up `count`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
