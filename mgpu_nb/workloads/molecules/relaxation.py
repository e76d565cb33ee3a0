"""Relaxation by ASE's BFGS under a limit of force calls: the rival of guidance, and how far a molecule is from rest.

Guidance spends force calls while a molecule is drawn; relaxation spends the same number afterwards. To compare them,
both take the same force field and the same number of calls for each molecule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .forces.base import ForceField, evaluate
from .molecule import Molecule

__all__ = ["Gap", "Relaxed", "relax", "relaxation_gap"]

LARGEST_FORCE = 0.01
"""In eV/A: a molecule in which no force is larger is relaxed."""


class Relaxed(NamedTuple):
    """Molecules after relaxation, in the order of those given.

    Attributes
    ----------
    molecules
        The relaxed molecules.
    force_calls
        Force calls spent on each, int64 [n]; never more than were allowed.
    failed
        Whether a call failed, bool [n]. The molecule is then as it was at the last call that did not, or, if there
        was none, as it was given.
    converged
        Whether no force was larger than the limit at the last call, bool [n].
    """

    molecules: list[Molecule]
    force_calls: NDArray[np.int64]
    failed: NDArray[np.bool_]
    converged: NDArray[np.bool_]


class Gap(NamedTuple):
    """How far above its nearest minimum a molecule is.

    Attributes
    ----------
    value
        Energy less the lowest that relaxation reached, eV per atom; NaN if the first call failed. With few calls, it
        is less than the whole way.
    calls, failed
        Number of force calls, and of those that failed.
    """

    value: float
    calls: int
    failed: int


def relax(
    molecules: Sequence[Molecule], field: ForceField, calls: int | Sequence[int], fmax: float = LARGEST_FORCE
) -> Relaxed:
    """Relax molecules by BFGS, each with its own number of force calls at most.

    A step follows each call, the last one too, as in guidance. A molecule that needs no more calls takes no more.

    Parameters
    ----------
    molecules
        Molecules, each relaxed by itself.
    field
        Force field.
    calls
        Force calls allowed, for each molecule or for all.
    fmax
        Largest force on an atom of a relaxed molecule, eV/A.

    Raises
    ------
    ValueError
        If there are not as many numbers of calls as molecules, or one is negative.
    ImportError
        If ASE is not installed.
    """
    budgets = [calls] * len(molecules) if isinstance(calls, int) else [int(n) for n in calls]
    if len(budgets) != len(molecules):
        raise ValueError(
            f"calls must be one number or one for each of {len(molecules)} molecules, got {len(budgets)}"
        )
    if min(budgets, default=0) < 0:
        raise ValueError(f"calls must be at least 0, got {min(budgets)}")
    walks = [
        _walk(molecule, field, budget, fmax) for molecule, budget in zip(molecules, budgets, strict=True)
    ]
    return Relaxed(
        [Molecule(m.numbers, walk.positions) for m, walk in zip(molecules, walks, strict=True)],
        np.array([walk.calls for walk in walks], dtype=np.int64),
        np.array([walk.failed for walk in walks], dtype=bool),
        np.array([walk.converged for walk in walks], dtype=bool),
    )


def relaxation_gap(molecule: Molecule, field: ForceField, calls: int, fmax: float = 0.05) -> Gap:
    """Energy of a molecule above the lowest that it reaches by relaxation with so many force calls, per atom.

    Raises
    ------
    ImportError
        If ASE is not installed.
    """
    walk = _walk(molecule, field, calls, fmax)
    gap = walk.energies[0] - min(walk.energies) if walk.energies else math.nan
    return Gap(gap / len(molecule.numbers), walk.calls, int(walk.failed))


class _Walk(NamedTuple):
    positions: NDArray[np.float64]
    energies: list[float]
    calls: int
    failed: bool
    converged: bool


class _SpentError(Exception):
    """All calls that were allowed have been made."""


class _FailedError(Exception):
    """A call raised, or gave something that is not finite."""


def _walk(molecule: Molecule, field: ForceField, budget: int, fmax: float) -> _Walk:
    """The way of one molecule downhill."""
    try:
        from ase import Atoms
        from ase.calculators.calculator import Calculator, all_changes
        from ase.optimize import BFGS
    except ImportError as error:
        raise ImportError('relaxation needs ASE: pip install "mgpu-nb[molecules]"') from error

    class Counted(Calculator):  # type: ignore[misc]  # ASE has no types
        """ASE's view of the field, with as many calls as are allowed."""

        implemented_properties = ("energy", "forces")

        def __init__(self) -> None:
            super().__init__()
            self.calls, self.energies, self.known = 0, list[float](), molecule.positions

        def calculate(
            self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes
        ) -> None:
            super().calculate(atoms, properties, system_changes)
            positions = self.atoms.get_positions()
            if self.calls == budget:
                raise _SpentError
            self.calls += 1
            found = evaluate(field, numbers, torch.from_numpy(positions)[None])
            if not found.ok:
                raise _FailedError
            self.energies.append(float(found.energy))
            self.known = positions
            self.results = {"energy": self.energies[-1], "forces": found.forces[0].numpy()}

    numbers = torch.from_numpy(molecule.numbers)[None]
    atoms, counted = Atoms(molecule.numbers, molecule.positions), Counted()
    atoms.calc = counted
    failed = converged = False
    try:
        with BFGS(atoms, logfile=None) as walker:
            converged = bool(walker.run(fmax=fmax, steps=budget))
    except _SpentError:
        pass
    except (_FailedError, np.linalg.LinAlgError):
        failed = True
    positions = atoms.get_positions()
    if failed or not np.isfinite(positions).all():
        positions = counted.known
    return _Walk(positions, counted.energies, counted.calls, failed, converged)
