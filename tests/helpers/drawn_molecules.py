"""Molecules and force fields of the tests of molecules."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from mgpu_nb.workloads.molecules.molecule import NUMBERS, Molecule

Forces = tuple[float, NDArray[np.float64]]


def molecule(symbols: str, positions: object) -> Molecule:
    """Atoms by symbol, a letter each, at positions [N, 3] in angstrom."""
    numbers = np.array([NUMBERS[s] for s in symbols], dtype=np.int64)
    return Molecule(numbers, np.asarray(positions, dtype=np.float64))


def g2(name: str) -> Molecule:
    """A molecule of ase.collections.g2."""
    atoms = pytest.importorskip("ase.collections").g2[name]
    return Molecule(atoms.numbers.astype(np.int64), atoms.positions.astype(np.float64))


def random_molecule(seed: int, most: int = 24) -> Molecule:
    """Atoms as dense as bonds, so that all orders and too many bonds occur."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, most + 1))
    numbers = rng.choice(list(NUMBERS.values()), n).astype(np.int64)
    return Molecule(numbers, rng.uniform(0, 1.3 * n ** (1 / 3) + 0.3, (n, 3)))


def shaken(name: str, seed: int, by: float = 0.1) -> Molecule:
    """A molecule of g2 whose atoms are displaced, by so many angstrom in each direction."""
    known = g2(name)
    moved = known.positions + np.random.default_rng(seed).normal(0, by, known.positions.shape)
    return Molecule(known.numbers, moved)


class Springs:
    """Each atom on a spring to the origin, k = 2 eV/A^2; counts its calls, and fails as it is told.

    Parameters
    ----------
    fails
        Calls that fail, from 1.
    bad
        What those give: None for an exception, or the energy.
    """

    name = "springs"

    def __init__(self, fails: set[int] | None = None, bad: float | None = None) -> None:
        self.calls = 0
        self.fails = fails or set()
        self.bad = bad

    def forces(self, numbers: NDArray[np.int64], positions: NDArray[np.float64]) -> Forces:
        """Energy and forces."""
        self.calls += 1
        assert positions.dtype == np.float64
        energy = float((positions**2).sum())
        if self.calls in self.fails:
            if self.bad is None:
                raise RuntimeError("no convergence")
            energy = self.bad
        return energy, -2 * positions


class Broken:
    """Fails on every call."""

    name = "broken"

    def forces(self, numbers: NDArray[np.int64], positions: NDArray[np.float64]) -> Forces:
        """Raise."""
        raise RuntimeError("no convergence")


class Quartic:
    """Each atom pulled to the origin by d^4: BFGS needs many steps."""

    name = "quartic"

    def __init__(self) -> None:
        self.calls = 0

    def forces(self, numbers: NDArray[np.int64], positions: NDArray[np.float64]) -> Forces:
        """Energy and forces."""
        self.calls += 1
        squares = (positions**2).sum(axis=1, keepdims=True)
        return math.fsum((squares**2).ravel().tolist()), -4 * squares * positions
