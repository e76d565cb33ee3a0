"""What a script shows while it waits: a bar on a terminal, which knows what tasks report."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path
from typing import cast

import jobs
import pytest

from mgpu_nb import GPUPool, Record, Task
from mgpu_nb.runs.batch import RecordedJob
from mgpu_nb.runs.ledger import Ledger, _seconds_left
from mgpu_nb.views.waiting import Waiting, waiting

SCRIPT = """
import tempfile
from mgpu_nb import GPUPool, Task
if __name__ == "__main__":
    with GPUPool(slots=1) as pool, tempfile.TemporaryDirectory() as folder:
        pool.run([Task(abs, -n) for n in range(3)], name="three", folder=folder + "/run").wait()
"""


@pytest.mark.slow
def test_a_terminal_gets_a_bar_and_a_file_none() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-c", SCRIPT]
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, check=True, timeout=60)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # the end of a terminal
        pass
    os.close(ours)
    assert b"three: 100%" in shown
    assert b"3/3" in shown
    assert b"3 ok" in shown
    assert ended.stdout == b""
    ended = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert (ended.stdout, ended.stderr) == (b"", b"")


@pytest.mark.parametrize(("asked", "shown"), [(True, True), (False, False), (None, False)])
def test_it_can_be_asked_for(
    pool: GPUPool, tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: bool | None, shown: bool
) -> None:
    tasks = [Task(jobs.blocks_until, str(tmp_path / "go"), name="first"), Task(jobs.raises)]
    run = pool.run(tasks, name="two", folder=tmp_path / "run")
    threading.Timer(0.1, (tmp_path / "go").touch).start()
    run.wait(60, progress=asked)
    shown_ = capsys.readouterr().err
    assert ("two: 100%" in shown_) is shown
    assert ("1 ok, 1 failed" in shown_) is shown


class Job:
    attempt = 1

    def __init__(self, name: str, progress: object) -> None:
        self.name, self.metrics = name, {"progress": progress}


@pytest.mark.parametrize(
    ("running", "waiting", "mean", "slots", "left"),
    [
        ([], 4, 2.0, 2, 4.0),
        ([(0.0, 0.5), (0.0, 0.5)], 0, 2.0, 2, 1.5),  # as those that ended
        ([(0.25, 10.0)], 0, None, 2, 30.0),  # as it reports
        ([(0.25, 10.0)], 3, None, 2, 75.0),
        ([(0.5, 100.0), (0.5, 1.0)], 0, 2.0, 2, 100.0),  # the longest
        ([(0.0, 9.0)], 0, 2.0, 1, None),  # longer than all before it: nobody knows
        ([(0.0, 9.0)], 3, None, 1, None),
        ([(1.0, 9.0)], 0, None, 1, None),
        ([(0.5, 9.0)], 0, 1.0, 0, None),
    ],
)
def test_the_time_left_is_by_what_tasks_report(
    running: list[tuple[float, float]], waiting: int, mean: float | None, slots: int, left: float | None
) -> None:
    assert _seconds_left(running, waiting, mean, slots) == left


@pytest.mark.parametrize(
    ("reported", "share"),
    [(0.25, 0.25), (True, 1.0), (7, 1.0), (-1, 0.0), (float("nan"), 0.0), ("x", 0.0), (None, 0.0)],
)
def test_the_share_of_a_run_counts_what_its_tasks_report(
    tmp_path: Path, reported: object, share: float
) -> None:
    ledger = Ledger("run", tmp_path, ["a", "b"])
    ledger.started(cast(RecordedJob, Job("a", reported)))
    assert ledger.share == share / 2
    ledger.ended(Record(name="a", index=0, kind="", status="ok"))
    assert ledger.share == 0.5


def test_the_bar_says_what_runs_and_shows_names_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger("{run}\x1b[2J", tmp_path, ["a", "{b}", "c", "d", "e"])
    ledger.ended(Record(name="a", index=0, kind="", status="cancelled"))
    ledger.ended(Record(name="e", index=4, kind="", status="killed"))
    for name, progress in (("{b}", 0.5), ("c", None)):
        ledger.started(cast(RecordedJob, Job(name, progress)))
    with waiting(ledger, True):
        pass
    line = [line for line in capsys.readouterr().err.split("\r") if "%" in line][-1]
    assert "{run}\ufffd[2J:  50%|" in line
    assert re.search(r"\| 2/5 \[\d+:\d\d", line)
    assert "] 1 failed, 1 cancelled, 2 running, {b} 50%" in line


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a" * 24, "a" * 24),
        ("a" * 25, "a" * 23 + "…"),
        ("\U0001f600" * 30, "\U0001f600" * 11 + "…"),
        ("a\n", "a\ufffd"),
    ],
)
def test_a_name_in_a_bar_fits_whatever_its_letters(
    name: str, shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with waiting(Ledger(name, tmp_path, ["a"]), True):
        pass
    assert f"{shown}: " in capsys.readouterr().err


def test_many_calls_get_a_bar(pool: GPUPool, capsys: pytest.CaptureFixture[str]) -> None:
    assert sum(pool.map(jobs.add, range(100), chunksize=7, progress=True)) == 5050
    shown = capsys.readouterr().err
    assert "add: 100%" in shown
    assert "100/100" in shown
    assert sum(pool.map(jobs.add, (n for n in range(100)), buffersize=3, progress=True)) == 5050
    assert "100/100" in capsys.readouterr().err  # known in the end
    for asked in (None, False):  # stderr is no terminal
        assert sum(pool.map(jobs.add, range(100), progress=asked)) == 5050
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("progress", [None, True])
def test_a_bar_changes_nothing_of_a_map(pool: GPUPool, progress: bool | None) -> None:
    with pytest.raises(TimeoutError):
        list(pool.map(jobs.hangs, [1.0], timeout=0.05, progress=progress))
    with pytest.raises(TimeoutError, match="its own"):
        list(pool.map(jobs.times_out, ["its own"], progress=progress))
    values = pool.map(jobs.add, range(100), progress=progress)
    assert next(values) == 1
    values.close()  # type: ignore[attr-defined]
    assert next(pool.map(jobs.add, [1], progress=progress)) == 2


def test_what_stdout_cannot_write_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    Waiting().write("grüße ✓\n")
    assert written.getvalue() == b"gr\\xfc\\xdfe \\u2713\n"
