"""The network of the potential: an energy per atom from moments of its neighbourhood, and the forces of it.

Each atom sees its neighbours through radial bumps times products of the direction (Shapeev, 2016, moment tensors up to
the second); a small network of their invariants gives its energy (Behler and Parrinello, 2007). Bonds are nowhere
written down: they form and break. Forces are continuous, at the cutoff too, and bounded where atoms overlap.

Only pairs nearer than the cutoff are computed; forces are the derivative written out, so that a call builds no graph.
Functions of the distance, of the direction and of the atoms' elements are planes, one after the other in memory, over
all pairs or atoms of the batch.

With one thread of a CPU the forces of a molecule are the same, bit for bit, whatever stands beside it in the batch, and
padded or not.
Element by element there are only operations that IEEE 754 rounds exactly (no exponential, of which vector and scalar
code differ); sums over neighbours and atoms add in a fixed order; and products of matrices add over the inner dimension
in order, as BLAS does but for a few rows, of which there are never so few.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, pad

__all__ = ["INDEX", "MomentNet"]

INDEX = (0, 1, 0, 0, 0, 0, 2, 3, 4, 5)
"""Place of an element in the tables by its atomic number: 0 for no atom, then H, C, N, O, F."""
SOFT = 0.2
"""Length in A that is added to a distance in quadrature: directions stay smooth where atoms coincide."""
SHORTEST = 0.5
"""Distance in A at which the radial functions come to a stand."""
CORE, CORE_RADIUS = 25.0, 0.8
"""Energy in eV of an atom that lies in another, and the distance in A at which they touch."""
FAR = 1e3
"""Distance in A of what fills an atom's places for neighbours."""
ROWS, PLACES, MORE = 16, 8, 4
"""Rows of a product of matrices are filled up to a multiple of the first; an atom has places for at least the second of
neighbours, or a multiple of the third."""
ROOT2 = math.sqrt(2)


