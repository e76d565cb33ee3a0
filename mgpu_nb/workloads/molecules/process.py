"""The process from noise to molecules: what all batches of samples have in common, and one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .draws import Noise
from .forces.base import ForceField, evaluate
from .guidance import Guide, Pusher, rms
from .molecule import NUMBERS, Molecule
from .solvers import Levels, Sampler, Schedule, centre, decode, grid, solver
from .trajectory import WATCHED_NOISE, Trajectory, frame_states, watched_levels

__all__ = ["WIDEST", "Batch", "Denoiser", "Process", "Start"]

WIDEST = 1000.0
"""No number of a sample's state is larger (positions: angstrom), unless the sample has come to nothing."""


class Denoiser(Protocol):
    """What is asked of a model; `Diffusion` is one."""

    @property
    def alphabet(self) -> tuple[str, ...]:
        """Symbols of the elements, in the order of their features."""
        ...

    @property
    def charges(self) -> bool:
        """Whether there is one more feature."""
        ...

    @property
    def histogram(self) -> Mapping[int, int]:
        """Number of training molecules by number of atoms."""
        ...

    @property
    def schedule(self) -> Schedule:
        """Noise by step."""
        ...

    def eps(self, x: Tensor, h: Tensor, t: Tensor, mask: Tensor, /) -> tuple[Tensor, Tensor]:
        """Noise in positions [B, N, 3], recentred, and in features [B, N, F], at times t [B] = step / T."""
        ...


@dataclass(frozen=True)
class Start:
    """A sample before its way: its place among those asked for, its index, its generator, its number of atoms."""

    place: int
    index: int
    draws: np.random.Generator
    atoms: int


class Process:
    """What all batches have in common.

    Attributes
    ----------
    steps
        Steps S from noise to data, without the last, which decodes.
    at
        Steps of the training at which levels 0 to S stand.
    levels
        Their noise.
    watches
        Whether forces along the way are recorded.
    watched
        Levels that the watched steps begin at, descending.
    """

    def __init__(
        self,
        model: Denoiser,
        sampler: Sampler,
        steps: int,
        guide: Guide | None,
        watch: ForceField | None,
        device: str,
        frames: int,
    ) -> None:
        self.model, self.sampler, self.steps, self.device = model, sampler, steps, device
        self.guide = guide
        self.watch = None if guide is not None and watch is guide.field else watch
        self.frames = frame_states(steps + 2, frames) if frames else []
        self.at = grid(sampler, steps, model.schedule)
        self.levels = Levels(model.schedule, self.at)
        threshold = WATCHED_NOISE if guide is None else guide.noise_threshold
        self.watches = guide is not None or watch is not None
        self.watched = watched_levels(self.levels.sigma, threshold) if self.watches else []
        self.numbers = torch.tensor([NUMBERS[symbol] for symbol in model.alphabet], device=device)
        weights = model.parameters() if isinstance(model, nn.Module) else iter(())
        self.dtype = next((weight.dtype for weight in weights), torch.get_default_dtype())

    def trajectory(self, force_rms: NDArray[np.float64]) -> Trajectory:
        """Trajectory of samples whose forces [n, K] were seen."""
        made = np.array([self.steps - level + 1 for level in self.watched], dtype=np.int64)
        return Trajectory(made, np.array([self.levels.sigma[level] for level in self.watched]), force_rms)


