"""Nodes of a SLURM cluster: a batch job starts an agent on each of its machines."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import re
import shlex
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, NamedTuple

from ..distributed.slurm import BatchJob, SubmitError, last_words, render_commands, submit, write_script
from ..engines.base import Engine
from ..options import Between, NonNegativeInt, PositiveInt, check_options
from ..store.files import make_private
from .placer import Host

__all__ = ["Slurm", "SlurmPlacer"]

_ANSWER = 60.0  # seconds that squeue and scancel may take
_END = 60.0  # seconds that SLURM has to end jobs: it gives processes its KillWait, 30 s unless the site says otherwise
_TIME = 180.0  # seconds that an allocation must have left for another agent
_WORKED = 60.0  # seconds after which a job was no failure, however it ended
_MOST_FAILURES = 3  # allocations in a row, after which no other is asked for
_LINES = 5  # last ones of a job's output in a message
_ENDED = ("COMPLETED", "CANCELLED", "TIMEOUT", "PREEMPTED", "DEADLINE", "REVOKED")
_FAILED = ("FAILED", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY", "LAUNCH_FAILED", "RECONFIG_FAIL")
_GONE = "no longer in the queue"
_BEGUN = "agents begin"  # lines of a script
_FAILED_WITH = "has ended with exit code"
_REMEDIES = {  # reasons to wait for that end by themselves late or never
    "PartitionTimeLimit": "the partition allows less time: give time",
    "PartitionNodeLimit": "the partition allows fewer nodes: give nodes, or another partition",
    "PartitionConfig": "no node of the partition is like this: see sinfo, and give cpus_per_node and mem by it",
    "PartitionDown": "the partition is down: give another",
    "PartitionInactive": "the partition is inactive: give another",
    "BadConstraints": "no node is like this: see sinfo, and give constraint, gpu_type, cpus_per_node and mem by it",
    "ReqNodeNotAvail": "nodes are down or reserved: see sinfo, or give a shorter time",
    "InvalidAccount": "give account; sacctmgr show associations lists yours",
    "InvalidQOS": "give qos; sacctmgr show associations lists yours",
    "JobHeldUser": "scontrol release lets it go",
    "JobHeldAdmin": "an administrator of the cluster holds it",
    "DependencyNeverSatisfied": "the job that it depends on has failed",
}


@dataclass(frozen=True)
class Slurm:
    """Nodes of a SLURM cluster, for ``GPUPool(cluster=Slurm(nodes=2, gpus_per_node=4))``.

    One batch job asks for all of them; its script starts an agent on each, which dials this process. Their folders must
    be the same as here: that of the Python environment, this one, and the user's home, where the invitation is. The
    pool begins with the first agent that is there. One that is lost is started again on its node; for a node that
    failed another is asked for, as a job of its own. A job ends when all of its agents have ended: with the pool at the
    latest, or with this process.

    A minute before the time limit (with ``send_user_signal`` among the PreemptParameters of the cluster also before a
    pre-emption), nodes take no more tasks.

    Raises
    ------
    ValueError, TypeError
        If an option is invalid; the message names it and the accepted values.
    """

    nodes: PositiveInt = 1
    """Number of nodes."""
    gpus_per_node: NonNegativeInt = 0
    """GPUs on each, and slots by default; 0 for nodes without."""
    gpu_type: str | None = None
    """Type of GPU, for clusters with several, for example a100."""
    cpus_per_node: PositiveInt | None = None
    """Cores on each; by default 4 for each GPU, and without GPUs what the cluster gives, which may be one."""
    time: str = "1:00:00"
    """Time limit as SLURM writes it: minutes, m:ss, h:mm:ss, days-hours, days-hours:mm or days-hours:mm:ss."""
    mem: str | None = None
    """Memory per node, for example 64G; megabytes without a unit, 0 for all there is."""
    partition: str | None = None
    """Partition to queue in."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that the nodes must have."""
    job_name: str = "mgpu_nb-agents"
    """Name in the queue."""
    modules: tuple[str, ...] = ()
    """Environment modules to load."""
    purge_modules: bool = True
    """Whether `modules` stand in place of those that the job is submitted with, which sbatch hands on."""
    environment: str | None = None
    """Folder of the virtual or conda environment on the nodes; by default the one that runs now."""
    env: tuple[str, ...] = ()
    """Variables to set on the nodes, NAME=value."""
    sbatch: tuple[str, ...] = ()
    """More directives, as sbatch names them: exclusive reservation=x mail-type=END,FAIL."""
    address: Host | None = None
    """Address of this machine that the nodes reach; by default that of the way to SLURM's controller."""
    port: Annotated[int, Between(0, 65535)] = 0
    """Port of this machine that agents dial, where only some are let through; by default any that is free."""

    def __post_init__(self) -> None:
        """Check what can be checked without the cluster."""
        for name in ("time", "mem"):  # 60 minutes, 4000 megabytes
            if type(number := getattr(self, name)) is int:
                object.__setattr__(self, name, str(number))
        check_options(self)
        for directive in self.sbatch:
            name = directive.partition("=")[0]
            if name in ("array", "signal", "no-kill"):
                raise ValueError(f"sbatch: {name} is settled for the agents of a pool: leave it out")
        object.__setattr__(self, "_job", self._checked())

    def job(self, nodes: int) -> BatchJob:
        """What a batch job of so many nodes asks the cluster for."""
        job: BatchJob = copy.copy(self._job)  # type: ignore[attr-defined]
        object.__setattr__(job, "nodes", nodes)  # without another check, which would warn once more
        return job

    def _checked(self) -> BatchJob:
        same = {f.name for f in fields(BatchJob)} - {"sbatch"}
        options = {f.name: getattr(self, f.name) for f in fields(self) if f.name in same}
        return BatchJob(
            **options,
            ranks_per_node=1,
            cpus_per_task=self.cpus_per_node,
            # One node that fails does not take the job. The signal goes to all processes of the agents' steps: workers
            # ignore this one, and agents take it for SIGTERM.
            sbatch=(*self.sbatch, "no-kill", "signal=URG@60"),
        )

    def engine(
        self,
        *,
        preload: Sequence[str],
        start_method: str | None,
        env: Mapping[str, str] | None,
        start_timeout: float,
    ) -> Engine:
        """Engine of a pool whose workers are on the nodes.

        Raises
        ------
        OSError
            If there is no SLURM here, or it does not answer.
        ValueError
            If the nodes cannot have this folder or the environment.
        """
        if missing := [
            name for name in ("sbatch", "squeue", "scancel", "scontrol") if not shutil.which(name)
        ]:
            raise FileNotFoundError(
                f"there is no {missing[0]} on this machine: run this on a login node of a SLURM cluster, or take "
                "Agents() and start agents on the nodes yourself"
            )
        render_commands(self.job(self.nodes), (), "/")  # what it refuses is refused before anything starts
        controller = _controller()
        from .door import route_to
        from .engine import ClusterEngine

        return ClusterEngine(
            SlurmPlacer(self),
            address=self.address or route_to(controller),
            port=self.port,
            preload=preload,
            start_method=start_method,
            env=env,
            start_timeout=start_timeout,
        )


