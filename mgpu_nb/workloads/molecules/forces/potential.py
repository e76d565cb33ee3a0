"""A fast torch potential for H, C, N, O and F: the default guide."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..molecule import ALPHABET, NUMBERS

__all__ = ["Potential"]

# Covalent radii in A (Cordero et al., 2008).
_RADII = {1: 0.31, 6: 0.76, 7: 0.71, 8: 0.66, 9: 0.57}


class Potential:
    """Pair potential of bonds that break, with a soft core.

    Parameters
    ----------
    device
        torch's name of the device of its parameters.
    """

    name = "potential"

    def __init__(self, device: str = "cpu") -> None:
        self.radii = torch.zeros(10, dtype=torch.float64, device=device)
        for number, radius in _RADII.items():
            self.radii[number] = radius

    def forces(
        self, numbers: NDArray[np.int64], positions: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64]]:
        """Energy in eV and forces in eV/A of one molecule, see `ForceField`."""
        device = self.radii.device
        energy, forces = self.batch(
            torch.as_tensor(numbers, device=device)[None], torch.as_tensor(positions, device=device)[None]
        )
        return float(energy[0]), forces[0].cpu().numpy()

    def batch(self, numbers: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Energies in eV and forces in eV/A of many molecules, see `BatchedForceField`.

        Raises
        ------
        ValueError
            If an element is none of H, C, N, O and F.
        """
        known = torch.tensor([0, *NUMBERS.values()], device=numbers.device)
        if not bool(torch.isin(numbers, known).all()):
            other = sorted(set(numbers.flatten().tolist()) - set(known.tolist()))
            raise ValueError(f"potential has {', '.join(ALPHABET)}, not the atomic number {other[0]}")
        mask = numbers > 0
        pairs = mask[:, :, None] & mask[:, None]
        pairs = pairs & ~torch.eye(numbers.shape[1], dtype=torch.bool, device=numbers.device)
        radii = self.radii.to(positions.dtype)[numbers]
        length = radii[:, :, None] + radii[:, None]
        apart = positions[:, :, None] - positions[:, None]
        distance = (apart.square().sum(3) + 0.01).sqrt()
        y = (1.6 - distance / length).clamp(min=0) / 0.6
        y = torch.where(pairs, y, 0.0)
        energy = 3.0 * (
            y.pow(4) - 2 * y.square()
        )  # lowest at the sum of the radii, nothing beyond 1.6 times it
        slope = 3.0 * (4 * y.pow(3) - 4 * y) / (-0.6 * length.clamp(min=0.1))
        forces = -(slope / distance)[..., None] * apart
        return energy.sum((1, 2)) / 2, forces.sum(2)
