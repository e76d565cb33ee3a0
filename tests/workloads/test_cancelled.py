"""What was cancelled has not failed, in the report of any workload."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mgpu_nb.tasks import Record, Status
from mgpu_nb.workloads import protein, tracin, training
from mgpu_nb.workloads.fit import fit_value
from mgpu_nb.workloads.training.report import collect_check

CANCELLED = "cancelled while it ran"


def record(name: str, status: Status = "cancelled", error: str = CANCELLED) -> Record:
    return Record(name=name, index=0, kind="k", status=status, error=error)


def run(folder: Path, *records: Record, tasks: int = 0) -> Any:
    return SimpleNamespace(
        records=list(records), tasks=[r.name for r in records] + [""] * tasks, folder=folder
    )


def test_experiments(tmp_path: Path) -> None:
    stopped = [record(f"best_of_n-b{n}") for n in (2, 4)]
    shown = str(protein.collect(run(tmp_path, *stopped, record("standard-b1", "killed", "killed: gone"))))
    assert "2 of 3 experiments were cancelled" in shown
    assert "1 of 3 experiments failed:\n  standard-b1: killed: gone" in shown
    assert "failed" not in str(protein.collect(run(tmp_path, *stopped)))


@pytest.mark.parametrize(
    ("there", "then"),
    [(False, "it begins anew, for it had no checkpoint yet"), (True, "it goes on from the last checkpoint")],
)
def test_a_training_promises_what_it_can_keep(tmp_path: Path, there: bool, then: str) -> None:
    if there:
        (tmp_path / "checkpoint.pt").touch()
    with pytest.raises(ValueError, match=rf"^the training was cancelled\. Started again .*, {then}$"):
        training.collect(run(tmp_path, record("rank-0"), record("rank-1")))
    with pytest.raises(ValueError, match=rf"^rank-1 ended error: ValueError: no\. .*, {then}$"):
        training.collect(run(tmp_path, record("rank-0"), record("rank-1", "error", "ValueError: no")))


def test_shards(tmp_path: Path) -> None:
    config = tracin.Config()
    two = record("shard-0"), record("shard-1", "error", "ValueError: no")
    with pytest.raises(
        ValueError, match=r"^2 of 2 tasks are not done \(1 failed\), first 'shard-1': ValueError: no"
    ):
        tracin.collect(run(tmp_path, *two), config)
    with pytest.raises(
        ValueError, match=rf"^1 of 1 tasks are not done \(none failed\), first 'shard-0': {CANCELLED}"
    ):
        tracin.collect(run(tmp_path, two[0]), config)


def test_the_training_of_a_small_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"gave no model \({CANCELLED}\)"):
        fit_value(run(tmp_path, record("train")))


def test_a_check_names_what_failed_before_what_was_cancelled(tmp_path: Path) -> None:
    ranks = record("rank-0"), record("rank-1", "timeout", "timeout: 60 s")
    with pytest.raises(ValueError, match="rank-1 ended timeout"):
        collect_check(run(tmp_path, *ranks))
