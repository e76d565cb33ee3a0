"""TM-score at fixed correspondence: the best over all superpositions, for many pairs at once.

Coordinates are in angstrom. The search runs in float64, on the device of its input.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from .geometry import tm_d0

__all__ = ["nearest_tm_score", "tm_score", "tm_superposition"]

_SHORTEST_SEED = 4  # residues
_ROUNDS = ((None, 2), (12, 2), (4, 4))  # (superpositions of a pair that go on, all at first; steps)
_STARTS, _COARSE_STARTS = 48, 3  # places that a fragment starts from, at most
_MARGIN = 0.1  # a target this far behind in the coarse search is not the nearest one
_BLOCK = 1_000_000  # distances held at once


def tm_score(mobile: Tensor, target: Tensor) -> Tensor:
    """TM-score of traces of equal length, residue i answering to residue i.

    ``max over superpositions of (1/L) sum_i 1 / (1 + (d_i / d0)^2)``, searched as TM-score does (Zhang &
    Skolnick, 2004): fragments of a chain (L, L/2, L/4, ... residues) are superposed; the residues that then
    lie within d0 of each other (at least 4.5 and at most 8 angstrom; 1 less at first, 1 more later) give the
    next superposition, and so on. The best of all superpositions on the way counts.

    Parameters
    ----------
    mobile, target
        [..., L, 3], leading dimensions broadcast.

    Returns
    -------
    Tensor [...]
        float64, from 0 to 1.

    Raises
    ------
    ValueError
        If the lengths differ or are below 4.
    """
    return tm_superposition(mobile, target)[0]


def nearest_tm_score(mobile: Tensor, targets: Tensor) -> Tensor:
    """Highest `tm_score` [...] of traces [..., L, 3] to any of the targets [K, L, 3].

    All targets are searched from a few fragments; only those that come within 0.1 of the best are searched
    in full.
    """
    flat = mobile.reshape(-1, *mobile.shape[-2:])
    coarse = tm_superposition(flat[:, None], targets, starts=_COARSE_STARTS)[0]
    trace, target = (coarse >= coarse.amax(dim=1, keepdim=True) - _MARGIN).nonzero(as_tuple=True)
    full = coarse.new_zeros(coarse.shape)
    full[trace, target] = tm_score(flat[trace], targets[target])
    return full.amax(dim=1).reshape(mobile.shape[:-2])


def tm_superposition(mobile: Tensor, target: Tensor, starts: int = _STARTS) -> tuple[Tensor, Tensor, Tensor]:
    """`tm_score` [...], and the rotation [..., 3, 3] and shift [..., 1, 3] that reach it.

    ``mobile @ rotation.mT + shift`` lies on `target`. A fragment is tried from at most `starts` places.
    """
    if mobile.shape[-2] != target.shape[-2] or mobile.shape[-2] < _SHORTEST_SEED:
        lengths = f"{mobile.shape[-2]} and {target.shape[-2]} residues"
        raise ValueError(f"traces of {lengths}: give two of equal length, {_SHORTEST_SEED} or more")
    lead, length = (mobile[..., 0, 0] + target[..., 0, 0]).shape, mobile.shape[-2]
    p, q = (side.expand(*lead, length, 3).reshape(-1, length, 3).double() for side in (mobile, target))
    block = max(1, _BLOCK // (length * len(_seeds(length, starts))))
    parts = [_search(p[i : i + block], q[i : i + block], starts) for i in range(0, len(p), block)]
    if not parts:
        return p.new_zeros(lead), p.new_zeros(*lead, 3, 3), p.new_zeros(*lead, 1, 3)
    score, rotation, shift = (torch.cat(part) for part in zip(*parts, strict=True))
    return score.reshape(lead), rotation.reshape(*lead, 3, 3), shift.reshape(*lead, 1, 3)


@lru_cache(maxsize=32)
def _seeds(length: int, starts: int) -> Tensor:
    """Fragments [M, L] to start from, 1 where a residue belongs to the fragment."""
    rows, size = [], length
    while True:
        stride = -(-(length - size + 1) // starts)
        for start in sorted({*range(0, length - size + 1, stride), length - size}):
            row = torch.zeros(length, dtype=torch.float64)
            row[start : start + size] = 1
            rows.append(row)
        if size == _SHORTEST_SEED:
            return torch.stack(rows)
        size = max(_SHORTEST_SEED, size // 2)


def _search(p: Tensor, q: Tensor, starts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Best score [N], rotation [N, 3, 3], shift [N, 1, 3] of pairs [N, L, 3]."""
    p_mean, q_mean = p.mean(dim=1, keepdim=True), q.mean(dim=1, keepdim=True)
    p, q = p - p_mean, q - q_mean
    pairs, length = p.shape[:2]
    products = (p[..., :, None] * q[..., None, :]).flatten(2)  # [N, L, 9], p_a q_b
    squares = p.square().sum(-1, keepdim=True) + q.square().sum(-1, keepdim=True)
    # With these 17 features of a residue both sides of a step are one matrix product: weighted sums
    # over the residues give the superposition, and a superposition gives all squared distances.
    features = torch.cat([products, p, q, squares, torch.ones_like(squares)], dim=-1)
    weights = _seeds(length, starts).to(p.device).expand(pairs, -1, -1)
    score = weights.sum(-1)
    d0 = tm_d0(length)
    reach = min(max(d0, 4.5), 8.0)
    each = torch.arange(pairs, device=p.device)
    top = p.new_full((pairs,), -1.0)
    rotation, shift = p.new_zeros(pairs, 3, 3), p.new_zeros(pairs, 1, 3)
    for kept, steps in _ROUNDS:
        if kept is not None:
            index = score.topk(min(kept, score.shape[1]), dim=1).indices
            weights = weights.gather(1, index[..., None].expand(-1, -1, length))
        for step in range(steps):
            turns, shifts = _superpositions(weights @ features)
            squared = (_coefficients(turns, shifts) @ features.mT).clamp_min(0)  # [N, M, L]
            score = (1 / (1 + squared / d0**2)).mean(-1)
            highest, index = score.max(dim=1)
            better = highest > top
            top = torch.where(better, highest, top)
            rotation = torch.where(better[:, None, None], turns[each, index], rotation)
            shift = torch.where(better[:, None, None], shifts[each, index, None], shift)
            first = kept is None and step == 0
            near = squared < (reach - 1 if first else reach + 1) ** 2
            enough = near.sum(-1, keepdim=True) >= 3  # fewer do not fix a superposition
            weights = torch.where(enough, near.to(weights.dtype), weights)
    return top, rotation, shift + q_mean - p_mean @ rotation.mT


