"""Superposition and measures of C-alpha traces. All coordinates and distances here are in angstrom.

A pair of traces is compared residue by residue: residue i of one answers to residue i of the other.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["geometric_score", "kabsch", "mean_l2", "non_coil", "rmsd", "superpose", "tm_d0", "tm_score_fixed"]

_CA_DISTANCE = 3.802
_BOND, _CLASH = 3.9, 1.5


def kabsch(mobile: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation and shift that bring `mobile` onto `target` with the least RMSD.

    With P and Q the centred traces: ``H = P^T Q = U S V^T``, ``R = V diag(1, 1, sign det(V U^T)) U^T``
    (Kabsch, 1976 and 1978). R is never a reflection: a mirror image does not fit.

    Parameters
    ----------
    mobile, target
        [..., L, 3], leading dimensions broadcast.

    Returns
    -------
    rotation
        [..., 3, 3], determinant 1; ``mobile @ rotation.mT + shift`` lies on `target`.
    shift
        [..., 1, 3].
    """
    p, q = mobile.mean(dim=-2, keepdim=True), target.mean(dim=-2, keepdim=True)
    u, _, vt = torch.linalg.svd((mobile - p).mT @ (target - q))
    hand = torch.sign(torch.linalg.det(vt.mT @ u.mT))
    flip = torch.ones_like(vt[..., 0])
    flip[..., 2] = hand
    rotation = (vt.mT * flip[..., None, :]) @ u.mT
    return rotation, q - p @ rotation.mT


def superpose(mobile: Tensor, target: Tensor) -> Tensor:
    """`mobile` [..., L, 3] brought onto `target` by `kabsch`."""
    rotation, shift = kabsch(mobile, target)
    return mobile @ rotation.mT + shift


def rmsd(mobile: Tensor, target: Tensor) -> Tensor:
    """Root of the mean squared distance [...] after superposition, angstrom."""
    return (superpose(mobile, target) - target).square().sum(-1).mean(-1).sqrt()


def mean_l2(mobile: Tensor, target: Tensor) -> Tensor:
    """Mean distance [...] after the superposition of least RMSD, angstrom: never above the RMSD."""
    return (superpose(mobile, target) - target).square().sum(-1).sqrt().mean(-1)


def tm_d0(length: int) -> float:
    """Distance d0 of the TM-score in angstrom (Zhang & Skolnick, 2004).

    ``1.24 (L - 15)^(1/3) - 1.8``, and 0.5 where L <= 21.
    """
    return 0.5 if length <= 21 else 1.24 * (length - 15) ** (1 / 3) - 1.8


def tm_score_fixed(mobile: Tensor, target: Tensor) -> Tensor:
    """TM-score [...] of traces [..., L, 3] as they lie: mean of 1 / (1 + (d / d0)^2)."""
    squared = (mobile - target).square().sum(-1)
    return (1 / (1 + squared / tm_d0(target.shape[-2]) ** 2)).mean(-1)


def non_coil(x: Tensor) -> Tensor:
    """Residues [..., L] in a helix or a strand, told from C-alpha distances (bool).

    A window of five residues is a helix or a strand where its distances i to i+2, i+3 and i+4 are those of
    P-SEA (Labesse et al., 1997, table 1); a residue counts where any window that holds it does.
    """
    length = x.shape[-2]
    counts = torch.zeros(x.shape[:-1], dtype=torch.bool, device=x.device)
    if length < 5:
        return counts
    d2, d3, d4 = ((x[..., n : length - 4 + n, :] - x[..., :-4, :]).norm(dim=-1) for n in (2, 3, 4))
    helix = ((d2 - 5.5).abs() <= 0.5) & ((d3 - 5.3).abs() <= 0.5) & ((d4 - 6.4).abs() <= 0.6)
    strand = ((d2 - 6.7).abs() <= 0.6) & ((d3 - 9.9).abs() <= 0.9) & ((d4 - 12.4).abs() <= 1.1)
    for n in range(5):
        counts[..., n : length - 4 + n] |= helix | strand
    return counts


def geometric_score(x: Tensor) -> Tensor:
    """How far traces [..., L, 3] look like a protein [...]; higher is better, at most 5.

    ``2 f + 1.5 (1 - c) + s + 0.5 max(0, 1 - m)`` with f the share of consecutive C-alpha distances below 3.9
    angstrom, c the share of all other pairs closer than 1.5, s the share of residues in a helix or a strand
    (`non_coil`), m the mean of ``|d - 3.802|`` over consecutive distances d, in angstrom.
    """
    bonds = (x[..., 1:, :] - x[..., :-1, :]).norm(dim=-1)
    i, j = torch.triu_indices(x.shape[-2], x.shape[-2], offset=2, device=x.device)
    clashes = ((x[..., i, :] - x[..., j, :]).norm(dim=-1) < _CLASH).to(x.dtype).mean(-1)
    bonded = (bonds < _BOND).to(x.dtype).mean(-1)
    even = (1 - (bonds - _CA_DISTANCE).abs().mean(-1)).clamp_min(0)
    total: Tensor = 2 * bonded + 1.5 * (1 - clashes) + non_coil(x).to(x.dtype).mean(-1) + 0.5 * even
    return total
