"""A worker is killed in the middle of a hundred tasks: what the pool and its peers lose.

    python benchmarks/faults.py [NAME ...]

Each has four workers and a process of its own, which is ended after `LIMIT` seconds. Task 50 sends SIGKILL to its own
process the first time it runs. Peers that are not installed are left out.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peers import PEERS, installed

TASKS, WORKERS, KILLED = 100, 4, 50
LIMIT = 60.0  # seconds of one of them
PATIENCE = 10.0  # seconds without an answer that count as never


def task(number: int, flag: str) -> int:
    """Ten milliseconds of a task; one of them is killed, once."""
    time.sleep(0.01)
    if number == KILLED:
        try:
            os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return number
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def attempt(name: str, account: Path) -> None:
    """Lose a worker; write after each step what is known, for a peer may hang at any."""
    known: dict[str, Any] = {"values": 0, "errors": {}, "works": False}

    def note() -> None:
        (account.with_suffix(".part")).write_text(json.dumps(known))
        account.with_suffix(".part").replace(account)

    note()
    flag = str(account.with_suffix(".flag"))
    for call in PEERS[name][0](WORKERS):
        call(task, 0, flag)(PATIENCE * 3)  # the workers are there
        began = time.perf_counter()
        waiting: list[Any] = []
        for number in range(TASKS):
            try:
                waiting.append(call(task, number, flag))
            except Exception as error:
                waiting.append(error)
        for number, value in enumerate(waiting):
            try:
                if isinstance(value, Exception):
                    raise value
                if (found := value(PATIENCE)) != number:
                    raise ValueError(f"task {number} gave {found!r}")
                known["values"] += 1
            except Exception as error:
                kind = "never" if "imeout" in type(error).__name__ else type(error).__name__
                known["errors"][kind] = known["errors"].get(kind, 0) + 1
                known.setdefault("said", str(error).strip().splitlines()[:1])
            note()
        known["seconds"] = time.perf_counter() - began
        try:
            known["works"] = call(task, 1, flag)(PATIENCE) == 1
        except Exception as error:
            known["works"] = type(error).__name__
        note()


def row(name: str) -> str:
    """What came of one of them, as a line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        account = Path(folder) / "account"
        command = [sys.executable, __file__, "--attempt", name, str(account)]
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(LIMIT)
            ended = "ends"
        except subprocess.TimeoutExpired:
            ended = "never ends"
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        known = json.loads(account.read_text())
    errors = ", ".join(f"{count} {kind}" for kind, count in known["errors"].items())
    works = {True: "works", False: "unknown"}.get(known["works"], known["works"])
    seconds = f"{known['seconds']:.2f} s" if "seconds" in known else ""
    said = " ".join(known.get("said", []))[:110]
    lost = TASKS - known["values"]
    return f"{name:22s} {lost:4d}  {works:20s} {ended:11s} {seconds:9s} {errors}: {said}"


def main(names: list[str]) -> None:
    """Print a line for each."""
    print(f"{'':22s} lost  the pool after it   the process seconds   errors of the tasks")
    for name in names or PEERS:
        if installed(name):
            print(row(name), flush=True)
        else:
            print(f"{name:22s} is not installed", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--attempt"]:
        attempt(sys.argv[2], Path(sys.argv[3]))
    else:
        main(sys.argv[1:])
