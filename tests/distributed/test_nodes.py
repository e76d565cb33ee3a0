"""A gang whose ranks are on several nodes, with workers of this machine that are said to be on some."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from nodes import Nodes
from records import span

import mgpu_nb
from mgpu_nb import GPUPool, Run, Task, launch
from mgpu_nb.cluster.ports import KeptPorts
from mgpu_nb.distributed.rendezvous import Meeting, interface_to, join, serve

LOOPBACK = "127.0.0.1"


def environments(*hosts: str) -> list[dict[str, str]]:
    return [Meeting(rank, hosts, LOOPBACK, 29500, "x", 9.0).environment() for rank in range(len(hosts))]


def column(name: str, *hosts: str) -> str:
    return " ".join(environment[name] for environment in environments(*hosts))


# Numbers of ranks.


@pytest.mark.parametrize(
    ("hosts", "local", "locals_", "group", "groups"),
    [
        ("aa", "0 1", "2 2", "0 0", "1 1"),
        ("aabb", "0 1 0 1", "2 2 2 2", "0 0 1 1", "2 2 2 2"),
        ("aaab", "0 1 2 0", "3 3 3 1", "0 0 0 1", "2 2 2 2"),
        ("bbac", "0 1 0 0", "2 2 1 1", "0 0 1 2", "3 3 3 3"),
        ("abab", "0 0 1 1", "2 2 2 2", "0 1 0 1", "2 2 2 2"),
    ],
)
def test_ranks_are_numbered_on_each_node(
    hosts: str, local: str, locals_: str, group: str, groups: str
) -> None:
    assert column("RANK", *hosts) == column("ROLE_RANK", *hosts) == "0 1 2 3"[: 2 * len(hosts) - 1]
    assert set(column("WORLD_SIZE", *hosts).split()) == {str(len(hosts))}
    assert column("LOCAL_RANK", *hosts) == local
    assert column("LOCAL_WORLD_SIZE", *hosts) == locals_
    assert column("GROUP_RANK", *hosts) == group
    assert column("GROUP_WORLD_SIZE", *hosts) == groups


@pytest.mark.slow
def test_the_environment_is_that_of_torchrun(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(
        "import json, os\n"
        "with open(f'{os.environ[\"RANK\"]}.json', 'w') as file:\n    json.dump(dict(os.environ), file)\n"
    )
    (port,), hosts = (kept := KeptPorts(LOOPBACK, 1)).ports, "aab"
    kept.close()
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--master-addr",
        LOOPBACK,
        "--master-port",
        str(port),
    ]
    agents = [
        subprocess.Popen(
            [*command, "--nnodes=2", f"--node-rank={node}", f"--nproc-per-node={count}", str(script)],
            cwd=tmp_path,
            stderr=subprocess.DEVNULL,
        )
        for node, count in ((0, 2), (1, 1))
    ]
    assert [agent.wait(120) for agent in agents] == [0, 0]
    for rank, ours in enumerate(environments(*hosts)):
        theirs = json.loads((tmp_path / f"{rank}.json").read_text())
        assert ours | {"MASTER_PORT": str(port)} == {name: theirs.get(name) for name in ours}
        more = {name for name in theirs.keys() - ours if re.match("TORCH|.*(RANK|ROLE|WORLD|MASTER)", name)}
        more -= os.environ.keys()  # of this process, which has imported more of torch
        assert more <= {"TORCHELASTIC_ERROR_FILE", "TORCHELASTIC_SIGNALS_TO_HANDLE"}  # of its own processes


# Where they meet.


def test_a_kept_port_is_for_one_process_at_a_time() -> None:
    kept = KeptPorts(LOOPBACK, 2)
    first, _ = kept.ports
    with pytest.raises(TimeoutError, match=f"nobody served at 127.0.0.1 port {first} within 0.05 s"):
        join(LOOPBACK, first, 0.05)
    for value in ("a", "b"):
        store = serve(10.0, LOOPBACK, first)
        join(LOOPBACK, first, 10.0).set("key", value)
        assert store.get("key") == value.encode()
        del store
    kept.close()
    kept.close()


def test_a_rank_of_an_earlier_gang_does_not_join() -> None:
    kept = KeptPorts(LOOPBACK, 1)
    here = Meeting(0, ("a", "b"), LOOPBACK, kept.ports[0], "new", 10.0)
    with here._replace(hosts=("a",)).store() as store:
        with pytest.raises(RuntimeError, match="belongs to another gang"):
            here._replace(rank=1, start="old").join()
        assert here._replace(rank=1).join().get("mgpu_nb/start") == store.get("mgpu_nb/start") == b"new"
    kept.close()


@pytest.mark.parametrize(("hosts", "hint"), [("ab", "each machine's own"), ("aa", "firewall")])
def test_a_rank_that_does_not_reach_rank_0_says_where_it_is(hosts: str, hint: str) -> None:
    kept = KeptPorts(LOOPBACK, 1)
    with pytest.raises(TimeoutError, match=f"rank 1 cannot reach rank 0 on a: nobody served.*{hint}"):
        Meeting(1, tuple(hosts), LOOPBACK, kept.ports[0], "x", 0.05).join()
    kept.close()


def test_the_interface_is_that_of_the_route() -> None:
    assert interface_to(LOOPBACK) == ("lo0" if sys.platform == "darwin" else "lo")
    assert interface_to("no.such.host.invalid") is None


# Gangs.


def total(factor: float = 1.0) -> float:
    x = torch.tensor([factor * (dist.get_rank() + 1)])
    dist.all_reduce(x)
    return x.item()


def raises() -> None:
    raise ValueError("mine")


def is_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stays_away(rank: int, touched: str) -> None:
    if dist.get_rank() == rank:
        while not Path(touched).exists():
            time.sleep(0.01)
    dist.barrier()


def surroundings() -> dict[str, str | None]:
    names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    more = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TORCHELASTIC_RUN_ID")
    return {name: os.environ.get(name) for name in (*names, *more)} | {"backend": dist.get_backend()}


def where() -> mgpu_nb.context.Members | None:
    return mgpu_nb.worker().members


def waits_alone(rank: int, go: str) -> int:
    dist.barrier()
    while dist.get_rank() == rank and not Path(go).exists():
        time.sleep(0.01)
    return dist.get_rank()


def ends_among_others(rank: int, how: Callable[[], None]) -> None:
    dist.barrier()
    if dist.get_rank() == rank:
        how()
    dist.barrier()


def stops_itself(rank: int) -> None:
    dist.barrier()
    if dist.get_rank() == rank:
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.barrier()


Share = Callable[[GPUPool], AbstractContextManager[GPUPool]]


@pytest.fixture(scope="module")
def nodes(share: Share) -> Iterator[GPUPool]:
    """A pool of two slots on node n1 and of one on node n2."""
    with share(GPUPool(engine=Nodes(n1=2, n2=1))) as pool:
        yield pool


@pytest.mark.slow
def test_each_rank_is_told_where_it_is(nodes: GPUPool, tmp_path: Path) -> None:
    loopback = interface_to(LOOPBACK)
    found = launch(surroundings, pool=nodes, folder=tmp_path / "run").results(60)
    assert isinstance(nodes._engine, Nodes)
    port = nodes._engine.meeting_point(nodes.slots[0])[1]
    expected = environments("n1", "n1", "n2")
    for there, ours in zip(found, expected, strict=True):
        told = {"MASTER_PORT": str(port), "backend": "gloo", "GLOO_SOCKET_IFNAME": loopback}
        told |= {"NCCL_SOCKET_IFNAME": f"={loopback}"}
        assert there == {name: (ours | told)[name] for name in there}
    assert [record.host for record in Run.open(tmp_path / "run").records] == ["n1", "n1", "n2"]


@pytest.mark.slow
def test_gangs_one_after_the_other_and_side_by_side_do_not_mix(nodes: GPUPool, tmp_path: Path) -> None:
    runs = [launch(total, n, pool=nodes, folder=tmp_path / f"{n}", nprocs=1 + n % 3) for n in range(6)]
    sums = {1: 1, 2: 3, 3: 6}
    assert [run.results(60) for run in runs] == [[n * sums[1 + n % 3]] * (1 + n % 3) for n in range(6)]


@pytest.mark.slow
def test_an_interface_that_the_user_has_set_stays(
    nodes: GPUPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "mine0")
    found = launch(surroundings, pool=nodes, nprocs=1, folder=tmp_path / "run").results(60)
    assert found[0]["NCCL_SOCKET_IFNAME"] == "mine0"


@pytest.mark.slow
def test_rank_0_which_serves_the_store_leaves_as_the_last(nodes: GPUPool, tmp_path: Path) -> None:
    run = launch(waits_alone, 2, str(tmp_path / "go"), pool=nodes, folder=tmp_path / "run")
    while len(run.records) < 1:
        time.sleep(0.01)
    time.sleep(0.2)
    assert [record.name for record in run.records] == ["rank-1"]  # it need not wait
    (tmp_path / "go").touch()
    assert run.results(60) == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "how", "status"), [(0, is_killed, "killed"), (0, raises, "error"), (2, is_killed, "killed")]
)
def test_one_rank_s_end_ends_the_others(
    nodes: GPUPool, tmp_path: Path, rank: int, how: Callable[[], None], status: str
) -> None:
    run = launch(ends_among_others, rank, how, pool=nodes, folder=tmp_path / "run").wait(60)
    records = run.records
    failed = records.pop(rank)
    assert failed.status == status
    for other in records:
        assert other.status == "cancelled"
        assert f"'rank-{rank}' ended {status}" in other.error
        assert span(other)[1] - span(failed)[1] < 5
    assert launch(total, pool=nodes, folder=tmp_path / "next").results(60) == [6.0] * 3


@pytest.mark.slow
@pytest.mark.parametrize("missing", [0, 2])
def test_a_hung_collective_names_who_was_missing(nodes: GPUPool, tmp_path: Path, missing: int) -> None:
    run = launch(
        stays_away, missing, str(tmp_path / "never"), pool=nodes, timeout=10.0, folder=tmp_path / "run"
    ).wait(60)
    assert run.records[missing].status == "cancelled"
    with pytest.raises(TimeoutError, match=rf"waited 10 s in a collective; missing: rank {missing}(\n|$)"):
        run.results()


@pytest.mark.slow
def test_a_stopped_rank_0_is_named(nodes: GPUPool, tmp_path: Path) -> None:
    run = launch(stops_itself, 0, pool=nodes, timeout=10.0, folder=tmp_path / "run").wait(60)
    assert run.records[0].status == "cancelled"
    with pytest.raises(TimeoutError, match="rank 0, where ranks meet, does not answer"):
        run.results()


@pytest.mark.slow
def test_a_gang_without_a_group_knows_its_nodes_as_well(nodes: GPUPool, tmp_path: Path) -> None:
    run = nodes.run([Task(where) for _ in range(3)], gang=True, folder=tmp_path / "run")
    first, second, third = run.results(60)
    assert first == second == third
    assert first is not None
    assert (first.hosts, first.on_gpus) == (("n1", "n1", "n2"), False)
    assert nodes.submit(where).result(60) is None
    with GPUPool(slots=1) as pool:
        here = pool.run([Task(where)], gang=True, folder=tmp_path / "here").results(60)[0]
    assert here is not None
    assert here.meeting_point is None


class Portless(Nodes):
    """Nodes that could keep no port."""

    def meeting_point(self, slot: Any) -> tuple[str, int]:
        raise OSError(f"node {slot.host} has no port")


@pytest.mark.slow
def test_a_gang_that_cannot_meet_has_a_record_that_says_so(tmp_path: Path) -> None:
    with GPUPool(engine=Portless(n1=1, n2=1)) as pool:
        run = launch(total, pool=pool, folder=tmp_path / "run").wait(60)
        assert {record.status for record in run.records} == {"error"}
        assert all("node n1 has no port" in record.error for record in run.records)
        assert pool.submit(pow, 2, 2).result(60) == 4
