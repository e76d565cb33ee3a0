"""A molecule: its atoms and where they are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["ALPHABET", "NUMBERS", "Molecule"]

ALPHABET = ("H", "C", "N", "O", "F")
"""Elements of the embedded model."""
NUMBERS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}
"""Atomic numbers by symbol."""


class Molecule(NamedTuple):
    """Atoms and their positions.

    Attributes
    ----------
    numbers
        Atomic numbers, shape [N].
    positions
        Positions in angstrom, shape [N, 3].
    """

    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
