"""Files: read back by ASE, by RDKit and by ourselves, exactly as many as there are molecules."""

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

from mgpu_nb.workloads.molecules.files import (
    write_chain,
    write_metrics,
    write_molecules,
    write_summary,
    xyz_text,
)
from mgpu_nb.workloads.molecules.intervals import NOTHING, Estimate
from mgpu_nb.workloads.molecules.molecule import ALPHABET, NUMBERS, Molecule
from mgpu_nb.workloads.molecules.reader import read_xyz


def drawn(seed: int, atoms: int | None = None) -> Molecule:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 12)) if atoms is None else atoms
    positions = rng.normal(size=(n, 3)) * 10.0 ** rng.integers(-9, 2, size=(n, 3))
    if seed % 2:
        positions = positions.astype(np.float32).astype(np.float64)
    return Molecule(rng.choice(list(NUMBERS.values()), n).astype(np.int64), positions)


def same(one: Molecule, other: Molecule) -> bool:
    return bool(
        np.array_equal(one.numbers, other.numbers) and one.positions.tobytes() == other.positions.tobytes()
    )


@pytest.mark.parametrize("n", [1, 7, 50, 251, 1003])
def test_exactly_n_files_come_and_read_back_bit_for_bit(tmp_path: Path, n: int) -> None:
    molecules = [drawn(seed) for seed in range(n)]
    folder = tmp_path / "baseline"
    written = write_molecules(folder, molecules, "baseline")
    found = sorted(folder.iterdir())
    assert found == written[:-1]
    assert len(found) == len(list(folder.glob("molecule_baseline_*.xyz"))) == n
    assert found[0].name == ("molecule_baseline_000.xyz" if n < 1001 else "molecule_baseline_0000.xyz")
    for path, molecule in zip(found, molecules, strict=True):
        (read,) = read_xyz(path)
        assert same(read, molecule)
    assert written[-1] == tmp_path / "baseline.xyz"
    assert all(same(a, b) for a, b in zip(read_xyz(written[-1]), molecules, strict=True))
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["baseline", "baseline.xyz"]


@pytest.mark.parametrize("n", [1, 7, 50])
def test_ase_reads_what_was_written(tmp_path: Path, n: int) -> None:
    read = pytest.importorskip("ase.io").read
    molecules = [drawn(seed) for seed in range(n)]
    energies = [None if seed == 3 else -1e3 * seed for seed in range(n)]
    written = write_molecules(tmp_path / "guided_scale_0.0005", molecules, "guided", energies=energies)
    frames = read(written[-1], ":")
    assert len(frames) == n
    for index, (path, atoms) in enumerate(zip(written, [*frames, None], strict=True)):
        if atoms is None:
            continue
        for one in (read(path), atoms):
            assert same(Molecule(one.numbers.astype(np.int64), one.positions), molecules[index])
            assert one.info["index"] == index
            assert not one.pbc.any()
            if energies[index] is None:
                assert one.calc is None
            else:
                assert one.get_potential_energy() == energies[index]


def test_rdkit_reads_what_was_written() -> None:
    chem = pytest.importorskip("rdkit.Chem")
    for seed in range(60):
        molecule = drawn(seed)
        read = chem.MolFromXYZBlock(xyz_text(molecule, index=seed, energy=-1e-7))
        assert [atom.GetAtomicNum() for atom in read.GetAtoms()] == molecule.numbers.tolist()
        assert read.GetConformer().GetPositions().tobytes() == molecule.positions.tobytes()


def test_what_a_longer_set_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "baseline"
    write_molecules(folder, [drawn(seed) for seed in range(1003)], "baseline")
    others = [
        "notes.txt",
        "molecule_guided_000.xyz",
        "molecule_baseline_best.xyz",
        "molecule_baseline_7.xyz.bak",
    ]
    for name in others:
        (folder / name).write_text("mine")
    (folder / "molecule_baseline_5555.xyz").mkdir()
    write_molecules(folder, [drawn(seed) for seed in range(50)], "baseline")
    kept = {path.name for path in folder.iterdir()}
    assert kept == {f"molecule_baseline_{n:03d}.xyz" for n in range(50)} | {
        *others,
        "molecule_baseline_5555.xyz",
    }
    assert len(read_xyz(tmp_path / "baseline.xyz")) == 50


def test_a_file_has_the_index_of_its_sample(tmp_path: Path) -> None:
    molecules = [drawn(seed) for seed in (12, 3, 1200)]
    write_molecules(tmp_path / "guided", molecules, "guided", indices=[12, 3, 1200])
    for seed in (12, 3, 1200):
        (read,) = read_xyz(tmp_path / "guided" / f"molecule_guided_{seed:04d}.xyz")
        assert same(read, drawn(seed))
    assert [same(a, b) for a, b in zip(read_xyz(tmp_path / "guided.xyz"), molecules, strict=True)] == [
        True
    ] * 3


