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
    """The `k` largest and the `k` smallest values per row, of all that were added: proponents and opponents.

    The `k` largest by absolute value are among them. Equal values come by their index, so that the result does not
    depend on the order of the pieces.

    Attributes
    ----------
    values, index
        [rows, at most 2 k]: the values, the largest by absolute value first, and their indices.
    """

    def __init__(self, rows: int, k: int, dtype: npt.DTypeLike = np.float32) -> None:
        self.k = k
        self.values: Floats = np.zeros((rows, 0), dtype)
        self.index: Indices = np.zeros((rows, 0), np.int64)

    def add(self, values: Floats, index: Indices) -> None:
        """Take values [rows, n] with indices [n] or [rows, n]."""
        index = np.broadcast_to(index, values.shape)
        full = self.values.shape[1] == 2 * self.k
        if full and values.shape[1] > 2 * self.k:
            # Most pieces hold few values that matter: sort those columns alone in which one does.
            kept = np.partition(self.values, (self.k - 1, self.k), axis=1)
            low, high = kept[:, self.k - 1 : self.k], kept[:, self.k : self.k + 1]
            some = ((values <= low) | (values >= high)).any(0)
            values, index = values[:, some], index[:, some]
        values = np.concatenate([self.values, values], 1)
        index = np.concatenate([self.index, index], 1)
        if values.shape[1] > 2 * self.k:
            largest = np.lexsort((index, -values), axis=-1)[:, : self.k]
            taken = np.zeros(values.shape, bool)
            np.put_along_axis(taken, largest, True, 1)
            smallest = np.lexsort((index, values, taken), axis=-1)[:, : self.k]  # of the others
            values, index = _at(values, index, np.concatenate([largest, smallest], 1))
        self.values, self.index = _at(values, index, order(values, index))


def _at(values: Floats, index: Indices, places: Indices) -> tuple[Floats, Indices]:
    return np.take_along_axis(values, places, 1), np.take_along_axis(index, places, 1)
