"""Gradients of single samples, never written out: as factors whose products are cheap.

The gradient of one sample by a layer's weights has structure: an outer product at a linear layer, one row at an
embedding. The product of two gradients is then a product of small things: at a linear layer
``<g_i a_i^T, g_j a_j^T> = (g_i . g_j) (a_i . a_j)``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .conve import AllRows

__all__ = ["Dense", "Factors", "Outer", "Rows", "factorise", "product", "squares", "squares_of", "trace"]


@dataclass(frozen=True, slots=True)
class Dense:
    """Gradients themselves, [B, n]: for parameters so small that it costs nothing."""

    value: Tensor

    def to(self, dtype: torch.dtype) -> Dense:
        """Same factors in another precision."""
        return Dense(self.value.to(dtype))

    def first(self, count: int) -> Dense:
        """Factors of the first `count` samples."""
        return Dense(self.value[:count])


@dataclass(frozen=True, slots=True)
class Outer:
    """Outer products of `left` [B, n] and `right` [B, m].

    With `place` [B], `right` [P, m] holds the distinct rows, and sample i has row ``place[i]``.
    """

    left: Tensor
    right: Tensor
    place: Tensor | None = None

    def to(self, dtype: torch.dtype) -> Outer:
        """Same factors in another precision."""
        return Outer(self.left.to(dtype), self.right.to(dtype), self.place)

    def first(self, count: int) -> Outer:
        """Factors of the first `count` samples."""
        if self.place is None:
            return Outer(self.left[:count], self.right[:count])
        return Outer(self.left[:count], self.right, self.place[:count])

    def of_rights(self, by_right: Tensor) -> Tensor:
        """What was computed for each row of `right` [P, ...] for each sample [B, ...]."""
        return by_right if self.place is None else by_right[self.place]


@dataclass(frozen=True, slots=True)
class Rows:
    """One row each: `index` [B] says which, `value` [B, m] what stands there."""

    index: Tensor
    value: Tensor

    def to(self, dtype: torch.dtype) -> Rows:
        """Same factors in another precision."""
        return Rows(self.index, self.value.to(dtype))

    def first(self, count: int) -> Rows:
        """Factors of the first `count` samples."""
        return Rows(self.index[:count], self.value[:count])


Term = Dense | Outer | Rows
Factors = dict[str, list[Term]]
"""For each parameter the terms whose sum is its gradient, sample by sample."""


def product(one: Factors, other: Factors) -> Tensor:
    """Products [n, m] of the gradients of n samples with those of m others."""
    parts = [_pair(a, b) for name, terms in one.items() for a in terms for b in other[name]]
    return _sum(parts) if parts else torch.zeros(())  # of layers that are not used


def _sum(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _pair(a: Term, b: Term) -> Tensor:
    if isinstance(a, Dense) and isinstance(b, Dense):
        return a.value @ b.value.T
    if isinstance(a, Outer) and isinstance(b, Outer):
        return (a.left @ b.left.T) * b.of_rights(a.of_rights(a.right @ b.right.T).T).T
    if isinstance(a, Rows) and isinstance(b, Rows):
        return (a.value @ b.value.T) * (a.index[:, None] == b.index[None, :])
    if isinstance(a, Rows) and isinstance(b, Outer):
        return b.of_rights(b.right @ a.value.T).T * b.left.T[a.index]
    if isinstance(a, Outer) and isinstance(b, Rows):
        return _pair(b, a).T
    raise TypeError(f"{type(a).__name__} and {type(b).__name__} are gradients of different parameters")


def squares(factors: Factors) -> Tensor:
    """Product [n] of each sample's gradient with itself."""
    parts = [squares_of(terms) for terms in factors.values() if terms]
    return _sum(parts) if parts else torch.zeros(())


def squares_of(terms: list[Term]) -> Tensor:
    """Product [n] of each sample's gradient by one parameter with itself."""
    return _sum([_own(a, b) for a in terms for b in terms])


def _own(a: Term, b: Term) -> Tensor:
    if isinstance(a, Dense) and isinstance(b, Dense):
        return (a.value * b.value).sum(-1)
    if isinstance(a, Outer) and isinstance(b, Outer):
        if a.right is b.right:
            return (a.left * b.left).sum(-1) * a.of_rights((a.right * a.right).sum(-1))
        return (a.left * b.left).sum(-1) * (a.of_rights(a.right) * b.of_rights(b.right)).sum(-1)
    if isinstance(a, Rows) and isinstance(b, Rows):
        return (a.value * b.value).sum(-1) * (a.index == b.index)
    if isinstance(a, Rows) and isinstance(b, Outer):
        return (a.value * b.of_rights(b.right)).sum(-1) * b.left.gather(1, a.index[:, None])[:, 0]
    if isinstance(a, Outer) and isinstance(b, Rows):
        return _own(b, a)
    raise TypeError(f"{type(a).__name__} and {type(b).__name__} are gradients of different parameters")


