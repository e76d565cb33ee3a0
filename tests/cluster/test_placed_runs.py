"""Whole runs on nodes that SLURM and Ray gave, and by agents here: values, records, lost nodes, nothing left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray_cluster import RayCluster, ray_here
from slurm_cluster import Cluster, slurm_here
from standing_in import until

from mgpu_nb import Agents, GPUPool, Ray, Run, Slurm, Task

pytestmark = pytest.mark.slow

SECONDS = 120.0
OF_SLURM: dict[str, Any] = {"time": "0:05:00", "mem": "500M"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm_here(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[RayCluster]:
    with ray_here() as cluster:
        yield cluster


def meet(folder: str, number: int) -> str | None:
    """Wait until all have begun, so that each has a slot of its own; return the name of the node as SLURM has it."""
    (Path(folder) / str(number)).touch()
    until(lambda: len(list(Path(folder).iterdir())) >= 2)
    return os.environ.get("SLURMD_NODENAME")


def hold(folder: str) -> int:
    """Say who runs, and wait until somebody says to go on."""
    part = Path(folder) / f"{os.getpid()}.part"
    part.write_text(os.environ.get("SLURMD_NODENAME", ""))
    part.rename(part.with_suffix(".pid"))
    until(lambda: (Path(folder) / "go").exists())
    return os.getpid()


def both_nodes(pool: GPUPool, folder: Path) -> Run:
    """A run whose tasks meet; it has ended well, on two nodes."""
    (folder / "met").mkdir()
    pool.wait_for_slots(timeout=SECONDS)
    run = pool.run([Task(meet, str(folder / "met"), n) for n in range(2)], folder=folder / "run")
    run.wait(SECONDS, progress=False)
    assert [record.status for record in run.records] == ["ok", "ok"], run.failures
    assert len({record.host for record in run.records}) == 2
    return run


def queue(*options: str) -> str:
    done = subprocess.run(["squeue", "--noheader", *options], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def agents() -> list[psutil.Process]:
    """Agents on this machine."""
    found = psutil.process_iter(["cmdline"])
    return [
        process for process in found if (process.info["cmdline"] or [])[1:4] == ["-m", "mgpu_nb", "agent"]
    ]


def test_agents_here(tmp_path: Path) -> None:
    with GPUPool("cpu", slots=1, cluster=Agents(here=2)) as pool:
        run = both_nodes(pool, tmp_path)
        host = os.uname().nodename.partition(".")[0]
        assert {record.host for record in run.records} == {f"{host}-0", f"{host}-1"}
    until(lambda: not agents(), 10)


def test_a_run_on_the_nodes_of_a_slurm(cluster: Cluster, tmp_path: Path) -> None:
    with GPUPool("cpu", slots=1, cluster=Slurm(nodes=2, **OF_SLURM)) as pool:
        run = both_nodes(pool, tmp_path)
        assert {record.host for record in run.records} == {"n1", "n2"}
        assert all(
            record.value == record.host for record in run.records
        )  # the environment is that of the node
        task = Task(hold, str(tmp_path), retries=0)
        held = pool.run([task], folder=tmp_path / "held")
        until(lambda: list(tmp_path.glob("*.pid")))
        (node,) = [file.read_text() for file in tmp_path.glob("*.pid")]
        steps = dict(
            line.split() for line in queue("--steps", "--format=%N %i").splitlines() if ".b" not in line
        )
        subprocess.run(["scancel", steps[node]], check=True)
        until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
        (tmp_path / "go").touch()
        held.wait(SECONDS, progress=False)
        (record,) = held.records
        assert record.status == "ok", record  # without a retry of its own
        assert node in " ".join(record.notes)
        pool.wait_for_slots(timeout=SECONDS)  # the node is back, in the same job
        assert {slot.host for slot in pool.slots} == {"n1", "n2"}
    assert queue() == ""
    until(lambda: not agents(), 10)


def test_nothing_is_in_the_queue_once_the_parent_process_is_gone(cluster: Cluster, tmp_path: Path) -> None:
    parent = (
        "from mgpu_nb import GPUPool, Slurm; import time\n"
        f"pool = GPUPool('cpu', slots=1, cluster=Slurm(nodes=2, **{OF_SLURM!r}))\n"
        "pool.wait_for_slots(); print('there', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
    finally:
        process.kill()
        process.wait()
    until(lambda: not agents(), 10)
    until(lambda: queue() == "", 20)


def test_a_job_that_begins_when_the_parent_process_is_gone_ends(cluster: Cluster, tmp_path: Path) -> None:
    parent = (
        "from mgpu_nb import GPUPool, Slurm; import time\n"
        f"pool = GPUPool('cpu', slots=1, cluster=Slurm(sbatch=('hold',), **{OF_SLURM!r}))\n"
        "time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent])
    try:
        until(queue)
    finally:
        process.kill()
        process.wait()
    subprocess.run(["scontrol", "release", *queue("--format=%i").split()], check=True)
    until(lambda: queue() == "")


def test_a_node_whose_time_is_over_lets_its_task_end(cluster: Cluster, tmp_path: Path) -> None:
    with GPUPool("cpu", slots=1, cluster=Slurm(nodes=1, **OF_SLURM)) as pool:
        held = pool.run([Task(hold, str(tmp_path))], folder=tmp_path / "run")
        until(lambda: list(tmp_path.glob("*.pid")))
        (number,) = queue("--format=%i").split()
        subprocess.run(
            ["scancel", "--signal=URG", number], check=True
        )  # what SLURM does a minute before the end
        follower = pool.submit(os.getpid)
        (tmp_path / "go").touch()
        held.wait(SECONDS, progress=False)
        (record,) = held.records
        assert (record.status, f"{record.value}.pid") == ("ok", next(tmp_path.glob("*.pid")).name)
        assert follower.result(SECONDS) != record.value  # by another agent


def test_what_slurm_says_is_told_when_nobody_comes(cluster: Cluster, tmp_path: Path) -> None:
    with GPUPool(
        "cpu", slots=1, start_timeout=5, cluster=Slurm(nodes=1, sbatch=("hold",), **OF_SLURM)
    ) as pool:
        run = pool.run([Task(os.getpid)], folder=tmp_path / "run")
        run.wait(SECONDS, progress=False)
        assert "PENDING (JobHeldUser: scontrol release lets it go)" in str(run.records[0].error)
    assert queue() == ""


def test_a_run_on_the_nodes_of_a_ray(ray_cluster: RayCluster, tmp_path: Path) -> None:
    with GPUPool("cpu", slots=1, cluster=Ray(ray_cluster.address, nodes=2, trust=True)) as pool:
        both_nodes(pool, tmp_path)
        held = pool.run([Task(hold, str(tmp_path), name=name) for name in "ab"], folder=tmp_path / "held")
        until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
        hosts = {slot.host for slot in pool.slots}
        lost = next(node for node in ray_cluster.workers() for host in hosts if host.endswith(node[:6]))
        ray_cluster.remove(lost)
        until(lambda: len(list(tmp_path.glob("*.pid"))) == 3)
        (tmp_path / "go").touch()
        held.wait(SECONDS, progress=False)
        assert [record.status for record in held.records] == ["ok", "ok"], held.failures
        assert not any(record.host.endswith(lost[:6]) for record in held.records)
    until(lambda: not agents(), 10)
