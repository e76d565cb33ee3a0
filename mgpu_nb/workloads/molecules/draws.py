"""What is random about a sample: its number of atoms and its noise, from a generator of its own."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

__all__ = ["Noise", "generator", "number_of_atoms"]

_BLOCK = 16  # draws of a sample made at once: a call of numpy takes as long as a hundred numbers


def generator(seed: int, index: int) -> np.random.Generator:
    """Generator of one sample: the same for the sample `index` of every set that is made from `seed`."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(index,))))


def number_of_atoms(draws: np.random.Generator, histogram: Mapping[int, int], n_nodes: int | None) -> int:
    """Number of atoms of a sample, the first thing that its generator gives.

    Parameters
    ----------
    draws
        Generator of the sample. It is moved on in any case, so that `n_nodes` does not change the noise's start.
    histogram
        Number of training molecules by number of atoms.
    n_nodes
        The number, where it is fixed.
    """
    sizes = sorted(size for size, molecules in histogram.items() if molecules > 0)
    shares = list(accumulate(histogram[size] for size in sizes))
    drawn = sizes[bisect_right(shares, draws.random() * shares[-1])]
    return drawn if n_nodes is None else n_nodes


class Noise:
    """Standard normal noise of a batch, one draw at a time; atoms that a sample does not have get none.

    A sample's numbers depend on its generator alone, never on the samples beside it: those of draw k follow those
    of draw k - 1, atom by atom.

    Parameters
    ----------
    generators
        A generator for each sample.
    atoms
        Number of atoms of each sample.
    channels
        Numbers per atom.
    draws
        How many draws there will be.
    device
        Where they are wanted.
    """

    def __init__(
        self,
        generators: Sequence[np.random.Generator],
        atoms: Sequence[int],
        channels: int,
        draws: int,
        device: str,
    ) -> None:
        self.generators, self.atoms, self.channels, self.device = generators, atoms, channels, device
        self.left = draws
        self.block: list[Tensor] = []

    def draw(self) -> Tensor:
        """The next draw, float64 [B, N, channels]."""
        if not self.block:
            size = min(_BLOCK, self.left)
            block = np.zeros((size, len(self.atoms), max(self.atoms), self.channels))
            for row, (draws, atoms) in enumerate(zip(self.generators, self.atoms, strict=True)):
                block[:, row, :atoms] = draws.standard_normal((size, atoms, self.channels))
            self.block = list(torch.from_numpy(block).to(self.device).flip(0))
            self.left -= size
        return self.block.pop()
