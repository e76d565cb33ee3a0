"""GFN1-xTB and GFN2-xTB, extended tight binding, by tblite: no weights to fetch, a millisecond a molecule."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .base import check_extra

__all__ = ["TBLiteField", "check_tblite"]

METHODS = {"gfn2": "GFN2-xTB", "gfn1": "GFN1-xTB"}
# CODATA 2018, the values that tblite has inside (Tiesinga et al., 2021).
BOHR = 0.529177210903
"""Bohr radius in A."""
HARTREE = 27.211386245988
"""Hartree energy in eV."""


def check_tblite(name: str, option: str = "mlff_model") -> None:
    """Check that tblite is installed.

    Raises
    ------
    ValueError
        If it is not; the message says how to get it.
    """
    check_extra("tblite", f"{option}={name!r}")


class TBLiteField:
    """Tight binding of neutral molecules: one that has an odd number of electrons is a doublet, others are singlets.

    Parameters
    ----------
    name
        ``"gfn2"`` (Bannwarth, Ehlert, Grimme, 2019) or ``"gfn1"`` (Grimme, Bannwarth, Shushkov, 2017).
    """

    def __init__(self, name: str = "gfn2") -> None:
        from tblite.interface import Calculator
        from threadpoolctl import ThreadpoolController

        self.name = name
        self._calculator = Calculator
        self._threads = ThreadpoolController()

    def forces(
        self, numbers: NDArray[np.int64], positions: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64]]:
        """Energy in eV and forces in eV/A of one molecule, see `ForceField`.

        Raises
        ------
        RuntimeError
            If the electrons do not converge, atoms coincide, or an element is unknown.
        """
        unpaired = int(numbers.sum()) % 2
        calculator = self._calculator(METHODS[self.name], numbers, positions / BOHR, uhf=unpaired)
        calculator.set("verbosity", 0)
        # With the threads of a default OpenMP a call takes a hundred times as long, and sums come in another order.
        with self._threads.limit(limits=1):
            result = calculator.singlepoint()
        return float(result["energy"]) * HARTREE, -result["gradient"] * (HARTREE / BOHR)
