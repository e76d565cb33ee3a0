"""Agents that serve one pool after the other, so that a test does not wait for their servers to import torch.

As a plugin of pytest (``-p agent_farm``) it makes every pool of slots on this machine one of two such agents.
"""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

import mgpu_nb.pool
from mgpu_nb import GPUPool
from mgpu_nb.cluster import agent
from mgpu_nb.cluster.engine import ClusterEngine
from mgpu_nb.cluster.placer import Placer

SERVED = "served"
ELSEWHERE = {
    "test_frame_and_folder": "a run on several machines has a column more",
    "test_memory_admission": "two nodes have memory of their own, and these are one machine",
    "test_a_gang_keeps_its_slots_when_an_idle_worker_dies": "a task of several slots has them on one machine",
    "test_a_retry_alone_is_alone": "what is alone on its machine is not alone in the pool",
    "test_a_folder_of_an_older_version_opens": "an older version had no nodes in its journal",
    "test_idle_pool_does_not_wake": "it hears of its nodes twice a second",
    "test_workers_die_with_the_kernel": "of processes that make pools of their own",
    "test_interpreter_exit_finishes_what_was_submitted": "of processes that make pools of their own",
    "test_a_pool_in_a_process_that_multiprocessing_spawned": "of processes that make pools of their own",
}
"""Tests that are of this machine alone, and why."""


class Farm:
    """Processes that are agents again and again; placers of pools take of them what they need."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[str]] = []
        self.free: list[subprocess.Popen[str]] = []

    def take(self) -> subprocess.Popen[str]:
        """An agent that serves nobody."""
        self.free = [process for process in self.free if process.poll() is None]
        if self.free:
            return self.free.pop(0)
        command = [sys.executable, __file__, f"n{len(self.processes)}"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.processes.append(process)
        return process

    def close(self) -> None:
        """End them."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self.processes:
            process.wait(10)


farm = Farm()


def agents_and_servers() -> set[int]:
    """Process ids of the agents, and of the servers that they keep for the next pool."""
    found = set()
    for process in farm.processes:
        found.add(process.pid)
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {child.pid for child in psutil.Process(process.pid).children()}
    return found


class FarmPlacer(Placer):
    """A placer that takes agents of the farm."""

    slots_per_node: int | None = None

    def __init__(self, nodes: int) -> None:
        self.nodes: int | None = nodes
        self.taken: list[subprocess.Popen[str]] = []

    def start(self, command: Sequence[str], invitation: Path, count: int) -> int:
        """Have some of them serve."""
        del command
        for _ in range(count):
            process = farm.take()
            assert process.stdin is not None
            process.stdin.write(f"{invitation}\n")
            process.stdin.flush()
            self.taken.append(process)
        return count

    def status(self) -> str:
        """Nothing to tell."""
        return ""

    def close(self) -> None:
        """Wait until they serve no more."""
        for process in list(self.taken):
            self.free(process)

    def free(self, process: subprocess.Popen[str]) -> None:
        """Wait until one of them serves no more."""
        self.taken.remove(process)
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == SERVED:
                farm.free.append(process)
                break


class FarmCluster:
    """Agents of the farm, as `GPUPool` takes a cluster."""

    def __init__(self, nodes: int = 2) -> None:
        self.nodes = nodes

    def engine(self, **options: Any) -> ClusterEngine:
        """Engine of a pool."""
        return ClusterEngine(FarmPlacer(self.nodes), **options)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Make pools of this machine's slots pools of two agents."""
    del config
    plain = GPUPool.__init__

    @functools.wraps(plain)
    def bound(self: GPUPool, gpu_ids: Any = None, slots: Any = None, *arguments: Any, **options: Any) -> None:
        elsewhere = any(name in options for name in ("engine", "cluster", "python", "pick"))
        if elsewhere or gpu_ids not in (None, "cpu") or not isinstance(slots, int) or slots < 1:
            plain(self, gpu_ids, slots, *arguments, **options)
            return
        nodes = 2 if slots % 2 == 0 else 1
        plain(self, "cpu", slots // nodes, *arguments, **options, cluster=FarmCluster(nodes))
        self.wait_for_slots(timeout=60)

    mgpu_nb.pool.GPUPool.__init__ = bound  # type: ignore[method-assign]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what is of this machine alone."""
    for item in items:
        if (reason := ELSEWHERE.get(item.originalname)) is not None:  # type: ignore[attr-defined]
            item.add_marker(pytest.mark.skip(reason=reason))


if __name__ == "__main__":
    agent.MOMENT = 3.0  # where other tests run beside, one signal may come so long after another
    for line in sys.stdin:
        agent.serve(line.strip(), sys.argv[1])
        print(SERVED, flush=True)
