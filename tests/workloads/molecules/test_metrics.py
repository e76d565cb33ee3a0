"""Metrics of a set: each by its own denominator, unknown where there is none, differences by pairs."""

import math
from typing import Any

import numpy as np
import pytest
from drawn_molecules import Broken, Springs, g2, molecule, random_molecule, shaken

from mgpu_nb.workloads.molecules.bonds import stability
from mgpu_nb.workloads.molecules.intervals import NOTHING, RESAMPLES
from mgpu_nb.workloads.molecules.metrics import METRICS, compare, summarise, totals
from mgpu_nb.workloads.molecules.molecule import Molecule
from mgpu_nb.workloads.molecules.rows import Rows, join, measure

pytest.importorskip("rdkit")

WATER, METHANE = "[H]O[H]", "[H]C([H])([H])[H]"


def some(n: int = 40, by: float = 0.12, judged: bool = True, **options: Any) -> Rows:
    names = ("H2O", "CH4", "NH3", "C2H4")
    molecules = [shaken(names[n % 4], n, by) for n in range(n)]
    return measure(molecules, range(n), judge=Springs() if judged else None, **options)


def test_each_metric_has_its_denominator() -> None:
    clash = molecule("HHH", np.zeros((3, 3)))  # invalid
    carbon = molecule("C", [[0, 0, 0]])  # valid, its atom not stable
    molecules = [g2("H2O"), g2("H2O"), g2("CH4"), clash, carbon]
    found = summarise(measure(molecules, range(5)), known={WATER, "anything"})
    assert found["molecule_stability"].value == 3 / 5
    assert found["atom_stability"].value == (3 + 3 + 5) / (3 + 3 + 5 + 3 + 1)
    assert found["validity"].value == 4 / 5
    assert (found["uniqueness"].value, found["uniqueness"].n) == (3 / 4, 4)
    assert (found["novelty"].value, found["novelty"].n) == (2 / 3, 3)
    assert found["validity"].n == found["atom_stability"].n == 5


def test_stability_counts_as_edm_counts() -> None:
    molecules = [random_molecule(seed, most=5) for seed in range(60)]
    each = [stability(one) for one in molecules]
    found = summarise(measure(molecules, range(60)))
    assert found["molecule_stability"].value == sum(one.whole for one in each) / 60
    assert found["atom_stability"].value == sum(one.stable for one in each) / sum(one.atoms for one in each)


@pytest.mark.slow
def test_all_metrics_have_names_and_intervals() -> None:
    found = summarise(some(seconds=0.25, force_calls=20, failed_calls=1, relax_calls=4), known=[METHANE])
    assert tuple(found) == METRICS
    for name, one in found.items():
        assert one.value is not None, name
        assert one.low is not None, name
        assert one.high is not None, name
        assert one.low <= one.value <= one.high, name
        assert all(type(end) is float for end in one[:3]), name
    assert found["force_calls_per_molecule"].value == 20
    assert found["guide_failures"].value == 1 / 20
    assert found["seconds_per_molecule"].value == 0.25
    assert found["judge_failures"].value == 0


def test_forces_are_medians_of_what_the_judge_could_say() -> None:
    rows = measure([shaken("CH4", n) for n in range(9)], range(9), judge=Springs(fails={2, 3}))
    found = summarise(rows)
    known = rows["force_rms"][np.isfinite(rows["force_rms"])]
    assert len(known) == 7
    assert (found["force_rms"].value, found["force_rms"].n) == (float(np.median(known)), 7)
    assert found["force_rms_mean"].value == pytest.approx(known.mean())
    assert found["judge_failures"].value == 2 / 9


def test_nothing_valid_and_every_judge_call_failed() -> None:
    clash = molecule("HHH", np.zeros((3, 3)))
    found = summarise(measure([clash] * 8, range(8), judge=Broken()), known=[])
    assert found["validity"].value == 0
    assert found["molecule_stability"].value == 0
    for name in ("uniqueness", "novelty", "force_rms", "force_rms_mean", "force_max", "energy_per_atom",
                 "relaxation_gap", "guide_failures", "seconds_per_molecule"):  # fmt: skip
        assert found[name] == NOTHING, name
    assert found["judge_failures"].value == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_few_molecules_give_numbers_or_nothing_and_never_nan(n: int) -> None:
    for rows in (some(n, judged=False), some(n), some(n, force_calls=3, failed_calls=3)):
        for name, one in {**summarise(rows, known=[]), **compare(rows, some(n))}.items():
            assert not any(isinstance(end, float) and math.isnan(end) for end in one), name
            if n == 0:
                assert one.value is None, name


