"""Pools in jobs of their own: what is submitted, followed, told and refused. SLURM is scripts here that say as told."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from standing_in import until

import mgpu_nb
from mgpu_nb import Allocation, GPUPool, Run, Slurm, Task, TaskError
from mgpu_nb.cluster import submitted
from mgpu_nb.cluster.allocation import AllocationPlacer
from mgpu_nb.cluster.detached import DetachedPool
from mgpu_nb.cluster.orders import Order
from mgpu_nb.runs import follow
from mgpu_nb.store.lines import seal
from mgpu_nb.workloads.base import WORKLOADS, start

SECRET = "s3cr3t-of-the-environment"
SECONDS = 60.0


class Slurms:
    """Scripts in place of SLURM's programs: sbatch accepts the job that squeue knows, which says what it was told."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder, 17
        folder.mkdir()
        self.says("PENDING", "Priority")
        self._program("sbatch", 'cp "${@: -1}" "$here/submitted"; tail -n 1 "$here/queue" | cut -d "|" -f 1')
        self._program("squeue", 'echo >> "$here/asked"; cat "$here/queue"')
        self._program("scancel", 'echo "$@" >> "$here/cancelled"')
        self._program("scontrol", "echo 'SlurmctldHost[0] = localhost'")

    def _program(self, name: str, script: str) -> None:
        part = self.folder / "part"
        part.write_text(f"#!/bin/bash\nhere={self.folder}\n{script}\n")
        part.chmod(0o755)
        part.rename(self.folder / name)  # which another thread may be starting

    def says(self, state: str, reason: str = "None", on: str = "") -> None:
        part = self.folder / "part"
        part.write_text(f"{self.number}|{state}|{reason}|0:01|4:59|{on}|2\n" if state else "")
        part.rename(self.folder / "queue")

    def accepts(self, number: int) -> None:
        """One more job, which the next submission is."""
        part = self.folder / "part"
        part.write_text((self.folder / "queue").read_text() + f"{number}|PENDING|Priority|0:00|5:00||2\n")
        part.rename(self.folder / "queue")

    def fails(self, program: str, words: str) -> None:
        self._program(program, f"echo '{words}' >&2; exit 1")

    @property
    def asked(self) -> int:
        file = self.folder / "asked"
        return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurms:
    found = Slurms(tmp_path / "slurm")
    monkeypatch.setenv("PATH", str(found.folder), prepend=os.pathsep)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(submitted, "_looks", submitted._Looks())
    monkeypatch.setattr(submitted, "ASK_EVERY", 0.05)
    monkeypatch.setattr(follow, "PERIOD", 0.01)
    return found


def square(x: int) -> int:
    return x**2


def prepared() -> str:
    return "set up"


TASKS = [Task(square, n, name=f"t{n}") for n in range(3)]


def detached(**options: Any) -> GPUPool:
    return GPUPool("cpu", slots=2, cluster=Slurm(nodes=2, time="0:05:00", detach=True), **options)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


