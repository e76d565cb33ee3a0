"""What is seen along the way: frames of a sample's path, forces by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["WATCHED_NOISE", "Trajectory", "frame_states", "watched_levels"]

WATCHED_NOISE = 0.8
"""Forces are watched where sigma is at most so large; noisier atoms lie on each other, whatever guides them."""
_POINTS = 50


@dataclass(frozen=True)
class Trajectory:
    """Force RMS along the way of samples, before a guide moves their atoms.

    Of ddpm the forces are those at the states after each step, of dpm_solver++ those at the predicted data.

    Attributes
    ----------
    step
        Steps made, ascending, shape [K].
    sigma
        Noise at the beginning of those steps, shape [K].
    force_rms
        Root mean square over atoms of the length of the force on an atom, eV/A, of each sample, shape [n, K]; NaN where
        the call failed.
    """

    step: NDArray[np.int64]
    sigma: NDArray[np.float64]
    force_rms: NDArray[np.float64]

    def quartiles(self) -> NDArray[np.float64]:
        """Lower quartile, median and upper quartile over the samples [3, K]; NaN where no sample has a value."""
        values = np.full((3, len(self.step)), np.nan)
        known = np.isfinite(self.force_rms).any(0)
        values[:, known] = np.nanquantile(self.force_rms[:, known], [0.25, 0.5, 0.75], axis=0)
        return values

    @classmethod
    def join(cls, parts: Sequence[Trajectory]) -> Trajectory:
        """Trajectory of the samples of all parts, in their order; all of the same steps."""
        first = parts[0]
        return cls(first.step, first.sigma, np.concatenate([part.force_rms for part in parts]))


def watched_levels(sigma: Sequence[float], noise_threshold: float) -> list[int]:
    """Levels from which the watched steps begin, descending: every k-th with little enough noise, and the last.

    k is such that there are about fifty.

    Parameters
    ----------
    sigma
        Noise by level.
    noise_threshold
        The largest to be watched.
    """
    quiet = [level for level in range(1, len(sigma)) if sigma[level] <= noise_threshold]
    return quiet[:: max(1, len(quiet) // _POINTS)][::-1]


def frame_states(states: int, frames: int) -> list[int]:
    """Which of the `states` of a path, numbered from the noise on, are its `frames`; the last is always there.

    They are spread evenly; where there are fewer states than frames, each comes once and the last, the molecule
    itself, is repeated.
    """
    if states < frames:
        return [*range(states), *[states - 1] * (frames - states)]
    return sorted(states - 1 - round(k * (states - 1) / max(1, frames - 1)) for k in range(frames))
