"""`Schedule`: how much of a molecule is left, and how much noise there is, by step of the diffusion."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["Schedule"]

_SMALLEST_RATIO = 1e-3  # of alpha^2 of a step to that of the step before


class Schedule:
    """The noise schedule ``polynomial_2`` of EDM (Hoogeboom et al., 2022, appendix B).

    ``alpha^2 = (1 - (t/T)^2)^2``, the ratio of successive steps clipped at 0.001, then
    ``alpha^2 <- (1 - 2 s) alpha^2 + s``; ``sigma^2 = 1 - alpha^2`` and ``gamma = -log(alpha^2 / sigma^2)``.

    Parameters
    ----------
    steps
        T, the steps of the training: step 0 is almost data, step T almost noise.
    precision
        s: what is left of the noise at step 0 and of the data at step T, as a share of the variance.
    power
        The exponent of t/T, 2 in ``polynomial_2``.

    Raises
    ------
    ValueError
        If `steps` or `power` is not positive, or `precision` is not in (0, 0.5).
    """

    def __init__(self, steps: int = 1000, precision: float = 1e-5, power: float = 2.0) -> None:
        if steps < 1 or not power > 0:
            raise ValueError(f"a schedule needs steps >= 1 and power > 0, got steps={steps}, power={power}")
        if not 0 < precision < 0.5:
            raise ValueError(f"the precision of a schedule must be in (0, 0.5), got {precision}")
        self.steps, self.precision, self.power = steps, precision, power
        left = (1.0 - np.linspace(0.0, 1.0, steps + 1) ** power) ** 2
        with np.errstate(invalid="ignore"):
            ratios = np.nan_to_num(left / np.concatenate([[1.0], left[:-1]]))
        left = np.cumprod(np.clip(ratios, _SMALLEST_RATIO, 1.0))
        left = (1.0 - 2.0 * precision) * left + precision
        self._gamma = torch.from_numpy(np.log1p(-left) - np.log(left))

    def __repr__(self) -> str:
        return f"Schedule(steps={self.steps}, precision={self.precision:g}, power={self.power:g})"

    def gamma(self, step: Tensor) -> Tensor:
        """Logarithm of the ratio of noise to data, ``log(sigma^2 / alpha^2)``.

        Parameters
        ----------
        step
            Steps of the training, integers 0 .. T of any shape.

        Returns
        -------
        Tensor
            float64, of the shape and on the device of `step`.

        Raises
        ------
        IndexError
            If a step is not in 0 .. T.
        """
        return self._gamma[step.cpu()].to(step.device)

    def alpha(self, step: Tensor) -> Tensor:
        """Factor of the data at `step`, float64; arguments and errors as `gamma`."""
        return torch.sigmoid(-self.gamma(step)).sqrt()

    def sigma(self, step: Tensor) -> Tensor:
        """Standard deviation of the noise at `step`, float64; arguments and errors as `gamma`."""
        return torch.sigmoid(self.gamma(step)).sqrt()
