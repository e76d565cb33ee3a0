"""The page of the workload, its docstring: files have the columns that it names."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from mgpu_nb import GPUPool
from mgpu_nb.workloads import tracin

PAGE = str(tracin.__doc__)


def named(what: str) -> list[str]:
    """Columns that the page lists behind the name of a file or a function, up to a full stop or a semicolon."""
    (found,) = re.findall(rf"``{re.escape(what)}``:\s([^.;]*)[.;]", PAGE)
    return re.sub(r"\(.*?\)", "", found).replace("\n", " ").replace(" ", "").split(",")


def options(small: dict[str, Any], folder: Path) -> dict[str, Any]:
    torch.save(tracin.ConvE(tracin.Shape(5, 2, 2, 4, 2)).state_dict(), folder / "model.pt")
    return {**small, "model_path": str(folder / "model.pt")}


@pytest.mark.slow
def test_files_have_the_columns_that_the_page_names(small: dict[str, Any], tmp_path: Path) -> None:
    tables: dict[str, Any] = {f"{kind}_output": str(tmp_path / f"all.{kind}") for kind in ("csv", "parquet")}
    own: dict[str, Any] = {f"{kind}_output": str(tmp_path / f"self.{kind}") for kind in ("csv", "parquet")}
    given = options(small, tmp_path)
    configs: dict[str, tracin.Config] = {
        "all": tracin.Config(**given, **tables, top_k=None),
        "self": tracin.Config(**given, **own, mode="self"),
        "batch": tracin.BatchConfig(**given, output_dir=str(tmp_path / "batch")),
    }
    with GPUPool(slots=1) as pool:
        runs = {name: tracin.start(each, pool).wait(60) for name, each in configs.items()}
    folder = Path(str(runs["all"].folder))
    report = tracin.collect(runs["all"])
    report.save()
    tracin.collect(runs["self"]).save()
    tracin.summarise(runs["batch"])

    results = json.loads((folder / "results" / "results.json").read_text())
    assert list(results) == named("results/results.json")
    (one,) = results["results"]
    words = re.findall(r"\w+", PAGE[PAGE.index("``results/results.json``") : PAGE.index("- ``csv_output``")])
    assert {*one, *one["top_influences"][0], "self_influence", "unseen", "rank_agreement"} <= {*words}
    csv, parquet = named("csv_output"), named("parquet_output")
    assert list(pd.read_csv(tmp_path / "all.csv")) == csv
    start = csv.index("TrainHead")
    assert list(pd.read_csv(tmp_path / "self.csv")) == [name for name in csv[start:] if name != "TracInScore"]
    assert list(pd.read_parquet(tmp_path / "all.parquet")) == parquet
    assert set(report.frame()) == {*parquet}
    of_self = ", ".join(map(str, pd.read_parquet(tmp_path / "self.parquet")))
    assert f"in mode self {of_self}." in " ".join(PAGE.split())
    assert [path.parent.name for path in folder.rglob("*.npy")] == ["influences"]
    (path,) = (tmp_path / "batch").glob("triple_0_e0_e2_tracin.csv")
    assert list(pd.read_csv(path)) == csv
    summary = json.loads((tmp_path / "batch" / "batch_tracin_summary.json").read_text())
    assert list(summary) == named("batch_tracin_summary.json")
    (entry,) = summary["results"]
    listed = re.findall(r"(?s)triple (index, .*?error)\.", PAGE)[0]
    assert list(entry) == re.sub(r"\(.*?\)", "", listed).replace(" ", "").replace("\n", "").split(",")
    assert (
        list(report.influence(0))
        == named("influence(test)``, ``proponents(test, k)``, ``opponents(test, k)")[:-1]
    )
    assert list(report.most_self_influential(1)) == named("most_self_influential(k)")


@pytest.mark.slow
def test_every_file_of_a_training_is_on_the_page(tmp_path: Path) -> None:
    tracin.fit(tracin.TrainConfig(epochs=1, checkpoints=1, batch_size=480), tmp_path)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert [name for name in files if f"``{name}``" not in PAGE] == []
    assert {"loss", "seconds", "mrr", "hits_at_10"} <= json.loads(
        (tmp_path / "training.json").read_text()
    ).keys()


def test_every_option_that_the_page_names_is_one() -> None:
    given = re.findall(r"``(\w+)(?:=[^`]*)?``", PAGE)
    known = {*tracin.Config.__dataclass_fields__, *tracin.BatchConfig.__dataclass_fields__}
    others = {
        "model_state_dict",
        "state_dict",
        "config",
        "results",
        "test",
        "train",
        "batch",
        "self_influence",
        "score",
    }
    assert {*given} - known - others == set()


def test_every_name_that_the_page_quotes_is_exported() -> None:
    assert {*re.findall(r"(?<!`)`(\w+)`(?!`)", PAGE)} <= {*tracin.__all__}


def test_an_influence_is_what_a_step_of_sgd_takes_off_the_loss() -> None:
    torch.manual_seed(0)
    model = tracin.ConvE(tracin.Shape(5, 2, 2, 4, 2)).double().eval()
    train, test, rate = torch.tensor([[0, 0, 1]]), torch.tensor([[0, 1, 1]]), 1e-4
    found = tracin.influence(model, train, test, learning_rate=rate, k=None).values[0, 0]

    def loss(triples: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.softplus(-model.score(triples)).sum()

    before = loss(test).item()
    torch.autograd.backward(loss(train))
    torch.optim.SGD(model.parameters(), lr=rate).step()
    assert before - loss(test).item() == pytest.approx(found, rel=1e-2)
    assert found != 0
