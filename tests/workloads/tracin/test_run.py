"""An analysis from its config to its files, with real workers."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mgpu_nb import GPUPool, Run
from mgpu_nb.workloads import tracin
from mgpu_nb.workloads.tracin.checkpoints import load_conve

if TYPE_CHECKING:
    from tests.workloads.tracin.conftest import Trained

pytestmark = pytest.mark.slow


def auc(scores: npt.NDArray[Any], positive: npt.NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve."""
    ranks = np.argsort(np.argsort(scores))
    n = positive.sum()
    return float((ranks[positive].sum() - n * (n - 1) / 2) / (n * (len(scores) - n)))


def run(config: tracin.Config, folder: Path) -> Run:
    with GPUPool(slots=config.slots) as executor:
        return executor.run(tracin.tasks(config), name="tracin", folder=folder).wait(240)


def analysed(config: tracin.Config, folder: Path) -> tracin.Report:
    return tracin.collect(run(config, folder), config)


def exact(trained: Trained, rows: npt.NDArray[np.int64] | list[int], test: Tensor) -> npt.NDArray[np.float64]:
    """Influences by the loop, and nothing of ours around it."""
    train, loss = torch.from_numpy(trained.graph.train[rows]), tracin.LOSSES["softplus"]
    models = [load_conve(trained.folder / file, 120, 4).double() for file in trained.result["checkpoints"]]
    parts = [0.001 * tracin.products(model, loss, train, test, engine="loop") for model in models]
    total: npt.NDArray[np.float64] = torch.stack(parts).sum(0).numpy()
    return total


def test_planted_errors_and_duplicates_are_found(trained: Trained, tmp_path: Path) -> None:
    report = analysed(trained.config(top_k=3, max_test_triples=10), tmp_path / "run")
    wrong = np.zeros(len(trained.graph.train), bool)
    wrong[trained.graph.corrupted] = True
    assert auc(report.self_influence, wrong) > 0.95
    assert wrong[np.argsort(-report.self_influence)[:110]].mean() > 0.7
    for test, train in trained.graph.duplicates:
        assert report.proponents(int(test), 1).index[0] == train
    assert trained.result["hits_at_10"] > 0.8


def test_files_are_the_same_on_any_number_of_slots(trained: Trained, tmp_path: Path) -> None:
    contents = []
    for slots in (1, 2, 4):
        out = tmp_path / str(slots)
        names = {"csv_output": out / "r.csv", "parquet_output": out / "r.parquet", "output": out / "r.json"}
        config = trained.config(slots=slots, max_test_triples=4, **names)
        report = analysed(config, tmp_path / f"run-{slots}")
        paths = report.save()
        contents.append([path.read_bytes() for path in paths])
    assert len(contents[0]) == 3
    assert "train triples are split over 4 shards: a shard passes" in str(report)
    assert contents[0] == contents[1] == contents[2]


@pytest.mark.parametrize("side", ["train", "test"])
@pytest.mark.parametrize("top_k", [7, None])
def test_both_ways_to_split_and_all_or_some(
    trained: Trained, tmp_path: Path, side: str, top_k: int | None
) -> None:
    config = trained.config(top_k=top_k, max_test_triples=4, shard_by=side, batch_size=300)
    report = analysed(config, tmp_path / "run")
    rows = np.arange(0, len(trained.graph.train), 97)
    wanted = exact(trained, rows, torch.from_numpy(trained.graph.test[:4]))
    for n in range(4):
        found = report.of(n)
        assert len(found.index) == (top_k or len(trained.graph.train))
        assert (np.diff(np.abs(found.values)) <= 0).all()
        if top_k is None:
            back = np.empty(len(found.index))
            back[found.index] = found.values
            np.testing.assert_allclose(back[rows], wanted[:, n], rtol=1e-4, atol=1e-6)
    assert not np.isnan(report.self_influence).any()


def test_there_are_opponents_whatever_the_largest_are(trained: Trained, tmp_path: Path) -> None:
    few, every = (
        analysed(trained.config(top_k=top_k, max_test_triples=8), tmp_path / str(top_k))
        for top_k in (4, None)
    )
    for test in range(8):
        for kind in ("proponents", "opponents"):
            found, wanted = getattr(few, kind)(test, 4), getattr(every, kind)(test, 4)
            assert len(found) == 4
            pd.testing.assert_frame_equal(found, wanted)
        assert len(few.influence(test)) == 4  # the largest of either sign


def test_what_was_left_out_is_told(trained: Trained, tmp_path: Path) -> None:
    config = trained.config(max_test_triples=1, top_k=1)
    (more := tmp_path / "more.tsv").write_text("nobody\tr0\tc0e0\n" + Path(str(config.train)).read_text())
    report = analysed(dataclasses.replace(config, train=str(more), drop_unseen=True), tmp_path / "run")
    told = "left out of more.tsv: 1 triple of names that the maps do not have, first in line 1"
    assert told in str(report)
    (file,) = report.save()
    assert json.loads(file.read_text())["unseen"] == {"train": 1, "test": 0}


