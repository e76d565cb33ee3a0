"""Guidance: a force field moves the atoms of states, after a step (ddpm) or of the predicted data (dpm_solver++)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...options import Between, NonNegativeFloat, PositiveFloat, PositiveInt, check_options
from .forces.base import Evaluated, ForceField, evaluate
from .solvers import centre, sum_atoms

__all__ = ["Guide", "Pusher", "check_calls", "move", "rms"]


@dataclass(frozen=True)
class Guide:
    """A force field, and how strongly and when it moves atoms.

    Attributes
    ----------
    field
        The force field.
    scale
        Angstrom per eV/A and step, on atoms without noise. The effect grows with the number of steps: compare
        ``scale * steps``. 0 makes no calls and is the same as no guide, bit for bit.
    iterations
        Times that the force is evaluated at a step; each moves the atoms by that part of the scale.
    noise_threshold
        Largest sigma of a step that is guided.
    force_clip
        Largest force on an atom, eV/A; longer ones are shortened to it.
    """

    field: ForceField
    scale: NonNegativeFloat
    iterations: PositiveInt = 1
    noise_threshold: Annotated[float, Between(0, 1)] = 0.8
    force_clip: PositiveFloat | None = None

    def __post_init__(self) -> None:
        check_options(self)


def move(guide: Guide, x: Tensor, forces: Tensor, sigma: float) -> Tensor:
    """Positions after one iteration, ``x + (scale / iterations) (1 - sigma) F``, not yet recentred.

    Parameters
    ----------
    guide
        What it is guided by.
    x
        Positions [B, N, 3], angstrom.
    forces
        F [B, N, 3], eV/A; clipped here, atom by atom.
    sigma
        Noise of the step.
    """
    if guide.force_clip is not None:
        length = _squared(forces).sqrt()[..., None]
        forces = torch.where(length > guide.force_clip, forces * (guide.force_clip / length), forces)
    return x + forces * (guide.scale / guide.iterations * (1 - sigma))


def rms(forces: Tensor, mask: Tensor) -> Tensor:
    """Root mean square over atoms of the length of the force on an atom [B]; F [B, N, 3] is zero where no atom is."""
    return (sum_atoms(_squared(forces))[:, 0] / mask.sum(1)).sqrt()


class Pusher:
    """A guide at work on one batch; it counts what it asks of the force field.

    Attributes
    ----------
    calls, failed
        Force calls of each sample, and those of them that failed, int64 [B], on the device of the batch.
    first_error
        The first row of which a call failed, and what its first failure said; None if none has failed.
    """

    def __init__(self, guide: Guide, mask: Tensor) -> None:
        self.guide, self.mask = guide, mask
        self.calls = mask.new_zeros(len(mask), dtype=torch.int64)
        self.failed = torch.zeros_like(self.calls)
        self.first_error: tuple[int, str] | None = None

    def push(self, z: Tensor, numbers: Tensor, sigma: float, alive: Tensor) -> tuple[Tensor, Tensor]:
        """States after all iterations, and the force RMS [B] before the first, NaN where there was none.

        A call that fails adds nothing to its molecule, in that iteration.

        Parameters
        ----------
        z
            States [B, N, 3 + F], recentred.
        numbers
            Atomic numbers [B, N], 0 where there is no atom.
        sigma
            Noise of the step.
        alive
            Samples to be moved, bool [B]; the others stay as they are.
        """
        rows = alive.nonzero()[:, 0]
        none = torch.full_like(alive, torch.nan, dtype=z.dtype)
        if len(rows) == 0:
            return z, none
        mask, some, seen = self.mask[rows], z[rows], z.new_full((len(rows),), torch.nan)
        for iteration in range(self.guide.iterations):
            found = evaluate(self.guide.field, numbers[rows], some[..., :3])
            self.calls[rows] += 1
            if not bool(found.ok.all()):
                self._record(rows, found)
            if iteration == 0:
                seen = torch.where(found.ok, rms(found.forces, mask), torch.nan)
            moved = move(self.guide, some[..., :3], found.forces, sigma)
            # Not even a recentring of a molecule that was not moved: its bits stay.
            some = torch.where(
                found.ok[:, None, None], centre(torch.cat([moved, some[..., 3:]], 2), mask), some
            )
        return z.index_copy(0, rows, some), none.index_copy(0, rows, seen)

    def _record(self, rows: Tensor, found: Evaluated) -> None:
        self.failed[rows] += ~found.ok
        first = int(rows[~found.ok][0])
        if self.first_error is None or first < self.first_error[0]:
            self.first_error = (first, str(found.error))


def check_calls(
    field: str,
    force_calls: NDArray[np.int64] | Sequence[int],
    failed_calls: NDArray[np.int64] | Sequence[int],
    first_error: str | None = None,
) -> None:
    """Refuse a guided set in which each force call failed: nothing has guided it.

    Parameters
    ----------
    field
        Name of the force field.
    force_calls, failed_calls
        Calls by sample, of all samples of the set.
    first_error
        Words of the first failure.

    Raises
    ------
    ValueError
        If there were calls, and all of them failed.
    """
    calls, failed = int(np.sum(force_calls)), int(np.sum(failed_calls))
    if calls and failed >= calls:
        raise ValueError(
            f"the force field {field!r} failed on each of {calls} calls, so that nothing was guided; "
            f"the first failure: {first_error or 'no words were kept'}. Choose another with mlff_model, or look at "
            "this one with a molecule that it must know"
        )


def _squared(forces: Tensor) -> Tensor:
    """``|F|^2`` [B, N], its three terms added in one order whatever the batch."""
    x, y, z = (forces * forces).unbind(-1)
    return x + y + z
