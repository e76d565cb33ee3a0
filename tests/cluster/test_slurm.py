"""Agents on the nodes of a SLURM: what is asked for, what SLURM says of it, nothing left in the queue."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from placed_runs import SECONDS, agents, both_nodes, hold
from slurm_cluster import Cluster, slurm_here
from standing_in import agent_command, agents_in, until

from mgpu_nb import GPUPool, Slurm, Task
from mgpu_nb.cluster.placer import NoMore
from mgpu_nb.cluster.slurm import SlurmPlacer
from mgpu_nb.cluster.slurm_jobs import AgentsJob, agents_of_all_nodes, environment_of_jobs
from mgpu_nb.distributed.slurm import SubmitError, render_commands

Placers = Callable[..., SlurmPlacer]

OF_RUNS: dict[str, Any] = {"time": "0:05:00", "mem": "500M"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm_here(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster


@pytest.fixture
def placers(cluster: Cluster) -> Iterator[Placers]:
    """Makes placers, which are closed after the test; nothing may be in the queue then."""
    made: list[SlurmPlacer] = []

    def make(**options: Any) -> SlurmPlacer:
        made.append(SlurmPlacer(Slurm(**options)))
        return made[-1]

    yield make
    for placer in made:
        placer.close()
    assert queue() == ""


@pytest.fixture
def invitation(tmp_path: Path) -> Path:
    file = tmp_path / "invitation.json"
    file.write_text("{}")
    return file


def shown(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()


def join(placer: SlurmPlacer, folder: Path) -> None:
    """Take those that are there for agents that have joined the pool."""
    for name, agent in agents_in(folder).items():
        placer.joined({"node": name, "slurm": {"job": agent["job"]}})


def queue(*options: str) -> str:
    return shown("squeue", "--noheader", *options)


def test_a_job_has_an_agent_on_each_node(placers: Placers, tmp_path: Path, invitation: Path) -> None:
    placer = placers(nodes=2, gpus_per_node=2, cpus_per_node=2, time="0:05:00", env=("EXTRA=two words",))
    assert (placer.nodes, placer.slots_per_node) == (2, 2)
    placer.start([*agent_command(tmp_path), "--connect", str(invitation)], invitation, 2)
    until(lambda: len(agents_in(tmp_path)) == 2)
    found = agents_in(tmp_path)
    assert {name: agent["node"] for name, agent in found.items()} == {"n1": "n1", "n2": "n2"}
    assert {agent["gpus"] for agent in found.values()} == {"0,1"}
    assert {agent["extra"] for agent in found.values()} == {"two words"}
    (number,) = {agent["job"] for agent in found.values()}
    assert placer.status() == f"SLURM job {number}: RUNNING on n[1-2]"
    placer.close()
    assert queue() == ""
    until(lambda: not any(Path(f"/proc/{agent['pid']}").exists() for agent in found.values()), 10)
    assert not invitation.with_suffix("").exists()  # scripts and outputs


def test_a_node_that_is_lost_does_not_take_the_others(
    placers: Placers, tmp_path: Path, invitation: Path
) -> None:
    placer = placers(nodes=2, time="0:05:00")
    placer.start(agent_command(tmp_path), invitation, 2)
    until(lambda: len(agents_in(tmp_path)) == 2)
    first = agents_in(tmp_path)
    join(placer, tmp_path)
    steps = dict(line.split() for line in queue("--steps", "--format=%N %i").splitlines() if ".b" not in line)
    subprocess.run(["scancel", steps["n2"]], check=True)
    until(lambda: steps["n2"] not in queue("--steps", "--format=%i").split())
    assert Path(f"/proc/{first['n1']['pid']}").exists()
    (tmp_path / "n2.agent").unlink()
    placer.start(agent_command(tmp_path), invitation, 1)  # on the same node, which the job still has
    until(lambda: len(agents_in(tmp_path)) == 2)
    second = agents_in(tmp_path)
    assert second["n1"] == first["n1"]
    assert second["n2"]["pid"] != first["n2"]["pid"]
    assert second["n2"]["job"] == first["n2"]["job"]
    assert placer.status().count("RUNNING on n[1-2]") == 1


def test_a_job_that_is_lost_is_asked_for_again(placers: Placers, tmp_path: Path, invitation: Path) -> None:
    placer = placers(nodes=2, mem="200M")
    placer.start(agent_command(tmp_path), invitation, 1)
    placer.start(agent_command(tmp_path), invitation, 1)  # the first has not begun
    until(lambda: placer.status().count("RUNNING") == 2)
    for job in placer._jobs:
        placer.joined({"node": "n1", "slurm": {"job": str(job.number)}})
    subprocess.run(["scancel", str(placer._jobs[0].number)], check=True)
    until(lambda: placer.status().count("RUNNING") == 1)
    placer.start(agent_command(tmp_path), invitation, 1)
    until(lambda: placer.status().count("RUNNING") == 2)
    assert len(placer._jobs) == 3


def test_for_a_node_that_failed_another_is_asked_for(
    placers: Placers, tmp_path: Path, invitation: Path
) -> None:
    placer = placers(nodes=2, time="0:10:00", mem="200M")
    placer.start(agent_command(tmp_path), invitation, 2)
    until(lambda: len(agents_in(tmp_path)) == 2)
    join(placer, tmp_path)
    subprocess.run(["scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test"], check=True)
    until(lambda: placer.status().endswith("RUNNING on n1"))  # the job goes on
    placer.start(agent_command(tmp_path), invitation, 1)
    until(lambda: placer.status().count("RUNNING on n") == 2)
    assert [job.nodes for job in placer._jobs] == [2, 1]
    until(lambda: "down" not in shown("sinfo", "--noheader", "--format=%T"))  # the cluster is whole again


def test_a_job_becomes_smaller_by_a_node_that_is_given_back(
    placers: Placers, tmp_path: Path, invitation: Path
) -> None:
    placer = placers(nodes=2, time="0:10:00", mem="200M")
    placer.start(agent_command(tmp_path), invitation, 2)
    until(lambda: len(agents_in(tmp_path)) == 2)
    first = agents_in(tmp_path)

    os.kill(int(first["n2"]["pid"]), signal.SIGTERM)
    placer.give_back({"node": "n2", "slurm": {"job": first["n2"]["job"], "node": "1"}})
    assert queue("--format=%N") == "n1"
    (tmp_path / "n2.agent").unlink()
    placer.start(agent_command(tmp_path), invitation, 1)
    until(lambda: placer.status().count("RUNNING on n") == 2)
    assert [job.nodes for job in placer._jobs] == [1, 1]
    assert Path(f"/proc/{first['n1']['pid']}").exists()


def test_the_first_node_of_a_job_stays_with_it(placers: Placers, tmp_path: Path, invitation: Path) -> None:
    placer = placers(nodes=2, time="0:10:00", mem="200M")
    placer.start(agent_command(tmp_path), invitation, 2)
    until(lambda: len(agents_in(tmp_path)) == 2)
    first = agents_in(tmp_path)["n1"]
    os.kill(int(first["pid"]), signal.SIGTERM)
    placer.give_back({"node": "n1", "slurm": {"job": first["job"], "node": "0"}})
    assert queue("--format=%N") == "n[1-2]"
    (tmp_path / "n1.agent").unlink()
    placer.start(agent_command(tmp_path), invitation, 1)
    until(lambda: "n1" in agents_in(tmp_path))
    assert [job.nodes for job in placer._jobs] == [2]


def test_agents_are_told_a_while_before_the_end(placers: Placers, tmp_path: Path, invitation: Path) -> None:
    placer = placers(nodes=1, time="0:02:00")
    placer.start(agent_command(tmp_path), invitation, 1)
    until(lambda: agents_in(tmp_path))
    number = next(iter(agents_in(tmp_path).values()))["job"]
    # By the limit it would come after a minute; this is what SLURM does then, to all processes of all steps.
    assert "signal=URG@60" in (invitation.with_suffix("") / "agents-0.sbatch").read_text()
    subprocess.run(["scancel", "--signal=URG", number], check=True)
    until(lambda: list(tmp_path.glob("*.SIGURG")))


def test_an_allocation_that_ends_soon_gets_no_other_agent(
    placers: Placers, tmp_path: Path, invitation: Path
) -> None:
    placer = placers(nodes=2, time="0:02:00", mem="200M")
    placer.start(agent_command(tmp_path), invitation, 2)
    until(lambda: len(agents_in(tmp_path)) == 2)
    os.kill(int(agents_in(tmp_path)["n2"]["pid"]), signal.SIGKILL)
    placer.start(agent_command(tmp_path), invitation, 1)
    assert [job.nodes for job in placer._jobs] == [2, 1]


def test_a_job_whose_only_agent_is_lost_has_another_or_is_asked_for_again(
    placers: Placers, tmp_path: Path, invitation: Path
) -> None:
    placer = placers(nodes=1, mem="200M")
    placer.start(agent_command(tmp_path), invitation, 1)
    for _ in range(3):  # its script ends within a second, and may just do so
        until(lambda: agents_in(tmp_path))
        ((name, agent),) = agents_in(tmp_path).items()
        join(placer, tmp_path)
        (tmp_path / f"{name}.agent").unlink()
        os.kill(int(agent["pid"]), signal.SIGKILL)
        placer.start(agent_command(tmp_path), invitation, 1)
    until(lambda: agents_in(tmp_path))


def test_what_waits_says_why(placers: Placers, tmp_path: Path, invitation: Path) -> None:
    placer = placers(nodes=2, sbatch=("exclusive",), time="0:05:00")
    other = placers(nodes=2, sbatch=("exclusive",), time="0:05:00")
    placer.start(agent_command(tmp_path), invitation, 2)
    until(lambda: "RUNNING" in placer.status())
    other.start(agent_command(tmp_path), tmp_path / "other.json", 2)
    until(lambda: "PENDING (Resources)" in other.status())
    assert other.status().startswith("SLURM job ")
    held = placers(nodes=1, sbatch=("hold",))
    held.start(agent_command(tmp_path), tmp_path / "held.json", 1)
    assert "PENDING (JobHeldUser: scontrol release lets it go)" in held.status()
    large = placers(nodes=1, cpus_per_node=99)
    large.start(agent_command(tmp_path), tmp_path / "large.json", 1)
    until(lambda: "PENDING (PartitionConfig: no node of the partition is like this" in large.status())


def test_a_job_that_is_refused_is_told_in_the_words_of_sbatch(
    placers: Placers, tmp_path: Path, invitation: Path
) -> None:
    with pytest.raises(OSError, match=r"(?s)sbatch refused .* Requested node configuration is not available"):
        placers(nodes=1, mem="900G").start(agent_command(tmp_path), invitation, 1)
    with pytest.raises(OSError, match="invalid partition specified: moon"):
        placers(nodes=1, partition="moon").start(agent_command(tmp_path), tmp_path / "b.json", 1)


def test_agents_that_cannot_join_end_the_wait_with_their_last_words(
    placers: Placers, tmp_path: Path, invitation: Path
) -> None:
    placer = placers(nodes=2, time="0:05:00")
    placer.start(agent_command(tmp_path, "--exit", "3"), invitation, 2)
    with pytest.raises(OSError, match=r"FAILED \(NonZeroExitCode\); .*slurm-\d+.out ends with"):
        until(lambda: not placer.status())
    with pytest.raises(OSError, match="FAILED"):  # and says so again
        placer.status()


def test_a_job_that_was_refused_is_no_obstacle_to_one_of_more_nodes(
    tmp_path: Path, invitation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = [SubmitError("sbatch refused it: the controller is busy")]

    def submits(*_: object, **__: object) -> int:
        if refused:
            raise refused.pop()
        return 17

    monkeypatch.setattr("mgpu_nb.cluster.slurm.submit", submits)
    placer = SlurmPlacer(Slurm(nodes=2))
    with pytest.raises(OSError, match="the controller is busy"):
        placer.start(agent_command(tmp_path), invitation, 1)
    placer.start(agent_command(tmp_path), invitation, 2)
    assert [(job.number, job.nodes) for job in placer._jobs] == [(17, 2)]


def test_three_failures_beside_a_job_that_works_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placer = SlurmPlacer(Slurm(nodes=2))

    def look_at(jobs: list[AgentsJob]) -> None:
        for job in jobs:
            works = job is placer._jobs[0]
            state, ran = ("RUNNING", 3600.0) if works else ("FAILED", 100.0)
            job.seen = job.seen._replace(state=state, seconds=ran)

    def submits(count: int) -> None:
        (tmp_path / "script").touch()
        placer._jobs.append(AgentsJob(len(placer._jobs), count, tmp_path / "script"))

    monkeypatch.setattr("mgpu_nb.cluster.slurm.look_at", look_at)
    submits(1)
    assert placer.status() == "SLURM job 0: RUNNING"
    for number in (1, 2, 3):
        submits(1)
        placer.status()
        assert placer.unheard() == 1
        assert f"SLURM job {number}: FAILED" in placer.status()
        assert placer.unheard() == 0
    with pytest.raises(
        NoMore, match="3 allocations in a row have failed, so no other is asked for, the last: "
    ):
        placer.start([], tmp_path / "x.json", 1)
    placer.worked()
    submits(1)
    placer.status()
    assert placer.unheard() == 1
    assert placer._failures.count == 1


def test_three_failures_in_a_row_are_enough(placers: Placers, tmp_path: Path, invitation: Path) -> None:
    placer = placers(nodes=2, time="0:05:00")
    placer.start(agent_command(tmp_path), invitation, 1)
    until(lambda: agents_in(tmp_path))
    join(placer, tmp_path)

    def fails() -> int:
        placer.status()
        return placer.unheard()

    for _ in range(3):
        placer.start(agent_command(tmp_path, "--exit", "3"), invitation, 1)
        until(fails)
    with pytest.raises(
        NoMore, match=r"(?s)3 allocations in a row have failed, .* stand-in of an agent does not want"
    ):
        placer.start(agent_command(tmp_path), invitation, 1)
    assert len(placer._jobs) == 4  # the one that works, and three that did not


def test_an_agent_that_ends_before_it_joins_is_started_again_where_it_was(
    placers: Placers, tmp_path: Path, invitation: Path
) -> None:
    placer = placers(nodes=2, time="0:05:00")
    (tmp_path / "broken").touch()
    fails_once = f'if [ "$0" = n2 ] && rm {tmp_path}/broken 2> /dev/null; then exit 3; fi; exec "$@"'
    # As "bash", "-c", words, and so on: SLURM knows the node, which is the last word.
    program = tmp_path / "agent"
    program.write_text(f'#!/bin/bash\nset -- "$@"\nexec bash -c \'{fails_once}\' "$SLURMD_NODENAME" "$@"\n')
    program.chmod(0o755)
    placer.start([str(program), *agent_command(tmp_path)], invitation, 2)
    until(lambda: agents_in(tmp_path))
    join(placer, tmp_path)

    def failed() -> int:
        placer.status()
        return placer.unheard()

    until(failed)
    assert list(agents_in(tmp_path)) == ["n1"]
    assert failed() == 0
    placer.start([str(program), *agent_command(tmp_path)], invitation, 1)
    until(lambda: len(agents_in(tmp_path)) == 2)
    assert len(placer._jobs) == 1
    assert failed() == 0


def test_which_agents_of_a_job_have_ended_before_they_joined(tmp_path: Path) -> None:
    job = AgentsJob(7, 3, tmp_path / "script")
    output = tmp_path / "slurm-7.out"

    def now(state: str = "RUNNING", *ended: str, again: int = 0) -> int:
        lines = ["another agent begins\n"] * again + [f"45%an agent has ended on {node}\n" for node in ended]
        output.write_text("".join(lines))
        job.seen = job.seen._replace(state=state)
        return job.unheard()

    assert now() == 0
    assert now("RUNNING", "n1") == 1
    assert now("RUNNING", "n1") == 0
    job.joined["n1"] += 1  # another one there
    assert now("RUNNING", "n1") == 0
    assert now("RUNNING", "n1", "n1") == 0  # which has ended: the pool has seen it
    assert now("RUNNING", "n1", "n1", "n1") == 1
    job.joined["n2"] += 1
    # Of five that began three have ended unheard by now, n1's last one and n3's among them; of n3 nothing was written.
    assert now("COMPLETED", "n1", "n1", "n1", "n2", again=2) == 1
    assert now("COMPLETED", "n1", "n1", "n1", "n2", again=2) == 0


def test_an_agent_that_was_begun_again_and_whose_job_ends_is_missed(tmp_path: Path) -> None:
    job = AgentsJob(7, 2, tmp_path / "script")
    job.joined.update(["n1", "n2"])
    (tmp_path / "slurm-7.out").write_text("an agent has ended on n2\nanother agent begins\n")
    job.seen = job.seen._replace(state="RUNNING")
    assert job.unheard() == 0
    job.seen = job.seen._replace(state="CANCELLED")
    assert not job.was_cancelled  # nobody cancelled one that waited
    assert job.unheard() == 1


def test_agents_that_were_not_asked_for_are_no_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placer = SlurmPlacer(Slurm(nodes=2))
    job = AgentsJob(7, 2, tmp_path / "script")
    job.joined.update(["n1", "n2"])
    job.seen = job.seen._replace(state="RUNNING", seconds=3600.0)
    placer._jobs.append(job)
    monkeypatch.setattr(placer, "_begin_again", lambda: 2)
    output = tmp_path / "slurm-7.out"
    output.write_text("an agent has ended on n2\n")
    assert placer.unheard() == 0
    for number in range(1, 5):
        assert placer.start([], tmp_path / "x.json", 1) == 2
        job.joined["n1"] += 1
        output.write_text("an agent has ended on n1\n" * number + "an agent has ended on n2\n" * (number + 1))
        assert placer.unheard() == 1
    assert placer._failures.count == 0


def test_what_was_begun_counts_although_sbatch_refuses_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placer = SlurmPlacer(Slurm(nodes=3))
    placer._jobs.append(AgentsJob(7, 2, tmp_path / "script"))
    begun = [1, 0]
    monkeypatch.setattr(placer, "_begin_again", lambda: begun.pop(0))

    def submits(*_: object, **__: object) -> int:
        raise SubmitError("sbatch refused it: the controller is busy")

    monkeypatch.setattr("mgpu_nb.cluster.slurm.submit", submits)
    assert placer.start([], tmp_path / "x.json", 2) == 1
    with pytest.raises(OSError, match="the controller is busy"):
        placer.start([], tmp_path / "x.json", 1)


def test_a_job_that_failed_is_told_once(placers: Placers, tmp_path: Path, invitation: Path) -> None:
    placer = placers(nodes=2, mem="200M")
    placer.start(agent_command(tmp_path), invitation, 1)
    placer.start(agent_command(tmp_path, "--exit", "3"), invitation, 1)
    failing = placer._jobs[-1]
    until(lambda: str(failing.number) not in queue("--format=%i").split())
    placer.start(agent_command(tmp_path), invitation, 1)  # for one that the pool has lost
    assert len(placer._jobs) == 3
    placer.status()
    assert placer.unheard() == 1
    placer.status()
    assert placer.unheard() == 0


def test_a_job_that_somebody_cancels_is_not_asked_for_again(
    placers: Placers, tmp_path: Path, invitation: Path
) -> None:
    placer = placers(nodes=2, mem="200M")
    placer.start(agent_command(tmp_path), invitation, 1)
    until(lambda: agents_in(tmp_path))
    join(placer, tmp_path)
    placer._wanted = Slurm(nodes=1, sbatch=("hold",))
    placer.start(agent_command(tmp_path), invitation, 1)
    subprocess.run(["scancel", str(placer._jobs[1].number)], check=True)

    def cancelled() -> int:
        placer.status()
        return placer.unheard()

    until(cancelled)
    with pytest.raises(NoMore, match=r"SLURM job \d+: CANCELLED"):
        placer.start(agent_command(tmp_path), invitation, 1)


def test_a_job_that_somebody_cancels_ends_the_wait(
    placers: Placers, tmp_path: Path, invitation: Path
) -> None:
    placer = placers(nodes=1, sbatch=("hold",))
    placer.start(agent_command(tmp_path), invitation, 1)
    subprocess.run(["scancel", str(placer._jobs[0].number)], check=True)
    with pytest.raises(OSError, match=r"SLURM job \d+: CANCELLED"):
        until(lambda: not placer.status())


def test_a_controller_that_does_not_answer_is_no_end(
    placers: Placers, tmp_path: Path, invitation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placer = placers(nodes=1, sbatch=("hold",))
    placer.start(agent_command(tmp_path), invitation, 1)
    with monkeypatch.context() as patch:
        squeue = tmp_path / "squeue"
        squeue.write_text("#!/bin/sh\necho slurm_load_jobs error: Socket timed out >&2; exit 1\n")
        squeue.chmod(0o755)
        patch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        assert placer.status() == "squeue: slurm_load_jobs error: Socket timed out"
    assert "JobHeldUser" in placer.status()


def test_a_run_on_the_nodes_of_a_slurm(cluster: Cluster, tmp_path: Path) -> None:
    with GPUPool("cpu", slots=1, cluster=Slurm(nodes=2, **OF_RUNS)) as pool:
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
        assert len(agents(str(cluster.conf))) == 2
    assert queue() == ""
    until(lambda: not agents(str(cluster.conf)), 10)


def test_nodes_that_have_nothing_to_do_are_given_back(cluster: Cluster, tmp_path: Path) -> None:
    with GPUPool("cpu", slots=1, cluster=Slurm(nodes=2, idle=3.0, **OF_RUNS)) as pool:
        both_nodes(pool, tmp_path)
        held = pool.submit(hold, str(tmp_path))
        until(lambda: list(tmp_path.glob("*.pid")))
        until(lambda: len(pool.nodes) == 1)
        (tmp_path / "go").touch()
        assert held.result(SECONDS)
        until(lambda: queue() == "")
        assert "2 of 2 nodes were given back" in repr(pool)
        assert pool.submit(os.getpid).result(SECONDS) != held.result()
    assert queue() == ""


def test_nothing_is_in_the_queue_once_the_parent_process_is_gone(cluster: Cluster, tmp_path: Path) -> None:
    parent = (
        "from mgpu_nb import GPUPool, Slurm; import time\n"
        f"pool = GPUPool('cpu', slots=1, cluster=Slurm(nodes=2, **{OF_RUNS!r}))\n"
        "pool.wait_for_slots(); print('there', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        assert len(agents(str(cluster.conf))) == 2
    finally:
        process.kill()
        process.wait()
    until(lambda: not agents(str(cluster.conf)), 10)
    until(lambda: queue() == "", 20)


def test_a_job_that_begins_when_the_parent_process_is_gone_ends(cluster: Cluster, tmp_path: Path) -> None:
    parent = (
        "from mgpu_nb import GPUPool, Slurm; import time\n"
        f"pool = GPUPool('cpu', slots=1, cluster=Slurm(sbatch=('hold',), **{OF_RUNS!r}))\n"
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
    with GPUPool("cpu", slots=1, cluster=Slurm(nodes=1, **OF_RUNS)) as pool:
        held = pool.run([Task(hold, str(tmp_path))], folder=tmp_path / "run")
        until(lambda: list(tmp_path.glob("*.pid")))
        (number,) = queue("--format=%i").split()
        subprocess.run(
            ["scancel", "--signal=URG", number], check=True
        )  # what SLURM does a minute before the end
        until(lambda: [node.state for node in pool.nodes] == ["ending"])
        follower = pool.submit(os.getpid)
        (tmp_path / "go").touch()
        held.wait(SECONDS, progress=False)
        (record,) = held.records
        assert (record.status, f"{record.value}.pid") == ("ok", next(tmp_path.glob("*.pid")).name)
        assert follower.result(SECONDS) != record.value  # by another agent


def test_what_slurm_says_is_told_when_nobody_comes(cluster: Cluster, tmp_path: Path) -> None:
    with GPUPool(
        "cpu", slots=1, start_timeout=5, cluster=Slurm(nodes=1, sbatch=("hold",), **OF_RUNS)
    ) as pool:
        run = pool.run([Task(os.getpid)], folder=tmp_path / "run")
        run.wait(SECONDS, progress=False)
        assert "PENDING (JobHeldUser: scontrol release lets it go)" in str(run.records[0].error)
    assert queue() == ""


def test_the_script_is_bash_and_has_its_directives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {"gpus_per_node": 4, "gpu_type": "a100", "time": 90, "mem": 4000}
    wanted = Slurm(nodes=3, account="m1", sbatch=("exclusive",), **asked)
    job = wanted.job(2)
    assert (job.nodes, job.ranks, job.cores, job.time, job.mem) == (2, 1, 16, "90", "4000")
    script = render_commands(job, agents_of_all_nodes(["/a b/python", "-m", "mgpu_nb"]), tmp_path)
    for line in (
        "--nodes=2",
        "--ntasks-per-node=1",
        "--gpus-per-node=a100:4",
        "--exclusive",
        "--no-kill",
        "--no-requeue",
    ):
        assert f"#SBATCH {line}" in script
    assert """'/a b/python' -m mgpu_nb --name "$1" ||""" in script
    assert not subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr
    assert "python -m x --name" in "\n".join(agents_of_all_nodes(["/b/python", "-m", "x"], other_python=True))


def test_agents_begin_again_on_those_nodes_that_a_job_still_has(tmp_path: Path) -> None:
    programs = {
        "scontrol": "echo ${3//,/ }",
        "squeue": "cat nodes",
        "srun": 'for word; do [ "${word%%=*}" = --nodelist ] && node=${word#*=}; done\n'
        "echo $node $$ >> begun; exec sleep 60",
    }
    for name, line in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    environ = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "n1,n2,n3",
        "SLURM_JOB_ID": "7",
    }
    (tmp_path / "nodes").write_text("n1,n2")
    script = "\n".join(agents_of_all_nodes(["python"]))
    said = (tmp_path / "said").open("w+")
    process = subprocess.Popen(["bash", "-c", script], cwd=tmp_path, env=environ, stdout=said, stderr=said)

    def begun() -> list[list[str]]:
        return [line.split() for line in (tmp_path / "begun").read_text().splitlines()]

    try:
        until(lambda: (tmp_path / "begun").exists() and len(begun()) == 3)
        for node, pid in begun():
            if node != "n1":
                os.kill(int(pid), signal.SIGKILL)
        until(lambda: (tmp_path / "said").read_text().count("an agent has ended") == 2)
        process.send_signal(signal.SIGUSR1)
        until(lambda: len(begun()) == 4)
        process.send_signal(signal.SIGUSR1)  # and once more: all run
        time.sleep(1.5)
        assert [node for node, _ in begun()][3:] == ["n2"]
    finally:
        for _, pid in begun():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        process.wait(20)
        said.close()


def test_a_job_within_a_job_does_not_inherit_it() -> None:
    outer = {
        "SLURM_JOB_ID": "1",
        "SLURM_MEM_PER_NODE": "4",
        "SLURM_CONF": "c",
        "SRUN_CPUS_PER_TASK": "2",
        "HOME": "h",
    }
    assert environment_of_jobs(outer) == {"SLURM_CONF": "c", "HOME": "h"}
    assert environment_of_jobs({"SLURM_TIME_FORMAT": "x"}) == {"SLURM_TIME_FORMAT": "x"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nodes": 0}, "nodes must be an integer >= 1, got 0"),
        ({"nodes": None}, "nodes must be an integer >= 1, got None"),
        ({"gpus_per_node": -1}, "gpus_per_node must be an integer >= 0, got -1"),
        ({"cpus_per_node": 0}, "cpus_per_node must be an integer >= 1 or None, got 0"),
        ({"time": "two hours"}, "time must be minutes, m:ss, h:mm:ss or days-hours, got 'two hours'"),
        ({"time": "1:60:00"}, "time='1:60:00' is no time"),
        ({"mem": "64 GB"}, "mem must be a number with K, M, G or T"),
        ({"gpu_type": "a100"}, "gpu_type='a100' needs gpus_per_node"),
        ({"partition": "a b"}, "partition must be one word"),
        ({"sbatch": ("signal=TERM@9",)}, "sbatch: signal is settled for the agents of a pool"),
        ({"sbatch": ("array=1-4",)}, "sbatch: array is settled"),
        ({"sbatch": ("time=5",)}, "sbatch: time has an option of its own: give time"),
        ({"address": "login1:5000"}, "address must be a host name or an IP address, without a port"),
        ({"idle": 0}, "idle must be a finite number > 0 or None, got 0"),
        ({"port": 70000}, "port must be an integer >= 0 and <= 65535, got 70000"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Slurm(**options)


def test_what_a_script_cannot_have_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    options: dict[str, Any] = {"preload": (), "start_method": None, "env": None, "start_timeout": 10}
    with pytest.raises(ValueError, match="is neither a virtual nor a conda environment"):
        Slurm(environment=str(tmp_path)).engine(**options)
    (tmp_path / "my notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "my notebooks")
    with pytest.raises(ValueError, match="my notebooks': SLURM takes a folder without spaces and quotes"):
        Slurm().engine(**options)


def test_without_slurm_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match="there is no sbatch on this machine: run this on a login node"
    ):
        Slurm().engine(preload=(), start_method=None, env=None, start_timeout=10)
