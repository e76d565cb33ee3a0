"""Gangs and trainings over the nodes of a cluster: two agents on this machine."""

import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import land_batches
import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
from agent_farm import FarmCluster

import mgpu_nb
from mgpu_nb import Agents, GPUPool, launch
from mgpu_nb.cluster.engine import ClusterEngine
from mgpu_nb.workloads import training

pytestmark = pytest.mark.slow

SECONDS = 90.0
SMALL = training.Config(columns=53, width=8, layers=1, heads=2, batch_size=12, epochs=2, learning_rate=3e-3)
NAMES = (
    "RANK",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "WORLD_SIZE",
    "MASTER_ADDR",
)


def total() -> float:
    x = torch.tensor([dist.get_rank() + 1.0])
    dist.all_reduce(x)
    return x.item()


def waits_for(go: str) -> bool:
    while not Path(go).exists():
        time.sleep(0.01)
    return True


def surroundings() -> tuple[dict[str, str], str, str]:
    dist.barrier()
    assert os.environ["GLOO_SOCKET_IFNAME"].startswith("lo")
    return {name: os.environ[name] for name in NAMES}, os.environ["MASTER_PORT"], dist.get_backend()


def is_killed(rank: int) -> None:
    dist.barrier()
    if dist.get_rank() == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def loses_its_node(rank: int, folder: str) -> float:
    """In the first attempt, wait for ever; say which process is the agent of a rank."""
    if mgpu_nb.worker().attempt == 1:
        if dist.get_rank() == rank:
            (Path(folder) / "pid").write_text(str(os.getpid()))
        time.sleep(SECONDS)
    return total()


@pytest.fixture(scope="module")
def cluster(share: Callable[[GPUPool], AbstractContextManager[GPUPool]]) -> Iterator[GPUPool]:
    with share(GPUPool("cpu", slots=2, threads=1, cluster=FarmCluster(2), grace=2.0)) as pool:
        yield pool