def test_indices_that_come_twice_write_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must differ, got \[4\]"):
        write_molecules(tmp_path / "a", [drawn(0)] * 3, "a", indices=[4, 5, 4])
    with pytest.raises(ValueError, match="zip"):
        write_molecules(tmp_path / "a", [drawn(0)] * 3, "a", indices=[4, 5])
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    write_molecules(tmp_path / "a", [drawn(0)], "a")
    before = (tmp_path / "a.xyz").read_bytes()
    strange = Molecule(np.array([6, 92]), np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"atomic numbers \[92\] cannot be written"):
        write_molecules(tmp_path / "a", [drawn(1), strange], "a")
    assert (tmp_path / "a.xyz").read_bytes() == before
    assert same(read_xyz(tmp_path / "a" / "molecule_a_000.xyz")[0], drawn(0))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["molecule_a_000.xyz"]


def test_a_chain_is_one_file_of_its_frames(tmp_path: Path) -> None:
    read = pytest.importorskip("ase.io").read
    frames = [drawn(seed, atoms=9) for seed in range(100)]
    path = write_chain(tmp_path / "chain_baseline" / "chain.xyz", frames, index=7)
    assert all(same(a, b) for a, b in zip(read_xyz(path), frames, strict=True))
    seen = read(path, ":")
    assert [(a.info["index"], a.info["frame"]) for a in seen] == [(7, n) for n in range(100)]


@pytest.mark.parametrize("value", [0.0, -0.0, 5e-324, 1e-17, 1e22, -123456.789, 0.1, 1 / 3])
def test_any_number_reads_back(value: float, tmp_path: Path) -> None:
    molecule = Molecule(np.array([1]), np.array([[value, 1.0, -value]]))
    path = tmp_path / "a.xyz"
    path.write_text(xyz_text(molecule))
    assert "e" not in path.read_text().splitlines()[2]
    np.testing.assert_array_equal(read_xyz(path)[0].positions, molecule.positions)
    assert np.signbit(read_xyz(path)[0].positions[0, 0]) == np.signbit(value)


def test_facts_that_are_not_known_are_left_out() -> None:
    text = xyz_text(drawn(0), index=3, energy=math.nan, frame=None)
    assert text.splitlines()[1] == 'Properties=species:S:1:pos:R:3 index=3 pbc="F F F"'


def test_facts_and_positions_of_numpy_are_plain_numbers(tmp_path: Path) -> None:
    single = Molecule(np.array([1]), np.array([[0.1, 0.2, 0.3]], dtype=np.float32))
    (tmp_path / "a.xyz").write_text(xyz_text(single, index=float(np.float32(4)), energy=np.float64(-1.5)))
    assert " index=4.0 energy=-1.5 " in (tmp_path / "a.xyz").read_text()
    assert (read_xyz(tmp_path / "a.xyz")[0].positions == single.positions).all()


def test_metrics_are_json_without_nan(tmp_path: Path) -> None:
    path = write_metrics(
        tmp_path / "eval" / "metrics.json",
        {
            "baseline": {"validity": Estimate(0.8, 0.7, 0.9, 50), "novelty": NOTHING, "scale": 0.0},
            "bad": [math.nan, np.float64(math.inf), np.float32(1.5), np.int64(3), np.array([1.0, math.nan])],
            "estimate": Estimate(math.nan, None, math.inf, 1),
            "none": None,
        },
    )

    def refuse(name: str) -> None:
        raise AssertionError(name)

    read = json.loads(path.read_text(), parse_constant=refuse)
    assert read == {
        "baseline": {
            "validity": {"value": 0.8, "low": 0.7, "high": 0.9, "n": 50},
            "novelty": {"value": None, "low": None, "high": None, "n": 0},
            "scale": 0.0,
        },
        "bad": [None, None, 1.5, 3, [1.0, None]],
        "estimate": {"value": None, "low": None, "high": None, "n": 1},
        "none": None,
    }


def test_the_summary_is_a_row_per_set(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {
            "set": "baseline",
            "scale": None,
            "n": 50,
            "validity": Estimate(0.8, 0.7, 0.9, 50),
            "seconds": math.nan,
        },
        {"set": '=HYPERLINK("a")', "scale": 0.0005, "n": 50, "validity": NOTHING, "failed_calls": 3},
        {"set": "-1+1", "scale": -0.5, "n": 50, "validity": Estimate(-0.25, None, None, 50), "+x": "@a"},
    ]
    path = write_summary(tmp_path / "summary.csv", rows)
    table = list(csv.DictReader(io.StringIO(path.read_text())))
    columns = [
        "set",
        "scale",
        "n",
        "validity",
        "validity_low",
        "validity_high",
        "seconds",
        "failed_calls",
        "'+x",
    ]
    assert list(table[0]) == columns
    assert [list(row.values()) for row in table] == [
        ["baseline", "", "50", "0.8", "0.7", "0.9", "", "", ""],
        ['\'=HYPERLINK("a")', "0.0005", "50", "", "", "", "", "3", ""],
        ["'-1+1", "-0.5", "50", "-0.25", "", "", "", "", "'@a"],
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["summary.csv"]


def test_all_elements_of_the_alphabet_are_written(tmp_path: Path) -> None:
    every = Molecule(np.array([NUMBERS[s] for s in ALPHABET]), np.zeros((5, 3)))
    path = tmp_path / "a.xyz"
    path.write_text(xyz_text(every))
    assert [line.split()[0] for line in path.read_text().splitlines()[2:]] == list(ALPHABET)
    assert same(read_xyz(path)[0], every)