class _Seen(NamedTuple):
    """A job as squeue shows it: state, reason to wait or to have ended, seconds that it has run and may, nodes."""

    state: str
    reason: str
    seconds: float
    left: float
    on: str
    nodes: int


@dataclass
class _Job:
    """A batch job of a pool, as squeue told of it last."""

    number: int
    nodes: int
    script: Path
    seen: _Seen
    told: bool = False

    @property
    def is_active(self) -> bool:
        """Whether it waits or runs; so does one of a state that is not known here."""
        return self.seen.state not in (*_ENDED, *_FAILED, _GONE)

    @property
    def has_worked(self) -> bool:
        """Whether it was no failure, however it ends."""
        return self.seen.seconds >= _WORKED or self.seen.state == "COMPLETED"

    @property
    def can_begin(self) -> bool:
        """Whether it has time for another agent: that which ended may have done so for want of it."""
        return self.seen.state == "RUNNING" and self.seen.left >= _TIME

    def __str__(self) -> str:
        words, reason = self.seen.state, self.seen.reason
        if self.is_active and self.seen.on:
            words += f" on {self.seen.on}"
        elif reason not in ("", "None"):
            remedy = _REMEDIES.get(reason.split(",")[0])
            words += f" ({reason}{f': {remedy}' if remedy else ''})"
        return f"SLURM job {self.number}: {words}"


