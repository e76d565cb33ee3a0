"""The page of the workload, its docstring: what it names is what there is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from tiny_molecules import options, run_here

from mgpu_nb.workloads import molecules
from mgpu_nb.workloads.molecules import METRICS, Config, Report, measure, read_xyz
from mgpu_nb.workloads.molecules.forces import FIELDS
from mgpu_nb.workloads.molecules.published import FILES
from mgpu_nb.workloads.molecules.rows import Rows

PAGE = str(molecules.__doc__)


def named(begin: str, end: str = "\n- ") -> set[str]:
    """Names in double backticks from some words of the page on, without those words."""
    text = PAGE[PAGE.index(begin) + len(begin) :]
    return set(re.findall(r"``([^`]+)``", text[: re.search(rf"{end}|\n\n", text).start()]))  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def report(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Report:
    config = Config(
        **options(model_path, n_samples=3, skip_chain=False, relax=True, guidance_scales=(0.005,))
    )
    report = molecules.collect(run_here(config, tmp_path_factory.mktemp("run")), config)
    report.save()
    return report


@pytest.fixture(scope="module")
def place(report: Report) -> Path:
    assert report.folder is not None
    return report.folder / "eval" / "mlff_guided"


def test_every_file_is_named(place: Path) -> None:
    sets = "(baseline|guided_scale_[0-9.]+|relaxed)"
    patterns = [
        re.escape(name)
        .replace("SET", sets)
        .replace("KIND", "(baseline|guided|relaxed)")
        .replace("000", "[0-9]+")
        for name in re.findall(r"``([^` ]+\.(?:xyz|csv|json))``", PAGE[PAGE.index("What comes out") :])
    ]
    files = [str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()]
    for file in files:
        assert any(re.fullmatch(pattern, file) for pattern in patterns), file
    for pattern in patterns:
        assert any(re.fullmatch(pattern, file) for file in files), pattern


def columns_of(frame: pd.DataFrame) -> set[str]:
    """Columns of a table, without those of the ends of intervals."""
    return {re.sub("_(low|high)$", "", str(column)) for column in frame}


def test_columns_of_the_table(report: Report, place: Path) -> None:
    columns = columns_of(pd.read_csv(place / "summary.csv"))
    assert named("``summary.csv``") == columns
    assert columns_of(report.frame().reset_index()) == columns | {"seconds_per_molecule"}


def test_keys_of_the_metrics(place: Path) -> None:
    metrics = json.loads((place / "metrics.json").read_text())
    assert named("``metrics.json``") == metrics.keys()
    found = metrics["sets"]["guided_scale_0.005"]
    assert named("Of a set in it") == found.keys() - set(METRICS)
    assert found.keys() & set(METRICS) == named("``summary.csv``") & set(METRICS)
    assert named("Of a trajectory") - {"potential"} == found["trajectory"].keys()
    assert list(found["validity"]) == ["value", "low", "high", "n"]
    times = json.loads((place / "times.json").read_text())
    assert named("``times.json``") == times["baseline"].keys()


def test_second_lines(report: Report, place: Path) -> None:
    for name in ("baseline/molecule_baseline_000.xyz", "guided_scale_0.005.xyz"):
        line = (place / name).read_text().splitlines()[1]
        assert set(re.findall(r"(\w+)=", line)) == {"Properties", "pbc"} | named("``SET.xyz``")
    chain = place / "chain_guided" / "chain_guided.xyz"
    assert set(re.findall(r"(\w+)=", chain.read_text().splitlines()[1])) == {
        "Properties",
        "pbc",
        "index",
        "frame",
    }
    assert len(read_xyz(chain)) == 100


def test_what_is_measured(tmp_path: Path) -> None:
    text = re.search(r"of QM9, a molecule for each frame::\n\n(.*?)\n\n", PAGE, re.S)
    assert text is not None
    (tmp_path / "water.xyz").write_text(re.sub("^ +", "", text[1], flags=re.M) + "\n")
    rows = measure(read_xyz(tmp_path / "water.xyz"), [0])
    assert rows["whole"].tolist() == [True]
    assert (
        rows.keys()
        == Rows.__annotations__.keys()
        == named("`measure` a dict of arrays [n] of molecules", r"\)")
    )


def test_what_goes_in() -> None:
    assert set(FILES) <= named("or\n  one of the public EDM", "Where it")
    assert set(FIELDS) <= named("``judge`` that measures")
    exported = set(re.findall(r"(?<!`)`([A-Za-z_]+)`(?!`)", PAGE)) - {"metrics"}
    assert exported <= {*molecules.__all__}


def test_options_are_those_of_the_config() -> None:
    options = named("Options that matter: ")
    assert {"guidance_scales", "seed"} < options <= Config.__dataclass_fields__.keys()
