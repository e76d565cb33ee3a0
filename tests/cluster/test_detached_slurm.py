"""Runs that outlive their notebook, on a SLURM of two machines; pools within jobs of one's own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from placed_runs import SECONDS, agents
from slurm_cluster import Cluster, slurm_here
from standing_in import until

from mgpu_nb import GPUPool, Run, Slurm, Task, launch, worker
from mgpu_nb.cli import main

pytestmark = pytest.mark.slow

OPTIONS: dict[str, Any] = {"nodes": 2, "time": "0:05:00", "mem": "500M", "detach": True}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm_here(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def nothing_stays(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After each test no job, no pool of one and no agent is left."""
    monkeypatch.setattr("mgpu_nb.cluster.submitted.ASK_EVERY", 1.0)
    yield
    until(lambda: queue() == "", 30)
    until(lambda: not agents(str(cluster.conf)) and not jobs(cluster), 10)


def queue(*options: str) -> str:
    command = ["squeue", "--noheader", *options]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


def jobs(cluster: Cluster) -> list[int]:
    """Process ids of the pools that run in jobs."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [])[1:4] == ["-m", "mgpu_nb", "detached"]:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.environ().get("SLURM_CONF") == str(cluster.conf):
                    found.append(process.pid)
    return found


def detached(**options: Any) -> GPUPool:
    return GPUPool("cpu", slots=1, cluster=Slurm(**OPTIONS, **options))


def hold(folder: str, number: int) -> tuple[int, str | None]:
    """Say that it runs, and wait until somebody says to go on."""
    worker().report(began=number)
    (Path(folder) / f"began-{number}").touch()
    until(lambda: (Path(folder) / f"go-{number}").exists() or (Path(folder) / "go").exists())
    return number, os.environ.get("SLURMD_NODENAME")


def held(folder: Path, count: int = 4) -> list[Task]:
    return [Task(hold, str(folder), n, name=f"t{n}") for n in range(count)]


def begun(folder: Path) -> int:
    return len(list(folder.glob("began-*")))


NOTEBOOK = """
    import os, pickle, sys, time
    from pathlib import Path
    from mgpu_nb import GPUPool, Slurm, Task, ValueOf, worker

    class Model:
        def __init__(self, size): self.size = size
        def grown(self, by): return Model(self.size + by)

    def setup():
        print("set up by", os.environ["LABEL"])
        return Model(100)

    def wait(path, model):
        worker().report(size=model.size)
        while not Path(path).exists(): time.sleep(0.05)
        print("waited for", path)
        return {"size": model.grown(1).size, "state": worker().state.size, "node": os.environ["SLURMD_NODENAME"]}

    def from_file(path, before):  # names Model, and does not mention it
        with open(path, "rb") as file:
            return pickle.load(file).size + before["size"]

    def fails_once(path):
        if not Path(path).exists():
            Path(path).touch()
            raise OSError("at first")
        return worker().attempt

    folder = Path(sys.argv[1])
    (folder / "model.pkl").write_bytes(pickle.dumps(Model(7)))
    pool = GPUPool("cpu", slots=1, setup=setup, env={"LABEL": "two words"},
                   cluster=Slurm(nodes=2, time="0:05:00", mem="500M", detach=True))
    run = pool.run(
        [Task(wait, str(folder / "go-0"), Model(1), name="first"),
         Task(from_file, str(folder / "model.pkl"), ValueOf("first"), name="second"),
         Task(fails_once, str(folder / "tried"), name="third", retries=1),
         Task(time.sleep, 60, name="fourth", timeout=0.5)],
        name="long", folder=folder / "run")
    print("submitted", flush=True)
    time.sleep(120)
