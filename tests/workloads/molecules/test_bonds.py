"""Bonds and stability, against EDM's definitions written as a loop over pairs."""

import math
from itertools import pairwise

import numpy as np
import pytest
from drawn_molecules import g2, molecule, random_molecule

from mgpu_nb.workloads.molecules.bonds import VALENCES, bond_orders, stability, unmet
from mgpu_nb.workloads.molecules.molecule import ALPHABET, NUMBERS, Molecule

# Each pair once, in pm; the same numbers as in the public EDM's bonds1, bonds2 and bonds3.
SINGLE = {
    ("H", "H"): 74, ("H", "C"): 109, ("H", "N"): 101, ("H", "O"): 96, ("H", "F"): 92,
    ("C", "C"): 154, ("C", "N"): 147, ("C", "O"): 143, ("C", "F"): 135,
    ("N", "N"): 145, ("N", "O"): 140, ("N", "F"): 136,
    ("O", "O"): 148, ("O", "F"): 142, ("F", "F"): 142,
}  # fmt: skip
DOUBLE = {
    ("C", "C"): 134, ("C", "N"): 129, ("C", "O"): 120, ("N", "N"): 125, ("N", "O"): 121, ("O", "O"): 121,
}  # fmt: skip
TRIPLE = {("C", "C"): 120, ("C", "N"): 116, ("C", "O"): 113, ("N", "N"): 110}

SYMBOL = {number: symbol for symbol, number in NUMBERS.items()}


def looked_up(table: dict[tuple[str, str], int], a: str, b: str) -> int | None:
    return table.get((a, b), table.get((b, a)))


def order_of(a: str, b: str, distance: float) -> int:
    """Order of one pair at a distance in angstrom, as EDM's nested conditions have it."""
    pm = 100 * distance
    single, double, triple = (looked_up(table, a, b) for table in (SINGLE, DOUBLE, TRIPLE))
    assert single is not None
    if pm < single + 10:
        if double is not None and pm < double + 5:
            if triple is not None and pm < triple + 3:
                return 3
            return 2
        return 1
    return 0


def by_loop(molecule: Molecule) -> tuple[list[list[int]], int, bool]:
    """Orders, the number of stable atoms, whether all are."""
    n = len(molecule.numbers)
    orders = [[0] * n for _ in range(n)]
    for i in range(n):
        for j in range(i + 1, n):
            p, q = molecule.positions[i], molecule.positions[j]
            distance = float(np.sqrt(np.sum((p - q) ** 2)))
            a, b = SYMBOL[int(molecule.numbers[i])], SYMBOL[int(molecule.numbers[j])]
            orders[i][j] = orders[j][i] = order_of(a, b, distance)
    valences = {"H": 1, "C": 4, "N": 3, "O": 2, "F": 1}
    stable = sum(
        sum(row) == valences[SYMBOL[int(number)]]
        for row, number in zip(orders, molecule.numbers, strict=True)
    )
    return orders, stable, stable == n


@pytest.mark.parametrize("seed", range(100))
def test_orders_and_stability_are_those_of_the_loop(seed: int) -> None:
    drawn = random_molecule(seed)
    orders, stable, whole = by_loop(drawn)
    assert bond_orders(drawn).tolist() == orders
    assert stability(drawn) == (stable, len(drawn.numbers), whole)
    sums = zip(map(sum, orders), drawn.numbers.tolist(), strict=True)
    assert unmet(drawn).tolist() == [total != VALENCES[SYMBOL[number]] for total, number in sums]


@pytest.mark.parametrize("a", ALPHABET)
@pytest.mark.parametrize("b", ALPHABET)
def test_limits_are_exact(a: str, b: str) -> None:
    for table, margin in ((SINGLE, 10), (DOUBLE, 5), (TRIPLE, 3)):
        length = looked_up(table, a, b)
        if length is None:
            continue
        limit = (length + margin) / 100
        for distance in (
            math.nextafter(limit, 0),
            limit,
            math.nextafter(limit, 9),
            limit - 1e-4,
            limit + 1e-4,
        ):
            pair = molecule(a + b, [[0, 0, 0], [distance, 0, 0]])
            found = bond_orders(pair)
            assert found[0, 1] == found[1, 0] == order_of(a, b, distance)


def test_a_higher_order_has_a_shorter_limit() -> None:
    for pair in SINGLE:
        limits = [
            length + margin
            for table, margin in ((SINGLE, 10), (DOUBLE, 5), (TRIPLE, 3))
            if (length := table.get(pair)) is not None
        ]
        assert all(a > b for a, b in pairwise(limits))


