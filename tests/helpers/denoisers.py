"""Models of molecules whose noise is known, and force fields made by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mgpu_nb.workloads.molecules.noise import Schedule

SPREAD, SPREAD_H = 1.5, 0.5


class Gaussian:
    """The exact model of positions N(0, SPREAD^2) without centre of mass, and features N(0, SPREAD_H^2)."""

    alphabet = ("H", "C", "N", "O", "F")
    charges = False

    def __init__(self, steps: int, sizes: Iterable[int] = range(2, 10)) -> None:
        self.histogram = dict.fromkeys(sizes, 1)
        self.schedule = Schedule(steps)

    def eps(self, x: Tensor, h: Tensor, t: Tensor, mask: Tensor, /) -> tuple[Tensor, Tensor]:
        assert x.shape == (*mask.shape, 3)
        assert h.shape == (*mask.shape, 5)
        step = (t.double() * self.schedule.steps).round().long()
        alpha, sigma = self.schedule.alpha(step)[:, None, None], self.schedule.sigma(step)[:, None, None]
        of_x, of_h = (sigma / (alpha**2 * spread**2 + sigma**2) for spread in (SPREAD, SPREAD_H))
        return x * of_x.to(x.dtype), h * of_h.to(h.dtype)


class Field:
    """A force field of one function of positions; it counts its calls and keeps what it was asked."""

    def __init__(
        self, forces: Callable[[NDArray[np.float64]], NDArray[np.float64]], name: str = "by hand"
    ) -> None:
        self.function, self.name = forces, name
        self.asked: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []

    def forces(
        self, numbers: NDArray[np.int64], positions: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64]]:
        assert (numbers > 0).all()
        self.asked.append((numbers, positions))
        return 0.0, self.function(positions)


def harmonic(strength: float = 2.0) -> Field:
    """``F = -strength x``."""
    return Field(lambda x: -strength * x, "harmonic")


def batch(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float64 of a shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