"""


def test_a_run_outlives_its_notebook_and_is_followed_live(tmp_path: Path) -> None:
    script = tmp_path / "notebook.py"
    script.write_text(textwrap.dedent(NOTEBOOK))
    process = subprocess.Popen([sys.executable, script, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "submitted\n"
    finally:
        process.kill()  # whether or not the job has begun
        process.wait()
    run = Run.open(tmp_path / "run")
    assert not run.done
    assert "it outlives this process, run.cancel() ends it" in repr(run)
    until(lambda: {record.name for record in run.records} == {"third", "fourth"})
    until(lambda: len(run.metrics("size")) == 1)
    assert list(run.frame()["status"]) == ["running", "not ended", "ok", "timeout"]
    (tmp_path / "go-0").touch()
    run.wait(SECONDS, progress=False)
    first, second, third, fourth = run.records
    assert first.value | {"node": ""} == {"size": 2, "state": 100, "node": ""}
    assert first.value["node"] == first.host
    assert (second.value, third.value, fourth.status) == (9, 2, "timeout")
    assert run.logs("first").endswith(f"waited for {tmp_path / 'go-0'}\n")
    journal = (tmp_path / "run" / "journal.jsonl").read_text().splitlines()
    asked, began = (json.loads(line)["tasks"] for line in journal if '"event": "run"' in line)
    assert (
        asked == began
    )  # the job sees the same functions and arguments: the notebook could go on with the run
    own = tmp_path / "run" / "detached"
    (output,) = own.glob("slurm-*.out")
    until(lambda: "run 'long': 3 ok, 1 timeout" in output.read_text())
    assert (own / "tasks.pickle").exists()  # not all went well: the script can be submitted again


def test_what_is_cancelled_waiting_or_running_is_resumed(tmp_path: Path) -> None:
    run = detached(sbatch=("hold",)).run(held(tmp_path), name="r", folder=tmp_path / "run")
    assert "PENDING (JobHeldUser: scontrol release lets it go)" in repr(run)
    run.cancel()
    run.wait(SECONDS, progress=False)
    assert "interrupted: 4 tasks have no record; SLURM job" in repr(run)
    assert "CANCELLED" in repr(Run.open(tmp_path / "run"))
    detached().run(held(tmp_path), name="r", folder=tmp_path / "run")
    (tmp_path / "go-0").touch()
    until(lambda: begun(tmp_path) == 3)
    elsewhere = "from mgpu_nb import Run; import sys; Run.open(sys.argv[1]).cancel()"
    subprocess.run([sys.executable, "-c", elsewhere, tmp_path / "run"], check=True, timeout=SECONDS)
    run = Run.open(tmp_path / "run").wait(SECONDS, progress=False)
    assert sorted(record.status for record in run.records) == ["cancelled"] * 3 + ["ok"]
    (tmp_path / "go").touch()
    until(lambda: queue() == "", 30)
    again = detached().run(held(tmp_path), name="r", folder=tmp_path / "run")
    assert [value[0] for value in again.results(SECONDS, progress=False)] == [0, 1, 2, 3]
    until(lambda: not (tmp_path / "run" / "detached" / "tasks.pickle").exists())  # nobody needs it any more
    assert (tmp_path / "run" / "journal.jsonl").read_text().count('"name": "t0", "index"') == 1  # it was kept


def test_scancel_and_a_time_limit_leave_records(tmp_path: Path) -> None:
    run = detached().run(held(tmp_path), name="r", folder=tmp_path / "run")
    until(lambda: begun(tmp_path) == 2)
    subprocess.run(["scancel", *queue("--format=%i").split()], check=True)  # SIGTERM for all that the job has
    run.wait(SECONDS, progress=False)
    assert run.done
    assert not any(record.ok for record in run.records)


def test_a_pool_that_dies_is_told_and_its_script_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    run = detached().run(held(tmp_path), name="r", folder=tmp_path / "run")
    (tmp_path / "go-0").touch()
    until(lambda: run.records and begun(tmp_path) == 3)
    for pid in jobs(cluster):
        os.kill(pid, signal.SIGKILL)
    run.wait(SECONDS, progress=False)
    assert "interrupted: 3 tasks have no record; SLURM job" in repr(run)
    assert "FAILED" in repr(run)
    (tmp_path / "go").touch()
    subprocess.run(["sbatch", tmp_path / "run" / "detached" / "run.sbatch"], check=True)
    until(lambda: len(Run.open(tmp_path / "run").records) == 4)
    assert sorted(value[0] for value in Run.open(tmp_path / "run").results()) == [0, 1, 2, 3]
    assert (tmp_path / "run" / "journal.jsonl").read_text().count('"name": "t0", "index"') == 1  # it was kept


def test_nodes_whose_time_ends_let_tasks_end(cluster: Cluster, tmp_path: Path) -> None:
    """A minute before the limit; no other agent begins in what is left, and the rest can be resumed."""
    options = {**OPTIONS, "time": "0:02:00"}
    pool = GPUPool("cpu", slots=1, start_timeout=60, cluster=Slurm(**options))
    run = pool.run(held(tmp_path), name="r", folder=tmp_path / "run")
    until(lambda: begun(tmp_path) == 2)
    subprocess.run(["scancel", "--signal=URG", *queue("--format=%i").split()], check=True)
    (tmp_path / "go").touch()
    run.wait(SECONDS, progress=False)
    statuses = [record.status for record in run.records]
    assert statuses.count("ok") >= 2
    assert all("it ends too soon for another agent" in r.error for r in run.records if not r.ok)


def test_a_gang_over_the_nodes(tmp_path: Path) -> None:
    def total() -> float:
        import torch
        import torch.distributed as dist

        x = torch.tensor([dist.get_rank() + 1.0])
        dist.all_reduce(x)
        return float(x.item())

    run = launch(total, pool=detached(), folder=tmp_path / "run")
    assert run.results(SECONDS, progress=False) == [3.0, 3.0]
    assert {record.host for record in run.records} == {"n1", "n2"}


def test_sbatch_says_why_it_refuses(tmp_path: Path) -> None:
    pool = GPUPool("cpu", cluster=Slurm(**{**OPTIONS, "mem": "900G"}))
    with pytest.raises(OSError, match=r"(?s)sbatch refused .* Requested node configuration is not available"):
        pool.run(held(tmp_path), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


ALLOCATION = """
    import os, signal, sys
    from pathlib import Path
    sys.path[:0] = {path!r}
    from placed_runs import both_nodes, hold
    from standing_in import until
    from mgpu_nb import Allocation, GPUPool, Task

    folder = Path({folder!r})
    with GPUPool("cpu", slots=1, cluster=Allocation()) as pool:
        both_nodes(pool, folder)
        held = pool.run([Task(hold, str(folder))], folder=folder / "held")
        until(lambda: list(folder.glob("*.pid")))
        (name,) = [file.read_text() for file in folder.glob("*.pid")]
        os.kill(next(node.pid for node in pool.nodes if node.name == name), signal.SIGKILL)
        until(lambda: len(list(folder.glob("*.pid"))) == 2)  # elsewhere, or on the same node again
        (folder / "go").touch()
        assert held.wait(60, progress=False).records[0].ok, held.records
        pool.wait_for_slots(timeout=60)
        assert sorted(slot.host for slot in pool.slots) == ["n1", "n2"], pool.nodes
    print("all is well")