@pytest.mark.parametrize(
    ("name", "orders"),
    [
        ("CH4", {1: 4}),
        ("H2O", {1: 2}),
        ("NH3", {1: 3}),
        ("HF", {1: 1}),
        ("C2H4", {1: 4, 2: 1}),
        ("C2H2", {1: 2, 3: 1}),
        ("HCN", {1: 1, 3: 1}),
        ("N2", {3: 1}),
        ("H2CO", {1: 2, 2: 1}),
        ("CO2", {2: 2}),
        ("CH3CH2OH", {1: 8}),
    ],
)
def test_molecules_of_chemistry_are_stable(name: str, orders: dict[int, int]) -> None:
    known = g2(name)
    found = np.triu(bond_orders(known))
    assert {order: int((found == order).sum()) for order in (1, 2, 3) if (found == order).any()} == orders
    n = len(known.numbers)
    assert stability(known) == (n, n, True)


def test_all_of_g2_as_the_loop_has_it() -> None:
    collections = pytest.importorskip("ase.collections")
    names = [n for n in collections.g2.names if set(collections.g2[n].symbols) <= set(ALPHABET)]
    assert len(names) > 80
    whole = 0
    for name in names:
        known = g2(name)
        orders, stable, is_whole = by_loop(known)
        assert bond_orders(known).tolist() == orders
        assert stability(known) == (stable, len(known.numbers), is_whole)
        whole += is_whole
    assert 0.5 < whole / len(names) < 1  # radicals and atoms are among them


def test_there_is_no_aromatic_bond() -> None:
    benzene = g2("C6H6")
    orders = bond_orders(benzene)
    carbon = benzene.numbers == 6
    assert orders[np.ix_(carbon, carbon)].sum() == 6 * 2  # 139.5 pm, of a double bond at most 139
    assert stability(benzene) == (6, 12, False)
    assert by_loop(benzene)[1:] == (6, False)


def test_pieces_far_apart_are_stable_together() -> None:
    water = g2("H2O")
    two = Molecule(np.tile(water.numbers, 2), np.concatenate([water.positions, water.positions + 50]))
    assert stability(two) == (6, 6, True)
    assert bond_orders(two)[:3, 3:].sum() == 0


def test_an_atom_alone_is_not_stable() -> None:
    for symbol in ALPHABET:
        alone = molecule(symbol, [[0.1, 0.2, 0.3]])
        assert bond_orders(alone).tolist() == [[0]]
        assert stability(alone) == (0, 1, False)


def test_atoms_in_one_place_are_bonded_as_closely_as_their_elements_can() -> None:
    assert bond_orders(molecule("CN", np.zeros((2, 3)))).tolist() == [[0, 3], [3, 0]]
    assert stability(molecule("HHH", np.zeros((3, 3)))) == (0, 3, False)
    assert stability(molecule("CO", np.zeros((2, 3)))) == (0, 2, False)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200])
def test_positions_that_are_no_numbers_have_no_bonds(bad: float) -> None:
    positions = np.array([[0, 0, 0], [0, 0, 0.74], [bad, bad, bad], [bad, bad, bad]])
    orders = bond_orders(molecule("HHHH", positions))
    assert orders[0, 1] == 1
    if not math.isfinite(bad):
        assert orders[2:].sum() == 0


def test_any_order_of_the_atoms_gives_the_same() -> None:
    drawn = random_molecule(7)
    order = np.random.default_rng(0).permutation(len(drawn.numbers))
    shuffled = Molecule(drawn.numbers[order], drawn.positions[order])
    assert (bond_orders(shuffled) == bond_orders(drawn)[np.ix_(order, order)]).all()
    assert stability(shuffled) == stability(drawn)


@pytest.mark.parametrize("numbers", [[17, 1], [5], [0], [-1], [100], [6, 2]])
def test_an_element_without_lengths_is_named(numbers: list[int]) -> None:
    strange = Molecule(np.array(numbers, dtype=np.int64), np.zeros((len(numbers), 3)))
    with pytest.raises(ValueError, match=r"no bond lengths for atomic numbers \[.*H, C, N, O, F only"):
        stability(strange)


def test_valences_are_those_of_the_alphabet() -> None:
    assert VALENCES == {"H": 1, "C": 4, "N": 3, "O": 2, "F": 1}
    assert tuple(VALENCES) == ALPHABET