class Job:
    """Writes what the job of a run writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.header = {key: value for key, value in lines(folder)[-1].items() if key not in ("n", "crc")}
        self.write({**self.header, "made": {"job": "17"}, "pid": 7, "host": "n1"})

    def write(self, entry: dict[str, Any]) -> None:
        with (self.folder / "journal.jsonl").open("ab") as journal:
            journal.write(seal(json.dumps(entry), len(lines(self.folder))))

    def record(self, name: str, status: str = "ok", fingerprint: str = "") -> None:
        kind = {"event": "record", "index": 0, "kind": "k", "notes": [], "metrics": {}, "arguments": {}}
        about = {"name": name, "status": status, "fingerprint": fingerprint, "finished": time.time()}
        self.write({**kind, **about, "value": 1})


def test_a_run_is_submitted_with_all_that_it_needs(slurm: Slurms, tmp_path: Path) -> None:
    options: dict[str, Any] = {"env": {"TOKEN": SECRET}, "isolation": "task", "max_tasks": 3, "grace": 2.0}
    pool = detached(setup=prepared, share=True, **options)
    assert isinstance(pool, DetachedPool)
    assert pool.expected_slots == 4
    folder = tmp_path / "run"
    run = pool.run([*TASKS, Task(square, SECRET, name="last", retries=2)], name="r", folder=folder, seed=5)
    assert repr(run).startswith(
        "Run('r': 0 of 4 done, SLURM job 17: PENDING (Priority); it outlives this process"
    )
    assert Run.open(folder) is run
    assert json.loads((folder / "detached" / "job.json").read_text())["job"] == 17
    script = (slurm.folder / "submitted").read_text()
    file = folder / "detached" / "tasks.pickle"
    assert f"detached {folder} --sha256 {hashlib.sha256(file.read_bytes()).hexdigest()}" in script
    assert "#SBATCH --nodes=2" in script
    assert f"#SBATCH --output={folder}/detached/slurm-%j.out" in script
    assert SECRET not in script
    assert options["env"]["TOKEN"] not in "".join(json.dumps(line["made"]) for line in lines(folder))
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    read = (
        "import sys; from pathlib import Path; from mgpu_nb.cluster.orders import Order\n"
        "order = Order.read(Path(sys.argv[1]), sys.argv[2])\n"
        "print({**order.pool, 'setup': order.pool['setup']()}, order.seed, order.name)\n"
        "print([(task.name, task.fn(*task.args) if task.name != 'last' else task.retries) for task in order.tasks])"
    )
    digest = script.split()[-1]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    shown = subprocess.run(
        [sys.executable, "-c", read, folder, digest], capture_output=True, text=True, check=True, env=env
    ).stdout.splitlines()
    wanted = {"gpu_ids": "cpu", "slots": 2, "setup": "set up", **options}
    assert shown[0].endswith("} 5 r")
    assert all(f"{name!r}: {value!r}" in shown[0] for name, value in wanted.items())
    assert "share" not in shown[0]
    assert shown[1] == "[('t0', 0), ('t1', 1), ('t2', 4), ('last', 2)]"
    slurm.says("CANCELLED")
    run.wait(SECONDS, progress=False)


def test_a_file_that_was_changed_is_not_read(slurm: Slurms, tmp_path: Path) -> None:
    run = detached().run(TASKS, folder=tmp_path / "run")
    digest = (slurm.folder / "submitted").read_text().split()[-1]
    trap = tmp_path / "trap"

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(trap),)

    (run.folder / "detached" / "tasks.pickle").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(
        ValueError, match=r"is not what was submitted .* so it is not read: submit the run again"
    ):
        Order.read(run.folder, digest)
    assert not trap.exists()
    (run.folder / "detached" / "tasks.pickle").unlink()
    with pytest.raises(
        FileNotFoundError, match="a detached run needs its folder on a file system that the nodes"
    ):
        Order.read(run.folder, digest)
    slurm.says("CANCELLED")
    run.wait(SECONDS, progress=False)


def test_it_is_followed_from_its_submission_to_its_end(slurm: Slurms, tmp_path: Path) -> None:
    run = detached().run(TASKS, name="r", folder=tmp_path / "run")
    with pytest.raises(TimeoutError, match="0 of 3 done; it continues"):
        run.wait(0.05, progress=False)
    assert mgpu_nb.runs(tmp_path).rows[0].state == "waits"
    slurm.says("RUNNING", on="n[1-2]")
    job = Job(run.folder)
    job.record("t0")
    until(lambda: len(run.records) == 1)
    until(
        lambda: "SLURM job 17: RUNNING on n[1-2]; it outlives this process, run.cancel() ends it" in repr(run)
    )
    assert mgpu_nb.runs(tmp_path).rows[0].state == "under way"
    job.record("t1", "error")
    job.record("t2")
    run.wait(SECONDS, progress=False)
    assert [r.status for r in run.records] == ["ok", "error", "ok"]
    assert repr(run) == f"Run('r': 2 ok, 1 error; {str(run.folder)!r})"
    until(lambda: Run.open(run.folder) is not run)  # it has ended
    assert not (slurm.folder / "cancelled").exists()


def test_a_job_that_ends_early_ends_the_wait_and_is_told(slurm: Slurms, tmp_path: Path) -> None:
    run = detached().run(TASKS, name="r", folder=tmp_path / "run")
    slurm.says("RUNNING", on="n[1-2]")
    Job(run.folder).record("t0")
    until(lambda: run.records)
    (run.folder / "detached" / "slurm-17.out").write_text("ModuleNotFoundError: No module named 'mine'\n")
    slurm.says("FAILED", "NonZeroExitCode")
    run.wait(SECONDS, progress=False)
    told = r"(?s)interrupted: 2 tasks have no record; SLURM job 17: FAILED \(NonZeroExitCode\).*No module named 'mine'"
    assert re.search(told, repr(run))
    assert re.search(told, repr(Run.open(run.folder)))
    assert mgpu_nb.runs(tmp_path).rows[0].state == "interrupted"
    with pytest.raises(
        TaskError, match=r"task 't1' has no record: the run was interrupted. Run its tasks into"
    ):
        run.results()
    slurm.number = 18
    slurm.says("PENDING")
    again = detached().run(TASKS, name="r", folder=run.folder)  # resumed: the job says what it takes over
    slurm.says("")
    again.wait(SECONDS, progress=False)
    assert "SLURM job 18: no longer in the queue" in repr(again)


def test_a_lock_file_that_a_job_has_left_keeps_nobody_waiting(slurm: Slurms, tmp_path: Path) -> None:
    run = detached().run(TASKS, name="r", folder=tmp_path / "run")
    slurm.says("RUNNING", on="n[1-2]")
    Job(run.folder).record("t0")
    until(lambda: run.records)
    # Of a file system without flock; nothing tells here whether a process of another machine runs.
    (run.folder / "journal.lock").write_text(json.dumps({"host": "n1", "pid": 7, "began": "x"}))
    slurm.says("NODE_FAIL")
    run.wait(SECONDS, progress=False)
    assert "interrupted: 2 tasks have no record; SLURM job 17: NODE_FAIL" in repr(run)
    assert "interrupted: 2 tasks have no record; SLURM job 17: NODE_FAIL" in repr(Run.open(run.folder))


def test_a_job_without_output_says_that_the_folder_must_be_shared(slurm: Slurms, tmp_path: Path) -> None:
    run = detached().run(TASKS, folder=tmp_path / "run")
    slurm.says("FAILED", "NonZeroExitCode")
    run.wait(SECONDS, progress=False)
    assert "it has written nothing: a detached run needs the folder of the run on a file system" in repr(run)


def test_what_an_earlier_job_has_left_counts_once_the_new_one_says_so(slurm: Slurms, tmp_path: Path) -> None:
    run = detached().run(TASKS, name="r", folder=tmp_path / "run")
    prints = {task["name"]: task["fingerprint"] for task in lines(run.folder)[-1]["tasks"]}
    job = Job(run.folder)
    job.record("t0", fingerprint=prints["t0"])
    job.record("t1", fingerprint="another")
    slurm.says("TIMEOUT", "TimeLimit")
    run.wait(SECONDS, progress=False)
    slurm.number = 18
    slurm.says("PENDING", "Resources")
    run = detached().run(TASKS, name="r", folder=run.folder)
    assert run.records == []
    slurm.says("RUNNING", on="n1")
    job = Job(run.folder)
    until(lambda: [r.name for r in run.records] == ["t0"])
    job.record("t1")
    job.record("t2")
    run.wait(SECONDS, progress=False)
    assert [r.name for r in run.records] == ["t0", "t1", "t2"]


def test_a_run_is_resumed_before_the_end_of_its_job_was_noticed(
    slurm: Slurms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = detached()
    first = pool.run(TASKS, name="r", folder=tmp_path / "run")
    monkeypatch.setattr(submitted, "ASK_EVERY", 1000.0)
    slurm.number = 18
    slurm.says("PENDING", "Resources")
    second = pool.run(TASKS, name="r", folder=tmp_path / "run")
    assert second is not first
    assert "SLURM job 18: PENDING (Resources)" in repr(second)
    first.wait(SECONDS, progress=False)  # another call has begun
    assert Run.open(tmp_path / "run") is second
    assert "2 runs, 1 under way" in repr(pool)
    assert list(pool.runs) == [first, second]
    slurm.says("CANCELLED")
    submitted._looks.again()
    second.wait(SECONDS, progress=False)


def test_squeue_is_asked_every_ten_seconds_for_all_runs(
    slurm: Slurms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitted, "ASK_EVERY", 10.0)
    pool = detached()
    pool.run(TASKS, folder=tmp_path / "a")
    pool.run(TASKS, folder=tmp_path / "b")
    time.sleep(1.0)  # until a look that has begun is counted
    begun = slurm.asked
    assert begun <= 4  # when each was submitted
    time.sleep(1.0)  # a hundred looks at the journals
    assert slurm.asked == begun
    submitted._looks.again()
    until(lambda: slurm.asked > begun)
    assert slurm.asked == begun + 1
    slurm.says("CANCELLED")
    submitted._looks.again()
    for run in pool.runs:
        run.wait(SECONDS, progress=False)


def test_a_controller_that_does_not_answer_is_no_end_but_has_one(
    slurm: Slurms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = detached().run(TASKS, folder=tmp_path / "run")
    slurm.fails("squeue", "slurm_load_jobs error: Socket timed out")
    until(lambda: "Socket timed out" in repr(run))
    with pytest.raises(TimeoutError):
        run.wait(0.1, progress=False)
    monkeypatch.setattr(submitted, "PATIENCE", 0.1)
    run.wait(SECONDS, progress=False)
    assert (
        "interrupted: 3 tasks have no record; SLURM job 17: its state is not known (squeue: slurm_"
        in repr(run)
    )


def test_without_squeue_nothing_is_waited_for(
    slurm: Slurms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = detached().run(TASKS, folder=tmp_path / "run")
    monkeypatch.setenv("PATH", str(tmp_path))
    run.wait(SECONDS, progress=False)
    assert "its state is not known (there is no squeue on this machine)" in repr(Run.open(run.folder))


def test_cancel_tells_the_job(slurm: Slurms, tmp_path: Path) -> None:
    run = detached().run(TASKS, folder=tmp_path / "run")
    run.cancel()
    said = (slurm.folder / "cancelled").read_text().splitlines()
    assert said == ["--quiet --state=PENDING 17", "--quiet --batch --signal=TERM 17"]
    slurm.fails("scancel", "Access/permission denied")
    with pytest.raises(OSError, match="scancel: Access/permission denied"):
        run.cancel()
    slurm.says("CANCELLED")
    run.wait(SECONDS, progress=False)
    run.cancel()  # nothing to cancel


def test_a_cell_that_is_run_again_knows_what_it_left(
    slurm: Slurms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execution = ["first"]
    for module in ("ledger", "rerun"):
        monkeypatch.setattr(f"mgpu_nb.runs.{module}.cell", lambda: ("cell", execution[0]))
    first = detached().run(TASKS, name="r", folder=tmp_path / "a")
    execution[0] = "second"
    slurm.accepts(18)
    with pytest.warns(
        UserWarning, match=r"an earlier execution of this cell left run 'r' \(0 of 3 done\) under way"
    ):
        second = detached().run(TASKS, name="r", folder=tmp_path / "b")
    assert not first.done
    # It is seen to be over before it gets the second of the two signals.
    ended = 'sed -i "/^${@: -1}|/s/PENDING/CANCELLED/" "$here/queue"'
    slurm._program("scancel", f'echo "$@" >> "$here/cancelled"; {ended}')
    execution[0] = "third"
    slurm.accepts(19)
    third = detached().run(TASKS, name="r", folder=tmp_path / "c", rerun="cancel")
    assert first.done
    assert second.done
    told = (slurm.folder / "cancelled").read_text()
    assert [told.count(f"--batch --signal=TERM {number}") for number in (17, 18, 19)] == [1, 1, 0]
    slurm.number = 19
    slurm.says("CANCELLED")
    third.wait(SECONDS, progress=False)  # or its thread would ask in the next tests


@pytest.mark.slow
def test_a_folder_that_a_job_will_have_is_taken(slurm: Slurms, tmp_path: Path, pool: GPUPool) -> None:
    run = detached().run(TASKS, name="r", folder=tmp_path / "run")
    for other in (pool, detached()):
        with pytest.raises(
            BlockingIOError, match=r"belongs to SLURM job 17: PENDING \(Priority\): wait for it, cancel"
        ):
            other.run(TASKS, name="r", folder=tmp_path / "run")
    slurm.says("CANCELLED")
    run.wait(SECONDS, progress=False)
    assert pool.run(TASKS, name="r", folder=tmp_path / "run").results(SECONDS, progress=False) == [0, 1, 4]
    assert Run.open(tmp_path / "run").results() == [0, 1, 4]


def test_what_is_refused_leaves_nothing(
    slurm: Slurms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pool = detached()
    with pytest.raises(ValueError, match="two tasks are named 'a'"):
        pool.run([Task(square, 1, name="a"), Task(square, 2, name="a")])
    with pytest.raises(TypeError, match="pickle") as error:
        pool.run([Task(square, threading.Lock())])
    assert "task 'square-0' cannot be sent to a worker" in str(getattr(error.value, "__notes__", ""))
    with pytest.raises(ValueError, match="takes 5 slots, the pool has 4"):
        pool.run([Task(square, 1, devices=5)])
    slurm.fails("sbatch", "Batch job submission failed: CPU count per node can not be satisfied")
    with pytest.raises(
        OSError, match=r"(?s)sbatch refused .*CPU count.* Give cpus_per_node a smaller number"
    ):
        pool.run(TASKS)
    assert not list(Path("runs").glob("*"))
    with pytest.raises(ValueError, match="my runs/detached': SLURM takes a folder without spaces and quotes"):
        pool.run(TASKS, folder="my runs")
    assert not Path("my runs").exists()
    slurm.fails("sbatch", "no")
    (tmp_path / "run").mkdir()
    with pytest.raises(OSError, match="sbatch refused"):
        pool.run(TASKS, folder=tmp_path / "run")


@pytest.mark.slow
def test_what_needs_this_process_is_refused_with_what_to_do(
    slurm: Slurms, tmp_path: Path, pool: GPUPool, capfd: pytest.CaptureFixture[str]
) -> None:
    away = detached()
    for call in (lambda: away.submit(square, 1), lambda: away.map(square, [1])):
        with pytest.raises(
            RuntimeError, match=r"Take pool.run\(\[Task\(fn, ...\)\]\).* or leave detach=True out"
        ):
            call()
    with pytest.raises(RuntimeError, match=r"logs: a detached pool has runs alone.*slurm-<number>.out"):
        away.logs()
    with pytest.raises(RuntimeError, match=r"wait_for_slots: .* Take run.wait\(\)"):
        away.wait_for_slots(timeout=1)
    failed = pool.run([Task(square, "x", name="t")], name="f", folder=tmp_path / "f").wait(
        SECONDS, progress=False
    )
    with pytest.raises(RuntimeError, match=r"run.retry\(pool\): .* pool.run\(tasks, name='f', folder=...\)"):
        failed.retry(away)
    with pytest.raises(ValueError, match="alignment needs this process until its end"):
        start(WORKLOADS["alignment"], WORKLOADS["alignment"].config(output_dir=str(tmp_path / "al")), away)
    assert (away.slots, len(away.nodes), away.python) == ((), 0, None)
    with away:
        run = away.run(TASKS, name="r", folder=tmp_path / "run")
        assert "1 runs, 1 under way" in repr(away)
        assert list(away.runs) == [run]
        assert "'r'" in away._repr_html_() or ">r<" in away._repr_html_()
    assert (
        f"run 'r' goes on in SLURM job 17: PENDING (Priority); Run.open({str(run.folder)!r})"
        in capfd.readouterr().err
    )
    assert not (slurm.folder / "cancelled").exists()
    with pytest.raises(RuntimeError, match="the pool was shut down: make a new one"):
        away.run(TASKS)
    away.shutdown()
    assert capfd.readouterr().err == ""
    other = detached()
    swept = other.sweep(pow, base=[2, 3], exp=[1, 2], folder=tmp_path / "other")
    assert len(swept.tasks) == 4
    other.shutdown(cancel_futures=True)
    assert "--batch --signal=TERM 17" in (slurm.folder / "cancelled").read_text()
    slurm.says("CANCELLED")
    for each in (*away.runs, *other.runs):
        each.wait(SECONDS, progress=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "other"}, "engine='other' and cluster=Slurm"),
        ({"pick": "free"}, "pick='free' chooses GPUs of this machine"),
        ({"python": sys.executable}, "is an interpreter of this machine"),
        ({"isolation": "none"}, "isolation"),
        ({"preload": ("no_such_module",)}, "preload: no module named 'no_such_module'"),
        ({"gpu_ids": [0, 1]}, "slots on each node already: leave out slots=2"),
    ],
)
def test_options_are_checked_at_once(slurm: Slurms, options: dict[str, Any], words: str) -> None:
    given = {"gpu_ids": "cpu", "slots": 2, **options}
    with pytest.raises(ValueError, match=words):
        GPUPool(cluster=Slurm(detach=True), **given)


def test_a_pool_of_ones_own_class_is_refused(slurm: Slurms) -> None:
    class Mine(GPUPool):
        pass

    with pytest.raises(TypeError, match="Mine runs in this process: take GPUPool, or leave detach=True out"):
        Mine(cluster=Slurm(detach=True))
    assert "cluster" in inspect.signature(GPUPool).parameters


def test_options_that_go_without_detach_are_refused() -> None:
    with pytest.raises(ValueError, match="address='login1' is of this machine, and with detach=True"):
        Slurm(detach=True, address="login1")
    with pytest.raises(
        ValueError, match="idle=60: the nodes of a detached run stay until its end: leave it out"
    ):
        Slurm(detach=True, idle=60.0)
    assert Slurm().pool_class is None


def test_an_allocation_is_for_a_process_in_a_job(slurm: Slurms, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Allocation().nodes is None
    with pytest.raises(OSError, match=r"this process is in no SLURM job .* take Slurm\(nodes=...\)"):
        GPUPool("cpu", cluster=Allocation())
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    assert Allocation().nodes == 2
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(FileNotFoundError, match="there is no srun on this machine"):
        GPUPool("cpu", cluster=Allocation())


def test_agents_of_an_allocation_that_end_at_once_say_why(
    slurm: Slurms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm._program("scontrol", "[ $2 = node ] && echo NodeName=n2 NodeAddr=10.1.2.3 || echo n1 n2")
    slurm._program("srun", 'echo "srun: error: $SRUN_CPUS_PER_TASK no such node: $@"; exit 1')
    slurm.says("RUNNING", on="n[1-2]")
    for name, value in {"JOB_ID": "17", "JOB_NODELIST": "n[1-2]", "GPUS_ON_NODE": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    monkeypatch.setenv("SRUN_CPUS_PER_TASK", "2")
    placer = AllocationPlacer()
    assert (placer.nodes, placer.slots_per_node, placer.facing()) == (2, 2, "10.1.2.3")
    placer.start(["agent", "--connect", "x"], tmp_path / "x.json", 2)
    until(lambda: all(child.has_ended() for child in placer._children))
    with pytest.raises(
        OSError, match=r"(?s)agent n2 has ended with exit code 1.*no such node: .*--nodelist=n2"
    ):
        placer.status()
    assert "--gpu-bind=none agent --connect x --name n2" in placer._children.last_words
    placer.start(["agent"], tmp_path / "x.json", 1)
    until(lambda: all(child.has_ended() for child in placer._children))
    with pytest.raises(OSError, match="3 agents in a row have ended at once, the last: agent n1"):
        placer.start(["agent"], tmp_path / "x.json", 1)
    placer.close()
    soon = AllocationPlacer()
    soon.start(["agent"], tmp_path / "x.json", 2)
    until(lambda: all(child.has_ended() for child in soon._children))
    soon._children.failures.count = -9
    slurm._program("squeue", "echo '17|RUNNING|None|3:00|1:59|n[1-2]|2'")
    with pytest.raises(
        OSError, match=r"SLURM job 17: RUNNING on n\[1-2\]: it ends too soon for another agent"
    ):
        soon.start(["agent"], tmp_path / "x.json", 1)
    soon.close()
