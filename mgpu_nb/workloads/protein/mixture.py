"""`Mixture`: a flow-matching model in closed form, whose data are a few folds that bend like chains."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .flow import NM_PER_ANGSTROM

__all__ = ["Mixture"]

_JITTER = 0.03  # angstrom per coordinate, of each residue for itself


class Mixture(nn.Module):
    """The exact velocity for data ``x1 = fold_k + n``, k uniform, n Gaussian and smooth along the chain.

    The displacements of residues i and j have the covariance ``sigma^2 exp(-(i - j)^2 / 2 smooth^2)`` in each
    coordinate: helices move and bend against each other, while the coordinates of a bond change by some
    ``sigma / smooth`` only, so bonds stay bonds. In the modes ``cos(pi m (i + 1/2) / L)``, m = 1 ... L - 1, of a chain
    without its centre this is diagonal, to the ends of the chain: mode m has the variance
    ``s_m^2 = sigma^2 smooth sqrt(2 pi) exp(-(pi m smooth / L)^2 / 2)``, plus a jitter of 0.03 angstrom.

    Nothing is trained: with ``x_t = (1 - t) e + t x1`` and everything at zero centre of mass, mode m of x_t given k
    is normal around that of ``t fold_k`` with variance ``V_m = (1 - t)^2 + t^2 s_m^2``, so the posterior of k, the
    velocity ``E[x1 - e | x_t]`` and the score are closed forms. Folds keep their orientation.

    Parameters
    ----------
    folds
        [K, L, 3] C-alpha positions in angstrom.
    sigma
        Standard deviation of a coordinate about its fold, angstrom, the centre of the chain included.
    smooth
        Residues over which displacements are alike.
    """

    folds: Tensor
    centres: Tensor
    modes: Tensor
    variances: Tensor

    def __init__(self, folds: Tensor, sigma: float = 1.0, smooth: float = 12.0) -> None:
        super().__init__()
        length = folds.shape[-2]
        frequency = math.pi / length * torch.arange(1, length, dtype=torch.float64)
        places = torch.arange(length, dtype=torch.float64) + 0.5
        modes = math.sqrt(2 / length) * torch.cos(frequency[:, None] * places)  # [M, L], orthonormal
        spectrum = sigma**2 * smooth * math.sqrt(2 * math.pi) * torch.exp(-((frequency * smooth) ** 2) / 2)
        variances = (spectrum + _JITTER**2) * NM_PER_ANGSTROM**2
        self.register_buffer("modes", modes, persistent=False)
        self.register_buffer("variances", variances[:, None], persistent=False)  # [M, 1]
        folds = (folds - folds.mean(dim=-2, keepdim=True)).cpu().double() * NM_PER_ANGSTROM
        self.register_buffer("folds", folds, persistent=False)
        self.register_buffer("centres", modes @ folds, persistent=False)  # the folds in modes [K, M, 3]

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Velocity [B, L, 3] at x [B, L, 3] in nm and times t [B]; 0 is noise, 1 is data."""
        x, t = self._in_modes(x), t[:, None, None]
        variances = self.variances.to(x.dtype)
        fold = self._expected_fold(x, t)
        slope = (t * variances - (1 - t)) / self._variance(t, variances)
        return self._in_space(fold + slope * (x - t * fold))

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """Gradient [B, L, 3] of `log_density`, in closed form."""
        x, t = self._in_modes(x), t[:, None, None]
        variance = self._variance(t, self.variances.to(x.dtype))
        return self._in_space((t * self._expected_fold(x, t) - x) / variance)

    def log_density(self, x: Tensor, t: Tensor) -> Tensor:
        """Logarithm of p_t [B], up to a constant that depends on t alone."""
        return self._log_weights(self._in_modes(x), t[:, None, None]).logsumexp(dim=-1)

    def _in_modes(self, x: Tensor) -> Tensor:
        return self.modes.to(x.dtype) @ x

    def _in_space(self, modes: Tensor) -> Tensor:
        return self.modes.to(modes.dtype).mT @ modes

    @staticmethod
    def _variance(t: Tensor, variances: Tensor) -> Tensor:
        return (1 - t) ** 2 + t**2 * variances

    def _log_weights(self, x: Tensor, t: Tensor) -> Tensor:
        apart = x[:, None] - t[:, None] * self.centres.to(x.dtype)
        variance = self._variance(t, self.variances.to(x.dtype))
        return -(apart.square() / (2 * variance[:, None])).sum((-1, -2))

    def _expected_fold(self, x: Tensor, t: Tensor) -> Tensor:
        """Mean of the folds [B, M, 3], in modes, under the posterior of k given x."""
        posterior = self._log_weights(x, t).softmax(dim=-1)
        return torch.einsum("bk,kmd->bmd", posterior, self.centres.to(x.dtype))