def _superpositions(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation [N, M, 3, 3] and shift [N, M, 3] of least squared distance, of summed features [N, M, 17]."""
    mass = sums[..., 16:]
    p, q = sums[..., 9:12] / mass, sums[..., 12:15] / mass
    h = sums[..., :9].reshape(*sums.shape[:-1], 3, 3) - mass[..., None] * p[..., :, None] * q[..., None, :]
    bound = 0.5 * (sums[..., 15] - mass[..., 0] * (p.square().sum(-1) + q.square().sum(-1)))
    rotation = _rotations(h, bound)
    return rotation, q - (rotation @ p[..., None])[..., 0]


def _coefficients(rotation: Tensor, shift: Tensor) -> Tensor:
    """Coefficients [N, M, 17] with which the features of a residue give |R p + s - q|^2."""
    turned = (shift[..., None, :] @ rotation)[..., 0, :]  # R^T s
    one = torch.ones_like(shift[..., :1])
    return torch.cat(
        [-2 * rotation.mT.flatten(-2), 2 * turned, -2 * shift, one, shift.square().sum(-1, keepdim=True)], -1
    )


def _rotations(h: Tensor, bound: Tensor) -> Tensor:
    """Rotations [..., 3, 3] that maximise tr(R H), by quaternions (Horn, 1987; Theobald, 2005).

    The best quaternion is the eigenvector of the largest eigenvalue l of Horn's symmetric matrix K, whose
    characteristic polynomial is ``x^4 + c2 x^2 + c1 x + c0``. Newton's method finds l from `bound` above it.
    By Cayley and Hamilton, ``K^3 + l K^2 + (l^2 + c2) K + (l^3 + c2 l + c1)`` projects on the eigenvector.
    All this is arithmetic on the whole batch at once, where a decomposition calls LAPACK for each matrix.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (row.unbind(-1) for row in h.unbind(-2))
    size = h.square().sum((-1, -2)).sqrt().clamp_min(1e-100)
    rows = [
        xx + yy + zz, yz - zy, zx - xz, xy - yx,
        yz - zy, xx - yy - zz, xy + yx, zx + xz,
        zx - xz, xy + yx, yy - xx - zz, yz + zy,
        xy - yx, zx + xz, yz + zy, zz - xx - yy,
    ]  # fmt: skip
    k = (torch.stack(rows, dim=-1) / size[..., None]).reshape(*size.shape, 4, 4)
    k2 = k @ k
    k3 = k2 @ k
    power2, power3 = k2.diagonal(dim1=-2, dim2=-1).sum(-1), k3.diagonal(dim1=-2, dim2=-1).sum(-1)
    c2, c1 = -power2 / 2, -power3 / 3
    c0 = power2.square() / 8 - k2.square().sum((-1, -2)) / 4
    top = torch.minimum(bound / size, power2.sqrt())
    for _ in range(12):
        square = top * top
        slope = (4 * square + 2 * c2) * top + c1
        value = (square + c2) * square + c1 * top + c0
        top = torch.where(slope > 1e-12, top - value / slope.clamp_min(1e-12), top)
    line = top[..., None, None]
    outer = k3 + line * k2 + (line.square() + c2[..., None, None]) * k
    outer.diagonal(dim1=-2, dim2=-1).add_(((top * top + c2) * top + c1)[..., None])
    # The projection is l times q q^T; where the eigenvalue is double any of its vectors would do, and q is
    # taken as no rotation where rounding has left nothing of the projection.
    longest = outer.square().sum(-1).argmax(-1)[..., None, None].expand(*top.shape, 1, 4)
    q = outer.gather(-2, longest)[..., 0, :]
    length = q.norm(dim=-1, keepdim=True)
    still = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=h.dtype, device=h.device)
    w, x, y, z = torch.where(length > 1e-13, q / length.clamp_min(1e-13), still).unbind(-1)
    rows = [
        w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z,
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).reshape(*size.shape, 3, 3)
