"""`Muon`: an optimiser of matrices, whose steps are orthogonalised."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

__all__ = ["Muon"]

_STEPS = 5  # of the iteration: singular values end between 0.7 and 1.2
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon:
    """Momentum with orthogonalised steps (Jordan et al., 2024): all directions of a matrix move equally far.

    The polar factor of the momentum is taken approximately by Newton-Schulz iterations of fifth order, for all
    matrices of one shape at once.

    Parameters
    ----------
    matrices
        The weights, each of two axes.
    momentum
        Decay of the mean of the gradients, which is Nesterov's.
    weight_decay
        Share of a weight that is taken away per step and learning rate.
    """

    def __init__(
        self, matrices: Iterable[nn.Parameter], momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        self.momentum, self.weight_decay = momentum, weight_decay
        self.alike: dict[tuple[int, ...], list[Tensor]] = {}
        for matrix in matrices:
            self.alike.setdefault(tuple(matrix.shape), []).append(matrix)
        self.means = {shape: torch.zeros_like(torch.stack(group)) for shape, group in self.alike.items()}

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Move the weights by their gradients; a step has about `learning_rate` as its spectral norm."""
        for shape, group in self.alike.items():
            gradients = torch.stack([cast(Tensor, matrix.grad) for matrix in group])
            mean = self.means[shape].lerp_(gradients, 1 - self.momentum)
            steps = _polar_factor(gradients.lerp(mean, self.momentum))
            longer = max(1.0, shape[0] / shape[1]) ** 0.5
            for matrix, step in zip(group, steps, strict=True):
                matrix.mul_(1 - learning_rate * self.weight_decay).add_(step, alpha=-learning_rate * longer)


def _polar_factor(matrices: Tensor) -> Tensor:
    """Nearly orthogonal matrices [M, rows, columns] of the same singular vectors."""
    tall = matrices.shape[1] > matrices.shape[2]
    x: Tensor = matrices.mT if tall else matrices
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_STEPS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x