def test_a_gang_waits_for_the_nodes_and_spans_them(cluster: GPUPool, tmp_path: Path) -> None:
    run = launch(surroundings, nprocs=3, pool=cluster, folder=tmp_path / "run")  # before a node is there
    found = run.results(SECONDS)
    same = {"WORLD_SIZE": "3", "GROUP_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    places = [("0", "2", "0"), ("1", "2", "0"), ("0", "1", "1")]
    names = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
    assert [variables for variables, _, _ in found] == [
        {**same, "RANK": str(rank), **dict(zip(names, place, strict=True))}
        for rank, place in enumerate(places)
    ]
    assert {backend for _, _, backend in found} == {"gloo"}
    hosts = [record.host for record in run.records]
    assert hosts[0] == hosts[1] != hosts[2]


def test_by_default_there_is_a_rank_for_each_slot_that_is_expected(cluster: GPUPool, tmp_path: Path) -> None:
    assert launch(total, pool=cluster, folder=tmp_path / "run").results(SECONDS) == [10.0] * 4
    with pytest.raises(ValueError, match="nprocs=5: the pool has 4 slots"):
        launch(total, nprocs=5, pool=cluster, folder=tmp_path / "more")


@pytest.mark.parametrize("rank", [0, 2])
def test_a_killed_rank_ends_those_of_other_nodes(cluster: GPUPool, tmp_path: Path, rank: int) -> None:
    run = launch(is_killed, rank, pool=cluster, nprocs=3, folder=tmp_path / "run").wait(SECONDS)
    records = run.records
    killed = records.pop(rank)
    assert killed.status == "killed"
    for record in records:
        assert record.status == "cancelled"
        assert f"'rank-{rank}' ended killed" in record.error
        assert (record.finished or 0.0) - (killed.finished or 0.0) < 5
    assert launch(total, pool=cluster, nprocs=3, folder=tmp_path / "next").results(SECONDS) == [6.0] * 3


def test_a_training_over_nodes_has_the_curve_of_one_process(cluster: GPUPool, tmp_path: Path) -> None:
    def losses(pool: GPUPool, world: int, name: str) -> np.ndarray:
        config = dataclasses.replace(SMALL, world_size=world, output_dir=str(tmp_path / name))
        run = training.start(config, pool)
        assert {record.status for record in run.wait(SECONDS).records} == {"ok"}, run.failures
        return training.collect(run).frame()[["loss", "validation"]].to_numpy()

    with GPUPool("cpu", 3, threads=1) as pool:
        alone, together = losses(pool, 1, "alone"), losses(pool, 3, "together")
    over_nodes = losses(cluster, 3, "nodes")
    assert np.array_equal(over_nodes, together)
    np.testing.assert_allclose(over_nodes, alone, rtol=1e-4)


def test_data_that_a_node_lacks_are_told(cluster: GPUPool, tmp_path: Path) -> None:
    data = land_batches.write(land_batches.batch(24), tmp_path / "land.parquet")
    config = dataclasses.replace(SMALL, world_size=3, data=str(data), output_dir=str(tmp_path / "run"))
    busy = [cluster.submit(waits_for, str(tmp_path / "go")) for _ in range(4)]  # the gang finds no slot
    run = training.start(config, cluster)
    data.unlink()
    (tmp_path / "go").touch()
    with pytest.raises(FileNotFoundError, match="no such file or folder") as caught:
        run.results(SECONDS)
    assert any("each must have the data" in note for note in caught.value.__notes__)
    assert all(future.result(SECONDS) for future in busy)


def test_nodes_and_gangs_by_ipv6(tmp_path: Path) -> None:
    if not any(each.address == "::1" for of in psutil.net_if_addrs().values() for each in of):
        pytest.skip("this machine has no IPv6")
    with GPUPool("cpu", slots=1, cluster=Agents(here=2, address="::1")) as pool:
        pool.wait_for_slots(timeout=SECONDS)
        run = launch(total, pool=pool, folder=tmp_path)
        assert run.results(SECONDS, progress=False) == [3.0, 3.0]
        assert len({record.host for record in run.records}) == 2


def test_a_gang_that_loses_a_node_is_tried_again(tmp_path: Path) -> None:
    rank = 0  # which serves the store
    with GPUPool("cpu", slots=2, cluster=Agents(here=2), grace=2.0) as pool:
        run = launch(loses_its_node, rank, str(tmp_path), pool=pool, nprocs=3, folder=tmp_path / "run")
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert not run.done, run.failures
            time.sleep(0.01)
        worker = psutil.Process(int((tmp_path / "pid").read_text()))
        agent = next(each for each in worker.parents() if "agent" in each.cmdline())
        agent.kill()
        assert run.results(SECONDS) == [6.0] * 3
        assert {record.attempt for record in run.records} == {2}
        assert any("was lost with node" in note for note in run.records[rank].notes)


def test_a_cluster_of_its_own(tmp_path: Path) -> None:
    run = launch(total, nprocs=2, gpu_ids="cpu", cluster=Agents(here=2), folder=tmp_path / "run")
    assert run.results(SECONDS) == [3.0] * 2
    with GPUPool("cpu", cluster=Agents()) as pool:
        with pytest.raises(ValueError, match="no slot is there yet"):
            launch(total, pool=pool)
        with pytest.raises(ValueError, match="cluster and pool both say where the ranks are"):
            launch(total, pool=pool, cluster=Agents())


def test_the_engine_tells_of_a_slot_that_is_gone(cluster: GPUPool) -> None:
    engine = cluster._engine
    assert isinstance(engine, ClusterEngine)
    slots = cluster.wait_for_slots()
    points = [engine.meeting_point(slot) for slot in slots]
    assert {address for address, _ in points} == {"127.0.0.1"}
    assert len({port for _, port in points}) == len(slots) == 4
