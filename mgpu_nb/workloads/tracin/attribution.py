"""Influence of training examples for any model: of PyKEEN, of your own, of triples, images or anything else."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from ...context import worker
from ...options import NonEmpty, PositiveFloat, PositiveInt, check_arguments, check_choice, check_value
from ...output import one_line
from ...pool import GPUPool
from ..threads import one_thread
from .checkpoints import as_conve, check_weights, read_state
from .conve import ConvE
from .dot_products import blocks, dtype_of, make_engine
from .engines import Engine, Loss
from .examples import Examples, at, check_examples, count, on, take
from .influences import TRIPLE, Influences
from .loss import LOSSES, check_link_predictor
from .ranking import Top
from .triples import labels_of, numbered
from .worker import check_finite

__all__ = ["influence"]

log = logging.getLogger("mgpu_nb.tracin")

Checkpoint = nn.Module | Mapping[str, Tensor] | str | Path
Rates = Annotated[tuple[PositiveFloat, ...], NonEmpty()]

TRIED = 16  # examples that an engine is tried on
BATCH = 256  # examples at a time, where their gradients are not written out
WRITTEN = 2**28  # bytes of gradients that are written out at a time
CACHED = 2**31  # bytes of gradients of test examples that are kept


def influence(
    model: nn.Module,
    train: Any,
    test: Any = None,
    *,
    loss: str | Callable[[Any, Any], Tensor] | None = None,
    side: Literal["tail", "head"] = "tail",
    k: PositiveInt | None = 10,
    checkpoints: Sequence[Checkpoint] = (),
    learning_rate: float | Sequence[float] = 1.0,
    engine: Literal["auto", "factored", "vmap", "jvp", "loop"] = "auto",
    layers: Collection[str] | None = None,
    batch_size: PositiveInt | None = None,
    pool: GPUPool | None = None,
) -> Influences:
    """Influence of training examples on test examples and on themselves (TracInCP; Pruthi et al., 2020).

    ``sum over checkpoints c of learning_rate_c grad L(w_c, train) . grad L(w_c, test)``, exact, in eval mode.

    Parameters
    ----------
    model
        A link predictor of PyKEEN (``pipeline(...).model``: TransE, DistMult, ComplEx, RotatE, ConvE, TuckER, ...), a
        `ConvE`, or any module with a loss of its own. It stays as it is.
    train, test
        Triples: a ``TriplesFactory``, numbers [n, 3], or names [n, 3] if `train` is a factory, which has their numbers.
        Other examples: a tensor [n, ...], a tuple or dict of them such as ``(images, labels)``, or a map-style data
        set or list of single examples. Without `test`, self-influences alone.
    loss
        ``softplus`` (of -score; the default for triples); ``bce``, 1-N binary cross entropy with all known tails, what
        a ConvE is trained with; or ``loss(model, example)``, which returns the loss of one example, a number. One that
        takes a batch of examples and returns a loss for each [B] is known by what it returns, and computed faster.
    side
        With a model that has inverse triples, losses of the tails (head, relation, ?) or of the heads (?, relation,
        tail).
    k
        Number of the proponents and of the opponents that are kept for each test example; None for all influences.
    checkpoints
        Weights from different times of the training: modules, state dicts, or files of them, which are read with
        ``weights_only=True``. By default those of `model`.
    learning_rate
        Factor of the products: one for all checkpoints, or one for each.
    engine
        How gradients are multiplied, see `products`. ``auto`` takes the first that can: ``factored`` where the model
        is made of layers that it knows, ``vmap``, ``loop``.
    layers
        Names of parameters, or of modules whose parameters count; all by default.
    batch_size
        Examples at a time; bounds memory, changes no answer. By default 256, or as many as have gradients of 256 MiB
        where these are written out.
    pool
        Where to split the training examples over devices; the same bits on any number of them. By default all is done
        here, on the model's device.

    Returns
    -------
    Influences
        Labelled tables: ``proponents(test)``, ``opponents(test)``, ``most_self_influential()``, ``frame()``.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, before any worker starts; the message names the first example, or weight, that does
        not fit.
    """
    k, batch_size, side, engine = check_arguments(
        influence, k=k, batch_size=batch_size, side=side, engine=engine
    )
    names = labels_of(train)
    of_triples = not callable(loss)
    if of_triples:
        name = check_choice("softplus" if loss is None else loss, LOSSES, "loss")
        check_link_predictor(model)
    if of_triples or hasattr(train, "mapped_triples"):
        train, test = (
            numbered("train", train, *names),
            None if test is None else numbered("test", test, *names),
        )
        frames = _named(train, names, "train"), _named(test, names, "test")
    else:
        train, test = check_examples("train", train), None if test is None else check_examples("test", test)
        frames = _unnamed(train, "train"), _unnamed(test, "test")
    if not count(train):
        raise ValueError("train: there are no examples")
    models = _models(model, checkpoints)
    if of_triples:
        _check_numbers(model, train=train, test=test)
        found: Loss = replace(LOSSES[name], side=side).of(train)
        models = [as_conve(each) for each in models] if layers is None else models
    else:
        found = _of_batches(loss, models[0], train)
    rates = check_value("learning_rate", np.atleast_1d(learning_rate), Rates)
    if len(rates) not in (1, len(models)):
        raise ValueError(
            f"learning_rate: there are {len(rates)} for {len(models)} checkpoints; give one for all, or one for each"
        )
    layers = None if layers is None else [layers] if isinstance(layers, str) else list(layers)
    made = _engine(models[0], found, layers, engine, take(train, slice(TRIED)))
    kind = type(made).__name__.lower()
    weights = dict(made.model.named_parameters())
    size = made.dtype.itemsize * sum(weights[name].numel() for name in made.names)
    batch = batch_size or (BATCH if kind == "factored" else max(1, min(BATCH, WRITTEN // max(1, size))))
    log.debug("engine %s, %d examples at a time, %d bytes of gradients of one", kind, batch, size)
    log.info(
        "influence of %d training examples on %d test examples and on themselves, at %d checkpoints",
        count(train), 0 if test is None else count(test), len(models),
    )  # fmt: skip
    work = _Work(
        models, rates * (len(models) // len(rates)), found, kind, layers, batch, k, test,
        cache=kind == "factored" or (0 if test is None else count(test)) * size <= CACHED,
    )  # fmt: skip
    return _gather(work, train, made.order(train), pool, frames)


@dataclass(frozen=True, slots=True)
class _Work:
    """What the shards have in common."""

    models: list[nn.Module]
    rates: tuple[float, ...]
    loss: Loss
    engine: str
    layers: list[str] | None
    batch_size: int
    k: int | None
    test: Examples | None
    cache: bool


class _Shard:
    """Self-influences [n] of some training examples, and the largest influences, or all [m, n]."""

    def __init__(self, work: _Work, numbers: npt.NDArray[np.int64], train: Examples) -> None:
        made = [
            (make_engine(model, work.loss, engine=work.engine, layers=work.layers), rate)
            for model, rate in zip(work.models, work.rates, strict=True)
        ]
        dtype = str(dtype_of(made)).removeprefix("torch.")
        tests = 0 if work.test is None else count(work.test)
        self.numbers, self.selves = numbers, np.zeros(len(numbers), dtype)
        self.top = Top(tests, work.k or 0, dtype)
        self.whole = np.zeros((tests, len(numbers) if work.k is None else 0), dtype)
        test = torch.empty(0) if work.test is None else work.test
        for part, own, values in blocks(made, train, test, work.batch_size, cache=work.cache):
            self.selves[part] = own.cpu().to(torch.float64).numpy()
            found = values.cpu().to(torch.float64).numpy().astype(dtype).T
            check_finite(found, self.selves[part], numbers[part], np.arange(tests))
            if work.k is None:
                self.whole[:, part] = found
            elif tests:
                self.top.add(found, numbers[part])


def _in_worker(work: _Work, numbers: npt.NDArray[np.int64], train: Examples) -> _Shard:
    device = worker().device
    with one_thread(device):
        return _Shard(replace(work, models=[model.to(device) for model in work.models]), numbers, train)


def _gather(
    work: _Work,
    train: Examples,
    order: Tensor | None,
    pool: GPUPool | None,
    names: tuple[pd.DataFrame, pd.DataFrame],
) -> Influences:
    """Influences of all examples, worked on in the order given, in shards of whole batches."""
    numbers = np.arange(count(train)) if order is None else order.cpu().numpy()
    bounds = [*range(0, len(numbers), work.batch_size), len(numbers)]
    slots = 1 if pool is None else pool.expected_slots or len(pool.slots) or 1
    parts = min(slots, len(bounds) - 1)
    cuts = [bounds[(len(bounds) - 1) * n // parts] for n in range(parts + 1)]
    rows = [numbers[start:stop] for start, stop in itertools.pairwise(cuts)]
    if pool is None:
        shards = [_Shard(work, rows[0], train if order is None else take(train, order))]
    else:
        sent = replace(work, models=[copy.deepcopy(model).cpu() for model in work.models])
        shards = list(pool.map(_in_worker, [sent] * parts, rows, [_some(train, part) for part in rows]))
    selves = np.zeros(len(numbers), shards[0].selves.dtype)
    tests = len(names[1])
    top = Top(tests, work.k or 0, selves.dtype)
    whole = np.zeros((tests, len(numbers) if work.k is None else 0), selves.dtype)
    for shard in shards:
        selves[shard.numbers] = shard.selves
        if work.k is None:
            whole[:, shard.numbers] = shard.whole
        elif tests:
            top.add(shard.top.values, shard.top.index)
    return Influences(selves, whole if work.k is None else top, names, work.engine)


def _some(train: Examples, numbers: npt.NDArray[np.int64]) -> Examples:
    if isinstance(train, Dataset):
        return Subset(train, numbers.tolist())
    return on("cpu", take(train, torch.from_numpy(numbers)))


def _models(model: nn.Module, checkpoints: Sequence[Checkpoint]) -> list[nn.Module]:
    """Copies of the model in eval mode with the weights of each checkpoint."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "no parameter of the model requires a gradient: there is nothing that training changes"
        )
    if isinstance(checkpoints, (str, Path, Mapping, nn.Module)):
        raise TypeError(f"checkpoints: give a list of them, not one {type(checkpoints).__name__}")
    made = []
    for number, checkpoint in enumerate(checkpoints or [model]):
        given = checkpoint if isinstance(checkpoint, nn.Module) else model
        made.append(copy.deepcopy(given).eval())
        if isinstance(checkpoint, nn.Module):
            state = checkpoint.state_dict()
        else:
            state = dict(checkpoint) if isinstance(checkpoint, Mapping) else read_state(checkpoint)[0]
        try:
            check_weights(state, made[-1])
        except ValueError as error:
            raise ValueError(f"{f'checkpoints[{number}]' if checkpoints else 'model'}: {error}") from error
        made[-1].load_state_dict(state, strict=False)
    return made


