"""Factors of a ConvE's gradients, with one forward pass for all triples that share head and relation.

The same numbers as `factorise` gives, by the backward pass written out: what depends on head and relation alone,
features of 10368 numbers in a ConvE of the usual size, is computed and kept once for each pair of them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .conve import ConvE
from .factors import Dense, Factors, Outer, Rows, Term, trace
from .loss import TailLoss

__all__ = ["SAME_ROWS", "Passes"]

PADDED = 64  # rows; compiled code is for multiples of it
SAME_ROWS = 12
"""Rows, or columns, of a matrix product: what one of them comes to has the same bits in any multiple of as many. MKL
works on 4 rows and 12 columns at a time without AVX-512, and adds up what is left in another order."""
_EARLY = ("entities", "relations", "norm_image", "convolution", "norm_features")


class Passes:
    """The forward and the backward pass below, as they are or compiled."""

    def __init__(self, compiled: bool = False) -> None:
        self.compiled = compiled
        # Shapes that change from batch to batch keep the compiler busy for minutes: they are padded instead.
        self.forward = torch.compile(forward, dynamic=False) if compiled else forward
        self.backward = torch.compile(backward, dynamic=False) if compiled else backward

    def factorise(self, model: ConvE, loss: TailLoss, rows: Tensor, wanted: Collection[str]) -> Factors:
        """Gradients of the losses of `TailLoss.rows` [B, 3 + K] by the parameters `wanted`, as factors.

        The model is in eval mode.
        """
        count = model.shape.relations
        keys, place = torch.unique(rows[:, 0] * count + rows[:, 1], return_inverse=True)
        pairs = torch.stack([keys // count, keys % count], 1)
        early = any(name.startswith(_EARLY) for name in wanted)
        with torch.no_grad():
            body = self.forward(model, _padded(pairs, PADDED if self.compiled else SAME_ROWS))
            hidden = body.hidden[place].requires_grad_()
        factors, (pull,) = trace(model, lambda: loss.of_hidden(model, hidden, rows), wanted, [hidden])
        with torch.no_grad():
            multiple = PADDED if self.compiled else 1
            terms = self.backward(model, body, _padded(place, multiple), _padded(pull, multiple), early)
        for name, term in terms:
            if name in factors:
                factors[name].append(term.first(len(rows)) if self.compiled else term)
        return factors


class Body(NamedTuple):
    """What the forward pass of P pairs leaves for the backward pass."""

    pairs: Tensor  # [P, 2]
    image: Tensor  # [P, 2 height, width], normalised, before weight and bias
    patches: Tensor  # [P, places, kernel^2 + 1]: of the convolution's input, and a one
    features: Tensor  # [P, channels * places]: after the ReLU
    linear: Tensor  # [P, d]: normalised, before weight and bias
    hidden: Tensor  # [P, d]


def forward(model: ConvE, pairs: Tensor) -> Body:
    """What heads and relations [P, 2] come to."""
    shape = model.shape
    x = torch.stack([model.entities.weight[pairs[:, 0]], model.relations.weight[pairs[:, 1]]], 1)
    image = _normed(model.norm_image, x).view(-1, 2 * shape.height, shape.width)
    patches = _unfold(image * model.norm_image.weight + model.norm_image.bias, shape.kernel)
    patches = torch.cat([patches, torch.ones_like(patches[:, :1])], 1)
    # Convolution and batch norm as one product with patches and their one.
    norm = model.norm_features
    scale, offset = norm.weight * _inverse(norm), _offset(model)
    kernels = model.convolution.weight.flatten(1) * scale[:, None]
    kernels = torch.cat([kernels, (offset * scale + norm.bias)[:, None]], 1)
    features = torch.matmul(kernels, patches).relu_().flatten(1)
    linear = _normed(model.norm_hidden, model.linear(features))
    hidden = (linear * model.norm_hidden.weight + model.norm_hidden.bias).relu()
    return Body(pairs, image, patches.transpose(1, 2).contiguous(), features, linear, hidden)


def backward(model: ConvE, body: Body, place: Tensor, pull: Tensor, early: bool) -> list[tuple[str, Term]]:
    """Terms of B samples, sample i of pair ``place[i]`` with ``pull[i]`` [d] on its hidden vector.

    Without `early`, those of the last layers only: the others cost most of the time.
    """
    shape, batch = model.shape, len(place)
    pull = pull * (body.hidden > 0)[place]
    found: list[tuple[str, Term]] = [
        ("norm_hidden.weight", Dense(pull * body.linear[place])),
        ("norm_hidden.bias", Dense(pull)),
    ]
    pull = pull * (model.norm_hidden.weight * _inverse(model.norm_hidden))
    found += [("linear.weight", Outer(pull, body.features, place)), ("linear.bias", Dense(pull))]
    if not early:
        return found
    pull = torch.matmul(pull, model.linear.weight)
    pull = pull.mul_(body.features.sign()[place]).view(batch, shape.channels, -1)
    # Sums by patch and by the one beside it: all that the convolution and its norm need.
    sums = torch.bmm(pull, body.patches[place])
    by_patch, by_one = sums[..., :-1], sums[..., -1]
    norm, kernels = model.norm_features, model.convolution.weight.flatten(1)
    scale = norm.weight * _inverse(norm)
    by_norm = ((kernels * by_patch).sum(-1) + _offset(model) * by_one) * _inverse(norm)
    found += [
        ("norm_features.weight", Dense(by_norm)),
        ("norm_features.bias", Dense(by_one)),
        ("convolution.weight", Dense((by_patch * scale[:, None]).flatten(1))),
        ("convolution.bias", Dense(by_one * scale)),
    ]
    columns = torch.matmul((kernels * scale[:, None]).T, pull)
    image = _fold(columns, (2 * shape.height, shape.width), shape.kernel)
    scale = model.norm_image.weight * _inverse(model.norm_image)
    rows = (image * scale).reshape(batch, 2, shape.dimension)
    pairs = body.pairs[place]
    return [
        *found,
        ("norm_image.weight", Dense((image * body.image[place]).sum((1, 2))[:, None])),
        ("norm_image.bias", Dense(image.sum((1, 2))[:, None])),
        ("entities.weight", Rows(pairs[:, 0], rows[:, 0])),
        ("relations.weight", Rows(pairs[:, 1], rows[:, 1])),
    ]


def _unfold(image: Tensor, kernel: int) -> Tensor:
    """Patches [P, kernel^2, places] of images [P, height, width]."""
    windows = image.unfold(1, kernel, 1).unfold(
        2, kernel, 1
    )  # [P, places down, places across, kernel, kernel]
    return windows.flatten(3).flatten(1, 2).transpose(1, 2)


def _fold(columns: Tensor, size: tuple[int, int], kernel: int) -> Tensor:
    """Add patches [B, kernel^2, places] up to images [B, height, width]; functional.fold takes eight times as long."""
    if torch.compiler.is_compiling():  # the sums below keep the compiler busy for minutes
        return functional.fold(columns, size, kernel)[:, 0]
    rows, across = size[0] - kernel + 1, size[1] - kernel + 1
    image = columns.new_zeros(len(columns), *size)
    for n in range(kernel * kernel):
        down, right = divmod(n, kernel)
        image[:, down : down + rows, right : right + across] += columns[:, n].view(-1, rows, across)
    return image


def _padded(rows: Tensor, multiple: int) -> Tensor:
    if not (short := -len(rows) % multiple):
        return rows
    return torch.cat([rows, rows[-1:].expand(short, *rows.shape[1:])])


def _inverse(norm: Any) -> Tensor:
    inverse: Tensor = (norm.running_var + norm.eps).rsqrt()
    return inverse


def _normed(norm: Any, x: Tensor) -> Tensor:
    normed: Tensor = (x - norm.running_mean) * _inverse(norm)
    return normed


def _offset(model: ConvE) -> Tensor:
    """What the norm of the features adds to the convolution's product [channels]."""
    norm: Any = model.norm_features
    offset: Tensor = model.convolution.bias - norm.running_mean
    return offset