def test_files_hold_what_their_users_expect(trained: Trained, tmp_path: Path) -> None:
    labels = tmp_path / "labels.tsv"
    labels.write_text("c4e6\t=SUM(A1)\n")
    config = trained.config(
        test_indices=(0, 3), top_k=2, csv_output=tmp_path / "r.csv", parquet_output=tmp_path / "r.parquet",
        output=tmp_path / "r.json", entity_labels=labels,
    )  # fmt: skip
    analysed(config, tmp_path / "run").save()
    content = json.loads((tmp_path / "r.json").read_text())
    results = content.pop("results")
    assert content == {
        "num_test_triples": 2, "num_training_triples": 2370, "top_k": 2, "learning_rate": 0.001, "num_gpus_used": 0,
    }  # fmt: skip
    assert [set(result) for result in results] == [
        {"test_head", "test_relation", "test_tail", "top_influences"}
    ] * 2
    first = results[0]["top_influences"][0]
    assert (first["train_head"], first["train_relation"], first["train_tail"]) == ("c4e6", "r2", "c6e14")
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    parts = [f"{side}{part}" for side in ("Test", "Train") for part in ("Head", "Rel", "Tail")]
    sides = [f"{part}{kind}" for part in parts for kind in ("", "_label")]
    assert list(rows[0]) == [*sides, "TracInScore", "SelfInfluence"]
    assert rows[0]["TestHead_label"] == "'=SUM(A1)"
    assert float(rows[0]["TracInScore"]) == first["influence"]
    frame = pd.read_parquet(tmp_path / "r.parquet")
    assert frame["influence"].tolist() == [
        pytest.approx(entry["influence"]) for result in results for entry in result["top_influences"]
    ]
    assert frame["test"].tolist() == [0, 0, 3, 3]


def test_modes_self_and_single(trained: Trained, tmp_path: Path) -> None:
    config = trained.config(
        mode="self", csv_output=tmp_path / "self.csv", parquet_output=tmp_path / "self.parquet"
    )
    report = analysed(config, tmp_path / "self")
    report.save()
    content = json.loads((tmp_path / "self" / "results" / "results.json").read_text())
    values = [entry["self_influence"] for entry in content["results"]]
    assert values == sorted(values, reverse=True)
    assert len(values) == len(pd.read_parquet(tmp_path / "self.parquet")) == 2370
    assert "largest self-influences" in str(report)
    rows = [0, 500, 2000]
    wanted = np.diag(exact(trained, rows, torch.from_numpy(trained.graph.train[rows])))
    np.testing.assert_allclose(report.self_influence[rows], wanted, rtol=1e-4)
    single = analysed(trained.config(mode="single", test_indices=(3,), top_k=1), tmp_path / "single")
    assert single.influence().index[0] == trained.graph.duplicates[3][1]
    assert len(single.frame()) == 1


def test_mixed_precision_tells_how_far_ranks_agree(trained: Trained, tmp_path: Path) -> None:
    config = trained.config(use_mixed_precision=True, max_test_triples=8, top_k=5)
    report = analysed(config, tmp_path / "run")
    assert report.rank_agreement is not None
    assert 0.98 < report.rank_agreement < 1.0
    report.save()
    assert (
        json.loads((tmp_path / "run" / "results" / "results.json").read_text())["rank_agreement"]
        == report.rank_agreement
    )


def test_options_change_what_they_say(trained: Trained, tmp_path: Path) -> None:
    base = analysed(trained.config(max_test_triples=2, top_k=None), tmp_path / "base").of(0)
    same = {"batch_size": 100, "cache_test_gradients": False, "precision": "fp64"}
    for name, value in same.items():
        other = analysed(trained.config(max_test_triples=2, top_k=None, **{name: value}), tmp_path / name).of(
            0
        )
        np.testing.assert_allclose(np.sort(other.values), np.sort(base.values), rtol=1e-4, atol=1e-6)
        assert other.values.dtype == ("float64" if name == "precision" else "float32")
    different = {
        "use_last_layers_only": True,
        "layers": ("linear",),
        "loss": "bce",
        "learning_rate": (1, 2, 3, 4, 5),
    }
    for name, value in different.items():
        other = analysed(trained.config(max_test_triples=2, top_k=None, **{name: value}), tmp_path / name).of(
            0
        )
        assert np.abs(np.sort(other.values) - np.sort(base.values)).max() > 1e-4


