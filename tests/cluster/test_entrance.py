"""The port of a pool: open while agents are expected, and at no other time."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from agent_farm import FarmCluster, FarmPlacer, farm
from standing_in import until

from mgpu_nb import GPUPool, NoSlots, launch
from mgpu_nb.cluster.door import Door, dial
from mgpu_nb.cluster.engine import ClusterEngine
from mgpu_nb.cluster.entrance import Entrance
from mgpu_nb.cluster.facts import facts_of_this_node
from mgpu_nb.cluster.invitation import Invitation
from mgpu_nb.cluster.placer import Placer

ROOT = Path(__file__).parents[2]


class Timers:
    """A loop that keeps what it is to do later."""

    def __init__(self) -> None:
        self.later: list[Callable[[], None]] = []

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        del seconds
        self.later.append(callback)


@pytest.fixture
def timers() -> Timers:
    return Timers()


@pytest.fixture
def make(timers: Timers) -> Iterator[Callable[..., Entrance]]:
    made: list[Entrance] = []

    def make(**options: Any) -> Entrance:
        door = Door(lambda facts: {}, lambda link, facts: None, **options)
        made.append(Entrance(door, timers))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for entrance in made:
        entrance.close()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except ConnectionRefusedError:
        return False
    return True


def port_of(entrance: Entrance) -> int:
    return Invitation.read(entrance.file).port


def test_it_is_shut_and_opened_at_its_port(make: Callable[..., Entrance]) -> None:
    entrance = make()
    port = port_of(entrance)
    assert answers(port)
    for _ in range(2):
        entrance.shut()
        assert not answers(port)
    for _ in range(2):
        entrance.open()
        assert answers(port)
    assert port_of(entrance) == port
    entrance.close()
    assert not answers(port)
    assert not entrance.file.exists()


def test_where_the_port_is_taken_the_invitation_has_another(
    make: Callable[..., Entrance], caplog: pytest.LogCaptureFixture
) -> None:
    entrance = make()
    file, port = entrance.file, port_of(entrance)
    entrance.shut()
    with socket.create_server(("127.0.0.1", port)):
        entrance.open()
        assert entrance.trouble == ""
        assert entrance.file == file
        assert (other := port_of(entrance)) != port
        assert answers(other)
        assert f"agents dial port {other} now: copies of {file} are out of date" in caplog.text


def test_a_port_of_ones_choice_that_is_taken_is_tried_again(
    make: Callable[..., Entrance], timers: Timers
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    entrance = make(port=port)
    entrance.shut()
    with socket.create_server(("127.0.0.1", port)):
        entrance.open()
        assert entrance.trouble.startswith("no agent can come in, which is tried again: ")
        (again,) = timers.later
    again()
    assert entrance.trouble == ""
    assert answers(port)
    entrance.shut()
    again()  # nobody is expected by now
    assert not answers(port)


class Expected(Placer):
    """A placer that starts nothing."""

    slots_per_node: int | None = 1

    def __init__(self, nodes: int | None) -> None:
        self.nodes = nodes
        self.invitation: Path | None = None
        self.asked: list[int] = []

    def start(self, command: Sequence[str], invitation: Path, count: int) -> int:
        del command
        self.invitation = invitation
        self.asked.append(count)
        return count

    def status(self) -> str:
        return ""

    def close(self) -> None:
        pass


@pytest.mark.parametrize("nodes", [1, None])
def test_a_pool_that_has_all_of_its_nodes_is_shut_until_one_is_lost(nodes: int | None) -> None:
    placer = Expected(nodes)
    with GPUPool("cpu", slots=1, engine=ClusterEngine(placer)) as pool:
        until(lambda: placer.invitation)
        assert placer.invitation is not None
        invitation = Invitation.read(placer.invitation)
        link, _ = dial(invitation, facts_of_this_node("a"))
        until(lambda: pool.nodes)
        if nodes is None:  # nobody knows whether others will come
            time.sleep(0.5)
            assert answers(invitation.port)
        else:
            until(lambda: not answers(invitation.port))
            link.close()
            until(lambda: not pool.nodes)
            until(lambda: answers(invitation.port))
            until(lambda: placer.asked == [1, 1])
            link, _ = dial(Invitation.read(placer.invitation), facts_of_this_node("b"))
            until(lambda: not answers(invitation.port))
        link.close()


@pytest.mark.slow
def test_a_pool_of_two_agents_is_shut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "helpers"))))
    try:
        with GPUPool("cpu", slots=1, cluster=FarmCluster(2)) as pool:
            pool.wait_for_slots(timeout=60)
            entrance = pool._engine._entrance  # type: ignore[attr-defined]
            port = port_of(entrance)
            assert not answers(port)
            first, second = pool.nodes
            os.kill(first.pid, signal.SIGKILL)
            until(lambda: first.pid not in {node.pid for node in pool.nodes})
            assert pool.submit(abs, -1).result(60) == 1
            pool.wait_for_slots(timeout=60)
            assert not answers(port)
            assert second.pid in {node.pid for node in pool.nodes}
    finally:
        farm.close()


class OneWorks(FarmPlacer):
    """A placer of two nodes, of which one works: the test is the other."""

    def __init__(self) -> None:
        super().__init__(2)
        self.asked: list[int] = []
        self.invitation = Path()

    def start(self, command: Sequence[str], invitation: Path, count: int) -> int:
        if not self.asked:
            super().start(command, invitation, 1)
        self.asked.append(count)
        self.invitation = invitation
        return count


@pytest.mark.slow
def test_a_node_that_never_has_slots_is_given_up_beside_one_that_works(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "helpers"))))
    placer = OneWorks()
    try:
        with GPUPool("cpu", slots=1, engine=ClusterEngine(placer)) as pool:
            pool.wait_for_slots(1, timeout=60)
            gang = launch(abs, -1, nprocs=2, pool=pool, folder=tmp_path / "gang")
            for number in range(1, 4):
                until(lambda number=number: len(placer.asked) == number)  # type: ignore[misc]
                link, _ = dial(Invitation.read(placer.invitation), facts_of_this_node("b"))
                link.close()
            why = "no more will come: no agent can be started: 3 agents in a row were lost before they had slots, "
            with pytest.raises(NoSlots, match=f"1 of 2 slots are there, and {why}the last: node b: "):
                pool.wait_for_slots()
            gang.wait(60, progress=False)
            assert {record.status for record in gang.records} == {"error"}
            assert why in str(gang.records[0].error)
            assert placer.asked == [2, 1, 1]
            assert pool.submit(abs, -3).result(60) == 3
            assert why in repr(pool)
    finally:
        farm.close()
