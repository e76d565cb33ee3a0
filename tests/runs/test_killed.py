"""The parent process is killed at any moment of a journalled run; the run is resumed."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from mgpu_nb import Run

KILLS = int(os.environ.get("MGPU_KILLS", "5"))
TASKS = 40
SCRIPT = """
import os, sys, time
from pathlib import Path
from mgpu_nb import GPUPool, Task

def work(place, n):
    with open(f"{place}/{n}", "a") as file:
        file.write("ran\\n")
    time.sleep(0.01)
    return {"n": n, "text": "x" * 3000}

if __name__ == "__main__":
    place = Path(sys.argv[1])
    with GPUPool(slots=2) as pool:
        tasks = [Task(work, str(place / "ran"), n, name=f"t{n}") for n in range(int(sys.argv[2]))]
        run = pool.run(tasks, folder=place / "run")
        print("begun", flush=True)
        run.wait(100, progress=False)
    print("done", *(record.status for record in run.records), flush=True)
"""


def start(place: Path) -> subprocess.Popen[str]:
    (place / "script.py").write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, place / "script.py", place, str(TASKS)], stdout=subprocess.PIPE, text=True
    )


def finished(place: Path) -> set[str]:
    """Tasks with a record."""
    try:
        return {record.name for record in Run.open(place / "run").records if record.ok}
    except (FileNotFoundError, ValueError):  # killed before the first line was whole
        return set()


def ran(place: Path) -> Counter[str]:
    """How often each task has begun."""
    return Counter({f"t{file.name}": file.read_text().count("ran") for file in (place / "ran").iterdir()})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*truncated line")
def test_what_is_finished_is_not_run_again_and_nothing_is_lost(tmp_path: Path) -> None:
    dice = random.Random(16)
    for number in range(KILLS):
        place = tmp_path / str(number)
        (place / "ran").mkdir(parents=True)
        first = start(place)
        assert first.stdout is not None
        assert first.stdout.readline() == "begun\n"
        time.sleep(dice.random() * 0.4)
        family = psutil.Process(first.pid).children(recursive=True)
        first.send_signal(signal.SIGKILL)
        first.wait()
        _, alive = psutil.wait_procs(family, timeout=60)  # seconds of a busy machine
        assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
        done, before = finished(place), ran(place)
        again = start(place)
        output, _ = again.communicate(timeout=200)
        assert output.splitlines()[-1] == "done" + " ok" * TASKS
        after = ran(place)
        assert all(after[name] == before[name] for name in done)
        assert sum(after.values()) <= TASKS + 2 + len(before) - len(done)
        run = Run.open(place / "run")
        assert [record.value["n"] for record in run.records] == list(range(TASKS))
        assert not list(place.rglob("*.part"))