"""


def test_a_pool_within_a_job_of_ones_own(tmp_path: Path) -> None:
    program, script = tmp_path / "program.py", tmp_path / "script.sh"
    program.write_text(textwrap.dedent(ALLOCATION.format(path=sys.path, folder=str(tmp_path))))
    script.write_text(
        "#!/bin/bash\n#SBATCH --nodes=2 --ntasks-per-node=2 --cpus-per-task=1 --mem=500M --time=0:10:00\n"
        f"#SBATCH --output={tmp_path}/out\n{sys.executable} {program}\n"
    )
    subprocess.run(["sbatch", script], check=True, timeout=SECONDS)
    until(lambda: queue() == "")  # sbatch --wait looks after 2, 6, 14, 30 seconds
    assert (tmp_path / "out").read_text().endswith("all is well\n")


def test_a_workload_of_one_process_over_the_nodes_of_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = "--num_samples 2 --sample_length 20 --steps 10 --branch_counts 2 --methods standard best_of_n"
    job = "--nodes 2 --mem 500M --time 0:05:00 --submit"
    arguments = f"slurm protein {words} --gpu_ids cpu --slots 1 {job} --output_dir {tmp_path}/run"
    assert main(arguments.split()) == 0, capsys.readouterr().err
    assert "--cluster allocation" in (tmp_path / "protein.sbatch").read_text()
    until(lambda: queue() == "")
    run = Run.open(tmp_path / "run")
    assert len(run.results()) == 2
    assert {record.host for record in run.records} <= {"n1", "n2"}