def test_the_order_of_rows_changes_no_bit() -> None:
    rows = some(seconds=np.linspace(0.1, 0.9, 40), force_calls=7, failed_calls=np.arange(40) % 3)
    order = np.random.default_rng(0).permutation(40)
    molecules: dict[str, Any] = {
        name: [column[n] for n in order] if name == "smiles" else column[order]
        for name, column in rows.items()
        if isinstance(column, (list, np.ndarray))
    }
    shuffled: Any = molecules
    assert summarise(shuffled, known=[WATER]) == summarise(rows, known=[WATER])
    other = some(by=0.2)
    assert compare(shuffled, other) == compare(rows, other)
    assert compare(join([rows]), other, seed=1) != compare(rows, other, seed=2)
    assert RESAMPLES == 1000


def test_guided_less_baseline_is_by_pairs() -> None:
    near = [shaken(name, n, by) for n, (name, by) in enumerate([("H2O", 0.02), ("CH4", 0.02)] * 30)]
    far = [shaken(name, n, by) for n, (name, by) in enumerate([("H2O", 0.3), ("CH4", 0.3)] * 30)]
    guided = measure(near, range(60), judge=Springs())
    other = measure(far, range(60), judge=Springs())
    found = compare(guided, other)
    for name in ("molecule_stability", "atom_stability"):
        low = found[name].low
        assert low is not None
        assert low > 0, name
    stable = guided["stable"].sum() - other["stable"].sum()
    assert found["atom_stability"].value == pytest.approx(stable / guided["atoms"].sum())
    medians = np.median(guided["force_rms"]), np.median(other["force_rms"])
    assert found["force_rms"].value == pytest.approx(medians[0] - medians[1])
    assert found["force_rms_change"].value == pytest.approx(medians[0] / medians[1] - 1)
    assert found["force_rms"].n == 60


def test_only_samples_of_both_sets_are_compared() -> None:
    molecules = [shaken("CH4", n) for n in range(20)]
    one = measure(molecules[:15], range(15), judge=Springs(fails={1}))
    other = measure(molecules[5:], range(5, 20), judge=Springs(fails={2}))
    found = compare(one, other)
    assert found["validity"].n == 10
    assert found["force_rms"].n == 9
    assert compare(one, measure(molecules[15:], range(15, 20)))["validity"] == NOTHING


def test_the_same_molecules_differ_by_nothing_for_certain() -> None:
    rows = some()
    for name, one in compare(rows, rows).items():
        if name == "relaxation_gap":
            assert one == NOTHING
        else:
            assert one == (0, 0, 0, 40), name
    # As many that are stable, but other molecules: not certain.
    others = compare(some(by=0.001), some(by=0.002))
    value, low, _, _ = others["molecule_stability"]
    assert value == 0
    assert low is not None
    assert low < 0


def test_sets_of_other_noise_are_not_compared() -> None:
    one = measure([g2("CH4"), g2("H2O")], [0, 1])
    other = measure([g2("H2O"), g2("CH4")], [0, 1])
    with pytest.raises(ValueError, match="not of the same noise"):
        compare(one, other)


def test_totals_are_sums() -> None:
    rows = measure(
        [g2("H2O")] * 3, range(3), judge=Springs(fails={1}), seconds=[0.5, 0.25, 1], force_calls=[4, 5, 6],
        failed_calls=[0, 2, 6],
    )  # fmt: skip
    assert totals(rows) == {
        "seconds": 1.75, "force_calls": 15, "failed_calls": 8, "judge_calls": 3, "judge_failed": 1,
    }  # fmt: skip
    assert totals(measure([g2("H2O")], [0]))["seconds"] is None
    assert totals(join([])) == {
        "seconds": 0.0, "force_calls": 0, "failed_calls": 0, "judge_calls": 0, "judge_failed": 0,
    }  # fmt: skip


def test_uniqueness_knows_molecules_whatever_the_order_of_their_atoms() -> None:
    known = g2("CH3CH2OH")
    molecules = []
    for seed in range(7):
        order = np.random.default_rng(seed).permutation(len(known.numbers))
        molecules.append(Molecule(known.numbers[order], known.positions[order]))
    assert summarise(measure(molecules, range(7)))["uniqueness"].value == 1 / 7
