"""The folder that a run gets where none is given."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mgpu_nb import GPUPool, Task
from mgpu_nb.runs.plan import run_folder

ELSEWHERE = """
import sys, time
from mgpu_nb.runs.plan import run_folder
time.strftime = lambda *_: "20260101-000000"
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    print(run_folder(None, "r").name)
"""


@pytest.fixture(autouse=True)
def one_second(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The jobs of a SLURM array begin in one second, in one working directory."""
    monkeypatch.setattr(time, "strftime", lambda *_: "20260101-000000")
    monkeypatch.chdir(tmp_path)


def test_threads_that_begin_in_one_second_have_a_folder_each() -> None:
    found: list[Path] = []
    gate = threading.Barrier(8)

    def begin() -> None:
        gate.wait(30)
        found.extend(run_folder(None, "r") for _ in range(10))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len({*found}) == 80
    assert sorted(path.name for path in Path("runs").iterdir()) == sorted(path.name for path in found)


@pytest.mark.slow
def test_processes_that_begin_in_one_second_have_a_folder_each() -> None:
    command = [sys.executable, "-c", ELSEWHERE]
    others = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    for other in others:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
    for other in others:
        assert other.stdin is not None
        other.stdin.write("\n")
        other.stdin.flush()
    names = [name for other in others for name in other.communicate(timeout=60)[0].split()]
    assert len(names) == len({*names}) == 80


def test_what_the_plan_refuses_leaves_no_folder(pool: GPUPool) -> None:
    with pytest.raises(ValueError, match="two tasks are named"):
        pool.run([Task(abs, 1, name="a"), Task(abs, 2, name="a")])
    assert not list(Path.cwd().iterdir())


def test_a_folder_that_is_a_file_or_below_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"file' is a file; give a folder for the run"):
        run_folder(tmp_path / "file", "r")
    with pytest.raises(
        NotADirectoryError, match=r"new/run' is below a file, '.*/file'; give a folder for the run"
    ):
        run_folder(tmp_path / "file" / "new" / "run", "r")
