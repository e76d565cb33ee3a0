"""Force fields: energies and forces of molecules, of a batch at once where the field can.

Load one by its name, the judge of the molecules say, and evaluate it. ::

    from mgpu_nb.workloads.molecules import forces

    judge = forces.load_field("gfn2")
    energy, force = judge.forces(molecule.numbers, molecule.positions)  # eV, eV/A
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .base import BatchedForceField, Evaluated, ForceField, evaluate
    from .fit_potential import FitConfig, fit
    from .load import FIELDS, check_field, load_field
    from .potential import Potential

# Loaded on first use: a process that only computes tight binding needs no torch.
__getattr__, _, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["BatchedForceField", "Evaluated", "ForceField", "evaluate"],
        "fit_potential": ["FitConfig", "fit"],
        "load": ["FIELDS", "check_field", "load_field"],
        "potential": ["Potential"],
    },
)
__all__ = [
    "FIELDS",
    "BatchedForceField",
    "Evaluated",
    "FitConfig",
    "ForceField",
    "Potential",
    "check_field",
    "evaluate",
    "fit",
    "load_field",
]


def __dir__() -> list[str]:
    return sorted(__all__)
