"""What tasks print on a node whose link is slow: it waits in their pipes, and not in the agent."""

import os
import threading
import time
from pathlib import Path

import psutil
import pytest
from agent_farm import FarmCluster, farm

from mgpu_nb import GPUPool, Task

ROOT = Path(__file__).parents[2]
SECONDS = 120.0
LINE, LINES = "x" * 1023 + "\n", 100_000

pytestmark = pytest.mark.slow


def prints(begun: str) -> None:
    Path(begun).touch()
    for _ in range(LINES // 100):
        print(LINE * 100, end="")


def test_an_agent_keeps_little_of_what_its_parent_does_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "helpers"))))
    go_on, held = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        go_on.wait(SECONDS)

    try:
        with GPUPool("cpu", slots=1, cluster=FarmCluster(1)) as pool:
            pool.wait_for_slots(timeout=SECONDS)
            agent = psutil.Process(pool.nodes[0].pid)
            before = agent.memory_info().rss
            run = pool.run([Task(prints, str(tmp_path / "begun"), name="a")], folder=tmp_path / "run")
            while not (tmp_path / "begun").exists():
                time.sleep(0.001)
            pool._dispatcher.loop.call_soon_threadsafe(hold)
            assert held.wait(SECONDS)
            most = 0
            for _ in range(30):
                time.sleep(0.1)
                most = max(most, agent.memory_info().rss - before)
            go_on.set()
            run.wait(SECONDS, progress=False)
            assert [record.status for record in run.records] == ["ok"], run.failures
            assert most < 5 * 2**23
            log = (run.folder / run.records[0].log).read_text()
            assert log == LINE * LINES
    finally:
        go_on.set()
        farm.close()
