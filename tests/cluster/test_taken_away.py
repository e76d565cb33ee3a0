"""Nodes that are taken away: by SIGTERM to the agent alone, or to all of its processes, in any order."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import jobs
import psutil
import pytest
from agent_farm import FarmCluster, farm
from standing_in import until

from mgpu_nb import GPUPool, Run, Task, WorkerDied

ROOT = Path(__file__).parents[2]
SECONDS = 90.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def agents() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "helpers"))))
        yield
        farm.close()


@pytest.fixture
def pool() -> Iterator[GPUPool]:
    with GPUPool("cpu", slots=1, cluster=FarmCluster(2), grace=1) as pool:
        pool.wait_for_slots(timeout=SECONDS)
        yield pool
        pool.wait_for_slots(timeout=SECONDS)  # another has come in its place


def one_runs(pool: GPUPool, folder: Path) -> tuple[Run, psutil.Process, psutil.Process]:
    """A run whose only task is at work, the agent of its node, and its worker."""
    run = pool.run([Task(jobs.blocks_until, str(folder / "go"), name="a")], folder=folder / "run")
    until(lambda: [state for state in pool._dispatcher.states() if state.task and state.began])
    (state,) = [state for state in pool._dispatcher.states() if state.task]
    (node,) = [node for node in pool.nodes if node.name == state.host]
    assert state.pid is not None
    return run, psutil.Process(node.pid), psutil.Process(state.pid)


@pytest.mark.parametrize("last", ["workers", "agent"])
def test_tasks_that_are_ended_with_their_node_are_tried_elsewhere(
    last: str, pool: GPUPool, tmp_path: Path
) -> None:
    run, agent, worker = one_runs(pool, tmp_path)
    others = [process for process in agent.children(recursive=True) if process != worker]  # the server is one
    for process in [worker, *others, agent] if last == "agent" else [agent, worker, *others]:
        process.send_signal(signal.SIGTERM)
        if process == worker:
            worker.wait(SECONDS)
            time.sleep(0.3)  # its end is known by now
    (tmp_path / "go").touch()
    run.wait(SECONDS, progress=False)
    (record,) = run.records
    assert (record.status, record.attempt) == ("ok", 2), record
    (note,) = record.notes
    assert note.startswith("attempt 1 was lost with node n")
    assert note.endswith(": the node is being taken away")


def test_a_worker_that_somebody_ends_was_not_lost(pool: GPUPool, tmp_path: Path) -> None:
    run, agent, worker = one_runs(pool, tmp_path)
    worker.send_signal(signal.SIGTERM)
    run.wait(SECONDS, progress=False)
    (record,) = run.records
    assert (record.status, record.attempt, record.notes) == ("killed", 1, ())
    assert isinstance(record.exception, WorkerDied)
    assert "ended from outside (SIGTERM)" in record.error
    assert agent.is_running()
    assert pool.submit(abs, -1).result(SECONDS) == 1
    assert len(pool.nodes) == 2


def test_a_worker_that_the_pool_ends_is_not_waited_for(pool: GPUPool, tmp_path: Path) -> None:
    run, _, _ = one_runs(pool, tmp_path)
    run.cancel()
    run.wait(SECONDS, progress=False)
    (record,) = run.records
    assert record.status == "cancelled"


def test_an_agent_does_not_wait_for_workers_that_cannot_be_ended(pool: GPUPool) -> None:
    first, second = pool.nodes
    (server,) = psutil.Process(first.pid).children()
    server.suspend()  # nobody says that its worker has ended
    try:
        os.kill(first.pid, signal.SIGTERM)
        until(lambda: first.pid not in {node.pid for node in pool.nodes})
        assert pool.submit(abs, -1).result(SECONDS) == 1
        assert second.pid in {node.pid for node in pool.nodes}
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            server.resume()
