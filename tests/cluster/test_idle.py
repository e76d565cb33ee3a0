"""Agents of nodes that have nothing to do: they end, their nodes are given back, and others come when tasks wait."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from agent_farm import FarmPlacer, farm
from standing_in import until

from mgpu_nb import GPUPool
from mgpu_nb.cluster.engine import ClusterEngine

ROOT = Path(__file__).parents[2]
SECONDS = 60.0

pytestmark = pytest.mark.slow


class IdlePlacer(FarmPlacer):
    """A placer whose nodes are given back."""

    def __init__(self, nodes: int, idle: float) -> None:
        super().__init__(nodes)
        self.idle: float | None = idle
        self.given_back: list[str] = []
        self.asked: list[int] = []

    def start(self, command: Any, invitation: Path, count: int) -> int:
        self.asked.append(count)
        return super().start(command, invitation, count)

    def give_back(self, facts: Mapping[str, Any]) -> None:
        self.free(farm.processes[int(facts["node"].removeprefix("n"))])
        self.given_back.append(facts["node"])


class IdleCluster:
    """A cluster whose nodes are given back, as `GPUPool` takes it."""

    def __init__(self, nodes: int, idle: float) -> None:
        self.placer = IdlePlacer(nodes, idle)

    def engine(self, **options: Any) -> ClusterEngine:
        return ClusterEngine(self.placer, **options)


@pytest.fixture(scope="module", autouse=True)
def agents() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "helpers"))))
        yield
        farm.close()


def test_idle_nodes_are_given_back_and_asked_for_again(caplog: pytest.LogCaptureFixture) -> None:
    cluster = IdleCluster(2, 1.0)
    with GPUPool("cpu", slots=1, cluster=cluster) as pool:
        assert len(pool.wait_for_slots(timeout=SECONDS)) == 2
        until(lambda: not pool.nodes)
        until(lambda: len(cluster.placer.given_back) == 2)
        words = "2 of 2 nodes were given back, having had nothing to do for 1 s"
        assert repr(pool) == f"GPUPool(no slots; {words}; isolation='worker')"
        assert words in str(pool.nodes)
        assert words in pool._repr_html_()
        assert pool.expected_slots == 2
        assert pool.submit(abs, -3).result(SECONDS) == 3
        until(lambda: not pool.nodes)
        assert len(pool.wait_for_slots(timeout=SECONDS)) == 2
    assert cluster.placer.asked == [2, 1, 2]
    assert not [record for record in caplog.records if record.name == "mgpu_nb"], caplog.text


def test_nothing_is_lost_when_calls_come_as_nodes_are_given_back() -> None:
    cluster = IdleCluster(2, 0.2)
    with GPUPool("cpu", slots=1, cluster=cluster) as pool:
        for n in range(8):
            time.sleep(0.14 + 0.02 * n)
            assert list(pool.map(divmod, [7, n], [2, 3])) == [divmod(7, 2), divmod(n, 3)]
    assert len(cluster.placer.asked) > 1
