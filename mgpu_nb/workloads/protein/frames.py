"""States that carry a frame per residue, and backbone atoms from frames.

A state is [..., L, 3], C-alpha positions in nm, or [..., L, 12] of a model whose attribute ``frames`` is true: the
positions, then the rotation of each residue, a matrix row by row. The columns of a rotation are the axes of the
residue's frame: C lies along the first one from CA, N in the plane of the first two.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ATOMS", "backbone", "normal_to_rotations", "positions", "rotate", "rotations", "with_rotations"]

ATOMS = ("N", "CA", "C", "O")
_N, _C = (-0.525, 1.363, 0.0), (1.526, 0.0, 0.0)  # angstrom from CA; Engh & Huber's bonds and angle
_CARBONYL = 1.231  # angstrom, C to O


def positions(state: Tensor) -> Tensor:
    """C-alpha positions [..., L, 3] of a state."""
    return state[..., :3]


def rotations(state: Tensor) -> Tensor:
    """Rotations [..., L, 3, 3] of a state with frames."""
    return state[..., 3:].reshape(*state.shape[:-1], 3, 3)


def with_rotations(x: Tensor, turns: Tensor) -> Tensor:
    """State [..., L, 12] of positions [..., L, 3] and rotations [..., L, 3, 3]."""
    return torch.cat([x, turns.flatten(-2)], dim=-1)


def rotate(turns: Tensor, omega: Tensor) -> Tensor:
    """Rotations [..., 3, 3] turned about axes of their own frames: ``R exp([omega])``, omega [..., 3] in radians.

    Rodrigues' formula; the result is orthonormal again to the precision of its type.
    """
    angle = omega.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    a, b, c = (omega / angle).unbind(-1)
    zero = torch.zeros_like(a)
    cross = torch.stack([zero, -c, b, c, zero, -a, -b, a, zero], dim=-1).reshape(turns.shape)
    angle = angle[..., None]
    turned = turns + torch.sin(angle) * (turns @ cross) + (1 - torch.cos(angle)) * (turns @ cross @ cross)
    first = torch.nn.functional.normalize(turned[..., 0], dim=-1)
    second = turned[..., 1] - (turned[..., 1] * first).sum(-1, keepdim=True) * first
    second = torch.nn.functional.normalize(second, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second, dim=-1)], dim=-1)


def normal_to_rotations(draw: Tensor) -> Tensor:
    """Uniform rotations [..., 3, 3] from four standard normal numbers each: unit quaternions [..., 4]."""
    w, x, y, z = torch.nn.functional.normalize(draw, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).reshape(*draw.shape[:-1], 3, 3)


def backbone(ca: Tensor, turns: Tensor) -> Tensor:
    """Backbone atoms N, CA, C, O [..., L, 4, 3] of C-alpha positions [..., L, 3] in angstrom and rotations.

    N and C have ideal bonds and angle. O lies in the plane of CA, C and the next residue's N, opposite to both; in
    that of the own N at the end of the chain.
    """
    n, c = (ca + (turns @ turns.new_tensor(place)) for place in (_N, _C))
    following = torch.cat([n[..., 1:, :], n[..., -1:, :]], dim=-2)
    normalize = torch.nn.functional.normalize
    away = normalize(ca - c, dim=-1) + normalize(following - c, dim=-1)
    return torch.stack([n, ca, c, c - _CARBONYL * normalize(away, dim=-1)], dim=-2)