class SlurmPlacer:
    """Submits the batch jobs of a pool's agents, and cancels them.

    Parameters
    ----------
    wanted
        What to ask the cluster for.
    """

    def __init__(self, wanted: Slurm) -> None:
        self.nodes: int | None = wanted.nodes
        self.slots_per_node: int | None = wanted.gpus_per_node or None
        self._wanted = wanted
        self._jobs: list[_Job] = []
        self._failures = 0  # allocations in a row
        self._worked = False
        self._again: tuple[Sequence[str], Path] | None = None
        self._folder: Path | None = None

    def start(self, command: Sequence[str], invitation: Path, count: int) -> None:
        """Submit a job of so many nodes.

        Raises
        ------
        OSError
            If SLURM refuses it, or three allocations in a row have failed.
        ValueError
            If the script of the job cannot be written for these folders.
        """
        if self._failures >= _MOST_FAILURES:
            raise OSError(self._stopped())
        self._again = command, invitation
        count -= self._begin_again() if self._jobs else 0
        if count > 0:
            self._submit(count)

    def _submit(self, count: int) -> None:
        assert self._again is not None  # noqa: S101 (`start` has set it)
        command, invitation = self._again
        self._folder = folder = invitation.with_suffix("")
        make_private(folder)
        own = self._wanted
        lines = agents_of_all_nodes(
            command, gpus=bool(own.gpus_per_node), other_python=own.environment is not None
        )
        script = render_commands(self._wanted.job(count), lines, folder)
        path = write_script(script, folder / f"agents-{len(self._jobs)}.sbatch")
        try:
            number = submit(path, env=environment_of_jobs(os.environ))
        except SubmitError as error:
            self._failures += 1
            raise OSError(str(error).replace("cpus_per_task", "cpus_per_node")) from error
        self._jobs.append(_Job(number, count, path, _Seen("PENDING", "", 0.0, math.inf, "", count)))

    def _begin_again(self) -> int:
        """Have agents started on the nodes that jobs hold and that have none; their number.

        SLURM may know a moment after the pool that an agent has ended. A node that has failed is none of its job's.
        """
        for pause in (0.0, 1.0, 2.0):
            time.sleep(pause)
            self._look()
            steps = _steps()
            idle = {
                job.number: job.seen.nodes - steps[job.number]
                for job in self._jobs
                if job.can_begin and job.seen.nodes > steps[job.number] and _BEGUN in _written(job)
            }
            if idle:
                break
        for number in idle:
            _run("scancel", "--batch", "--signal=USR1", str(number))
        return sum(idle.values())

    def status(self) -> str:
        """States of the jobs in words, by one squeue; a job that failed is asked for again, if another one worked.

        Raises
        ------
        OSError
            If no job is left, with the end of what the last one wrote.
        """
        try:
            words = self._look()
        except OSError as error:  # SLURM's controller is busy, or started anew: jobs go on
            return str(error)
        active = [job for job in self._jobs if job.is_active]
        said = [*words, *(self._running(job) for job in active)]
        if self._jobs and not active:
            raise OSError("; ".join(said) or f"{self._jobs[-1]}{_output(self._jobs[-1])}")
        return "; ".join(said)

    def _look(self) -> list[str]:
        """Ask squeue; words about jobs that have failed since, and about what was done."""
        found = _squeue([job.number for job in self._jobs if job.is_active])
        words = []
        for job in [job for job in self._jobs if job.is_active]:
            job.seen = found.get(job.number) or job.seen._replace(state=_GONE, reason="", on="", nodes=0)
            if job.has_worked:
                self._worked, self._failures = True, 0
        for job in [job for job in self._jobs if not job.is_active and not job.told]:
            job.told = True
            if job.seen.state in _FAILED and not job.has_worked:
                self._failures += 1
                words.append(f"{job}{_output(job)}")
                words += self._ask_again(job)
        return words

    def _ask_again(self, job: _Job) -> list[str]:
        if self._failures >= _MOST_FAILURES:
            return [self._stopped()]
        if not (self._worked or any(other.is_active for other in self._jobs)):
            return []
        try:
            self._submit(job.nodes)
        except (OSError, ValueError) as error:
            return [str(error)]
        return ["another was asked for"]

    def _stopped(self) -> str:
        last = self._jobs[-1] if self._jobs else None
        told = f", the last: {last}{_output(last)}" if last else ""
        return f"{_MOST_FAILURES} allocations in a row have failed, so no other is asked for{told}"

    def _running(self, job: _Job) -> str:
        """A job in words; of one whose agents could not join also what it wrote last."""
        return f"{job}{_output(job) if _FAILED_WITH in _written(job) else ''}"

    def close(self) -> None:
        """Cancel the jobs and wait until none is in the queue any more."""
        with contextlib.suppress(Exception):
            self._cancel()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _cancel(self) -> None:
        left = [job.number for job in self._jobs if job.is_active]
        end = time.monotonic() + _END
        pause = 0.1
        while left and time.monotonic() < end:
            with contextlib.suppress(OSError):  # it is tried again
                _run("scancel", "--quiet", *map(str, left))
                found = _squeue(left)
                for job in self._jobs:
                    if job.number in left:
                        job.seen = found.get(job.number) or job.seen._replace(state=_GONE)
                left = [job.number for job in self._jobs if job.is_active]
            if left:
                time.sleep(pause)
                pause = min(2.0, 2 * pause)


