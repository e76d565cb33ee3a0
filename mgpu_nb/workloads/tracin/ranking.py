"""The largest of many, found piece by piece: the same whatever the pieces."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["Top", "order"]

Floats = npt.NDArray[np.floating]
Indices = npt.NDArray[np.int64]


def order(values: Floats, index: Indices) -> Indices:
    """Places of values [..., n] by absolute value, the largest first; equal ones by their `index`."""
    return np.lexsort((index, -np.abs(values)), axis=-1)


class Top:
    """The `k` values of largest absolute value per row, of all that were added.

    Equal values come by their index, so that the result does not depend on the order of the pieces.

    Attributes
    ----------
    values, index
        [rows, at most k]: the values in order, and their indices.
    """

    def __init__(self, rows: int, k: int, dtype: npt.DTypeLike = np.float32) -> None:
        self.k = k
        self.values: Floats = np.zeros((rows, 0), dtype)
        self.index: Indices = np.zeros((rows, 0), np.int64)

    def add(self, values: Floats, index: Indices) -> None:
        """Take values [rows, n] with indices [n] or [rows, n]."""
        index = np.broadcast_to(index, values.shape)
        full = self.values.shape[1] == self.k
        if full and values.shape[1] > self.k:
            # Most pieces hold few values that matter: sort those columns alone in which one does.
            least = np.abs(self.values[:, -1:])
            some = (np.abs(values) >= least).any(0)
            values, index = values[:, some], index[:, some]
        values = np.concatenate([self.values, values], 1)
        index = np.concatenate([self.index, index], 1)
        first = order(values, index)[:, : self.k]
        self.values, self.index = np.take_along_axis(values, first, 1), np.take_along_axis(index, first, 1)
