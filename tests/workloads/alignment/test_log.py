"""run.log: lines of one write each, with what the guide greps for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cluster_nodes import content, gpu, no_nodes, node

from mgpu_nb import Record
from mgpu_nb.listeners import Started
from mgpu_nb.store.journal import RunFolder
from mgpu_nb.workloads import alignment
from mgpu_nb.workloads.alignment import log
from mgpu_nb.workloads.alignment.inputs import resolved

pytest.importorskip("omegaconf")
JOB = "DPO_gpt2_sums_r1"
TASKS = [f"{JOB}_generate-0", f"{JOB}_train", f"{JOB}_evaluate"]
ONLY = tuple(f"algos.{name}.enabled=false" for name in ("PITA", "QSharp", "GRPO", "GRPO-HF"))


def chronicle(folder: Path) -> log.Chronicle:
    RunFolder(folder, "alignment", 42, [(name, "f", "x") for name in TASKS], whole=True).close()
    return log.Chronicle(resolved(alignment.Config((*ONLY, "rounds_of_training=1"))), 42, folder)


def started(task: str, folder: Path) -> Started:
    return Started(task, 1, {}, "alignment", folder)


def record(task: str, **changes: object) -> Record:
    known: dict[str, object] = {
        "status": "ok",
        "value": {"reward_calls": 2, "scored": 40},
        "seconds": 1.5,
        "device": "cuda:0",
        "gpu_id": 0,
        "uuid": "GPU-0",
        "slot": 0,
        "peak_memory": 3 * 2**30,
        "peak_allocated": 2 * 2**30,
        "peak_reserved": 3 * 2**30,
    }
    return Record(name=task, index=TASKS.index(task), kind="f", **{**known, **changes})  # type: ignore[arg-type]


def test_a_run_says_what_becomes_of_its_jobs(tmp_path: Path) -> None:
    hears = chronicle(tmp_path / "run")
    for task in TASKS:
        hears.started(started(task, tmp_path / "run"))
        hears.ended(record(task))
    hears.close()
    text = (tmp_path / "run" / "run.log").read_text()
    assert re.fullmatch(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\+00:00 (INFO|WARNING|ERROR) .*\n)+", text)
    for line in (
        "run alignment: 1 jobs, 3 tasks; seed 42",
        f"job {JOB}: NOT_STARTED -> DATA_GENERATED",
        f"job {JOB}: reward calls: 2 for 40 texts",
        f"job {JOB}: DATA_GENERATED -> MODEL_TRAINED",
        f"job {JOB}: MODEL_TRAINED -> EVAL_COMPLETED",
        "GPU Memory Summary:",
        "  GPU 0: 2.00 GB allocated, 3.00 GB reserved, 0.00 GB total",
        f"task {JOB}_train is done in 1.50 s on device cuda:0, slot 0",
        "jobs: 1 EVAL_COMPLETED",
        "reward calls: 6 for 120 texts in all",
    ):
        assert line in text
    assert not re.search("error|warning", text, re.IGNORECASE)
    assert alignment.read_states(tmp_path / "run") == {JOB: "EVAL_COMPLETED"}


def test_errors_and_warnings_name_the_job_on_one_line(tmp_path: Path) -> None:
    hears = chronicle(tmp_path / "run")
    hears.started(started(TASKS[0], tmp_path / "run"))
    hears.ended(record(TASKS[0], notes=("attempt 1: killed by SIGKILL",)))
    hears.ended(record(TASKS[1], status="error", value=None, error="ValueError: one\ntwo \x1b[31mred"))
    hears.ended(record(TASKS[2], status="skipped", value=None, error=f"it waits for {TASKS[1]!r}"))
    hears.close()
    lines = (tmp_path / "run" / "run.log").read_text().splitlines()
    found = [line.split(" ", 2)[2] for line in lines if re.search("error|warning", line, re.IGNORECASE)]
    assert found == [
        f"WARNING job {JOB}: task {TASKS[0]}: attempt 1: killed by SIGKILL",
        f"ERROR job {JOB}: task {TASKS[1]} ended error: ValueError: one | two red",
        f"WARNING job {JOB}: task {TASKS[2]} is not run: it waits for '{TASKS[1]}'",
    ]
    assert alignment.read_states(tmp_path / "run") == {JOB: "FAILED"}


def test_states_begin_with_what_the_journal_has_and_go_back_where_a_task_runs_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    hears = chronicle(folder)
    hears.started(started(TASKS[0], folder))
    hears.ended(record(TASKS[0]))  # its parent is killed: nothing else is written
    store = RunFolder(folder, "alignment", 42, [(name, "f", "x") for name in TASKS], whole=True)
    for task in TASKS:
        store.append(record(task), "null")
    store.close()
    assert alignment.read_states(folder) == {JOB: "DATA_GENERATED"}
    again = log.Chronicle(hears.settings, 42, folder)
    again.ended(record(TASKS[0]))
    assert alignment.read_states(folder) == {JOB: "EVAL_COMPLETED"}
    again.started(started(TASKS[1], folder))
    assert alignment.read_states(folder) == {JOB: "DATA_GENERATED"}
    again.ended(record(TASKS[1]))
    again.close()
    assert alignment.read_states(folder) == {JOB: "EVAL_COMPLETED"}
    text = (folder / "run.log").read_text()
    assert "3 of them are kept" in text
    assert text.count(f"task {TASKS[0]} is done") == 1


def test_devices_of_nodes_are_told_apart(tmp_path: Path) -> None:
    with no_nodes():
        node("n1")
        hears = chronicle(tmp_path / "run")
        hears.ended(record(TASKS[0], host="n1"))
        node("n2", content(gpus=[gpu(total=80 * 2**30)]))  # it comes later
        hears.ended(record(TASKS[1], host="n2", peak_allocated=2**30))
        hears.close()
    text = (tmp_path / "run" / "run.log").read_text()
    for line in (
        "device n1 cuda:0: NVIDIA L4, 42.95 GB",
        f"task {TASKS[0]} is done in 1.50 s on device n1 cuda:0, slot 0",
        "  n1 GPU 0: 2.00 GB allocated, 3.00 GB reserved, 40.00 GB total\n",
        "  n2 GPU 0: 1.00 GB allocated, 3.00 GB reserved, 80.00 GB total\n",
    ):
        assert line in text


def test_without_a_gpu_the_summary_says_so(tmp_path: Path) -> None:
    hears = chronicle(tmp_path / "run")
    of_cpu = {
        "device": "cpu:1",
        "gpu_id": None,
        "uuid": "cpu:1",
        "peak_allocated": None,
        "peak_reserved": None,
    }
    hears.ended(record(TASKS[0], **of_cpu))
    hears.close()
    assert re.search(
        r"  CPU 1: 3.00 GB allocated, 3.00 GB reserved, [\d.]+ GB total \(no GPU",
        (tmp_path / "run" / "run.log").read_text(),
    )
