"""What comes back of an evaluation: exactly n molecules, files, tables, what is missing and what has failed."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_molecules import Ended, options, run_here

from mgpu_nb.workloads.base import Report as ReportProtocol
from mgpu_nb.workloads.molecules.config import Config
from mgpu_nb.workloads.molecules.reader import read_xyz
from mgpu_nb.workloads.molecules.report import Report, collect

pytestmark = pytest.mark.slow

PLACE = Path("eval", "mlff_guided")


@pytest.fixture(scope="module")
def config(model_path: str) -> Config:
    return Config(**options(model_path, relax=False, skip_chain=False, guidance_scales=(0.0, 0.01, 0.05)))


@pytest.fixture(scope="module")
def run(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    return run_here(config, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def report(run: Ended, config: Config) -> Report:
    return collect(run, config)


def without(run: Ended, *names: str) -> Ended:
    """The run with tasks that failed."""
    lost = [
        replace(record, status="error", value=None, error="ValueError: lost")
        if record.name in names
        else record
        for record in run.records
    ]
    return replace(run, records=lost)


@pytest.mark.parametrize(
    ("n", "chunk_size"),
    [(1, 3), (7, 3), (50, 8), (251, 100), pytest.param(1003, 250, marks=pytest.mark.slow)],
)
def test_exactly_n_molecules_come_out_and_are_read_back(
    model_path: str, tmp_path: Path, n: int, chunk_size: int
) -> None:
    changes: dict[str, Any] = {"n_samples": n, "chunk_size": chunk_size, "batch_size": 300, "n_nodes": 3}
    config = Config(**options(model_path, guidance_scales=(0.0,), judge=None, **changes))
    report = collect(run_here(config, tmp_path), config)
    report.save()
    place = tmp_path / PLACE
    for name, kind in (("baseline", "baseline"), ("guided_scale_0.0", "guided")):
        files = sorted((place / name).iterdir())
        assert len(files) == n
        assert files[0].name == f"molecule_{kind}_{0:0{max(3, len(str(n - 1)))}d}.xyz"
        frames = read_xyz(place / f"{name}.xyz")
        assert len(frames) == n
        for frame, molecule in zip(frames, report.molecules(name), strict=True):
            np.testing.assert_array_equal(frame.positions, molecule.positions)
    assert json.loads((place / "metrics.json").read_text())["sets"]["baseline"]["n"] == n


def test_the_tree_is_that_of_the_script(report: Report, tmp_path: Path) -> None:
    paths = report.save(tmp_path)
    place = tmp_path / PLACE
    assert {path.name for path in place.iterdir()} == {
        "baseline", "guided_scale_0.0", "guided_scale_0.01", "guided_scale_0.05", "chain_baseline", "chain_guided",
        "baseline.xyz", "guided_scale_0.0.xyz", "guided_scale_0.01.xyz", "guided_scale_0.05.xyz",
        "metrics.json", "summary.csv", "times.json",
    }  # fmt: skip
    assert sorted(paths) == sorted(path for path in place.rglob("*") if path.is_file())
    for name in ("chain_baseline", "chain_guided"):
        assert len(read_xyz(place / name / f"{name}.xyz")) == 100
    rows = list(csv.DictReader((place / "summary.csv").open()))
    assert [row["set"] for row in rows] == list(report.sets)
    assert [row["scale"] for row in rows] == ["", "0.0", "0.01", "0.05"]
    assert {row["n"] for row in rows} == {"7"}
    assert "seconds_per_molecule" not in rows[0]
    metrics = json.loads((place / "metrics.json").read_text())
    assert metrics["sets"]["guided_scale_0.05"]["scale_times_steps"] == 0.1
    assert metrics["best_guidance_scale"] in (0.01, 0.05)
    assert metrics["options"]["seed"] == 42
    times = json.loads((place / "times.json").read_text())
    assert times["baseline"]["seconds_per_molecule"]["value"] > 0


def test_scale_0_is_the_baseline_byte_by_byte(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path)
    one, other = tmp_path / PLACE / "baseline", tmp_path / PLACE / "guided_scale_0.0"
    for index in range(7):
        mine = (one / f"molecule_baseline_{index:03d}.xyz").read_bytes()
        assert (other / f"molecule_guided_{index:03d}.xyz").read_bytes() == mine
    sets = json.loads((tmp_path / PLACE / "metrics.json").read_text())["sets"]
    assert sets["guided_scale_0.0"]["difference"]["force_rms"]["value"] == 0
    assert sets["guided_scale_0.0"]["molecule_stability"] == sets["baseline"]["molecule_stability"]


def test_results_do_not_depend_on_chunks(run: Ended, report: Report, config: Config, tmp_path: Path) -> None:
    other = replace(config, chunk_size=5, batch_size=2, slots=3, output_dir="elsewhere")
    again = collect(run_here(other), other)
    report.save(tmp_path / "one")
    again.save(tmp_path / "other")
    for path in (tmp_path / "one").rglob("*"):
        if path.is_file() and path.name != "times.json":
            twin = tmp_path / "other" / path.relative_to(tmp_path / "one")
            assert twin.read_bytes() == path.read_bytes(), path


@pytest.mark.slow
def test_the_report_shows_itself(report: Report) -> None:
    assert isinstance(report, ReportProtocol)
    text = str(report)
    assert "guided_scale_0.05" in text
    assert "Best: scale 0.0" in text
    assert "<table" in report._repr_html_()
    frame = report.frame()
    assert list(frame.index) == ["baseline", "guided_scale_0.0", "guided_scale_0.01", "guided_scale_0.05"]
    assert frame.loc["baseline", "n"] == 7
    assert frame["force_rms_low"].le(frame["force_rms"]).all()
    assert {"scale_times_steps", "missing", "validity_high", "seconds_per_molecule"} <= set(frame.columns)
    report.plot().figure.canvas.draw()
    report.plot(metric="force_rms").figure.canvas.draw()
    report.plot_metrics()[0].figure.canvas.draw()
    report.plot_trajectory().figure.canvas.draw()
    with pytest.raises(ValueError, match="did you mean 'validity'"):
        report.plot(metric="validty")
    assert "<" in report.show()._repr_html_()
    assert report.baseline is report.sets["baseline"]
    assert report.best is not None
    assert report.best.scale == report.headline["best_guidance_scale"]


def test_samples_that_are_missing_are_told_and_the_others_written(
    run: Ended, config: Config, tmp_path: Path
) -> None:
    lost = next(record for record in run.records if record.name.startswith("baseline-"))
    indices = lost.value["rows"]["index"].tolist()
    left = [index for index in range(7) if index not in indices]
    assert left
    report = collect(without(run, lost.name, "chain_guided"), config)
    assert report.missing == dict.fromkeys(("baseline", "guided_scale_0.0"), tuple(indices))
    assert f"baseline: {len(indices)} of 7 samples are missing: {indices[0]}" in str(report)
    assert f"{lost.name}: ValueError: lost" in str(report)
    report.save(tmp_path)
    names = sorted(path.name for path in (tmp_path / PLACE / "baseline").iterdir())
    assert names == [f"molecule_baseline_{index:03d}.xyz" for index in left]
    sets = json.loads((tmp_path / PLACE / "metrics.json").read_text())["sets"]
    assert (sets["baseline"]["n"], sets["baseline"]["missing"]) == (len(left), indices)
    assert sets["guided_scale_0.01"]["n"] == 7
    assert sets["guided_scale_0.01"]["difference"]["force_rms"]["n"] == len(left)  # pairs
    assert not (tmp_path / PLACE / "chain_guided").exists()
    nothing = replace(run, records=[])
    with pytest.raises(ValueError, match=r"the run has no samples \(it has not ended\)"):
        collect(nothing, config)


def test_a_set_that_is_missing_is_shown_as_such(run: Ended, config: Config) -> None:
    lost = [name for name in run.tasks if name.startswith("guided_scale_0.05")]
    report = collect(without(run, *lost), config)
    assert [of.scale for of in report.guided] == [0.01]
    assert "guided_scale_0.05: 7 of 7 samples are missing: 0 to 6" in str(report)
    assert report.frame().loc["guided_scale_0.05", "n"] == 0
    report.plot().figure.canvas.draw()


def test_without_a_baseline_there_is_nothing_to_compare_with(
    run: Ended, config: Config, tmp_path: Path
) -> None:
    report = collect(without(run, *(name for name in run.tasks if name.startswith("baseline"))), config)
    assert report.headline["stability_improvement"] is None
    assert "7 of 7 samples are missing: 0 to 6" in str(report)
    report.save(tmp_path)
    assert read_xyz(tmp_path / PLACE / "baseline.xyz") == []
    with pytest.raises(ValueError, match="did you mean 'baseline'"):
        report.molecules("basline")
    alone = replace(config, skip_baseline=True, guidance_scales=(0.01,))
    report = collect(run, alone)
    assert list(report.sets) == ["guided_scale_0.01"]
    assert report.baseline is None


def test_a_force_field_that_always_fails_is_an_error(model_path: str) -> None:
    config = Config(**options(model_path, mlff_model="tiny_molecules:Broken"))
    with pytest.raises(
        ValueError, match=r"'broken|tiny_molecules:Broken' failed on each of \d+ calls.*no convergence"
    ):
        collect(run_here(config), config)


def test_a_judge_that_always_fails_is_an_error_unless_there_are_few_samples(model_path: str) -> None:
    config = Config(**options(model_path, judge="tiny_molecules:Broken"))
    with pytest.raises(ValueError, match="judge='tiny_molecules:Broken' failed on each of 14 calls"):
        collect(run_here(config), config)
    few = replace(config, n_samples=2)
    assert "100.0% of the calls of the judge failed" in str(collect(run_here(few), few))


def test_a_force_field_that_does_not_load_is_an_error(model_path: str) -> None:
    config = Config(**options(model_path, mlff_model="tiny_molecules:cannot_be_made"))
    with pytest.raises(
        ValueError, match=r"guided_scale_\S+ has no samples: 'tiny_molecules:cannot_be_made' does not load"
    ):
        collect(run_here(config), config)


def test_sets_of_former_options_leave_and_other_files_stay(
    run: Ended, config: Config, tmp_path: Path
) -> None:
    collect(run, config).save(tmp_path)
    place = tmp_path / PLACE
    (place / "guided_scale_0.05" / "notes.txt").write_text("mine")
    (place / "guided_scale.png").write_text("mine")
    fewer = replace(config, guidance_scales=(0.01,), skip_chain=True)
    collect(run, fewer).save(tmp_path)
    assert {path.name for path in place.iterdir()} == {
        "baseline", "baseline.xyz", "guided_scale_0.01", "guided_scale_0.01.xyz", "guided_scale_0.05",
        "guided_scale.png", "metrics.json", "summary.csv", "times.json",
    }  # fmt: skip
    assert [path.name for path in (place / "guided_scale_0.05").iterdir()] == ["notes.txt"]


def test_calls_that_fail_now_and_then_are_told(model_path: str) -> None:
    config = Config(**options(model_path, mlff_model="tiny_molecules:Moody", judge="tiny_molecules:Moody"))
    report = collect(run_here(config), config)
    fives = sum(len(molecule.numbers) == 5 for molecule in report.molecules())
    assert 0 < fives < 7
    assert report.sets["guided_scale_0.01"].metrics["guide_failures"].value == pytest.approx(fives / 7)
    assert f"guided_scale_0.01: {fives / 7:.1%} of the calls of the guide failed" in str(report)
    assert f"baseline: {fives / 7:.1%} of the calls of the judge failed" in str(report)


def test_a_folder_of_the_results_name_holds_them_itself(run: Ended, config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "edm_1" / PLACE
    paths = collect(replace(run, folder=folder), config).save()
    assert folder / "metrics.json" in paths
    assert (folder / "baseline" / "molecule_baseline_000.xyz").is_file()
    with pytest.raises(ValueError, match="nowhere to save"):
        collect(replace(run, folder=None), config).save()
