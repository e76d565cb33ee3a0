"""Bonds of a molecule from its distances, and whether each atom has the valence of its element.

The table, its margins and both definitions of stability are those of the public EDM (Hoogeboom et al., 2022), so that
figures can be compared: a pair is bonded if it is nearer than the length of a single bond of its elements plus 10 pm,
by a double bond if nearer than that of a double bond plus 5 pm, by a triple bond if nearer than that of a triple bond
plus 3 pm. An atom is stable if the orders of its bonds add up to the valence of its element, a molecule if all of its
atoms are. A stable molecule may be in several pieces. There is no aromatic bond: the 139.5 pm of benzene are a single
bond by the table, and its carbon atoms are not stable.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .molecule import NUMBERS, Molecule

__all__ = ["VALENCES", "Stability", "bond_orders", "stability", "unmet"]

VALENCES = {"H": 1, "C": 4, "N": 3, "O": 2, "F": 1}
"""Sum of the orders of the bonds of a stable atom, by element."""

# Lengths in pm of single, double and triple bonds, and what a pair may be longer.
_LENGTHS = (
    {
        "HH": 74, "HC": 109, "HN": 101, "HO": 96, "HF": 92, "CC": 154, "CN": 147, "CO": 143, "CF": 135,
        "NN": 145, "NO": 140, "NF": 136, "OO": 148, "OF": 142, "FF": 142,
    },
    {"CC": 134, "CN": 129, "CO": 120, "NN": 125, "NO": 121, "OO": 121},
    {"CC": 120, "CN": 116, "CO": 113, "NN": 110},
)  # fmt: skip
_MARGINS = (10, 5, 3)

_SIZE = max(NUMBERS.values()) + 1
_LIMITS = np.zeros((len(_LENGTHS), _SIZE, _SIZE))  # pm, by order and atomic numbers; 0: no such bond
for _order, (_lengths, _margin) in enumerate(zip(_LENGTHS, _MARGINS, strict=True)):
    for _pair, _length in _lengths.items():
        _a, _b = (NUMBERS[_symbol] for _symbol in _pair)
        _LIMITS[_order, _a, _b] = _LIMITS[_order, _b, _a] = _length + _margin
_VALENCES = np.zeros(_SIZE, dtype=np.int64)  # 0: an element that the table does not have
for _element, _valence in VALENCES.items():
    _VALENCES[NUMBERS[_element]] = _valence


class Stability(NamedTuple):
    """Stable atoms of a molecule.

    Attributes
    ----------
    stable
        Number of atoms that have the valence of their element.
    atoms
        Number of atoms.
    whole
        Whether all atoms are stable.
    """

    stable: int
    atoms: int
    whole: bool


def bond_orders(molecule: Molecule) -> NDArray[np.int64]:
    """Orders of all bonds of a molecule, from its distances.

    Returns
    -------
    ndarray
        0 to 3, shape [N, N], symmetric; the diagonal is 0. A position that is not a finite number has no bonds.

    Raises
    ------
    ValueError
        If an element is not in the table.
    """
    numbers = _known(molecule.numbers)
    positions = np.asarray(molecule.positions, dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # infinity minus infinity is at no distance
        apart = positions[:, None] - positions[None]
        distances = 100 * np.sqrt((apart**2).sum(axis=-1))
    # The limits of a pair fall as the order rises, so the order is the number of limits that it is within.
    within = distances < _LIMITS[:, numbers[:, None], numbers[None]]
    orders: NDArray[np.int64] = within.sum(axis=0, dtype=np.int64)
    np.fill_diagonal(orders, 0)
    return orders


def unmet(molecule: Molecule) -> NDArray[np.bool_]:
    """Whether the bonds of each atom add up to another number than the valence of its element, shape [N].

    Raises
    ------
    ValueError
        If an element is not in the table.
    """
    wrong: NDArray[np.bool_] = bond_orders(molecule).sum(axis=1) != _VALENCES[molecule.numbers]
    return wrong


def stability(molecule: Molecule) -> Stability:
    """How many atoms of a molecule have the valence of their element, and whether all do.

    Raises
    ------
    ValueError
        If an element is not in the table.
    """
    atoms = len(molecule.numbers)
    stable = atoms - int(unmet(molecule).sum())
    return Stability(stable, atoms, stable == atoms)


def _known(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Atomic numbers, all of which the table has."""
    numbers = np.asarray(numbers, dtype=np.int64)
    inside = (numbers >= 0) & (numbers < _SIZE)
    unknown = sorted(
        set(numbers[~inside].tolist()) | set(numbers[inside][_VALENCES[numbers[inside]] == 0].tolist())
    )
    if unknown:
        raise ValueError(
            f"no bond lengths for atomic numbers {unknown}: the table of bonds has {', '.join(VALENCES)} only"
        )
    return numbers