class _OneByOne:
    """Loss of one example, as one of a batch."""

    def __init__(self, loss: Callable[[Any, Any], Tensor]) -> None:
        self.loss = loss

    def __call__(self, model: Any, batch: Any) -> Tensor:
        return torch.stack([self.loss(model, at(batch, n)).reshape(()) for n in range(count(batch))])


def _of_batches(loss: Any, model: nn.Module, train: Examples) -> Loss:
    """Loss of a batch [B]: the one given if it is such, for two examples as for each alone; else made of it."""
    if isinstance(loss, nn.Module):
        raise TypeError(
            f"loss: a {type(loss).__name__} takes outputs and targets; give a function of the model and a batch, as "
            "lambda model, batch: cross_entropy(model(batch[0]), batch[1], reduction='none')"
        )
    device = next(each.device for each in model.parameters() if each.requires_grad)
    two = on(device, take(train, slice(2)))
    size, why = count(two), ""
    together: Any = None
    with torch.no_grad():
        try:
            together = loss(model, two)
            alone = [loss(model, at(two, slice(n, n + 1))) for n in range(size)]
            shapes = [tuple(part.shape) for part in (together, *alone)]
            if shapes == [(size,), *[(1,)] * size] and torch.allclose(together, torch.cat(alone), rtol=1e-3):
                given: Loss = loss
                return given
        except Exception as error:  # whatever a loss of one example raises where it is given two
            why = f"{type(error).__name__}: {error}"
        try:
            one = loss(model, at(two, 0))
        except Exception as error:
            if isinstance(together, Tensor) and together.numel() == 1 and size > 1:
                raise ValueError(
                    f"loss(model, batch) returns one number for {size} examples, and does not take one example alone "
                    f"({type(error).__name__}: {error}): return one number for each, by reduction='none' say"
                ) from error
            if why:
                error.add_note(f"as a loss of a batch of examples it raised {why}")
            raise
    if not isinstance(one, Tensor) or one.numel() != 1:
        shape = list(one.shape) if isinstance(one, Tensor) else type(one).__name__
        raise ValueError(
            f"loss(model, example) of one example must be a tensor of one number, got {shape}; of a batch, one for "
            "each example [B]"
        )
    return _OneByOne(loss)


