"""The network of the potential: an energy per atom from moments of its neighbourhood, and the forces of it.

Each atom sees its neighbours through radial bumps times products of the direction (Shapeev, 2016, moment tensors up to
the second); a small network of their invariants gives its energy (Behler and Parrinello, 2007). Bonds are nowhere
written down: they form and break. Forces are continuous, at the cutoff too, and bounded where atoms overlap.

On a CPU the forces of a molecule are the same, bit for bit, whatever stands beside it in the batch, and padded or not.
Element by element there are only operations that IEEE 754 rounds exactly (no exponential, of which vector and scalar
code differ); sums over neighbours and atoms add in a fixed order; and products of matrices add over the inner dimension
in order, as BLAS does but for a few rows, of which there are never so few.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

__all__ = ["INDEX", "MomentNet"]

INDEX = (0, 1, 0, 0, 0, 0, 2, 3, 4, 5)
"""Place of an element in the tables by its atomic number: 0 for no atom, then H, C, N, O, F."""
SOFT = 0.2
"""Length in A that is added to a distance in quadrature: directions stay smooth where atoms coincide."""
SHORTEST = 0.5
"""Distance in A at which the radial functions come to a stand."""
CORE, CORE_RADIUS = 25.0, 0.8
"""Energy in eV of an atom that lies in another, and the distance in A at which they touch."""
ROWS, PLACES = 16, 8
"""Rows of a product of matrices are filled up to a multiple of the one, neighbours at least to the other."""
ROOT2 = math.sqrt(2)


class MomentNet(nn.Module):
    """Energies in eV by atom, and forces in eV/A.

    Parameters
    ----------
    bumps
        Radial functions.
    weights
        Numbers that stand for a neighbour's element; each times each radial function is a column of the moments.
    channels
        Combinations of the columns, for each order of moments.
    hidden
        Width of the network's two layers.
    cutoff
        Distance in A from which atoms do not see each other.
    """

    centers: Tensor

    def __init__(
        self, bumps: int = 10, weights: int = 3, channels: int = 20, hidden: int = 40, cutoff: float = 4.0
    ) -> None:
        super().__init__()
        self.bumps, self.channels = bumps, channels
        self.width = 0.75
        self.register_buffer("centers", torch.linspace(0.5, cutoff - self.width, bumps))
        columns, rows = weights * bumps, max(INDEX) + 1

        def weight(inputs: int, outputs: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(inputs, outputs) / math.sqrt(inputs))

        def table(width: int, mean: float, spread: float) -> nn.Parameter:
            return nn.Parameter(mean + spread * torch.randn(rows, width))

        self.element = table(columns, 0.0, 1.0)
        self.mix = nn.ParameterList([weight(columns, channels) for _ in range(3)])
        self.gates = nn.ParameterList([table(channels, 1.0, 0.3) for _ in range(3)])
        self.layers = nn.ParameterList([weight(4 * channels, hidden), weight(hidden, hidden)])
        self.scales = nn.ParameterList([table(hidden, 1.0, 0.2) for _ in range(2)])
        self.shifts = nn.ParameterList([table(hidden, 0.0, 0.3) for _ in range(2)])
        self.out = table(hidden, 0.0, 0.1)
        self.pair = table(columns, 0.0, 0.0)
        self.alone = table(1, 0.0, 0.0)

    def forward(self, kinds: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Energies [B] and forces [B, N, 3] that can be differentiated by the parameters: for the fit.

        Parameters
        ----------
        kinds
            Places in `INDEX`, shape [B, N].
        positions
            In A, shape [B, N, 3].
        """
        with torch.enable_grad():
            positions = positions.detach().requires_grad_()
            seen = _Neighbours(self, kinds, positions)
            energy = seen.spread(self._atoms(seen.moments(), seen.kinds) + seen.core()).sum(1)
            (slope,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
        return energy, -slope

    def evaluate(self, kinds: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Energies [B] and forces [B, N, 3], as `forward`, fast and independent of the batch."""
        with torch.inference_mode(False), torch.no_grad():
            seen = _Neighbours(self, kinds, positions.clone())
            with torch.enable_grad():
                fill = -len(seen.kinds) % ROWS
                moments = [pad(block, (0, 0, 0, fill)).requires_grad_() for block in seen.moments()]
                energies = self._atoms(moments, pad(seen.kinds, (0, fill)))
                slopes = torch.autograd.grad(energies, moments, torch.ones_like(energies))
            atoms = len(seen.kinds)
            energies = energies[:atoms].detach()
            push = seen.push(torch.cat(slopes)[:, :atoms])
            on_neighbours = seen.spread(push).transpose(1, 2)  # [B, N, N, 3]
            forces = _fold(seen.spread(push) - on_neighbours, 2)
            energy = _fold(seen.spread(energies + seen.core()), 1)
        return energy, -forces

    def _atoms(self, moments: Sequence[Tensor], kinds: Tensor) -> Tensor:
        """Energy of each atom [A] from its moments, see `_Neighbours.moments`."""
        scalar, vector, tensor = (
            (block.reshape(-1, len(mix)) @ mix).view(*block.shape[:2], -1) * gate[kinds]
            for block, mix, gate in zip(moments, self.mix, self.gates, strict=True)
        )
        x, y, z = vector.unbind()
        xx, yy, zz, xy, xz, yz = tensor.unbind()
        first = x * x + y * y + z * z
        second = xx * xx + yy * yy + zz * zz + xy * xy + xz * xz + yz * yz
        third = x * x * xx + y * y * yy + z * z * zz + ROOT2 * (x * y * xy + x * z * xz + y * z * yz)
        features = [scalar[0], (first + 0.1).sqrt(), (second + 0.1).sqrt(), third / (1 + first + second)]
        hidden = torch.cat(features, 1)
        for layer, scale, shift in zip(self.layers, self.scales, self.shifts, strict=True):
            hidden = (hidden @ layer) * scale[kinds] + shift[kinds]
            hidden = 0.5 * (hidden + (hidden * hidden + 1).sqrt())
        energy = _fold(hidden * self.out[kinds], 1) + _fold(moments[0][0] * self.pair[kinds], 1)
        return energy + self.alone[kinds][:, 0]


class _Neighbours:
    """What the atoms of a batch see: of A atoms that there are, N places of atoms of their molecule."""

    def __init__(self, net: MomentNet, kinds: Tensor, positions: Tensor) -> None:
        self.net = net
        self.shape = kinds.shape
        self.mask = kinds > 0
        molecule, place = self.mask.nonzero(as_tuple=True)
        self.kinds = kinds[molecule, place]
        fill = max(0, PLACES - kinds.shape[1])
        kinds, positions = pad(kinds, (0, fill)), pad(positions, (0, 0, 0, fill))
        self.others = kinds[molecule]  # [A, N]
        one = positions.new_ones(())
        pair = self.others > 0
        pair = pair & (torch.arange(kinds.shape[1], device=kinds.device) != place[:, None])
        self.pair = pair * one
        apart = positions[molecule, place][:, None] - positions[molecule]
        x, y, z = apart.unbind(2)
        self.distance = (x * x + y * y + z * z + SOFT * SOFT).sqrt()
        inverse = 1 / self.distance
        self.direction = (x * inverse, y * inverse, z * inverse)
        # Below the shortest bonds the radial functions stand still, so that the core is what is felt.
        beyond = self.distance - SHORTEST
        root = (beyond * beyond + 0.0225).sqrt()
        self.bend = 0.5 * (1 + beyond / root)
        self.offsets = ((SHORTEST + 0.5 * (beyond + root))[..., None] - net.centers) / net.width
        self.inside = (1 - self.offsets * self.offsets).clamp(min=0) * self.pair[..., None]
        radial = self.inside * self.inside * self.inside
        self.element = net.element[self.others].unflatten(2, (-1, net.bumps))  # [A, N, weights, bumps]
        self.radial = self._columns(radial)
        x, y, z = self.direction
        self.products = torch.stack(
            [
                torch.ones_like(x),
                x,
                y,
                z,
                x * x,
                y * y,
                z * z,
                ROOT2 * (x * y),
                ROOT2 * (x * z),
                ROOT2 * (y * z),
            ],
            1,
        )  # [A, 10, N]

    def moments(self) -> tuple[Tensor, ...]:
        """Sums over neighbours of radial functions times products of the direction.

        Of no, one and two factors: shapes [1, A, columns], [3, A, columns], [6, A, columns].
        """
        moments: tuple[Tensor, ...] = torch.bmm(self.products, self.radial).transpose(0, 1).split((1, 3, 6))
        return moments

    def _columns(self, radial: Tensor) -> Tensor:
        """Functions of the distance [A, N, bumps] times weights of the neighbour, shape [A, N, columns]."""
        columns: Tensor = self.element * radial[:, :, None]
        return columns.flatten(2)

    def core(self) -> Tensor:
        """Energy of each atom's overlap with others, shape [A]; it is not fitted, for data has few of these."""
        inside = self._overlap()
        return _fold(CORE * (inside * inside), 1)

    def _overlap(self) -> Tensor:
        """Depth of each pair in the core, from 0 at its radius to 1, shape [A, N]."""
        return (1 - self.distance / CORE_RADIUS).clamp(min=0) * self.pair

    def push(self, slope: Tensor) -> Tensor:
        """Derivative of each atom's energy by the vectors to its neighbours, shape [A, N, 3].

        Parameters
        ----------
        slope
            Its derivative by its moments, shape [10, A, columns].
        """
        slope = slope.transpose(0, 1)
        bent = self.offsets * (self.inside * self.inside) * (self.bend * (-6 / self.net.width))[..., None]
        by_distance = torch.bmm(slope, self._columns(bent).transpose(1, 2)) * self.products
        along = _fold(by_distance, 1) - (2 * CORE / CORE_RADIUS) * self._overlap()
        p = torch.bmm(slope, self.radial.transpose(1, 2)).unbind(1)  # by the ten products
        x, y, z = self.direction
        by_x = p[1] + 2 * (x * p[4]) + ROOT2 * (y * p[7] + z * p[8])
        by_y = p[2] + 2 * (y * p[5]) + ROOT2 * (x * p[7] + z * p[9])
        by_z = p[3] + 2 * (z * p[6]) + ROOT2 * (x * p[8] + y * p[9])
        radial_part = along - (x * by_x + y * by_y + z * by_z) / self.distance
        parts = [radial_part * u + by / self.distance for u, by in ((x, by_x), (y, by_y), (z, by_z))]
        return torch.stack(parts, 2)[:, : self.shape[1]]

    def spread(self, values: Tensor) -> Tensor:
        """Values of the atoms [A, ...] at their places [B, N, ...], zero where there is no atom."""
        if len(values) == self.mask.numel():
            return values.view(*self.shape, *values.shape[1:])
        return values.new_zeros(*self.shape, *values.shape[1:]).masked_scatter(
            self.mask.view(*self.shape, *[1] * (values.ndim - 1)), values
        )


def _fold(values: Tensor, dim: int) -> Tensor:
    """Sum along a dimension by halves; the same for any shape, and with zeros added at the end."""
    size = values.shape[dim]
    width = 1 << max(0, size - 1).bit_length()
    while width > 1:
        width //= 2
        if width < size:
            low, high = values.narrow(dim, 0, width), values.narrow(dim, width, size - width)
            short = size - width
            if short < width:
                low = torch.cat(
                    [low.narrow(dim, 0, short) + high, low.narrow(dim, short, width - short)], dim
                )
            else:
                low = low + high
            values, size = low, width
    return values.squeeze(dim)