def factorise(
    model: nn.Module,
    loss: Callable[[Any, Tensor], Tensor],
    samples: Tensor,
    parameters: Collection[str] | None = None,
) -> Factors:
    """Gradients of the losses of samples, as factors.

    Parameters
    ----------
    model
        In eval mode, so that samples do not see one another.
    loss
        Takes model and samples [B, ...], returns losses [B].
    samples
        [B, ...].
    parameters
        Names of the parameters that count; all that require a gradient by default.

    Raises
    ------
    ValueError
        For a model in training mode, or a parameter of a layer that is not known: names the layer.
    """
    if any(module.training for module in model.modules()):
        raise ValueError("the model is in training mode, where samples change one another: call model.eval()")
    every = {name for name, p in model.named_parameters() if p.requires_grad}
    wanted = every if parameters is None else set(parameters)
    covered = {id(p) for module in model.modules() if _known(module) for p in _parameters(module)}
    unknown = [name for name, p in model.named_parameters() if name in wanted and id(p) not in covered]
    if unknown:
        place = unknown[0].rpartition(".")[0]
        kind = type(model.get_submodule(place)).__name__
        raise ValueError(
            f"the factored engine does not know the layer {place or 'model'!r} ({kind}): choose engine='vmap', or "
            f"layers without it; it knows {', '.join(sorted(m.__name__ for m in _TERMS))}"
        )
    factors, _ = trace(model, lambda: loss(model, samples), wanted)
    return factors


def trace(
    model: nn.Module, losses: Callable[[], Tensor], wanted: Collection[str], also: Sequence[Tensor] = ()
) -> tuple[Factors, Sequence[Tensor]]:
    """Factors that the layers called by ``losses() -> [B]`` give, and the gradients of `also`."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not output.requires_grad:  # behind frozen layers alone
            return output
        calls.append((module, inputs[0], output))
        return output.clone()  # a layer that works in place may follow

    known = [module for module in model.modules() if _known(module)]
    handles = [module.register_forward_hook(note) for module in known]
    try:
        with torch.enable_grad():
            total = losses().sum()
    finally:
        for handle in handles:
            handle.remove()
    outputs = [output for _, _, output in calls]
    found = torch.autograd.grad(total, [*outputs, *also], allow_unused=True)
    gradients = cast("tuple[Tensor | None, ...]", found)
    names = {id(p): name for name, p in model.named_parameters()}
    factors: Factors = {name: [] for name in names.values() if name in wanted}
    for (module, value, _), gradient in zip(calls, gradients, strict=False):
        if gradient is None:
            continue
        for parameter, term in _TERMS[type(module)](module, value.detach(), gradient.detach()):
            if (name := names.get(id(parameter), "")) in factors:
                factors[name].append(term)
    return factors, found[len(outputs) :]


def _known(module: Any) -> bool:
    """Whether a layer is of a known kind, and computes what that kind does without options that change its gradient."""
    kind = type(module)
    if kind is nn.Embedding and (module.padding_idx is not None or module.scale_grad_by_freq):
        return False
    if kind is nn.Conv2d and (module.padding_mode != "zeros" or isinstance(module.padding, str)):
        return False
    if kind in (nn.BatchNorm1d, nn.BatchNorm2d) and module.running_mean is None:
        return False
    return kind in _TERMS


def _parameters(module: nn.Module) -> list[Tensor]:
    if isinstance(module, AllRows):
        return [embedding.weight for embedding in module.tied]
    return list(module.parameters(recurse=False))


Terms = list[tuple[Tensor | None, Term]]


def _linear(module: Any, x: Tensor, g: Tensor) -> Terms:
    if x.dim() > 2:  # the same weights at several places of a sample: the sum is no outer product
        x, g = x.flatten(1, -2), g.flatten(1, -2)
        whole = torch.einsum("bpo,bpi->boi", g, x).flatten(1)
        return [(module.weight, Dense(whole)), (module.bias, Dense(g.sum(1)))]
    return [(module.weight, Outer(g, x)), (module.bias, Dense(g))]


def _convolution(module: Any, x: Tensor, g: Tensor) -> Terms:
    patches = functional.unfold(
        x, module.kernel_size, module.dilation, module.padding, module.stride
    )  # [B, in k k, places]
    groups, batch = module.groups, len(x)
    patches = patches.reshape(batch, groups, -1, patches.shape[-1])
    at_places = g.reshape(batch, groups, -1, patches.shape[-1])
    weight = torch.einsum("bgop,bgip->bgoi", at_places, patches).reshape(batch, -1)
    return [(module.weight, Dense(weight)), (module.bias, Dense(g.flatten(2).sum(-1)))]


def _batch_norm(module: Any, x: Tensor, g: Tensor) -> Terms:
    shape = (1, -1, *[1] * (x.dim() - 2))
    scale = (module.running_var + module.eps).rsqrt()
    normed = (x - module.running_mean.reshape(shape)) * scale.reshape(shape)
    at = tuple(range(2, x.dim()))
    weight, bias = (normed * g, g) if not at else ((normed * g).sum(at), g.sum(at))
    return [(module.weight, Dense(weight)), (module.bias, Dense(bias))]


def _layer_norm(module: Any, x: Tensor, g: Tensor) -> Terms:
    normed = functional.layer_norm(x, module.normalized_shape, None, None, module.eps)
    size = len(module.normalized_shape)
    at = tuple(range(1, x.dim() - size))
    weight, bias = (normed * g, g) if not at else ((normed * g).sum(at), g.sum(at))
    return [(module.weight, Dense(weight.flatten(1))), (module.bias, Dense(bias.flatten(1)))]


def _embedding(module: Any, index: Tensor, g: Tensor) -> Terms:
    columns = index.reshape(len(index), -1)
    values = g.reshape(len(index), columns.shape[1], -1)
    return [(module.weight, Rows(columns[:, n], values[:, n])) for n in range(columns.shape[1])]


def _all_rows(module: Any, x: Tensor, g: Tensor) -> Terms:
    rows, bias = module.tied
    return [(rows.weight, Outer(g, x)), (bias.weight, Outer(g, torch.ones_like(g[:, :1])))]


_TERMS: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], Terms]] = {
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
    AllRows: _all_rows,
}
