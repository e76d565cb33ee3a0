"""What a force field is, and how a batch is evaluated by any of them."""

from __future__ import annotations

import importlib.util
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["BatchedForceField", "Evaluated", "FieldNotLoaded", "ForceField", "check_extra", "evaluate"]


class FieldNotLoaded(ValueError):
    """A force field could not be made in a worker."""


@runtime_checkable
class ForceField(Protocol):
    """Energy and forces of one molecule."""

    name: str

    def forces(
        self, numbers: NDArray[np.int64], positions: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64]]:
        """Energy in eV and forces in eV/A, shape [N, 3], of atoms with `numbers` [N] at `positions` [N, 3] in A.

        Raises
        ------
        Exception
            Of any kind, if the calculation fails: it does not converge, or an element is unknown.
        """
        ...


@runtime_checkable
class BatchedForceField(ForceField, Protocol):
    """A force field that takes many molecules at once."""

    def batch(self, numbers: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Energies in eV, shape [B], and forces in eV/A, shape [B, N, 3].

        Parameters
        ----------
        numbers
            Atomic numbers, int64, shape [B, N]; 0 where there is no atom.
        positions
            Positions in A, shape [B, N, 3].

        Returns
        -------
        tuple of Tensor
            The energy of a molecule is NaN if its calculation failed; what the first of these said may stand in an
            attribute ``error`` of the field.
        """
        ...


class Evaluated(NamedTuple):
    """Energies and forces of a batch, and which of them there are.

    Attributes
    ----------
    energy
        In eV, float64, shape [B]; NaN where the calculation failed.
    forces
        In eV/A, shape [B, N, 3], of the type of the positions; zero where it failed and where there is no atom.
    ok
        Whether the calculation of a molecule gave finite numbers, shape [B].
    error
        What the first that failed said; None if none did.
    """

    energy: Tensor
    forces: Tensor
    ok: Tensor
    error: str | None = None

    @property
    def failed(self) -> int:
        """Number of calculations that failed."""
        return int((~self.ok).sum())


def evaluate(field: ForceField, numbers: Tensor, positions: Tensor) -> Evaluated:
    """Energies and forces of a batch of molecules; a calculation that fails is counted and stops no other.

    A field with `BatchedForceField.batch` takes the batch at once. If that raises, each molecule is tried alone, so
    that what a molecule gets never depends on those beside it; any other field takes one molecule after the other.

    Parameters
    ----------
    field
        The force field.
    numbers
        Atomic numbers, int64, shape [B, N]; 0 where there is no atom.
    positions
        Positions in A, shape [B, N, 3].

    Raises
    ------
    ValueError
        If the shapes do not belong together.
    torch.OutOfMemoryError, MemoryError
        If memory runs out: a smaller batch may fit.
    """
    if numbers.ndim != 2 or positions.shape != (*numbers.shape, 3):
        raise ValueError(
            f"numbers must be [B, N] and positions [B, N, 3], got {list(numbers.shape)} and {list(positions.shape)}"
        )
    mask = numbers > 0
    positions = positions.detach()
    # A library may hang or crash on what is not a number, so it is not asked.
    askable = mask.any(1) & (positions.isfinite().all(2) | ~mask).all(1)
    asked = askable.nonzero().squeeze(1)
    energy = torch.full(numbers.shape[:1], torch.nan, dtype=torch.float64, device=positions.device)
    forces = torch.zeros_like(positions)
    error = None if len(asked) == len(numbers) else "no atom, or positions that are not finite numbers"
    if len(asked):
        chosen = (numbers, positions) if len(asked) == len(numbers) else (numbers[asked], positions[asked])
        some_energy, some_forces, said = _ask(field, *chosen)
        energy[asked] = some_energy.to(energy)
        forces[asked] = some_forces.to(forces)
        error = said or error
    ok = energy.isfinite() & (forces.isfinite().all(2) | ~mask).all(1)
    if error is None and not bool(ok.all()):
        error = f"{field.name} gave an energy or forces that are not finite numbers"
    energy = torch.where(ok, energy, torch.nan)
    forces = torch.where((ok[:, None] & mask)[..., None], forces, 0.0)
    return Evaluated(energy, forces, ok, error)


def _ask(field: ForceField, numbers: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, str | None]:
    """Energies and forces of molecules; NaN where a call raised, with what the first of these said."""
    if isinstance(field, BatchedForceField):
        try:
            energy, forces = field.batch(numbers, positions)
            if energy.shape != numbers.shape[:1] or forces.shape != positions.shape:
                raise ValueError(  # noqa: TRY301
                    f"{field.name} gave energies {list(energy.shape)} and forces {list(forces.shape)} "
                    f"for positions {list(positions.shape)}"
                )
            return energy.detach(), forces.detach(), getattr(field, "error", None)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            if len(numbers) == 1:
                return _failed(positions, error)
            singles = [_ask(field, numbers[n : n + 1], positions[n : n + 1]) for n in range(len(numbers))]
            said = next((said for _, _, said in singles if said), None)
            return torch.cat([e for e, _, _ in singles]), torch.cat([f for _, f, _ in singles]), said
    energies = torch.full((len(numbers),), torch.nan, dtype=torch.float64)
    all_forces = torch.zeros(positions.shape, dtype=torch.float64)
    said = None
    on_host, coordinates = numbers.cpu().numpy(), positions.double().cpu().numpy()
    for n, (row, xyz) in enumerate(zip(on_host, coordinates, strict=True)):
        atoms = row > 0
        try:
            one, force = field.forces(row[atoms], xyz[atoms])
            force = np.asarray(force, dtype=np.float64)
            if force.shape != xyz[atoms].shape:
                raise ValueError(  # noqa: TRY301
                    f"{field.name} gave forces of shape {list(force.shape)} for {atoms.sum()} atoms"
                )
            energies[n] = float(one)
            all_forces[n, torch.from_numpy(atoms)] = torch.from_numpy(force)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            energies[n] = torch.nan
            said = said or _message(error)
    return energies.to(positions.device), all_forces.to(positions.device), said


def _failed(positions: Tensor, error: Exception) -> tuple[Tensor, Tensor, str]:
    nothing = torch.full(positions.shape[:1], torch.nan, dtype=torch.float64, device=positions.device)
    return nothing, torch.zeros_like(positions), _message(error)


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def check_extra(package: str, what: str) -> None:
    """Check that a package of the extra ``molecules`` is installed.

    Raises
    ------
    ValueError
        If it is not; the message says how to get it.
    """
    if importlib.util.find_spec(package) is None:
        raise ValueError(f'{what} needs {package}, which is not installed: pip install "mgpu-nb[molecules]"')
