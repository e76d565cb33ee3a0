"""`EGNN`: the equivariant graph network of EDM, dense over the pairs of atoms of each molecule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, silu

__all__ = ["EGNN"]

_VECTOR = 32  # floats that ATen's loops take at a time; the rest of a tensor goes through scalar code


class EGNN(nn.Module):
    """Equivariant graph network of EDM (Hoogeboom et al., 2022), all pairs of atoms connected.

    Modules and parameters have the names and shapes of the published code, whose state dicts load. A block has
    `inv_sublayers` rounds of messages and one update of positions::

        m_ij = phi_e(h_i, h_j, d_ij^2, d_ij^2 at input), times a sigmoid of m_ij with attention
        h_i += phi_h(h_i, sum_j m_ij / normalization_factor)
        x_i += sum_j (x_i - x_j) / (d_ij + norm_constant) phi_x(h_i, h_j, d_ij^2, d_ij^2 at input)
               / normalization_factor

    On a CPU and without gradients a molecule's output has the same bits whatever molecules of its size stand
    beside it in the batch, if there is one thread and `hidden` is a multiple of 32.

    Parameters
    ----------
    features
        Features per atom, the time among them.
    hidden
        Features per atom within.
    layers
        Number of blocks.
    inv_sublayers
        Rounds of messages per block.
    attention
        Whether messages are weighted.
    tanh
        Whether ``phi_x`` is bounded by `coords_range`.
    coords_range
        Bound of ``phi_x`` in angstrom with `tanh`.
    norm_constant
        Added to the distance in angstrom that a difference of positions is divided by.
    normalization_factor
        What sums over the other atoms are divided by.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        layers: int,
        *,
        inv_sublayers: int = 1,
        attention: bool = True,
        tanh: bool = True,
        coords_range: float = 15.0,
        norm_constant: float = 1.0,
        normalization_factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.norm_constant = norm_constant
        self.options: dict[str, Any] = {
            "features": features,
            "hidden": hidden,
            "layers": layers,
            "inv_sublayers": inv_sublayers,
            "attention": attention,
            "tanh": tanh,
            "coords_range": coords_range,
            "norm_constant": norm_constant,
            "normalization_factor": normalization_factor,
        }
        self.embedding = nn.Linear(features, hidden)
        self.embedding_out = nn.Linear(hidden, features)
        self.blocks = []  # in order; their names are those of the published code
        for n in range(layers):
            block = _Block(
                hidden, inv_sublayers, attention, coords_range if tanh else None, normalization_factor
            )
            self.add_module(f"e_block_{n}", block)
            self.blocks.append(f"e_block_{n}")

    def forward(self, h: Tensor, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Features and positions after all blocks.

        Parameters
        ----------
        h
            [B, N, features].
        x
            [B, N, 3] in angstrom.
        mask
            [B, N], True where there is an atom.

        Returns
        -------
        tuple of Tensor
            [B, N, features] and [B, N, 3]; zero, and the input, where there is no atom.
        """
        edges = (
            mask[:, :, None] & mask[:, None, :] & ~torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        )
        edges, atoms = edges[..., None].to(x.dtype), mask[..., None].to(x.dtype)
        start, _ = _pairs(x, self.norm_constant)
        h = _apply(self.embedding, h)
        for name in self.blocks:
            squared, directions = _pairs(x, self.norm_constant)
            radial = torch.cat([squared, start], dim=-1)
            h, x = self.get_submodule(name)(h, x, radial, directions, edges, atoms)
        return _apply(self.embedding_out, h) * atoms, x


class _Block(nn.Module):
    def __init__(
        self, hidden: int, rounds: int, attention: bool, reach: float | None, normalization_factor: float
    ) -> None:
        super().__init__()
        self.rounds = rounds
        for n in range(rounds):
            self.add_module(f"gcl_{n}", _Messages(hidden, attention, normalization_factor))
        self.gcl_equiv = _Move(hidden, reach, normalization_factor)

    def forward(
        self, h: Tensor, x: Tensor, radial: Tensor, directions: Tensor, edges: Tensor, atoms: Tensor
    ) -> tuple[Tensor, Tensor]:
        for n in range(self.rounds):
            h = self.get_submodule(f"gcl_{n}")(h, radial, edges) * atoms
        return h, self.gcl_equiv(h, x, radial, directions, edges)


class _Messages(nn.Module):
    def __init__(self, hidden: int, attention: bool, normalization_factor: float) -> None:
        super().__init__()
        self.factor = normalization_factor
        self.edge_mlp = nn.Sequential(
            nn.Linear(2 * hidden + 2, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
        )
        self.node_mlp = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.att_mlp = nn.Sequential(nn.Linear(hidden, 1), nn.Sigmoid()) if attention else None

    def forward(self, h: Tensor, radial: Tensor, edges: Tensor) -> Tensor:
        first, second = cast(nn.Linear, self.edge_mlp[0]), cast(nn.Linear, self.edge_mlp[2])
        messages = silu(_apply(second, silu(_first(first, h, radial))))
        if self.att_mlp is not None:
            weights = _apply(cast(nn.Linear, self.att_mlp[0]), messages)
            edges = edges * _evenly(torch.sigmoid, weights.to(edges.dtype))
        received = (edges.to(messages.dtype).mT @ messages)[..., 0, :] / self.factor
        lower, upper = cast(nn.Linear, self.node_mlp[0]), cast(nn.Linear, self.node_mlp[2])
        return h + _apply(upper, silu(_apply(lower, torch.cat([h, received.to(h.dtype)], dim=-1))))


class _Move(nn.Module):
    def __init__(self, hidden: int, reach: float | None, normalization_factor: float) -> None:
        super().__init__()
        self.reach, self.factor = reach, normalization_factor
        last = nn.Linear(hidden, 1, bias=False)
        nn.init.xavier_uniform_(last.weight, gain=0.001)  # an untrained network hardly moves an atom
        self.coord_mlp = nn.Sequential(
            nn.Linear(2 * hidden + 2, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last
        )

    def forward(self, h: Tensor, x: Tensor, radial: Tensor, directions: Tensor, edges: Tensor) -> Tensor:
        first, second, last = (cast(nn.Linear, self.coord_mlp[n]) for n in (0, 2, 4))
        pulls = _apply(last, silu(_apply(second, silu(_first(first, h, radial))))).to(x.dtype)
        if self.reach is not None:
            pulls = _evenly(torch.tanh, pulls) * self.reach
        return x + (directions * (pulls * edges)).sum(dim=2) / self.factor


def _pairs(x: Tensor, norm_constant: float) -> tuple[Tensor, Tensor]:
    """Squared distances [B, N, N, 1] and differences of positions over the distance and a constant [B, N, N, 3]."""
    apart = x[:, :, None] - x[:, None]
    squared = apart.square().sum(-1, keepdim=True)
    return squared, apart / ((squared + 1e-8).sqrt() + norm_constant)


def _first(layer: nn.Linear, h: Tensor, radial: Tensor) -> Tensor:
    """Apply a layer over (h_i, h_j, radial) [B, N, N, hidden]: once per atom and not per pair where it can be."""
    width = h.shape[-1]
    ends = (
        layer.weight[:, : 2 * width].reshape(len(layer.weight), 2, width).transpose(0, 1).reshape(-1, width)
    )
    receiver, sender = _product(ends, None, h).float().chunk(2, dim=-1)
    with torch.autocast(
        radial.device.type, enabled=False
    ):  # bfloat16 would round a distance by 0.01 angstrom
        pairs = _product(layer.weight[:, 2 * width :], None, radial)
    return pairs + (receiver + layer.bias)[:, :, None] + sender[:, None]


def _apply(layer: nn.Linear, x: Tensor) -> Tensor:
    return _product(layer.weight, layer.bias, x)


def _product(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """Linear map of the last axis.

    A product over all rows of a batch rounds by the number of rows; one per molecule does not, which takes longer
    and is done where it counts.
    """
    if x.device.type != "cpu" or torch.is_grad_enabled():
        return linear(x, weight, bias)
    if len(weight) == 1:  # a matrix of one column would go through another kernel where there is one molecule
        return _product(weight.expand(2, -1), bias, x)[..., :1]
    rows = x.reshape(len(x), -1, x.shape[-1])
    matrix = weight.t().expand(len(x), -1, -1)
    out = torch.bmm(rows, matrix) if bias is None else torch.baddbmm(bias, rows, matrix)
    return out.view(*x.shape[:-1], -1)


def _evenly(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a function whose vector and scalar code differ by a bit, to all elements by the vector code."""
    if x.device.type != "cpu" or torch.is_grad_enabled():
        return function(x)
    flat = x.reshape(-1)
    return function(pad(flat, (0, -len(flat) % _VECTOR)))[: len(flat)].view(x.shape)
