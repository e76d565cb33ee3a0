"""Frames as tensors: drawn in batches of like size, compared with the network, followed along its forces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..molecule import ALPHABET, NUMBERS, Molecule
from .frames import Frame
from .moments import INDEX, MomentNet

__all__ = ["FrameSet"]

_NUMBERS = np.array([0, *(NUMBERS[symbol] for symbol in ALPHABET)])
_KINDS = torch.tensor(INDEX)
STRONGEST = 25.0
"""Force in eV/A to which longer ones are shortened: a guide has to part overlapping atoms, not to blow them apart."""
_WINDOW = 8  # a batch is drawn from so many times its size of frames with about as many atoms


class FrameSet:
    """Frames in the order of their sizes.

    Parameters
    ----------
    frames
        The frames; energies are compared after the best sum over elements is taken off.
    device
        torch's name of the device.
    """

    def __init__(self, frames: Sequence[Frame], device: str = "cpu") -> None:
        self.frames = sorted(frames, key=lambda frame: len(frame.numbers))
        self.sizes = torch.tensor([len(frame.numbers) for frame in self.frames])
        shape = (len(self.frames), int(self.sizes[-1]))
        self.kinds = torch.zeros(shape, dtype=torch.int64)
        self.positions, self.forces = torch.zeros(*shape, 3), torch.zeros(*shape, 3)
        for row, frame in enumerate(self.frames):
            size = len(frame.numbers)
            self.kinds[row, :size] = _KINDS[torch.from_numpy(frame.numbers)]
            self.positions[row, :size] = torch.from_numpy(frame.positions).float()
            self.forces[row, :size] = torch.from_numpy(frame.forces).float()
        energies = torch.tensor([frame.energy for frame in self.frames], dtype=torch.float64)
        counts = one_hot(self.kinds, len(_NUMBERS))[..., 1:].sum(1).double()
        quiet = self._rms() < 5  # eV/A: where molecules are nearly whole
        alone = torch.linalg.lstsq(counts[quiet], energies[quiet, None]).solution
        self.energies = (energies - (counts @ alone)[:, 0]).float()
        self.kinds, self.positions, self.forces, self.energies = (
            value.to(device) for value in (self.kinds, self.positions, self.forces, self.energies)
        )

    def __len__(self) -> int:
        return len(self.frames)

    def _rms(self) -> Tensor:
        """Root mean square force of each frame, eV/A."""
        return (self.forces.square().sum((1, 2)) / self.sizes.to(self.forces.device)).sqrt()

    def draw(self, count: int, draws: torch.Generator) -> Tensor:
        """Rows of a batch of frames of about one size."""
        window = min(len(self), _WINDOW * count)
        first = int(torch.randint(len(self) - window + 1, (), generator=draws))
        return first + torch.randperm(window, generator=draws)[:count]

    def loss(self, net: MomentNet, rows: Tensor) -> Tensor:
        """Loss of a batch, see `fit`."""
        size = int(self.sizes[rows].max())
        kinds, forces = self.kinds[rows, :size], self.forces[rows, :size]
        energy, found = net(kinds, self.positions[rows, :size])
        real = kinds > 0
        atoms = real.sum(1)
        length = forces.norm(dim=2)
        wanted = forces * (STRONGEST / length.clamp(min=STRONGEST))[..., None]
        allowed = 0.5 + 0.2 * length.clamp(max=STRONGEST)
        off = (found - wanted).square().sum(2) / allowed.square()
        by_forces = ((1 + off).sqrt() - 1)[real].mean()
        allowed = 0.1 + 0.05 * (forces.square().sum((1, 2)) / atoms).sqrt()
        off = ((energy - self.energies[rows]) / atoms / allowed).square()
        loss: Tensor = by_forces + 0.1 * ((1 + off).sqrt() - 1).mean()
        return loss

    def followed(
        self, net: MomentNet, paths: int, draws: torch.Generator, steps: int = 40
    ) -> Iterator[Molecule]:
        """Molecules on ways along the network's forces, two of each: an error there would draw others to it."""
        rows = torch.randint(len(self), (paths,), generator=draws).sort().values
        for part in rows.split(64):
            size = int(self.sizes[part].max())
            kinds, positions = self.kinds[part, :size], self.positions[part, :size]
            early = torch.randint(1, steps, (len(part), 1, 1), generator=draws).to(positions.device)
            kept = positions
            for step in range(steps):
                with torch.no_grad():
                    forces = net(kinds, positions)[1]
                longest = forces.norm(dim=2, keepdim=True).clamp(min=1e-6)
                positions = positions + 0.004 * forces * (20 / longest).clamp(max=1)
                kept = torch.where(early == step, positions, kept)
            for row, atoms in enumerate(self.sizes[part].tolist()):
                numbers = _NUMBERS[kinds[row, :atoms].cpu().numpy()]
                for state in (kept, positions):
                    yield Molecule(numbers, state[row, :atoms].double().cpu().numpy())
