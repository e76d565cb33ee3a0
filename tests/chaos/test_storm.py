"""Storms: every promise of the pool holds while tasks crash, hang and lie, and workers and servers are killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mgpu_nb import cli
from mgpu_nb.chaos import report
from mgpu_nb.chaos.report import Chaos, run_storms
from mgpu_nb.chaos.storm import Isolation, Outcome, storm

STORMS = int(os.environ.get("MGPU_STORMS", "50"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(STORMS))
def test_every_promise_holds_in_a_storm(seed: int, tmp_path: Path) -> None:
    """Half of them on warm workers, half with a process per task: `mgpu-nb chaos` has larger ones."""
    isolation: Isolation = "task" if seed % 2 else "worker"
    tasks = {"worker": 20, "task": 10}[isolation]
    outcome = storm(seed, folder=tmp_path, tasks=tasks, isolation=isolation, gpu_ids="cpu", limit=120)
    assert outcome.findings == []
    assert outcome.statuses.total() == tasks


@pytest.mark.slow
def test_the_command_tries_this_machine(tmp_path: Path) -> None:
    words = ["chaos", "--tasks", "20", "--isolation", "worker", "--gpu_ids", "cpu", "--slots", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "mgpu_nb", *words], capture_output=True, text=True, timeout=200, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every promise held in the storm" in done.stdout
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_broken_promises_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stand_in(seed: int, **options: object) -> Outcome:
        outcome = Outcome(seed, "worker", 5)
        outcome.findings += [f"task {k} hung" for k in range(60)] if seed == 4 else []
        return outcome

    monkeypatch.setattr(report, "storm", stand_in)
    assert run_storms(Chaos(seed=2, storms=2)).findings == []
    assert len(run_storms(Chaos(seed=4)).outcomes) == 2
    assert cli.main(["chaos", "--seed", "3", "--storms", "2", "--isolation", "worker"]) == 1
    said = capsys.readouterr().out
    assert "seed 4, isolation worker: task 49 hung" in said
    assert "task 50 hung" not in said
    assert "... 10 more" in said
    assert "Every promise" not in said


@pytest.mark.parametrize(
    ("words", "told"),
    [(["--storms", "0"], "--storms"), (["--isolation", "both_"], "both"), (["--taks", "3"], "--tasks")],
)
def test_wrong_options_are_told(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chaos", *words]) == 2
    assert told in capsys.readouterr().err
