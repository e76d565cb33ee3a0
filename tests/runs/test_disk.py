"""Runs whose disk is slow, full, or gone: they go on and end, and nobody else waits."""

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mgpu_nb import GPUPool, Run, Task
from mgpu_nb.store import writer


def array(n: int) -> Any:
    return np.full(10, n)


def wait_for_records(run: Run, count: int) -> None:
    end = time.monotonic() + 60
    while len(run.records) < count:
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_slow_disk_keeps_no_other_task_waiting(
    pool: GPUPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pool.submit(abs, -1).result(200) == 1  # its workers are there
    free = threading.Event()
    monkeypatch.setattr(os, "fsync", lambda descriptor: free.wait(60))
    try:
        run = pool.run([Task(abs, -n, name=f"t{n}") for n in range(10)], folder=tmp_path / "run")
        wait_for_records(run, 10)  # of all, though its disk stands still
        assert pool.submit(abs, -1).result(60) == 1
        assert run.done
        assert not run._ledger.settled
        assert Run.open(tmp_path / "run") is run  # not a run of another process
    finally:
        free.set()
    assert run.results(60) == list(range(10))
    assert not run.problem


def test_a_folder_that_is_deleted_is_written_again_and_can_be_resumed(
    pool: GPUPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SYNC", 0.02)
    go = tmp_path / "go"

    def waits(path: str) -> None:
        while not Path(path).exists():
            time.sleep(0.005)

    tasks = [*(Task(array, n, name=f"t{n}") for n in range(5)), Task(waits, str(go), name="last")]
    run = pool.run(tasks, name="r", folder=tmp_path / "run")
    wait_for_records(run, 5)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    go.touch()
    with pytest.warns(UserWarning, match="the journal was written again, and values from memory"):
        run.wait(60)
    assert all(record.ok for record in run.records)
    assert [int(record.value[0]) for record in Run.open(tmp_path / "run").records[:5]] == list(range(5))
    again = pool.run(tasks, name="r", folder=tmp_path / "run").wait(60)
    assert [record.pid for record in again.records] == [
        record.pid for record in run.records
    ]  # nothing was run


def test_a_value_that_no_file_takes_stays_in_memory_and_is_told(pool: GPUPool, tmp_path: Path) -> None:
    values = tmp_path / "run" / "values"
    go = tmp_path / "go"

    def makes(path: str) -> Any:
        while not Path(path).exists():
            time.sleep(0.005)
        return np.arange(3.0)

    run = pool.run([Task(makes, str(go), name="a")], folder=tmp_path / "run")
    values.write_text("in the way")
    go.touch()
    with pytest.warns(UserWarning, match="1 value in memory only"):
        assert run.results(60)[0].tolist() == [0, 1, 2]
    assert "its worker could not write its value" in run.records[0].notes[0]
    values.unlink()
    run.wait(60)  # tries again
    assert not run.problem
    assert Run.open(tmp_path / "run").records[0].value.tolist() == [0, 1, 2]


def test_the_folder_of_a_run_that_is_not_written_yet_can_be_used(
    pool: GPUPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    full = True

    def write(descriptor: int, data: Any) -> int:
        if full and b'"event": "record"' in bytes(data):
            raise OSError(28, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    run = pool.run([Task(abs, -1, name="a")], folder=tmp_path / "run")
    with pytest.warns(UserWarning, match=r"the journal could not be written \(No space left on device\)"):
        run.wait(60)
    full = False
    again = pool.run([Task(abs, -1, name="a")], folder=tmp_path / "run").wait(60)
    assert again.records[0].pid == run.records[0].pid  # it was written before the folder was handed over
    assert not run.problem


AT_EXIT = """
import sys, threading
def refuse(*_):
    raise RuntimeError("can't create new thread at interpreter shutdown")
threading._register_atexit(lambda: setattr(threading.Thread, "start", refuse))
from mgpu_nb import GPUPool, Task
class Odd:  # is not plain data: it is unpickled in a thread of its own
    pass
def slow(i):
    import time; time.sleep(0.05); print(i)
    return {"i": i, "odd": Odd()} if i % 2 else i
pool = GPUPool(slots=2)
for name in ("first", "second"):
    pool.run([Task(slow, i, name=f"t{i}") for i in range(6)], name=name, folder=f"{sys.argv[1]}/{name}")
"""


@pytest.mark.slow
def test_runs_are_written_whole_when_no_thread_can_be_started_any_more(tmp_path: Path) -> None:
    """Python 3.12 starts none once the interpreter ends; here any version does not."""
    ended = subprocess.run(
        [sys.executable, "-c", AT_EXIT, tmp_path], capture_output=True, text=True, timeout=200, check=True
    )
    assert "Error" not in ended.stderr
    for name in ("first", "second"):
        assert [record.status for record in Run.open(tmp_path / name).records] == ["ok"] * 6
        assert (tmp_path / name / "summary_results.csv").read_text().count("\n") == 7
        assert (tmp_path / name / "logs" / "00005-t5.log").read_text() == "5\n"
