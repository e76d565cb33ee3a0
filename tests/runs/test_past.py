"""Earlier runs: what a folder's journals say of them, and what each was made with."""

import json
import os
import re
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import jobs
import pandas as pd
import pytest

import mgpu_nb
from mgpu_nb import GPUPool, Run, Task, runs
from mgpu_nb.runs import provenance
from mgpu_nb.store.journal import RunFolder, read_journal


@pytest.fixture
def folder(pool: GPUPool, tmp_path: Path) -> Path:
    pool.run(
        [Task(jobs.add, 1, b=2, name="a"), Task(jobs.raises, "<b>", name="=b")],
        name="first",
        folder=tmp_path / "x",
    ).wait(60)
    time.sleep(0.01)
    pool.run([Task(jobs.add, 1, name="a")], name="second", folder=tmp_path / "deep" / "y").wait(60)
    return tmp_path


def test_earlier_runs_are_a_table_and_each_opens(folder: Path) -> None:
    found = runs(folder)
    assert [row.name for row in found.rows] == ["second", "first"]
    assert isinstance(found[1], Run)
    assert [record.status for record in found[1].records] == ["ok", "error"]
    assert [run.name for run in found] == ["second", "first"]
    assert len(found[:1]) == 1
    row = found.rows[1]
    assert (row.tasks, row.ok, row.failed, row.cancelled, row.state) == (2, 1, 1, 0, "done")
    assert row.host == socket.gethostname()
    assert row.packages["mgpu_nb"] == mgpu_nb.__version__
    assert re.match(r"\d+\.\d+", row.packages["torch"])
    assert re.match(r"3\.\d+\.\d+", row.python)
    assert row.seconds is not None
    assert row.seconds < 60
    frame = found.frame()
    assert list(frame["name"]) == ["second", "first"]
    assert abs((pd.Timestamp.now() - frame["began"][0]).total_seconds()) < 600
    lines = str(found).splitlines()
    assert lines[0].split()[:5] == ["name", "began", "time", "state", "tasks"]
    assert len(lines) == 3
    assert "second" in found._repr_html_()


def test_there_may_be_none_or_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no runs in" in str(runs(tmp_path))
    assert list(runs(tmp_path).frame().columns)[:3] == ["name", "folder", "began"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"'runs' is not a folder .*give the folder of runs"):
        mgpu_nb.runs()


def test_a_damaged_folder_is_a_row_that_says_so(folder: Path) -> None:
    (folder / "bad").mkdir()
    (folder / "bad" / "journal.jsonl").write_bytes(b"\x00\xff<script>\n")
    (folder / "odd").mkdir()
    (folder / "odd" / "journal.jsonl").write_text('{"event": "run", "format": 1}\n')
    (folder / "rank").mkdir()
    (folder / "rank" / "journal.jsonl").touch()
    (folder / "rank" / "config.json").write_text('{"workload": "training", "config": {}}')
    rows = {row.folder.name: row for row in runs(folder).rows}
    assert (rows["bad"].state, rows["odd"].state, rows["rank"].state) == ("damaged", "damaged", "done")
    assert "no header" in rows["bad"].problem
    assert rows["rank"].name == "training"
    with pytest.warns(UserWarning, match="truncated"), pytest.raises(ValueError, match="no header"):
        runs(folder / "bad")[0]


def test_states_of_a_run_that_is_not_done(tmp_path: Path) -> None:
    tasks = [("a", "m:f", "1" * 32), ("b", "m:f", "2" * 32)]
    RunFolder(tmp_path / "mine", "r", 0, tasks).close()
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.setattr(socket, "gethostname", lambda: "elsewhere")
        RunFolder(tmp_path / "other", "r", 0, tasks).close()
    live = RunFolder(tmp_path / "live", "r", 0, tasks)
    states = {row.folder.name: row.state for row in runs(tmp_path).rows}
    assert states == {"mine": "interrupted", "other": "under way or interrupted", "live": "under way"}
    live.close()
    assert {row.state for row in runs(tmp_path / "live").rows} == {"interrupted"}


def test_arguments_are_in_the_journal_and_many_are_not_in_its_header(tmp_path: Path) -> None:
    tasks = [(f"t{n}", "m:f", "1" * 32) for n in range(10_000)]
    arguments: Any = {name: {"lr": 0.1, "text": "x" * 100} for name, *_ in tasks}
    began = time.process_time()
    RunFolder(tmp_path / "many", "r", 0, tasks, arguments=arguments).close()
    assert time.process_time() - began < 2
    assert (tmp_path / "many" / "journal.jsonl").stat().st_size < 1_500_000
    kept = read_journal(tmp_path / "many").arguments
    assert kept["t0"] == {"lr": 0.1, "text": "x" * 100}
    assert 1000 < len(kept) < 3000
    RunFolder(tmp_path / "few", "r", 0, tasks[:2], arguments=arguments).close()
    assert list(Run.open(tmp_path / "few").frame()["lr"]) == [0.1, 0.1]


def git(folder: Path, *words: str) -> None:
    own = ["-c", "user.name=x", "-c", "user.email=x@y", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *own, "-C", str(folder), *words], check=True, capture_output=True)


def test_commit_and_changes_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert provenance.git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    below = tmp_path / "a"
    below.mkdir()
    (below / "f.py").write_text("1")
    assert provenance.git_state(below) == {"commit": "", "dirty": False}
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "x")
    head = subprocess.run(
        ["git", "-C", str(tmp_path), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    )
    clean = {"commit": head.stdout.strip(), "dirty": False}
    assert provenance.git_state(below) == clean
    (below / "f.py").write_text("22")
    assert provenance.git_state(below) == {**clean, "dirty": True}
    (below / "new.py").write_text("untracked files do not count")
    git(tmp_path, "checkout", "-q", "--", ".")
    git(tmp_path, "pack-refs", "--all")
    assert provenance.git_state(below) == clean
    git(tmp_path, "worktree", "add", "-q", str(tmp_path / "tree"), "-b", "other")
    assert provenance.git_state(tmp_path / "tree") == clean
    git(tmp_path, "checkout", "-q", "--detach")
    assert provenance.git_state(below) == clean
    monkeypatch.setattr(provenance, "_repositories", {})
    monkeypatch.setenv("PATH", "")
    assert provenance.git_state(below) == {**clean, "dirty": None}


def test_git_is_not_asked_again_if_nothing_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "f.py").write_text("1")
    git(tmp_path, "add", ".")
    asked: list[str] = []
    real = provenance._git

    def ask(root: Path, *words: str) -> str | None:
        asked.append(words[0])
        return real(root, *words)

    monkeypatch.setattr(provenance, "_git", ask)
    for _ in range(3):
        assert provenance.git_state(tmp_path) == {"commit": "", "dirty": True}
    assert asked == ["ls-files", "status"]


def test_a_git_that_hangs_is_given_up_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "git"
    script.write_text(f"#!/bin/sh\necho x >> {tmp_path}/asked\nexec sleep 60\n")
    script.chmod(0o755)
    git(tmp_path, "init", "-q")
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(provenance, "PATIENCE", 1.0)
    for _ in range(3):
        state = provenance.git_state(tmp_path)
        assert state is not None
        assert state["dirty"] is None
    assert (tmp_path / "asked").read_text().count("x") <= 2


def test_what_a_run_is_made_with_costs_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = provenance.provenance([])
    assert json.loads(json.dumps(made)) == made
    assert {"python", "packages", "git", "program", "folder", "gpus"} <= made.keys()
    began = time.process_time()
    for _ in range(20):
        provenance.provenance([])
    assert (time.process_time() - began) / 20 < 0.05