class Distance(nn.Module):
    """A model of a user's: TransE."""

    def __init__(self) -> None:
        super().__init__()
        self.entities = nn.Embedding(120, 8)
        self.relations = nn.Embedding(4, 8)

    def forward(self, triples: Tensor) -> Tensor:
        head, relation, tail = triples.unbind(-1)
        gap: Tensor = self.entities(head) + self.relations(relation) - self.entities(tail)
        return -gap.square().sum(-1)


def margin(model: Distance, triples: Tensor) -> Tensor:
    return functional.softplus(-model(triples))


def test_a_model_and_a_loss_of_the_users(trained: Trained, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Distance()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "own.pt")
    train, test = torch.from_numpy(trained.graph.train), torch.from_numpy(trained.graph.test[:2])
    wanted = 0.001 * tracin.products(model.eval(), margin, train, test, engine="vmap")
    for engine in ("vmap", "jvp", "factored"):
        config = trained.config(
            model_path=tmp_path / "own.pt", model=f"{__name__}:Distance", loss=f"{__name__}:margin",
            engine=engine, max_test_triples=2, top_k=1,
        )  # fmt: skip
        found = analysed(config, tmp_path / engine).of(1)
        column = wanted[:, 1].detach().numpy()
        assert found.index[0] == np.abs(column).argmax()
        assert found.values[0] == pytest.approx(column[found.index[0]], rel=1e-4)
    torch.save({"state_dict": {"entities.weight": torch.zeros(7, 8)}}, tmp_path / "bad.pt")
    config = trained.config(
        model_path=tmp_path / "bad.pt", model=f"{__name__}:Distance", loss=f"{__name__}:margin"
    )
    with pytest.raises(
        ValueError, match=r"entities\.weight has shape \(7, 8\), the model asks for \(120, 8\)"
    ):
        tracin.tasks(config)


def dies_once(model: tracin.ConvE, triples: Tensor) -> Tensor:
    """Loss of a shard whose worker is killed in the middle, the first time."""
    flag = os.environ["MGPU_TEST_FLAG"]
    if len(triples) > 1 and int(triples[0, 0]) > 60:
        try:
            os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    return functional.softplus(-model.score(triples))


def test_a_killed_worker_in_the_middle_of_a_shard_changes_nothing(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MGPU_TEST_FLAG", str(tmp_path / "flag"))
    config = trained.config(loss=f"{__name__}:dies_once", max_test_triples=2)
    broken = run(config, tmp_path / "broken")
    assert (tmp_path / "flag").exists()
    assert any("killed" in note for record in broken.records for note in record.notes)
    whole = run(config, tmp_path / "whole")
    paths = [tracin.collect(one, config).save()[0] for one in (broken, whole)]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_the_embedded_graph_needs_no_files_and_is_read_back(tmp_path: Path) -> None:
    config = tracin.Config(slots=2, max_test_triples=1, top_k=2)
    analysed(config, tmp_path / "run")
    report = tracin.collect(Run.open(tmp_path / "run"), config)
    assert report.of(0).index[0] == 2360
    for ax in (report.plot(), report.plot_neighbourhood(0, k=2)):
        ax.figure.canvas.draw()
    (curve, *_) = report.plot().lines
    assert np.asarray(curve.get_ydata())[237] > 0.8  # of the errors, among a tenth of all
    assert "c4e6" in report._repr_html_()


def test_collect_wants_all_shards(trained: Trained, tmp_path: Path) -> None:
    config = trained.config(max_test_triples=1)
    with GPUPool(slots=2) as pool:
        part = pool.run(tracin.tasks(config)[:1], folder=tmp_path / "part").wait(60)
    with pytest.raises(ValueError, match="does not hold all shards"):
        tracin.collect(part, config)
    with pytest.raises(IndexError, match="1 test triples were asked for"):
        tracin.collect(run(config, tmp_path / "whole"), config).of(1)


def test_files_are_the_same_whichever_side_is_split(trained: Trained, tmp_path: Path) -> None:
    contents = []
    for slots, side in ((1, "test"), (3, "test"), (2, "train")):
        config = trained.config(
            slots=slots, shard_by=side, batch_size=16, output=tmp_path / f"{slots}-{side}.json"
        )
        (path,) = analysed(config, tmp_path / f"run-{slots}-{side}").save()
        contents.append(path.read_bytes())
    assert contents[0] == contents[1] == contents[2]


def test_influences_that_are_no_numbers_fail_the_shard(trained: Trained, tmp_path: Path) -> None:
    model = load_conve(trained.folder / trained.result["checkpoints"][0], 120, 4)
    torch.nn.init.constant_(model.norm_hidden.bias, 1e30)  # its products overflow
    torch.save({"state_dict": model.state_dict(), "config": {"height": 8}}, tmp_path / "large.pt")
    config = trained.config(model_path=tmp_path / "large.pt", max_test_triples=1)
    with pytest.raises(ValueError, match="influences are not finite"):
        analysed(config, tmp_path / "run")
