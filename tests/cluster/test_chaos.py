"""Agents that are killed, stopped and cut off while tasks run, and strangers at the door: nothing is lost.

``MGPU_STORMS=20`` tries twenty seeds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest
from cut_off import Relay

from mgpu_nb import GPUPool, Run, Task
from mgpu_nb.cluster.door import dial
from mgpu_nb.cluster.engine import ClusterEngine
from mgpu_nb.cluster.facts import facts_of_this_node
from mgpu_nb.cluster.invitation import Invitation
from mgpu_nb.cluster.placer import Placer

SEEDS = int(os.environ.get("MGPU_STORMS", "2"))
TASKS, STRIKES = 60, 6
LONGEST = 240.0  # seconds that a storm may take
LOST_MOST = 3  # times that a task may be lost with its node


class CutOff(Placer):
    """A placer whose agents dial a relay, and are started again however often they are killed."""

    slots_per_node: int | None = None

    def __init__(self, folder: Path) -> None:
        self.nodes: int | None = 2
        self.folder = folder
        self.relay: Relay | None = None
        self.invitation: Invitation | None = None
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, command: Sequence[str], invitation: Path, count: int) -> int:
        """Start agents whose invitation names the relay."""
        if self.relay is None:
            self.invitation = Invitation.read(invitation)
            self.relay = Relay(self.invitation.port)
            private = self.folder / "private"
            private.mkdir(mode=0o700)
            copy = dataclasses.replace(self.invitation, port=self.relay.port, path=None)
            self.file = copy.write(private / "relay.json").path
        for _ in range(count):
            name = f"n{len(self.processes)}"
            words = [*command[: command.index("--connect")], "--connect", str(self.file), "--name", name]
            self.processes.append(
                subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
        return count

    def status(self) -> str:
        """Nothing to tell."""
        return ""

    def close(self) -> None:
        """End what is left, also what is stopped."""
        for process in self.processes:
            with contextlib.suppress(OSError):
                process.send_signal(signal.SIGCONT)
        for process in self.processes:
            process.wait(30)
        if self.relay is not None:
            self.relay.close()

    @property
    def living(self) -> list[subprocess.Popen[bytes]]:
        """Agents that run."""
        return [process for process in self.processes if process.poll() is None]


def work(starts: str, number: int) -> int:
    """Say that it began, take some time, return twice the number."""
    with open(f"{starts}/{number}", "a") as file:  # noqa: PTH123 - many small tasks
        file.write(f"{os.getpid()}\n")
    time.sleep(0.05 + 0.2 * (number % 3))
    print(f"task {number}")
    return 2 * number


def strangers(placer: CutOff, dice: random.Random) -> None:
    """Somebody at the door who is no agent, or one without the secret."""
    assert placer.invitation is not None
    address = ("127.0.0.1", placer.invitation.port)
    if dice.random() < 0.5:
        with contextlib.suppress(OSError), socket.create_connection(address, 5) as sock:
            sock.sendall(dice.choice([b"GET / HTTP/1.1\r\n\r\n", dice.randbytes(300), b""]))
    else:
        wrong = dataclasses.replace(placer.invitation, secret=dice.randbytes(32))
        with pytest.raises(ConnectionError):
            dial(wrong, facts_of_this_node("wrong"), timeout=2)


def strike(placer: CutOff, pool: GPUPool, dice: random.Random, stopped: list[subprocess.Popen[bytes]]) -> str:
    """Do something bad to an agent, a connection, a worker."""
    relay = placer.relay
    assert relay is not None
    kinds: dict[str, Callable[[], object]] = {
        "kill an agent": lambda: dice.choice(placer.living).kill(),
        "stop an agent": lambda: _stop(dice.choice(placer.living), stopped),
        "cut a connection": lambda: relay.cut(dice.randrange(2)),
        "swallow what comes": lambda: relay.swallow(dice.randrange(2)),
        "kill a worker": lambda: _kill_worker(pool, dice),
        "strangers": lambda: strangers(placer, dice),
    }
    kind = dice.choice(list(kinds))
    if placer.living:
        kinds[kind]()
    return kind


def _stop(process: subprocess.Popen[bytes], stopped: list[subprocess.Popen[bytes]]) -> None:
    process.send_signal(signal.SIGSTOP)
    stopped.append(process)


def _kill_worker(pool: GPUPool, dice: random.Random) -> None:
    pids = [state.pid for state in pool._dispatcher.states() if state.pid is not None]
    if pids:
        with contextlib.suppress(OSError):
            os.kill(dice.choice(pids), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_task_of_a_storm_ends_in_one_record(seed: int, tmp_path: Path) -> None:
    dice = random.Random(seed)
    starts = tmp_path / "starts"
    starts.mkdir()
    placer = CutOff(tmp_path)
    stopped: list[subprocess.Popen[bytes]] = []
    struck: Counter[str] = Counter()
    with GPUPool("cpu", slots=2, engine=ClusterEngine(placer), grace=2) as pool:
        tasks = [Task(work, str(starts), n, name=f"t{n}", retries=2) for n in range(TASKS)]
        run = pool.run(tasks, folder=tmp_path / "run")
        calls = [pool.submit(pow, 2, n) for n in range(30)]
        pool.wait_for_slots(1, timeout=90)
        end = time.monotonic() + LONGEST
        while sum(struck.values()) < STRIKES and not run.done and time.monotonic() < end:
            time.sleep(dice.uniform(0.3, 1.5))
            struck[strike(placer, pool, dice, stopped)] += 1
        for process in stopped:  # what comes back finds its place taken
            process.send_signal(signal.SIGCONT)
        records = run.wait(max(1.0, end - time.monotonic()), progress=False).records
        told = f"seed {seed}, {dict(struck)}: {[(r.name, r.status, r.error, r.notes) for r in records if not r.ok]}"
        assert [record.name for record in records] == [task.name for task in tasks]
        for record in records:
            assert record.ok or any(f"lost with its node {LOST_MOST}" in note for note in record.notes), told
            if record.ok:
                assert record.value == 2 * record.index, told
                assert run.logs(record.name).endswith(f"task {record.index}\n"), told
        for n, call in enumerate(calls):
            error = call.exception(60)
            assert error is not None or call.result() == 2**n
        begun = {
            n: len((starts / str(n)).read_text().split()) for n in range(TASKS) if (starts / str(n)).exists()
        }
        assert all(begun[r.index] <= r.attempt for r in records), (
            told
        )  # no attempt that the record does not count
        assert pool.submit(pow, 2, 10).result(90) == 1024  # it works afterwards
    assert not placer.living
    entries = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
    ended = Counter(entry["name"] for entry in entries if entry.get("event") == "record")
    assert not ended or set(ended.values()) == {1}
    assert Run.open(tmp_path / "run").results() == [2 * n for n in range(TASKS)] or not all(
        r.ok for r in records
    )
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("mgpu_nb-")]
    assert not [name for name in left if "placement" in name or "door" in name]


@pytest.mark.slow
def test_nobody_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, time\n"
        "from mgpu_nb import Agents, GPUPool\n"
        "if __name__ == '__main__':\n"
        "    pool = GPUPool('cpu', slots=2, cluster=Agents(here=2))\n"
        "    pool.wait_for_slots(4, timeout=90)\n"
        "    calls = [pool.submit(time.sleep, 600) for _ in range(4)]\n"
        "    while not all(call.running() for call in calls): time.sleep(0.05)\n"
        "    print('runs', flush=True)\n"
        "    time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline().strip() == "runs" or parent.stdout.read().endswith("runs\n")
    family = psutil.Process(parent.pid).children(recursive=True)
    assert len(family) >= 8  # agents, servers, workers
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
