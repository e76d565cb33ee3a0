"""Influence of training triples on test triples, four exact ways.

``TracInCP(z, z') = sum over checkpoints c of eta_c grad L(w_c, z) . grad L(w_c, z')`` (Pruthi et al., 2020). Here one
checkpoint's products; `loop` is the reference, `factored` the fast one, all give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from .factors import factorise, product, squares

__all__ = ["ENGINES", "products", "self_products"]

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
) -> Tensor:
    """Return the products [train, test] of the gradients of training triples with those of test triples.

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

    Raises
    ------
    ValueError
        For an engine or a layer that does not exist, a batch size below one, a model in training mode, or, with
        ``factored``, a layer it does not know.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine={engine!r}: there is {', '.join(ENGINES)}")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r}: give one or more")
    if model.training:
        raise ValueError("the model is in training mode, where samples change one another: call model.eval()")
    names = chosen(model, layers)
    return ENGINES[engine](model, loss, train, test, names, batch_size)


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
    layers: Collection[str] | None = None,
    batch_size: int = 256,
) -> Tensor:
    """Return the product [n] of each triple's gradient with itself, by the factored engine."""
    names = chosen(model, layers)
    parts = [squares(factorise(model, loss, part, names)) for part in _batches(triples, batch_size)]
    return torch.cat(parts) if parts else triples.new_zeros(0, dtype=torch.get_default_dtype())


def _factored(
    model: nn.Module, loss: Loss, train: Tensor, test: Tensor, names: list[str], batch_size: int
) -> Tensor:
    wanted = [factorise(model, loss, part, names) for part in _batches(test, batch_size)]
    rows = []
    for part in _batches(train, batch_size):
        factors = factorise(model, loss, part, names)
        rows.append(torch.cat([product(factors, other) for other in wanted], 1))
    return torch.cat(rows)


def _split(model: nn.Module, names: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the parameters that count, and all else that the model needs."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    counted = {name: state.pop(name).detach() for name in names}
    return counted, {name: value.detach() for name, value in state.items()}


class _Called(nn.Module):
    """The loss as a module, so that `functional_call` can put other parameters into the model."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, samples: Tensor) -> Tensor:
        return self.loss(self.model, samples)


def _function(
    model: nn.Module, loss: Loss, rest: dict[str, Tensor]
) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    whole = _Called(model, loss)

    def losses(parameters: dict[str, Tensor], samples: Tensor) -> Tensor:
        state = {f"model.{name}": value for name, value in {**parameters, **rest}.items()}
        result: Tensor = functional_call(whole, state, (samples,))
        return result

    return losses


def _gradients(model: nn.Module, loss: Loss, samples: Tensor, names: list[str]) -> Tensor:
    """Return the gradients of samples written out, [B, parameters], by torch.func."""
    counted, rest = _split(model, names)
    losses = _function(model, loss, rest)
    one = grad(lambda parameters, sample: losses(parameters, sample[None])[0])
    each = vmap(one, in_dims=(None, 0))(counted, samples)
    return torch.cat([value.flatten(1) for value in each.values()], 1)


def _vmap(
    model: nn.Module, loss: Loss, train: Tensor, test: Tensor, names: list[str], batch_size: int
) -> Tensor:
    wanted = torch.cat([_gradients(model, loss, part, names) for part in _batches(test, batch_size)])
    return torch.cat(
        [_gradients(model, loss, part, names) @ wanted.T for part in _batches(train, batch_size)]
    )


def _jvp(
    model: nn.Module, loss: Loss, train: Tensor, test: Tensor, names: list[str], batch_size: int
) -> Tensor:
    """One forward-mode pass gives a batch's products with one test gradient: d/de L_i(w + e g) = grad L_i . g."""
    counted, rest = _split(model, names)
    losses = _function(model, loss, rest)
    columns = []
    for sample in test:
        direction = grad(lambda parameters, one=sample: losses(parameters, one[None])[0])(counted)
        parts = [
            jvp(lambda parameters, part=part: losses(parameters, part), (counted,), (direction,))[1]
            for part in _batches(train, batch_size)
        ]
        columns.append(torch.cat(parts))
    return torch.stack(columns, 1)


def _loop(
    model: nn.Module, loss: Loss, train: Tensor, test: Tensor, names: list[str], batch_size: int
) -> Tensor:
    """A gradient per triple by autograd, one after the other."""
    parameters = [dict(model.named_parameters())[name] for name in names]

    def gradient(sample: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(loss(model, sample[None])[0], parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]

    wanted = [gradient(sample) for sample in test]
    rows = []
    for sample in train:
        own = gradient(sample)
        rows.append(torch.stack([_dot(own, other) for other in wanted]))
    return torch.stack(rows)


def _dot(one: list[Tensor], other: list[Tensor]) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()


def _batches(triples: Tensor, size: int) -> Iterator[Tensor]:
    for start in range(0, len(triples), size):
        yield triples[start : start + size]


ENGINES = {"factored": _factored, "vmap": _vmap, "jvp": _jvp, "loop": _loop}
