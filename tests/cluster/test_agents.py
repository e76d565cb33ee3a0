"""Agents that a person starts, and agents on this machine, which end with it."""

from __future__ import annotations

import gc
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from placed_runs import SECONDS, both_nodes
from standing_in import agent_command, agents_in, until

from mgpu_nb import Agents, GPUPool
from mgpu_nb.cluster.agents import AgentsPlacer
from mgpu_nb.cluster.children import Child, Children
from mgpu_nb.cluster.placer import NoMore

Placers = Callable[..., AgentsPlacer]


@pytest.fixture
def placers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Placers]:
    """Makes placers, which are closed after the test; agents that do not end by themselves are killed soon."""
    monkeypatch.setattr("mgpu_nb.cluster.agents._GRACE", 0.1)
    made: list[AgentsPlacer] = []

    def make(**options: Any) -> AgentsPlacer:
        made.append(AgentsPlacer(Agents(**options)))
        return made[-1]

    yield make
    for placer in made:
        placer.close()


@pytest.fixture
def invitation(tmp_path: Path) -> Path:
    file = tmp_path / "invitation.json"
    file.write_text("{}")
    return file


def test_agents_here_have_names_and_an_owner(
    placers: Placers, tmp_path: Path, invitation: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    placer = placers(here=2)
    assert (placer.nodes, placer.slots_per_node) == (2, None)
    placer.start(agent_command(tmp_path), invitation, 2)
    until(lambda: agents_in(tmp_path).keys() == {"here-0", "here-1"})
    assert placer.status() == ""
    pids = [int(agent["pid"]) for agent in agents_in(tmp_path).values()]
    for name in agents_in(tmp_path):
        placer.joined({"node": name})
    os.kill(pids[0], signal.SIGKILL)
    until(lambda: not alive(pids[0]))
    assert placer.status() == ""  # the pool has noticed
    placer.start(agent_command(tmp_path), invitation, 1)
    until(lambda: "here-2" in agents_in(tmp_path))
    placer.close()
    assert not any(alive(int(agent["pid"])) for agent in agents_in(tmp_path).values())
    assert not invitation.with_suffix("").exists()  # their logs
    assert capfd.readouterr() == ("", "")


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_one_that_was_lost_and_lives_on_is_replaced(
    placers: Placers, tmp_path: Path, invitation: Path
) -> None:
    placer = placers(here=1)
    placer.start(agent_command(tmp_path), invitation, 1)
    until(lambda: len(agents_in(tmp_path)) == 1)
    os.kill(int(next(iter(agents_in(tmp_path).values()))["pid"]), signal.SIGSTOP)
    placer.start(agent_command(tmp_path), invitation, 1)
    until(lambda: len(agents_in(tmp_path)) == 2)


def test_agents_here_end_with_the_parent_process(tmp_path: Path, invitation: Path) -> None:
    parent = (
        "import threading, time; from pathlib import Path; from mgpu_nb import Agents\n"
        "from mgpu_nb.cluster.agents import AgentsPlacer\n"
        "placer = AgentsPlacer(Agents(here=2))\n"
        f"start = lambda: placer.start({agent_command(tmp_path)!r}, Path({str(invitation)!r}), 2)\n"
        "thread = threading.Thread(target=start); thread.start(); thread.join()\n"  # its end is not theirs
        "time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent])
    try:
        until(lambda: len(agents_in(tmp_path)) == 2)
        pids = [int(agent["pid"]) for agent in agents_in(tmp_path).values()]
        assert all(map(alive, pids))
    finally:
        process.kill()
        process.wait()
    until(lambda: not any(map(alive, pids)), 10)


def test_an_agent_ends_with_the_parent_process_though_a_fork_of_that_lives(tmp_path: Path) -> None:
    parent = (
        "import os, sys, time; from pathlib import Path; from mgpu_nb.cluster.children import Child\n"
        "child = Child(['sleep', '600'], 'n1', Path(sys.argv[1]))\n"
        "fork = os.fork()\n"
        "if fork: print(child._process.pid, fork, flush=True)\n"
        "time.sleep(600)"
    )
    command = [sys.executable, "-c", parent, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        agent, fork = map(int, process.stdout.readline().split())
        process.kill()
    try:
        until(lambda: not alive(agent))
        assert alive(fork)
    finally:
        os.kill(fork, signal.SIGKILL)
    until(lambda: not alive(fork))


def test_a_pool_that_cannot_listen_leaves_no_descriptor() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        cluster = Agents(here=1, address="127.0.0.1", port=taken.getsockname()[1])

        def refused() -> None:
            with pytest.raises(OSError, match="in use"):
                GPUPool("cpu", slots=1, cluster=cluster)
            gc.collect()

        refused()  # what it imports
        before = psutil.Process().num_fds()
        for _ in range(5):
            refused()
        assert psutil.Process().num_fds() <= before


def test_agents_that_end_at_once_say_why(placers: Placers, tmp_path: Path, invitation: Path) -> None:
    placer = placers(here=1)
    words = "agent here-{} has ended with exit code 3\nthe stand-in of an agent does not want to"
    for number in range(3):
        placer.start(agent_command(tmp_path, "--exit", "3"), invitation, 1)
        until(lambda: placer._children[-1].has_ended())
        with pytest.raises(OSError, match=words.format(number)):
            placer.status()
    with pytest.raises(OSError, match="3 agents in a row have ended at once, the last: " + words.format(2)):
        placer.start(agent_command(tmp_path), invitation, 1)


def test_those_that_fail_beside_one_that_works_are_enough_as_well(tmp_path: Path) -> None:
    children = Children()

    def ends(code: int) -> None:
        children.append(Child(["bash", "-c", f"exit {code}"], "fails", tmp_path / "log"))
        until(children[-1].has_ended)
        children.look()

    try:
        children.append(Child(["sleep", "600"], "works", tmp_path / "log"))
        for number in (1, 2, 3):
            ends(3)
            assert children.failures.count == number
        assert children.unheard() == 3
        assert children.unheard() == 0
        with pytest.raises(NoMore, match="3 agents in a row"):
            children.failures.check()
    finally:
        for child in children:
            child.end(0)


@pytest.mark.parametrize(
    ("joined", "end", "unheard", "failed"),
    [
        (False, "exit 3", 1, True),
        (False, "exit 0", 1, True),
        (False, "kill -9 $$", 1, True),
        (True, "exit 3", 0, True),
        (True, "exit 0", 0, False),
        (True, "kill -9 $$", 0, False),  # as one is that is taken away
    ],
)
def test_which_ends_of_an_agent_are_failures(
    joined: bool, end: str, unheard: int, failed: bool, tmp_path: Path
) -> None:
    children = Children()
    children.append(Child(["bash", "-c", f"read; {end}"], "a", tmp_path / "first"))
    until(children[-1].has_ended)
    children.look()
    children.append(Child(["bash", "-c", f"sleep 0.5; {end}"], "a", tmp_path / "log"))
    if joined:
        children.joined("a")
    until(children[-1].has_ended)
    children.look()
    assert (children.unheard() - 1, children.failures.count - 1) == (unheard, failed)
    for child in children:
        child.end(0)


def test_where_a_person_may_start_others_failures_here_are_no_end(
    placers: Placers, tmp_path: Path, invitation: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    placer = placers(nodes=4, here=1)
    for _ in range(3):
        assert placer.start(agent_command(tmp_path, "--exit", "3"), invitation, 1) == 1
        until(lambda: placer._children[-1].has_ended())
        assert placer.unheard() == 1
    capfd.readouterr()
    assert placer.start(agent_command(tmp_path), invitation, 1) == 1
    assert len(placer._children) == 3
    assert "Run this on a node," in capfd.readouterr().err
    placer.worked()
    placer.start(agent_command(tmp_path), invitation, 1)
    assert len(placer._children) == 4


def test_a_person_is_told_what_to_run_on_each_node(
    placers: Placers, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    invitation = tmp_path / "of mine.json"
    placer = placers(nodes=3)
    placer.start(agent_command(tmp_path), invitation, 3)
    command = f"mgpu-nb agent --connect '{invitation}'"
    assert placer.status() == f"start them by: {command}"
    said = capfd.readouterr().err
    assert f"Run this on 3 nodes, in an environment with mgpu_nb:\n    {command}\n" in said
    assert f"scp -p '{invitation}' NODE:" in said
    placer.start(agent_command(tmp_path), invitation, 1)
    assert "Run this on a node," in capfd.readouterr().err
    as_many_as_come = placers()
    assert as_many_as_come.nodes is None
    as_many_as_come.start(agent_command(tmp_path), invitation, 0)
    assert "Run this on each node," in capfd.readouterr().err
    assert not agents_in(tmp_path)


def test_some_are_here_and_some_elsewhere(
    placers: Placers, tmp_path: Path, invitation: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    placer = placers(nodes=3, here=1)
    placer.start(agent_command(tmp_path), invitation, 3)
    until(lambda: len(agents_in(tmp_path)) == 1)
    assert "Run this on 2 nodes," in capfd.readouterr().err
    os.kill(int(next(iter(agents_in(tmp_path).values()))["pid"]), signal.SIGKILL)
    until(lambda: placer._children[0].has_ended())
    placer.start(agent_command(tmp_path), invitation, 1)
    until(lambda: len(agents_in(tmp_path)) == 2)
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_agents_here(tmp_path: Path) -> None:
    with GPUPool("cpu", slots=1, cluster=Agents(here=2)) as pool:
        run = both_nodes(pool, tmp_path)
        assert {record.host for record in run.records} == {"here-0", "here-1"}
        assert {node.name for node in pool.nodes} == {"here-0", "here-1"}
        assert {node.machine for node in pool.nodes} == {os.uname().nodename}


@pytest.mark.slow
def test_an_agent_that_a_person_starts(capfd: pytest.CaptureFixture[str]) -> None:
    with GPUPool("cpu", slots=1, cluster=Agents(address="127.0.0.1")) as pool:
        said: list[str] = []

        def command() -> list[str]:
            said.append(capfd.readouterr().err)
            return re.findall(r"^    mgpu-nb (agent --connect .*)$", "".join(said), re.MULTILINE)

        # It is told by then: capfd must not look while it is.
        until(lambda: "mgpu-nb agent --connect" in repr(pool))
        assert command()
        assert re.search(r"waits for an agent \(start them by: mgpu-nb agent --connect", repr(pool))
        words = shlex.split(command()[0])
        agent = subprocess.Popen([sys.executable, "-m", "mgpu_nb", *words, "--name", "theirs"])
        assert pool.submit(os.getppid).result(SECONDS) != os.getpid()
        assert [slot.host for slot in pool.slots] == ["theirs"]
    assert agent.wait(20) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nodes": 0}, "nodes must be an integer >= 1 or None, got 0"),
        ({"here": -1}, "here must be an integer >= 0, got -1"),
        ({"nodes": 1, "here": 2}, "here=2 agents are more than nodes=1, the number of all"),
        ({"address": "here.example:80"}, "address must be a host name or an IP address, without a port"),
        ({"address": ""}, "address must be a host name"),
        ({"port": -1}, "port must be an integer >= 0 and <= 65535, got -1"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Agents(**options)


@pytest.mark.parametrize("address", ["10.0.0.1", "head.example", "fe80::1%eth0", "::1"])
def test_addresses(address: str) -> None:
    assert Agents(address=address).address == address
