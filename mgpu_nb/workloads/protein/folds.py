"""Generated reference folds: C-alpha traces of ideal helices that loops pack together.

All coordinates here are in angstrom.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["CA_DISTANCE", "extend", "generate_folds", "helix_angles"]

Coordinates = npt.NDArray[np.float64]

CA_DISTANCE = 3.8
"""Distance of consecutive C-alpha atoms, angstrom."""

HELIX_RADIUS, HELIX_TURN, HELIX_RISE = 2.3, math.radians(100.0), 1.5
"""The ideal alpha helix: angstrom, radians per residue, angstrom per residue."""

_RESIDUES_PER_HELIX = 25
_CONTACT = 4.5  # angstrom; closer residues that are not neighbours clash
_LOOP_DRAWS = 384  # loops tried at each turn ...
_LOOP_KEEP = 6  # ... of which one of the most compact without a clash is taken


def generate_folds(length: int, count: int = 8, seed: int = 0) -> Coordinates:
    """Generate helix-loop-helix folds.

    Each fold is a chain with bonds of 3.8 angstrom: ideal helices (two up to some 60 residues, one more for
    every 25) joined by loops of 3 to 5 residues, drawn at random and chosen so that the chain is compact and
    does not touch itself.

    Parameters
    ----------
    length
        Residues per fold, 4 or more.
    count
        Number of folds.
    seed
        Fold ``k`` depends on `seed`, `length` and ``k`` alone: eight folds begin with the first six.

    Returns
    -------
    ndarray [K, L, 3]
        C-alpha positions in angstrom, zero centre of mass.
    """
    if length < 4 or count < 1:
        raise ValueError(
            f"length={length}, count={count}: a fold has 4 residues or more, a library one fold or more"
        )
    return np.stack([_fold(length, np.random.default_rng([seed, length, k])) for k in range(count)])


def _fold(length: int, rng: np.random.Generator) -> Coordinates:
    helices, loops = _segments(length, rng)
    angle, torsion = helix_angles()
    chain = extend(np.empty((1, 0, 3)), np.full((1, helices[0]), angle), np.full((1, helices[0]), torsion))
    for loop, helix in zip(loops, helices[1:], strict=True):
        angles = np.full((_LOOP_DRAWS, loop + helix), angle)
        torsions = np.full((_LOOP_DRAWS, loop + helix), torsion)
        free = min(loop + 2, loop + helix)  # a helix's own torsion begins at its third residue
        angles[:, :free] = np.radians(rng.uniform(88.0, 130.0, (_LOOP_DRAWS, free)))
        torsions[:, :free] = rng.uniform(-math.pi, math.pi, (_LOOP_DRAWS, free))
        drawn = extend(np.repeat(chain, _LOOP_DRAWS, axis=0), angles, torsions)
        drawn = drawn[np.argsort(drawn.var(axis=1).sum(-1))]  # the most compact first
        gap = np.zeros(0)
        for part in np.array_split(drawn, 12):
            gap = np.append(gap, _closest(part))
            if (gap >= _CONTACT).sum() >= _LOOP_KEEP:
                break
        clear = np.flatnonzero(gap >= _CONTACT)[:_LOOP_KEEP]
        chosen = int(rng.choice(clear)) if len(clear) else int(gap.argmax())
        chain = drawn[chosen : chosen + 1]
    fold: Coordinates = chain[0] - chain[0].mean(axis=0)
    return fold


def _segments(length: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Lengths of the helices and of the loops between them; together `length`."""
    count = max(2, round(length / _RESIDUES_PER_HELIX))
    longest = max(1, min(5, length // 6))
    loops = [int(n) for n in rng.integers(min(3, longest), longest + 1, count - 1)]
    share = rng.uniform(0.8, 1.25, count)
    ends = np.round(np.cumsum(share) / share.sum() * (length - sum(loops))).astype(int)
    return [int(n) for n in np.diff(ends, prepend=0)], loops


def helix_angles() -> tuple[float, float]:
    """Bond angle and torsion of the C-alpha trace of the ideal helix, radians."""
    i = np.arange(4)
    helix = (HELIX_RADIUS * np.cos(HELIX_TURN * i), HELIX_RADIUS * np.sin(HELIX_TURN * i), HELIX_RISE * i)
    a, b, c = np.diff(np.stack(helix, axis=-1), axis=0)
    angle = math.acos(-float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)))
    n, m = np.cross(a, b), np.cross(b, c)
    torsion = math.atan2(float(np.cross(n, m) @ b) / math.sqrt(float(b @ b)), float(n @ m))
    return angle, torsion


def extend(chain: Coordinates, angles: Coordinates, torsions: Coordinates) -> Coordinates:
    """Add residues to chains [B, n, 3] by bond angle and torsion [B, m], in the frame of those before."""
    start, added = chain.shape[1], angles.shape[1]
    x = np.concatenate([chain, np.empty((len(chain), added, 3))], axis=1)
    for i in range(start, start + added):
        bend = math.pi - angles[:, i - start]
        if i == 0:
            x[:, 0] = 0.0
        elif i == 1:
            x[:, 1] = x[:, 0] + [CA_DISTANCE, 0.0, 0.0]
        elif i == 2:
            step = np.stack([np.cos(bend), np.sin(bend), np.zeros_like(bend)], axis=-1)
            x[:, 2] = x[:, 1] + CA_DISTANCE * step
        else:
            twist = torsions[:, i - start]
            forward = x[:, i - 1] - x[:, i - 2]
            forward /= np.linalg.norm(forward, axis=-1, keepdims=True)
            normal = np.cross(x[:, i - 2] - x[:, i - 3], forward)
            normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
            side = np.cross(normal, forward)
            step = (
                np.cos(bend)[:, None] * forward
                + (np.sin(bend) * np.cos(twist))[:, None] * side
                + (np.sin(bend) * np.sin(twist))[:, None] * normal
            )
            x[:, i] = x[:, i - 1] + CA_DISTANCE * step
    return x


def _closest(chains: Coordinates) -> Coordinates:
    """Shortest distance [B] between residues that are three or more apart along the chain."""
    length = chains.shape[1]
    i, j = np.triu_indices(length, k=3)
    if not len(i):
        return np.full(len(chains), np.inf)
    squared = ((chains[:, i] - chains[:, j]) ** 2).sum(-1)
    shortest: Coordinates = np.sqrt(squared.min(axis=1))
    return shortest