class Batch:
    """Samples on their way together.

    Parameters
    ----------
    process
        What all batches have in common.
    starts
        The samples of this batch; of one size, or padded.

    Attributes
    ----------
    molecules
        The samples.
    chain
        Frames of the sample that was asked for first, where it is in this batch.
    """

    molecules: list[Molecule]
    chain: list[Molecule]

    def __init__(self, process: Process, starts: Sequence[Start]) -> None:
        self.process, self.starts = process, starts
        atoms = [start.atoms for start in starts]
        device, model = process.device, process.model
        self.mask = (torch.arange(max(atoms)) < torch.tensor(atoms)[:, None]).to(device)
        self.solver = solver(process.sampler, process.levels, self.mask)
        self.noise = Noise(
            [start.draws for start in starts],
            atoms,
            3 + len(model.alphabet) + model.charges,
            self.solver.draws + 2,
            device,
        )
        self.alive = self.mask.any(1)
        self.pusher = None if process.guide is None else Pusher(process.guide, self.mask)
        self.columns: list[Tensor] = []
        first = [row for row, start in enumerate(starts) if start.place == 0]
        self.filmed = first[0] if first and process.frames else None
        self.states = 0
        self.film: dict[int, Molecule] = {}

    def run(self, step_made: Callable[[], None]) -> None:
        """Go all the way; `step_made` is called after each step and after the last, which decodes."""
        z = self._shot(centre(self.noise.draw(), self.mask))
        for k in range(self.process.steps, 0, -1):
            z = self._shot(
                self._sound(self.solver.step(k, z, self._eps(z, k), self.noise.draw, self._steer), z)
            )
            step_made()
        decoded = decode(self.process.levels, z, self._eps(z, 0), self.noise.draw(), self.mask)
        # The last step is guided like the others, or the model would take back what the guide did before it.
        z = self._shot(self._sound(self._steer(decoded, 0), z))
        step_made()
        numbers = self._numbers(z).cpu().numpy()
        positions = z[..., :3].cpu().numpy()
        self.molecules = [
            Molecule(numbers[row, : start.atoms].copy(), positions[row, : start.atoms].copy())
            for row, start in enumerate(self.starts)
        ]
        self.chain = [self.film[state] for state in self.process.frames] if self.film else []

    @property
    def broken(self) -> NDArray[np.bool_]:
        """Samples that have come to nothing, [B]."""
        return (~self.alive).cpu().numpy()

    @property
    def force_rms(self) -> NDArray[np.float64]:
        """Force RMS of each sample at the watched steps, [B, K]; NaN where there is none."""
        if not self.columns:
            return np.zeros((len(self.starts), 0))
        return torch.stack(self.columns, 1).cpu().numpy()

    @property
    def first_error(self) -> tuple[int, str] | None:
        """Index of the first sample of which a force call failed, and what it said."""
        if self.pusher is None or self.pusher.first_error is None:
            return None
        row, said = self.pusher.first_error
        return self.starts[row].index, said

    def _eps(self, z: Tensor, k: int) -> Tensor:
        """Noise predicted in states at level `k`."""
        given, at = z.to(self.process.dtype), self.process.at[k] / self.process.model.schedule.steps
        x, h = self.process.model.eps(
            given[..., :3], given[..., 3:], given.new_full((len(z),), at), self.mask
        )
        return torch.cat([x, h], 2).to(z.dtype)

    def _numbers(self, z: Tensor) -> Tensor:
        """Atomic numbers [B, N] of the likeliest elements; 0 where there is no atom."""
        elements = z[..., 3 : 3 + len(self.process.numbers)].argmax(2)
        return self.process.numbers[elements] * self.mask

    def _within(self, z: Tensor) -> Tensor:
        """Samples [B] with numbers that are finite, and no larger than those of a molecule."""
        return (z.abs() <= WIDEST).flatten(1).all(1)

    def _sound(self, z: Tensor, before: Tensor) -> Tensor:
        """New states; those before of samples that have come to nothing, which are not moved again."""
        self.alive = self.alive & self._within(z)
        return torch.where(self.alive[:, None, None], z, before)

    def _shot(self, z: Tensor) -> Tensor:
        """The states as they are; the one that is filmed is kept if it is a frame."""
        if self.filmed is not None and self.states in self.process.frames:
            atoms = self.starts[self.filmed].atoms
            numbers, positions = self._numbers(z)[self.filmed, :atoms], z[self.filmed, :atoms, :3]
            self.film[self.states] = Molecule(numbers.cpu().numpy(), positions.cpu().numpy())
        self.states += 1
        return z

    def _steer(self, z: Tensor, k: int) -> Tensor:
        """States that the guide makes of those of the step that began at level `k`; who watches sees them before."""
        process, sigma = self.process, self.process.levels.sigma[k]
        guided = process.guide is not None and sigma <= process.guide.noise_threshold
        watched = k in process.watched
        if not guided and not watched:
            return z
        numbers, alive = self._numbers(z), self.alive & self._within(z)
        if watched and process.watch is not None:
            found = evaluate(process.watch, numbers, z[..., :3])
            self.columns.append(torch.where(found.ok & alive, rms(found.forces, self.mask), torch.nan))
        if guided and self.pusher is not None:
            z, before = self.pusher.push(z, numbers, sigma, alive)
            if watched and process.watch is None:
                self.columns.append(before)
        return z
