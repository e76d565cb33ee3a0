"""`Mixture`: a flow-matching model in closed form, whose data are noisy copies of a few folds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .flow import NM_PER_ANGSTROM

__all__ = ["Mixture"]


class Mixture(nn.Module):
    """The exact velocity for data ``x1 = fold_k + n``, k uniform, n Gaussian of 1 angstrom per coordinate.

    Nothing is trained: with ``x_t = (1 - t) e + t x1`` and everything at zero centre of mass, x_t given k
    is normal around ``t fold_k`` with variance ``V = (1 - t)^2 + t^2 sigma^2``, so the posterior of k, the
    velocity ``E[x1 - e | x_t]`` and the score are closed forms. Folds keep their orientation.

    Parameters
    ----------
    folds
        [K, L, 3] C-alpha positions in angstrom.
    sigma
        Standard deviation of a coordinate about its fold, angstrom.
    """

    folds: Tensor

    def __init__(self, folds: Tensor, sigma: float = 1.0) -> None:
        super().__init__()
        folds = folds - folds.mean(dim=-2, keepdim=True)
        self.register_buffer("folds", folds.double() * NM_PER_ANGSTROM, persistent=False)
        self.sigma = sigma * NM_PER_ANGSTROM

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Velocity [B, L, 3] at x [B, L, 3] in nm and times t [B]; 0 is noise, 1 is data."""
        t = t[:, None, None]
        fold = self._expected_fold(x, t)
        slope = (t * self.sigma**2 - (1 - t)) / self._variance(t)
        return fold + slope * (x - t * fold)

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """Gradient [B, L, 3] of `log_density`, in closed form."""
        t = t[:, None, None]
        return (t * self._expected_fold(x, t) - x) / self._variance(t)

    def log_density(self, x: Tensor, t: Tensor) -> Tensor:
        """Logarithm of p_t [B], up to a constant that depends on t alone."""
        return self._log_weights(x, t[:, None, None]).logsumexp(dim=-1)

    def _variance(self, t: Tensor) -> Tensor:
        return (1 - t) ** 2 + (t * self.sigma) ** 2

    def _log_weights(self, x: Tensor, t: Tensor) -> Tensor:
        apart = x[:, None] - t[:, None] * self.folds.to(x.dtype)
        return -apart.square().sum((-1, -2)) / (2 * self._variance(t)[:, 0])

    def _expected_fold(self, x: Tensor, t: Tensor) -> Tensor:
        """Mean of the folds [B, L, 3] under the posterior of k given x."""
        posterior = self._log_weights(x, t).softmax(dim=-1)
        return torch.einsum("bk,kld->bld", posterior, self.folds.to(x.dtype))