class MomentNet(nn.Module):
    """Energies in eV by molecule, and forces in eV/A.

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
        self.bumps, self.channels, self.cutoff = bumps, channels, cutoff
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
        """Energies [B] and forces [B, N, 3]; both can be differentiated by the parameters.

        The energy of a molecule is NaN if a position of its atoms is no finite number.

        Parameters
        ----------
        kinds
            Places in `INDEX`, shape [B, N].
        positions
            In A, shape [B, N, 3].
        """
        seen = _Neighbours(self, kinds, positions)
        atoms = len(seen.atoms)
        terms, slope = self._atoms(seen.moments(), pad(seen.kinds, (0, -atoms % ROWS)))
        *forces, core = seen.forces(slope[:, :atoms].transpose(0, 1)).unbind(1)
        energies = _fold(torch.cat([terms[:atoms], core[:, None]], 1), 1)
        energies = energies + (positions * 0).sum(2).view(-1)[seen.atoms]
        found = torch.stack([*forces, energies], 1)
        placed = found.new_zeros(kinds.numel(), 4).index_copy(0, seen.atoms, found).view(*kinds.shape, 4)
        return _fold(placed[..., 3], 1), placed[..., :3]

    def _atoms(self, moments: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
        """Terms of each atom's energy, shape [A, terms], and the derivative of their sum by the moments.

        Parameters
        ----------
        moments
            See `_Neighbours.moments`, shape [10, A, columns].
        kinds
            Places in `INDEX`, shape [A].
        """
        # With halves in the weights a hidden number is twice what it was, with no pass over all of them.
        out, layers = 0.5 * self.out, (self.layers[0], 0.5 * self.layers[1])
        tables = [*self.gates, *self.scales, *self.shifts, out, self.pair, self.alone]
        rows = embedding(kinds, torch.cat(tables, 1)).split([table.shape[1] for table in tables], 1)
        gates, scales, shifts, (out, pair, alone) = _by_order(rows[:3]), rows[3:5], rows[5:7], rows[7:]

        mix = _by_order(list(self.mix))
        mixed = torch.bmm(moments, mix) * gates
        vector, tensor = mixed[1:4], mixed[4:]
        products = _products(vector)
        first = _sum3(products[:3])
        second = _sum6(tensor * tensor)
        lengths = (first + 0.1).sqrt_(), (second + 0.1).sqrt_()
        share = 1 / (first + second).add_(1)
        third = _sum6(tensor * products) * share
        hidden = torch.cat([mixed[0], *lengths, third], 1)
        bends = []
        for layer, scale, shift in zip(layers, scales, shifts, strict=True):
            hidden = ((hidden @ layer) * scale).add_(shift)
            root = (hidden * hidden).add_(1).sqrt_()
            hidden = hidden + root
            bends.append(hidden / root * scale)
        terms = torch.cat([hidden * out, moments[0] * pair, alone], 1)

        slope = out
        for layer, bend in zip(reversed(layers), reversed(bends), strict=True):
            slope = (slope * bend) @ layer.t()
        by_scalar, by_first, by_second, by_third = slope.split(self.channels, 1)
        by_third = by_third * share
        both = 2 * (by_third * third)
        by_first, by_second = by_first / lengths[0] - both, by_second / lengths[1] - both  # twice
        by_products = tensor * by_third
        by_products[:3].add_(by_first, alpha=0.5)
        by_vector = _by_direction(vector, by_products)
        by_tensor = (tensor * by_second).add_(products * by_third)
        by_mixed = torch.cat([by_scalar[None], by_vector, by_tensor]) * gates
        slope = torch.bmm(by_mixed, mix.transpose(1, 2))
        slope[0].add_(pair)
        return terms, slope


class _Neighbours:
    """What the atoms of a batch see: A atoms that there are, with S places for neighbours nearer than the cutoff.

    Atoms with places for as many neighbours are a group, and lie together, one's places after the other's.

    Attributes
    ----------
    atoms, kinds
        Which of [B, N] they are, and their places in `INDEX`, shape [A].
    groups, sizes
        Numbers of atoms and of places of each; numbers of places of all atoms of the group.
    reverse
        Place of the same pair seen from the neighbour, shape [S].
    """

    def __init__(self, net: MomentNet, kinds: Tensor, positions: Tensor) -> None:
        self.net = net
        xyz = positions.permute(2, 0, 1)
        apart = xyz[..., None] - xyz[:, :, None]  # [3, B, N, N]
        squared = _sum3(apart * apart)
        pair, empty = self._list(kinds > 0, squared < net.cutoff**2)
        self.kinds = kinds.view(-1)[self.atoms]
        softened = torch.take(squared, pair) + SOFT * SOFT
        self.distance = softened.sqrt_().masked_fill(empty, FAR)
        self.direction = _chosen(apart, pair) / self.distance
        # Below the shortest bonds the radial functions stand still, so that the core is what is felt.
        beyond = self.distance - SHORTEST
        root = (beyond * beyond).add_(0.0225).sqrt_()
        reach = beyond + root
        self.bend = reach / root  # twice
        offsets = reach * (0.5 / net.width) - ((net.centers - SHORTEST) / net.width)[:, None]
        outside = (offsets * offsets).sub_(1).clamp_(max=0)
        square = outside * outside
        others = kinds[:, None].expand_as(squared).reshape(-1)[pair]
        chosen = torch.arange(len(net.element), device=kinds.device)[:, None] == others
        # A group at a time, in the processor's cache.
        functions = (chosen.to(positions.dtype), square * outside, square * offsets)
        self.radial, self.bent = [], []
        for one_hot, radial, bent in zip(*(planes.split(self.sizes, 1) for planes in functions), strict=True):
            # A product with ones and zeros picks the elements' numbers, exactly and in planes.
            element = (-net.element.t() @ one_hot).view(-1, net.bumps, one_hot.shape[1])
            self.radial.append((element * radial).flatten(0, 1))  # [columns, places of the group]
            self.bent.append((element * bent).flatten(0, 1))
        self.products = torch.cat([torch.ones_like(beyond)[None], self.direction, _products(self.direction)])

    def _list(self, there: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
        """Pair in [B, N, N] at each place, and whether it only fills one: then it is atom 0 and itself.

        Parameters
        ----------
        there
            Whether there is an atom, shape [B, N].
        near
            Whether two places for atoms are nearer than the cutoff, shape [B, N, N]; written to.
        """
        near = near.logical_and_(there[:, :, None]).logical_and_(there[:, None])
        near.diagonal(dim1=1, dim2=2).fill_(False)
        pairs = near.view(-1).nonzero()[:, 0]
        count = near.sum(2).view(-1)
        first = count.cumsum(0).sub_(count)
        atoms = there.view(-1).nonzero()[:, 0]
        width = (count[atoms] + (MORE - 1)).div_(MORE, rounding_mode="floor").clamp_(min=PLACES // MORE)
        order = width.argsort(stable=True)
        self.groups = [(many, MORE * n) for n, many in enumerate(width.bincount().tolist()) if many]
        self.sizes = [many * wide for many, wide in self.groups]
        self.atoms = atoms = atoms[order]
        width = width[order].mul_(MORE)
        start, end = first[atoms], (first + count)[atoms]
        atom = torch.repeat_interleave(width, output_size=sum(self.sizes))
        place = torch.arange(len(atom), device=near.device)
        at = place + (start + width - width.cumsum(0))[atom]
        empty = at >= end[atom]
        pair = pad(pairs, (0, 1))[at.clamp_(max=len(pairs))].masked_fill_(empty, 0)
        places = torch.empty_like(near, dtype=torch.int64)
        places.view(-1)[pair] = place
        self.reverse = places.transpose(1, 2).reshape(-1)[pair]
        return pair, empty

    def moments(self) -> Tensor:
        """Sums over neighbours of radial functions times products of the direction.

        Of no, one and two factors: shape [10, A, columns], with more rows up to a multiple of `ROWS`.
        """
        parts = [
            torch.bmm(radial, products.transpose(1, 2)).permute(2, 0, 1)
            for radial, products in zip(self._split(self.radial), self._split(self.products), strict=True)
        ]
        none = parts[0].new_zeros(len(self.products), -len(self.atoms) % ROWS, parts[0].shape[2])
        return torch.cat([*parts, none], 1)

    def forces(self, slope: Tensor) -> Tensor:
        """Force on each atom, and the energy of its overlap with others, which is not fitted: shape [A, 4].

        Parameters
        ----------
        slope
            Derivative of the energies by the moments, without the overlap, shape [A, 10, columns].
        """
        net, direction = self.net, self.direction
        overlap = (1 - self.distance / CORE_RADIUS).clamp_(min=0)
        along = self._by_products(slope, self.bent) * self.products
        along = along[:5] + along[5:]
        along = (_sum3(along[:3]) + (along[3] + along[4])) * (self.bend * (3 / net.width))
        along = along.sub_(overlap * (2 * CORE / CORE_RADIUS))
        by_products = self._by_products(slope, self.radial)
        turning = _by_direction(direction, by_products[4:]).add_(by_products[1:4]) / self.distance
        push = (direction * (along - _sum3(direction * turning))).add_(turning)
        push = _chosen(push, self.reverse) - push
        sums = torch.cat([push, (overlap * overlap * CORE)[None]])
        return torch.cat([_fold(part, 2) for part in self._split(sums)])

    def _by_products(self, slope: Tensor, columns: Sequence[Tensor]) -> Tensor:
        """Derivative by the products of the direction, where the radial functions are `columns`, shape [10, S]."""
        parts = zip(slope.split([many for many, _ in self.groups]), self._split(columns), strict=True)
        return torch.cat([torch.bmm(*part).transpose(0, 1).flatten(1) for part in parts], 1)

    def _split(self, planes: Tensor | Sequence[Tensor]) -> Iterator[Tensor]:
        """Planes [P, S], of all groups or of each, by atoms of a group and their places: shape [atoms, P, places]."""
        parts = planes.split(self.sizes, 1) if isinstance(planes, Tensor) else planes
        for part, (many, wide) in zip(parts, self.groups, strict=True):
            yield part.view(-1, many, wide).transpose(0, 1)


def _by_order(parts: Sequence[Tensor]) -> Tensor:
    """What belongs to the moments of no, one and two factors, for each of the 1, 3 and 6 of them: shape [10, ...]."""
    return torch.cat([part.expand(many, -1, -1) for part, many in zip(parts, (1, 3, 6), strict=True)])


def _products(vector: Tensor) -> Tensor:
    """Products xx, yy, zz, and root 2 times xy, xz, yz of a vector [3, ...]: their squares' sum is its length's."""
    scaled = ROOT2 * vector
    return torch.cat([vector * vector, scaled[:1] * vector[1:], scaled[1:2] * vector[2:]])


def _by_direction(vector: Tensor, by_products: Tensor) -> Tensor:
    """Derivative by a vector [3, ...], from that by its products [6, ...], see `_products`."""
    x, y, z = ROOT2 * vector
    xy, xz, yz = by_products[3:]
    crossed = torch.stack([y * xy + z * xz, x * xy + z * yz, x * xz + y * yz])
    return crossed.add_(vector * by_products[:3], alpha=2)


def _chosen(planes: Tensor, places: Tensor) -> Tensor:
    """Numbers at some places of each plane."""
    return torch.stack([torch.take(plane, places) for plane in planes])


def _sum3(planes: Sequence[Tensor] | Tensor) -> Tensor:
    return (planes[0] + planes[1]).add_(planes[2])


def _sum6(planes: Tensor) -> Tensor:
    return _sum3(planes[:3] + planes[3:])


def _fold(values: Tensor, dim: int) -> Tensor:
    """Sum along a dimension by halves; the same for any shape, and with zeros added at the end."""
    size = values.shape[dim]
    width = 1 << max(0, size - 1).bit_length()
    while width > 1:
        width //= 2
        if width < size:
            low, high = values.narrow(dim, 0, width), values.narrow(dim, width, size - width)
            if size - width < width:
                low = low.clone()
                low.narrow(dim, 0, size - width).add_(high)
            else:
                low = low + high
            values, size = low, width
    return values.squeeze(dim)
