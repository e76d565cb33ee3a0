"""Test triple by test triple, against what is near."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpu_nb import GPUPool, Run
from mgpu_nb.cli import main
from mgpu_nb.workloads import tracin
from mgpu_nb.workloads.tracin.proximity import Neighbourhood, Proximity

pytestmark = pytest.mark.slow  # seconds of work each

if TYPE_CHECKING:
    from tests.workloads.tracin.conftest import Trained


def by_the_book(triples: list[tuple[int, int, int]], head: int, tail: int, near: Proximity) -> list[int]:
    """The filter, edge by edge."""

    def distances(start: int) -> dict[int, int]:
        found, frontier = {start: 0}, [start]
        for entity in frontier:
            for h, _, t in triples:
                for a, b in ((h, t), (t, h)):
                    if a == entity and b not in found:
                        found[b] = found[entity] + 1
                        frontier.append(b)
        return found

    of_head, of_tail = distances(head), distances(tail)
    far = 10**6
    kept = []
    for n, (h, _, t) in enumerate(triples):
        ends = [(of_head.get(e, far), of_tail.get(e, far)) for e in (h, t)]
        good = min(min(end) for end in ends) < near.n_hops
        if near.strict_hop_constraint:
            good &= all(max(end) <= near.n_hops for end in ends)
        if near.max_total_path_length is not None:
            length = min(ends[0][0] + 1 + ends[1][1], ends[1][0] + 1 + ends[0][1])
            good &= length <= near.max_total_path_length
        if good:
            kept.append(n)
    degree: dict[int, int] = {}
    for n in kept:
        for e in (triples[n][0], triples[n][2]):
            degree[e] = degree.get(e, 0) + 1
    return [
        n for n in kept
        if {triples[n][0], triples[n][2]} & {head, tail}
        or max(degree[triples[n][0]], degree[triples[n][2]]) >= near.min_degree
    ]  # fmt: skip


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.just(0), st.integers(0, 8)), min_size=1, max_size=20),
    st.integers(0, 8), st.integers(0, 8),
    st.builds(
        Proximity, n_hops=st.integers(1, 3), min_degree=st.integers(0, 4), strict_hop_constraint=st.booleans(),
        max_total_path_length=st.none() | st.integers(1, 4),
    ),
)  # fmt: skip
def test_what_is_near_is_what_the_definition_says(
    triples: list[tuple[int, int, int]], head: int, tail: int, near: Proximity
) -> None:
    found = Neighbourhood(np.array(triples), 9).near(head, tail, near)
    assert found.tolist() == by_the_book(triples, head, tail, near)


def batch(config: tracin.BatchConfig, folder: Path) -> Run:
    with GPUPool(slots=2) as pool:
        return pool.run(tracin.batch_tasks(config), name="batch", folder=folder).wait(120)


def test_every_triple_has_files_and_a_place_in_the_summary(trained: Trained, tmp_path: Path) -> None:
    config = trained.batch_config(n_hops=1, max_triples=3, start_index=1, output_dir=tmp_path / "out")
    summary = tracin.summarise(batch(config, tmp_path / "run"), config)
    assert summary == json.loads((tmp_path / "out" / "batch_tracin_summary.json").read_text())
    assert {key: summary[key] for key in summary if key != "results"} == {
        "total_triples": 3, "successful": 3, "failed_filtering": 0, "failed_tracin": 0, "skipped": 0,
    }  # fmt: skip
    assert [entry["index"] for entry in summary["results"]] == [1, 2, 3]
    whole = {}
    everything = trained.config(test_indices=(1, 2, 3), top_k=None)
    with GPUPool(slots=2) as pool:
        report = tracin.collect(
            pool.run(tracin.tasks(everything), folder=tmp_path / "all").wait(120), everything
        )
    for n, entry in enumerate(summary["results"]):
        names = (entry["index"], entry["head"], entry["tail"])
        assert entry["files"] == [
            "triple_{}_{}_{}_tracin.{}".format(*names, kind) for kind in ("json", "csv")
        ]
        content = json.loads((tmp_path / "out" / entry["files"][0]).read_text())
        assert content["num_training_triples"] == entry["num_filtered"] < 2370
        (result,) = content["results"]
        found = report.of(n)
        whole = dict(zip(found.index.tolist(), found.values.tolist(), strict=True))
        number = {trained.graph.named(t): i for i, t in enumerate(trained.graph.train)}
        for one in result["top_influences"]:
            at = number[one["train_head"], one["train_relation"], one["train_tail"]]
            assert one["influence"] == pytest.approx(whole[at], rel=1e-3, abs=1e-6)


def test_nothing_near_is_a_result_and_what_is_there_is_skipped(trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "out"
    near: dict[str, Any] = {"max_total_path_length": 1, "n_hops": 1, "strict_hop_constraint": True}
    config = trained.batch_config(test_indices=(0, 20, 21), output_dir=out, **near)
    summary = tracin.summarise(batch(config, tmp_path / "run"), config)
    assert summary["successful"] >= 1
    assert summary["failed_filtering"] >= 1
    assert summary["failed_tracin"] == 0
    again = trained.batch_config(test_indices=(0, 20, 21), output_dir=out, skip_existing=True, **near)
    left = [f"triple-{e['index']}" for e in summary["results"] if e["status"] == "failed_filtering"]
    assert [task.name for task in tracin.batch_tasks(again) if task.args[-1] is not True] == left
    skipped = tracin.summarise(batch(again, tmp_path / "run"), again)
    assert skipped["skipped"] == summary["successful"]
    assert skipped["failed_filtering"] == summary["failed_filtering"]
    with pytest.raises(ValueError, match="output_dir: name it"):
        tracin.batch_tasks(trained.batch_config(skip_existing=True))
    with pytest.raises(ValueError, match="start_index=40: there are 40"):
        tracin.batch_tasks(trained.batch_config(start_index=40))
    with pytest.raises(ValueError, match="is of test triples"):
        trained.batch_config(mode="self")


@pytest.mark.slow
def test_a_batch_goes_on_after_a_sigkill(trained: Trained, tmp_path: Path) -> None:
    config = trained.batch_config(output_dir=str(tmp_path / "out"), max_triples=40)
    script = textwrap.dedent(f"""
        from mgpu_nb import GPUPool
        from mgpu_nb.workloads import tracin
        config = tracin.{config!r}
        with GPUPool(slots=2) as pool:
            pool.run(tracin.batch_tasks(config), name="batch", folder={str(tmp_path / "run")!r}).wait()
    """)
    process = subprocess.Popen([sys.executable, "-c", script])
    end = time.monotonic() + 60
    while len(list((tmp_path / "out").glob("*.json"))) < 3:
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {record.name: record for record in Run.open(tmp_path / "run").records}
    run = batch(config, tmp_path / "run")
    assert all(record.ok for record in run.records)
    assert len(run.records) == 40
    assert all(
        record.started == before[record.name].started for record in run.records if record.name in before
    )
    assert tracin.summarise(run, config)["successful"] == 40


@pytest.mark.slow
def test_command_lines(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("train", "test", "entity_to_id", "relation_to_id")
    files = [word for name in names for word in (f"--{name}", str(trained.folder / f"{name}.tsv"))]
    files += ["--model_path", str(trained.folder / "checkpoints" / "checkpoint_4.pt"), "--slots", "2"]
    assert (
        main(["tracin", *files, "--max_test_triples", "1", "--output", "r.json", "--output_dir", "run"]) == 0
    )
    said = capsys.readouterr().out
    assert "train triples are split over 2 shards: a shard passes" in said
    assert "r.json" in said
    assert len(json.loads((tmp_path / "r.json").read_text())["results"]) == 1
    assert main(["tracin", *files, "--test_indices", "99"]) == 2
    assert "there is no test triple 99" in capsys.readouterr().err
    capsys.readouterr()
    arguments = ["tracin-batch", *files, "--max_triples", "2", "--n_hops", "1", "--output_dir", "out"]
    assert main(arguments) == 0
    assert "2 total triples, 2 successful" in capsys.readouterr().out
    assert main([*arguments, "--skip_existing"]) == 0
    assert "2 skipped" in capsys.readouterr().out
    assert main(["tracin-train", "--epochs", "2", "--checkpoints", "1", "--output_dir", "model"]) == 0
    assert "checkpoint_0.pt" in capsys.readouterr().out


def test_what_is_skipped_is_the_triple_not_its_number(trained: Trained, tmp_path: Path) -> None:
    config = trained.batch_config(n_hops=1, max_triples=1, output_dir=tmp_path / "out")
    batch(config, tmp_path / "run")
    lines = (trained.folder / "test.tsv").read_text().splitlines(keepends=True)
    (tmp_path / "test.tsv").write_text("".join(lines[1:]))
    names: dict[str, Any] = {"test": str(tmp_path / "test.tsv"), "skip_existing": True}
    other = dataclasses.replace(config, **names)
    (task,) = tracin.batch_tasks(other)
    assert task.args[-1] is not True
    same = dataclasses.replace(config, skip_existing=True)
    (task,) = tracin.batch_tasks(same)
    assert task.args[-1] is True


def test_mixed_precision_tells_its_rank_agreement_in_a_batch_too(trained: Trained, tmp_path: Path) -> None:
    config = trained.batch_config(n_hops=1, max_triples=1, use_mixed_precision=True, output_dir=tmp_path)
    (entry,) = tracin.summarise(batch(config, tmp_path / "run"), config)["results"]
    assert 0.9 < json.loads((tmp_path / entry["files"][0]).read_text())["rank_agreement"] <= 1