def _engine(model: nn.Module, loss: Loss, layers: list[str] | None, wanted: str, examples: Any) -> Engine:
    """Engine that was wanted, or the first that takes model and loss; tried on a few examples."""
    example = take(examples, slice(1))
    if isinstance(loss, _OneByOne) and wanted == "factored":
        raise ValueError(
            "engine='factored' takes a loss of a batch, which returns one for each example [B]; this one returns a "
            "number: choose auto or vmap"
        )
    last = "loop" if wanted == "auto" else wanted
    for name in ("factored", "vmap") if wanted == "auto" else ():
        if isinstance(loss, _OneByOne) and name == "factored":
            continue
        try:
            made = make_engine(model, loss, engine=name, layers=layers)
            made.test_side(made.rows(example))
            if name == "factored":  # compares its gradients with autograd's
                made.train_side(made.rows(examples))
        except (ValueError, RuntimeError, NotImplementedError) as error:  # what torch.func cannot trace
            log.debug("engine %s does not take this model and loss: %s", name, one_line(str(error)))
            continue
        return made
    made = make_engine(model, loss, engine=last, layers=layers)
    made.test_side(made.rows(example))
    return made


def _check_numbers(model: Any, **parts: Tensor | None) -> None:
    """Raise where a triple is of an entity or relation that the model does not have."""
    if isinstance(model, ConvE):
        sizes = model.shape.entities, model.shape.relations // (1 + model.use_inverse_triples)
    else:
        sizes = model.num_entities, model.num_real_relations
    for name, triples in parts.items():
        for column, kind in enumerate(("entity", "relation", "entity")):
            numbers = triples[:, column] if triples is not None else torch.zeros(0, dtype=torch.long)
            size = sizes[kind == "relation"]
            for row in ((numbers < 0) | (numbers >= size)).nonzero()[:1, 0].tolist():
                raise ValueError(
                    f"{name}[{row}]: there is no {kind} {int(numbers[row])} in the model, whose numbers go from 0 to "
                    f"{size - 1}: correct it or leave the triple out"
                )


def _named(triples: Tensor | None, names: tuple[dict[int, str], dict[int, str]], kind: str) -> pd.DataFrame:
    numbers = np.zeros((0, 3), np.int64) if triples is None else triples.cpu().numpy()
    columns = {
        part: [known.get(number, number) for number in numbers[:, n].tolist()]
        for n, (part, known) in enumerate(zip(TRIPLE, (names[0], names[1], names[0]), strict=True))
    }
    return pd.DataFrame(columns, index=pd.RangeIndex(len(numbers), name=kind))


def _unnamed(examples: Examples | None, kind: str) -> pd.DataFrame:
    return pd.DataFrame(index=pd.RangeIndex(0 if examples is None else count(examples), name=kind))
