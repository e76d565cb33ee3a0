"""Pools whose slots come and go: what is said of them, and what is refused. Who runs what is in tests/scheduler."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from virtual import GIB, Behaviour, ElasticEngine, VirtualEngine

from mgpu_nb import GPUPool, NoSlots, Task, pools
from mgpu_nb.engines.base import NodeState
from mgpu_nb.runs.stream import SlotStream
from mgpu_nb.views.run import run_html, state_of


class Nodes:
    """A cluster whose nodes a test has come and go."""

    def __init__(self, expected: int | None = 4) -> None:
        self.made = ElasticEngine(expected, blocks=True)
        self.made.said = "2 of 2 nodes (SLURM job 17: PENDING, Resources)"
        self.options: dict[str, Any] = {}

    def engine(self, **options: Any) -> ElasticEngine:
        self.options = options
        return self.made


def lasts(seconds: float) -> Behaviour:
    return Behaviour(seconds=seconds)


def wait_until(what: Any) -> None:
    end = time.monotonic() + 30
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


@pytest.fixture
def nodes() -> Nodes:
    return Nodes()


@pytest.fixture
def pool(nodes: Nodes) -> Iterator[GPUPool]:
    with GPUPool(cluster=nodes) as pool:
        yield pool
        pool.shutdown(wait=False, cancel_futures=True)
        nodes.made.give_up(0)


def test_a_cluster_makes_the_engine_and_slots_are_meant_on_each_node() -> None:
    nodes = Nodes()
    options = {"preload": ["json"], "start_method": "fork", "env": {"A": "b"}, "start_timeout": 30.0}
    with GPUPool(slots=4, threads=2, cluster=nodes, **options):  # type: ignore[arg-type]
        nodes.made.give_up(0)
    assert nodes.options == {**options, "preload": nodes.options["preload"]}
    assert list(nodes.options["preload"]) == ["json"]
    assert nodes.made.wanted == (None, 4, 2)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"engine": VirtualEngine(1)}, ValueError, r"engine=.* and cluster=Nodes\(\) both say where workers are"),
        ({"engine": "lab"}, ValueError, r"engine='lab' and cluster=Nodes\(\)"),
        ({"pick": "free"}, ValueError, "pick='free' chooses GPUs of this machine"),
        ({"python": "/usr/bin/python3"}, ValueError, "python='/usr/bin/python3' is an interpreter of this machine"),
        ({"cluster": "slurm"}, TypeError, r"cluster must be Slurm\(...\), Ray\(...\) or Agents\(\) .*got 'slurm'"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_a_cluster(options: dict[str, Any], error: type[Exception], match: str) -> None:
    nodes = Nodes()
    with pytest.raises(error, match=match):
        GPUPool(**{"cluster": nodes, **options})
    assert not nodes.options


def test_a_pool_without_slots_says_what_it_waits_for(nodes: Nodes, pool: GPUPool, tmp_path: Path) -> None:
    assert pool.slots == ()
    assert pool.expected_slots == 4
    waits = "waits for 2 of 2 nodes (SLURM job 17: PENDING, Resources)"
    assert repr(pool) == f"GPUPool(no slots; {waits}; isolation='worker')"
    assert waits in pool._repr_html_()
    run = pool.run([Task(lasts, 1.0, name="a")], folder=tmp_path)
    assert run.slots == ()
    assert run.time_left is None
    shown = run_html(state_of(run._ledger), live=True)
    assert f"its tasks wait: the pool {waits}" in shown
    assert "the pool waits for 2 of 2 nodes" in str(pools())
    nodes.made.come(0, "n1", 2)
    assert run.results(30) == [None]
    nodes.made.said = ""
    assert len(run.slots) == 2
    assert repr(pool) == "GPUPool(2 slots: n1 cuda:0, n1 cuda:1; isolation='worker')"


def test_where_there_are_several_machines_each_device_is_named_with_its_own(
    nodes: Nodes, pool: GPUPool, tmp_path: Path
) -> None:
    nodes.made.come(0, "n1", 2)
    nodes.made.come(0, "n2", 1)
    pool.wait_for_slots(3, 30)
    assert "3 slots: n1 cuda:0, n1 cuda:1, n2 cuda:0; waits for 2 of" in repr(pool)
    for shown in (pool._repr_html_(), str(pools())):
        assert "n2 cuda:0" in shown
    nodes.made.clock.runs = False
    run = pool.run([Task(lasts, 1e3, name=f"{n}") for n in range(3)], folder=tmp_path)
    wait_until(lambda: run.progress.running == 3)
    shown = run_html(state_of(run._ledger), live=True)
    assert "2 (n2 cuda:0)" in shown
    assert "the pool waits for 2 of 2 nodes" in shown
    nodes.made.clock.runs = True
    run.wait(30)
    assert [record.host for record in run.records] == ["n1", "n1", "n2"]


def test_its_nodes_are_a_table(nodes: Nodes, pool: GPUPool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not pool.nodes  # an engine without agents
    assert "no nodes" not in str(pool.nodes)  # it waits, as the line says
    nodes.made.come(0, "n1", 2)
    pool.wait_for_slots(2, 30)
    states = (
        NodeState("n1", "gpu-17", 4711, pool.slots, "ready"),
        NodeState("n2", "gpu-<18>", 4712, (), "ending", "preempted"),
    )
    monkeypatch.setattr(nodes.made, "node_states", lambda: states, raising=False)
    assert tuple(pool.nodes) == states
    lines = str(pool.nodes).splitlines()
    assert lines[0] == "the pool waits for 2 of 2 nodes (SLURM job 17: PENDING, Resources)"
    assert [line.split() for line in lines[2:]] == [
        ["n1", "gpu-17", "4711", "2", "cuda:0,", "cuda:1", "ready"],
        ["n2", "gpu-<18>", "4712", "0", "ending:", "preempted"],
    ]
    assert "gpu-&lt;18&gt;" in pool.nodes._repr_html_()


def test_a_pool_of_this_machine_has_no_nodes() -> None:
    with GPUPool(engine=VirtualEngine(2, blocks=True)) as pool:
        assert not pool.nodes
        assert str(pool.nodes).startswith("no nodes")


# Waiting for slots.


def test_waiting_for_all_slots_that_are_expected(nodes: Nodes, pool: GPUPool) -> None:
    nodes.made.come(0, "n1", 2)
    assert len(pool.wait_for_slots(1, timeout=30)) == 2
    threading.Timer(0.05, lambda: nodes.made.come(0, "n2", 2)).start()
    assert [slot.host for slot in pool.wait_for_slots()] == ["n1", "n1", "n2", "n2"]


def test_waiting_for_as_many_as_come() -> None:
    nodes = Nodes(None)
    with GPUPool(cluster=nodes) as pool:
        assert pool.expected_slots is None
        threading.Timer(0.05, lambda: nodes.made.come(0, "n1", 3)).start()
        assert len(pool.wait_for_slots()) == 3


def test_slots_that_do_not_come_in_time(nodes: Nodes, pool: GPUPool) -> None:
    nodes.made.come(0, "n1", 1)
    pool.wait_for_slots(1)
    with pytest.raises(TimeoutError) as raised:
        pool.wait_for_slots(timeout=0.05)
    assert str(raised.value) == (
        "1 of 4 slots are there after 0.05 s: the pool waits for 2 of 2 nodes (SLURM job 17: PENDING, Resources)"
    )


def test_slots_that_will_not_come(nodes: Nodes, pool: GPUPool) -> None:
    with pytest.raises(ValueError, match="count=5: the pool has 4 slots when all are there"):
        pool.wait_for_slots(5)
    threading.Timer(0.05, lambda: nodes.made.give_up(0)).start()
    for _ in range(2):
        with pytest.raises(
            NoSlots, match="0 of 4 slots are there, and no more will come: SLURM job 17 ended"
        ):
            pool.wait_for_slots(timeout=30)
    with pytest.raises(NoSlots, match="the task: no slot is left, and no more will come: SLURM job 17 ended"):
        pool.submit(abs, 1).result(30)
    assert repr(pool) == (
        "GPUPool(no slots; no more will come: SLURM job 17 ended: TIMEOUT; isolation='worker')"
    )


def test_a_node_that_is_about_to_go_is_not_there(nodes: Nodes, pool: GPUPool) -> None:
    nodes.made.come(0, "n1", 4)
    pool.wait_for_slots(timeout=30)
    nodes.made.drain_node(0, "n1")
    wait_until(lambda: {slot.state for slot in pool._dispatcher.activity().slots} == {"ending"})
    assert {slot.why for slot in pool._dispatcher.activity().slots} == {"its time is over"}
    with pytest.raises(TimeoutError, match="0 of 4 slots are there"):
        pool.wait_for_slots(timeout=0.05)


def test_a_pool_that_is_shut_down_while_somebody_waits(nodes: Nodes) -> None:
    pool = GPUPool(cluster=nodes)
    threading.Timer(0.05, pool.shutdown).start()
    with pytest.raises(RuntimeError, match="0 of 4 slots are there, and the pool was shut down"):
        pool.wait_for_slots(timeout=30)
    wait_until(lambda: repr(pool) == "GPUPool(no slots; isolation='worker', closed)")


def test_a_pool_of_this_machine_has_its_slots_at_once() -> None:
    with GPUPool(engine=VirtualEngine(2, blocks=True)) as pool:
        assert pool.wait_for_slots() == pool.slots
        assert pool.expected_slots == len(pool.slots) == 2
        with pytest.raises(ValueError, match="count=3: the pool has 2 slots"):
            pool.wait_for_slots(3)


# What is refused before anything starts.


def test_tasks_for_which_there_will_never_be_slots(nodes: Nodes, pool: GPUPool) -> None:
    with pytest.raises(ValueError, match="task 'wide' takes 5 slots, the pool has 4: give it more slots"):
        pool.run([Task(lasts, 1.0, devices=5, name="wide")])
    with pytest.raises(ValueError, match="a gang of 5 tasks needs as many slots, the pool has 4"):
        pool.run([Task(lasts, 1.0, name=f"{n}") for n in range(5)], gang=True)
    nodes.made.come(0, "n1", 2)
    nodes.made.come(0, "n2", 2)
    pool.wait_for_slots()
    with pytest.raises(ValueError, match="'wide' takes 3 slots of one machine, the pool has 2 on one"):
        pool.run([Task(lasts, 1.0, devices=3, name="wide")])
    with pytest.raises(ValueError, match=r"no device has as much \(n1 cuda:0 85,899,345,920, n1 cuda:1 85"):
        pool.run([Task(lasts, 1.0, memory=90 * GIB)])


def test_tasks_for_which_slots_are_still_to_come_wait(nodes: Nodes, pool: GPUPool, tmp_path: Path) -> None:
    wide = Task(lasts, 1.0, devices=3, name="wide")
    large = Task(lasts, 1.0, memory=70 * GIB, name="large")
    ranks = [Task(lasts, 1.0, name=f"{n}") for n in range(4)]
    gang = pool.run(ranks, gang=True, folder=tmp_path / "gang")
    run = pool.run([wide, large], folder=tmp_path / "run")
    nodes.made.totals["n1"] = 60 * GIB
    nodes.made.come(0, "n1", 1)
    plain = pool.submit(lasts, 1.0)
    assert plain.result(30) is None
    assert not [*run.records, *gang.records]
    nodes.made.come(0, "n2", 3)
    assert run.results(30) == [None, None]
    assert gang.results(30) == [None] * 4
    assert [record.host for record in [*run.records, *gang.records]] == ["n2", "n2", "n1", "n2", "n2", "n2"]


def test_agents_of_which_nobody_knows_how_many_come_refuse_nothing(tmp_path: Path) -> None:
    nodes = Nodes(None)
    with GPUPool(cluster=nodes) as pool:
        run = pool.run([Task(lasts, 1.0, devices=30)], folder=tmp_path)
        nodes.made.give_up(0)
        (record,) = run.wait(30).records
    assert isinstance(record.exception, NoSlots)
    assert (
        record.error == "task 'lasts-0': no slot is left, and no more will come: SLURM job 17 ended: TIMEOUT"
    )


# Runs.


def test_a_lost_node_in_the_records_of_a_run(nodes: Nodes, pool: GPUPool, tmp_path: Path) -> None:
    nodes.made.clock.runs = False
    nodes.made.come(0, "n1", 1)
    run = pool.run([Task(lasts, 1e3, name="a")], folder=tmp_path)
    wait_until(lambda: run.progress.running == 1)
    nodes.made.lose(0, "n1", "no ping for 10 s")
    nodes.made.come(0, "n2", 1)
    wait_until(lambda: [slot.host for slot in pool.slots] == ["n2"])
    nodes.made.clock.runs = True
    (record,) = run.wait(30).records
    assert (record.status, record.attempt, record.host) == ("ok", 2, "n2")
    assert record.notes == ("attempt 1 was lost with node n1: no ping for 10 s",)


def test_a_pool_whose_handle_is_lost_is_found_again(nodes: Nodes) -> None:
    pool = GPUPool(cluster=nodes)
    future = pool.submit(lasts, 1.0)
    del pool
    gc.collect()
    (found,) = pools()
    assert "no slots" in repr(found)
    nodes.made.come(0, "n1", 1)
    assert future.result(30) is None


def test_what_calls_print_on_a_node_that_comes_later(nodes: Nodes, pool: GPUPool) -> None:
    said: list[str] = []
    stream = SlotStream(pool._dispatcher)
    future = pool.submit(prints, "one\n")
    nodes.made.come(0, "n1", 1)
    future.result(30)
    stream.end(said.append)
    assert said == ["slot 0 | one\n"]
    assert pool.logs() == {0: "one\n"}


def prints(text: str) -> Behaviour:
    return Behaviour(output=text.encode())