def agents_of_all_nodes(
    command: Sequence[str], *, gpus: bool = False, other_python: bool = False
) -> list[str]:
    """Lines of a batch script that start an agent on each node, as a step of its own, and wait for all.

    A step that ends or is cancelled does not touch the others; SIGUSR1 to the script has agents started on the nodes
    that have none. The script fails if an agent could not join the pool.

    Parameters
    ----------
    command
        Command line of an agent, its interpreter first.
    gpus
        Whether the job has GPUs.
    other_python
        Whether the interpreter is that of the environment which the script activates.
    """
    called = shlex.join(["python", *command[1:]] if other_python else command)
    return [
        "declare -A agents",
        "begin() {",
        "    {",
        "        code=0",
        # A process that MPI does not look for, with all cores and GPUs that the job has on the node.
        '        srun --nodes=1 --ntasks=1 --nodelist="$1" --input=none --mpi=none --cpu-bind=none'
        f"{' --gpu-bind=none' * gpus} \\",
        f'            {called} --name "$1" || code=$?',
        f'        if [ $code -gt 0 ] && [ $code -lt 128 ]; then echo "the agent on $1 {_FAILED_WITH} $code"; fi',
        "        exit $code",
        "    } &",
        "    agents[$1]=$!",
        "}",
        """runs() { kill -0 "${agents[$1]}" 2> /dev/null; }""",
        """some() { local node; for node in "${!agents[@]}"; do runs "$node" && return 0; done; return 1; }""",
        """again() { local node; for node in "${!agents[@]}"; do runs "$node" || begin "$node"; done; }""",
        "trap again USR1",
        'for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do begin "$node"; done',
        f"echo {_BEGUN}",
        "while some; do sleep 1 & wait $! || true; done",
        "failed=0",
        'for agent in "${agents[@]}"; do',
        "    code=0",
        '    wait "$agent" || code=$?',
        "    if [ $code -gt 0 ] && [ $code -lt 128 ]; then failed=$code; fi",
        "done",
        "exit $failed",
    ]


def environment_of_jobs(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables to submit jobs with: within a job, without those that tell of that one and would count for the new."""
    if "SLURM_JOB_ID" not in environ:
        return dict(environ)
    kept = ("SLURM_CONF", "SLURM_CLUSTERS")
    of_the_job = ("SLURM_", "SLURMD_", "SRUN_", "PMI_", "PMIX_", "CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")
    return {name: value for name, value in environ.items() if name in kept or not name.startswith(of_the_job)}


def _squeue(numbers: Sequence[int]) -> dict[int, _Seen]:
    """What squeue shows of these jobs; those that ended some minutes ago are not in it any more."""
    if not numbers:
        return {}
    shown = _run(
        "squeue", "--noheader", "--states=all", f"--user={os.geteuid()}", "--format=%i|%T|%r|%M|%L|%N|%D"
    )
    found = {}
    for line in shown.splitlines():
        number, *rest = line.strip().split("|")
        if number.isdecimal() and int(number) in numbers and len(rest) == 6:
            state, reason, elapsed, left, on, nodes = rest
            limit = _seconds(left) if left[:1].isdecimal() else math.inf
            found[int(number)] = _Seen(state, reason, _seconds(elapsed), limit, on, int(nodes))
    return found


def _steps() -> Counter[int]:
    """Number of steps that run, beside the script itself, by job of this user."""
    shown = _run("squeue", "--steps", "--noheader", f"--user={os.geteuid()}", "--format=%i").split()
    return Counter(int(job) for job, _, step in (name.partition(".") for name in shown) if step.isdecimal())


def _seconds(elapsed: str) -> float:
    """Seconds of a time that SLURM shows: ``days-hours:mm:ss``, or less of it; 0 for what is none."""
    parts = [int(part) for part in re.split("[-:]", elapsed) if part.isdecimal()]
    return sum(part * unit for part, unit in zip(reversed(parts), (1, 60, 3600, 86400), strict=False))


def _controller() -> str:
    """Host of SLURM's controller.

    Raises
    ------
    OSError
        If SLURM does not answer.
    """
    found = re.search(
        r"^SlurmctldHost\S*\s*=\s*([^\s(]+)(?:\((\S+)\))?", _run("scontrol", "show", "config"), re.M
    )
    return found[2] or found[1] if found else "localhost"


def _output(job: _Job) -> str:
    """The last lines that a job wrote, for a message."""
    return last_words(job.script, str(job.number), _LINES)


def _written(job: _Job) -> str:
    """All that a job wrote."""
    try:
        return (job.script.parent / f"slurm-{job.number}.out").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _run(*command: str) -> str:
    """What a command of SLURM prints.

    Raises
    ------
    OSError
        If it fails or does not answer; the message quotes it.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_ANSWER)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"{command[0]} has not answered in {_ANSWER:g} s") from None
    if done.returncode:
        raise OSError(f"{command[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout
