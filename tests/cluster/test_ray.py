"""Agents on the nodes of a Ray cluster: what is asked for, what Ray lacks, nothing left of it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from placed_runs import SECONDS, agents, both_nodes, hold
from ray_cluster import RayCluster, ray_here
from standing_in import agent_command, agents_in, until

from mgpu_nb import GPUPool, Ray, Task
from mgpu_nb.cluster.door import route_to
from mgpu_nb.cluster.placer import NoMore
from mgpu_nb.cluster.ray import Place, RayPlacer, find_cluster

Placers = Callable[..., RayPlacer]


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[RayCluster]:
    with ray_here() as cluster:
        yield cluster


@pytest.fixture
def placers(ray_cluster: RayCluster) -> Iterator[Placers]:
    """Makes placers, which are closed after the test."""
    made: list[RayPlacer] = []

    def make(**options: Any) -> RayPlacer:
        made.append(RayPlacer(Ray(**options), Place(ray_cluster.address, True)))
        return made[-1]

    yield make
    for placer in made:
        placer.close()


@pytest.fixture
def invitation(tmp_path: Path) -> Path:
    file = tmp_path / "invitation.json"
    file.write_text('{"secret": "of the pool"}')
    return file


def runs(agent: dict[str, str]) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(int(agent["pid"])).status() != psutil.STATUS_ZOMBIE
    return False


def settled(placer: RayPlacer, folder: Path, count: int) -> dict[str, dict[str, str]]:
    """What the stand-ins say once there are so many."""

    def there() -> bool:
        placer.status()
        return len(agents_in(folder)) == count

    until(there)
    return agents_in(folder)


def join(placer: RayPlacer, folder: Path) -> None:
    """Take those that are there for agents that have joined the pool."""
    for name in agents_in(folder):
        placer.joined({"node": name})


def command_of(folder: Path, invitation: Path, *options: str) -> list[str]:
    return [*agent_command(folder, *options), "--connect", str(invitation)]


def with_two_agents(
    placers: Placers, folder: Path, invitation: Path
) -> tuple[RayPlacer, dict[str, dict[str, str]]]:
    """A placer of two nodes, and what the stand-ins say that it has started there."""
    placer = placers(nodes=2)
    placer.start(command_of(folder, invitation), invitation, 2)
    return placer, settled(placer, folder, 2)


def test_each_node_has_an_agent_that_is_started_again_where_it_was(
    placers: Placers, tmp_path: Path, invitation: Path
) -> None:
    placer = placers(nodes=2)
    assert (placer.nodes, placer.slots_per_node) == (2, None)
    placer.start(command_of(tmp_path, invitation), invitation, 2)
    found = settled(placer, tmp_path, 2)
    join(placer, tmp_path)
    assert {agent["invitation"] for agent in found.values()} == {'{"secret": "of the pool"}'}
    assert {agent["modes"] for agent in found.values()} == {"0o600 0o700"}
    assert placer.status() == ""
    name = min(found)
    psutil.Process(int(found[name]["pid"])).kill()
    (tmp_path / f"{name}.agent").unlink()
    placer.start(command_of(tmp_path, invitation), invitation, 1)
    again = settled(placer, tmp_path, 2)
    assert again.keys() == found.keys()
    assert again[name]["pid"] != found[name]["pid"]
    placer.close()
    assert not any(map(runs, again.values()))
    assert not [agent for agent in (*found.values(), *again.values()) if Path(agent["file"]).exists()]


def test_ray_has_its_nodes_back_with_the_last_agent_of_those_that_were_asked_for_together(
    placers: Placers, tmp_path: Path, invitation: Path
) -> None:
    placer, first = with_two_agents(placers, tmp_path, invitation)
    join(placer, tmp_path)
    for name in sorted(first):
        assert placer.status() == ""
        psutil.Process(int(first[name]["pid"])).kill()
        placer.give_back({"node": name})
        (tmp_path / f"{name}.agent").unlink()
    with pytest.raises(OSError, match="the agents on Ray's nodes have ended"):  # nothing is held there
        placer.status()
    placer.start(command_of(tmp_path, invitation), invitation, 1)
    settled(placer, tmp_path, 1)


def test_a_node_that_is_lost_is_replaced(
    placers: Placers, ray_cluster: RayCluster, tmp_path: Path, invitation: Path
) -> None:
    placer, first = with_two_agents(placers, tmp_path, invitation)
    join(placer, tmp_path)
    lost, name = next((id, name) for name in first for id in ray_cluster.workers() if name.endswith(id[:6]))
    ray_cluster.remove(lost)
    until(lambda: not runs(first[name]))  # it ends with its actor
    placer.start(command_of(tmp_path, invitation), invitation, 1)

    def replaced() -> bool:
        placer.status()
        if placer.unheard():  # Ray has tried it on the node that was lost
            placer.start(command_of(tmp_path, invitation), invitation, 1)
        return len(agents_in(tmp_path)) == 3

    until(replaced)
    second = agents_in(tmp_path)
    (other,) = second.keys() - first.keys()
    assert runs(second[other])
    ray_cluster.add()


def test_what_ray_lacks_is_told_in_numbers(placers: Placers, tmp_path: Path, invitation: Path) -> None:
    placer = placers(nodes=2, gpus_per_node=4)
    assert placer.slots_per_node == 4
    placer.start(command_of(tmp_path, invitation), invitation, 2)
    assert placer.status() == (
        "Ray: 2 nodes with 1 CPU and 4 GPU each are pending; 0 of its 3 nodes have so much, and 3 of 3 CPU and 0 of 0 "
        "GPU are free now"
    )


def test_agents_that_end_at_once_are_started_three_times(
    placers: Placers, tmp_path: Path, invitation: Path
) -> None:
    placer = placers(nodes=1)

    def asked() -> bool:
        placer.status()
        return False

    for _ in range(3):
        placer.start(command_of(tmp_path, invitation, "--exit", "3"), invitation, 1)
        with pytest.raises(
            OSError, match="has ended with exit code 3\nthe stand-in of an agent does not want to"
        ):
            until(asked)
        assert placer.unheard() == 1
    with pytest.raises(NoMore, match="3 agents in a row have ended at once, the last: the agent on "):
        placer.start(command_of(tmp_path, invitation), invitation, 1)


def test_one_that_is_killed_before_it_joined_is_started_again_where_it_was(
    placers: Placers, tmp_path: Path, invitation: Path
) -> None:
    placer, first = with_two_agents(placers, tmp_path, invitation)
    works, killed = sorted(first)
    placer.joined({"node": works})
    psutil.Process(int(first[killed]["pid"])).kill()
    (tmp_path / f"{killed}.agent").unlink()

    def failed() -> int:
        assert placer.status() in ("", f"the agent on {killed} has ended by SIGKILL")
        return placer.unheard()

    until(failed)
    placer.start(command_of(tmp_path, invitation), invitation, 1)
    again = settled(placer, tmp_path, 2)
    assert again.keys() == first.keys()
    assert again[works] == first[works]


def test_those_that_fail_beside_one_that_works_are_enough_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = pytest.importorskip("mgpu_nb.cluster.ray_driver")
    removed: list[object] = []

    class Bundle:
        """One that works, or one that fails whenever it is begun."""

        def __init__(self, works: bool) -> None:
            self.state = "runs"
            self.joined, self.again = works, False
            self.group = SimpleNamespace(id=int(works))

        def settle(self) -> None:
            """Nothing is under way."""

        def look(self, *_: object) -> str | None:
            if self.joined:
                return None
            self.state = "free"
            return "it failed"

        def begin(self) -> None:
            self.state = "runs"

        def drop(self) -> None:
            """Nothing is there."""

    monkeypatch.setattr(driver.ray, "nodes", list)
    monkeypatch.setattr(driver, "remove_placement_group", removed.append)
    monkeypatch.setattr(driver.ray, "init", lambda **_: None)
    nodes = driver.Nodes("here", {})
    works, fails = Bundle(works=True), Bundle(works=False)
    nodes._bundles = [works]
    nodes._look()
    nodes._bundles.append(fails)
    for number in range(3):
        assert fails in nodes._bundles
        assert not removed  # it is tried again there
        if number:
            nodes.start(1, [], "")
        nodes._look()
        assert nodes.unheard() == "1"
    assert nodes.status() == "it failed"
    assert removed == [fails.group]  # others can have it
    with pytest.raises(NoMore, match="3 agents in a row have ended at once, the last: it failed"):
        nodes.start(1, [], "")
    nodes.worked()
    assert nodes.status() == ""


def test_a_driver_that_ends_takes_what_it_has_asked_for(
    monkeypatch: pytest.MonkeyPatch, invitation: Path
) -> None:
    class Driver:
        """One that does as it is asked, until it has ended."""

        ended = False

        def has_ended(self) -> bool:
            return self.ended

        def ask(self, do: str, **_: object) -> str:
            if self.ended:
                raise OSError("the driver of Ray has ended")
            return "0" if do == "unheard" else ""

        def close(self) -> None:
            self.ended = True

    placer = RayPlacer(Ray(nodes=3), Place("here:1", True))
    drivers = [Driver(), Driver()]
    left = iter(drivers)

    def connect() -> Driver:
        if (driver := next(left, None)) is None:
            raise ConnectionError("no Ray cluster answers")
        return driver

    monkeypatch.setattr(placer, "_connect", connect)
    assert placer.start(["python"], invitation, 3) == 3
    placer.joined({"node": "a"})
    drivers[0].ended = True
    assert placer.start(["python"], invitation, 1) == 1
    assert placer.unheard() == 2  # of the first one
    assert placer.unheard() == 0
    drivers[1].ended = True
    with pytest.raises(ConnectionError):
        placer.start(["python"], invitation, 1)
    placer.joined({"node": "a"})  # told late: there is no driver any more
    placer.worked()
    assert placer.unheard() == 1
    placer.close()


def test_agents_end_with_the_parent_process(
    ray_cluster: RayCluster, tmp_path: Path, invitation: Path
) -> None:
    parent = (
        "import sys, time; from pathlib import Path; from mgpu_nb import Ray\n"
        "from mgpu_nb.cluster.ray import Place, RayPlacer\n"
        f"placer = RayPlacer(Ray(), Place({ray_cluster.address!r}, True))\n"
        f"placer.start({command_of(tmp_path, invitation)!r}, Path({str(invitation)!r}), 1)\n"
        "while True: placer.status(); time.sleep(0.2)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent])
    try:
        until(lambda: agents_in(tmp_path))
    finally:
        process.kill()
        process.wait()
    (agent,) = agents_in(tmp_path).values()
    until(lambda: not runs(agent))


def test_a_run_on_the_nodes_of_a_ray(ray_cluster: RayCluster, tmp_path: Path) -> None:
    with GPUPool("cpu", slots=1, cluster=Ray(ray_cluster.address, nodes=2, trust=True)) as pool:
        both_nodes(pool, tmp_path)
        held = pool.run([Task(hold, str(tmp_path), name=name) for name in "ab"], folder=tmp_path / "held")
        until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
        hosts = {slot.host for slot in pool.slots}
        assert all(map(agents, hosts))
        lost = next(node for node in ray_cluster.workers() for host in hosts if host.endswith(node[:6]))
        ray_cluster.remove(lost)
        until(lambda: len(list(tmp_path.glob("*.pid"))) == 3)
        (tmp_path / "go").touch()
        held.wait(SECONDS, progress=False)
        assert [record.status for record in held.records] == ["ok", "ok"], held.failures
        assert not any(record.host.endswith(lost[:6]) for record in held.records)
        hosts |= {slot.host for slot in pool.slots}
        assert len(hosts) == 3
    until(lambda: not any(map(agents, hosts)), 10)


def test_a_cluster_of_others_needs_trust(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    options: dict[str, Any] = {"preload": (), "start_method": None, "env": None, "start_timeout": 10}
    with pytest.raises(ValueError, match=r"address='10\.1\.2\.3:6379': whoever reaches .* or say trust=True"):
        Ray(address="10.1.2.3:6379").engine(**options)
    monkeypatch.setenv("RAY_ADDRESS", "ray://head.example:10001")
    with pytest.raises(ValueError, match=r"address='ray://head\.example:10001': whoever reaches"):
        Ray().engine(**options)
    monkeypatch.setenv("RAY_ADDRESS", "head")
    with pytest.raises(ValueError, match="RAY_ADDRESS='head' is no address"):
        Ray().engine(**options)
    with pytest.raises(
        ConnectionError, match=r"no Ray cluster answers at 127\.0\.0\.1:9 \(Connection refused\)"
    ):
        Ray(address="127.0.0.1:9").engine(**options)


def test_what_is_no_ray_does_not_keep_it_waiting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, invitation: Path
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr("mgpu_nb.cluster.ray._JOIN", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = Place(f"127.0.0.1:{server.getsockname()[1]}", True)
        place.check_answer()
        placer = RayPlacer(Ray(), place)
        for _ in range(2):  # it is tried again, and says so again
            with pytest.raises(TimeoutError, match="Ray has not answered in 3 s"):
                placer.start(command_of(tmp_path, invitation), invitation, 1)
        placer.close()


def test_a_cluster_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(
        ConnectionError, match="no Ray cluster runs on this machine: start one by `ray start --head`"
    ):
        find_cluster(None)
    (tmp_path / "ray").mkdir()
    file = tmp_path / "ray" / "ray_current_cluster"
    file.write_text("10.0.0.7:6379\n")  # of a machine that has joined the cluster of another
    assert find_cluster(None) == find_cluster("auto") == ("10.0.0.7:6379", False)
    for here in (route_to("10.0.0.7"), "127.0.0.1"):
        file.write_text(f"{here}:6379\n")
        assert find_cluster(None) == (f"{here}:6379", True)
    assert find_cluster("[::1]:6379") == ("[::1]:6379", True)
    assert find_cluster("localhost:1") == ("localhost:1", True)
    assert find_cluster("ray://h:10001") == ("ray://h:10001", False)
    assert find_cluster("ray://h:10001").host == "h"
    assert find_cluster("[::1]:6379").host == "::1"


def test_a_cluster_that_somebody_else_wrote_down_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("mgpu_nb.cluster.ray.has_token", lambda: False)
    (tmp_path / "ray").mkdir()
    file = tmp_path / "ray" / "ray_current_cluster"
    file.write_text("10.0.0.7:6379\n")
    with pytest.raises(ValueError, match=r"address='10.0.0.7:6379'.* or say trust=True"):
        GPUPool("cpu", slots=1, cluster=Ray())
    if os.geteuid() == 0:
        os.chown(file, 4711, -1)
    monkeypatch.setattr(os, "getuid", lambda: 4712)
    with pytest.raises(
        ConnectionError, match=r"is another user's: give address='10.0.0.7:6379' if you trust"
    ):
        find_cluster(None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nodes": 0}, "nodes must be an integer >= 1, got 0"),
        ({"gpus_per_node": 0.5}, r"gpus_per_node must be an integer >= 0, got 0\.5"),
        ({"cpus_per_node": 0}, "cpus_per_node must be an integer >= 1, got 0"),
        ({"address": "head"}, "address must be HOST:PORT, ray://HOST:PORT or auto or None, got 'head'"),
        ({"address": "http://head:8265"}, "address must be HOST:PORT"),
        ({"trust": 1}, "trust must be True or False, got 1"),
        ({"host": "h:1"}, "host must be a host name or an IP address, without a port"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Ray(**options)


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mgpu_nb\[ray\]'"):
        Ray().engine(preload=(), start_method=None, env=None, start_timeout=10)
