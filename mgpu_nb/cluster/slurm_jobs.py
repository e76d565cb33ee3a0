"""Batch jobs of a pool's agents: their script, and what SLURM says of them."""

from __future__ import annotations

import math
import os
import re
import shlex
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..distributed.slurm import last_words
from .placer import WORKED

__all__ = [
    "AgentsJob",
    "agents_of_all_nodes",
    "controller",
    "environment_of_jobs",
    "look_at",
    "slurm",
    "steps_by_job",
]

_ANSWER = 60.0  # seconds that squeue and scancel may take
_TIME = 180.0  # seconds that an allocation must have left for another agent
_LINES = 5  # last ones of a job's output in a message
_ENDED = ("COMPLETED", "CANCELLED", "TIMEOUT", "PREEMPTED", "DEADLINE", "REVOKED")
_FAILED = ("FAILED", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY", "LAUNCH_FAILED", "RECONFIG_FAIL")
_GONE = "no longer in the queue"
_ENDS = "an agent has ended on"  # lines of a script; a node follows
_AGAIN = "another agent begins"
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


class _Seen(NamedTuple):
    """A job as squeue shows it: state, reason to wait or to have ended, seconds that it has run and may, nodes."""

    state: str
    reason: str
    seconds: float
    left: float
    on: str
    nodes: int


@dataclass(eq=False)
class AgentsJob:
    """A batch job of a pool, as squeue told of it last.

    Attributes
    ----------
    number
        SLURM's.
    nodes
        Number of nodes that it asked for.
    script
        Its script, in the folder that it writes to.
    told
        Whether its end was told.
    counted
        Whether it was counted as a failure.
    given_back
        Number of nodes that it had and has not any more.
    joined
        How many agents have joined the pool from each of its nodes.
    """

    number: int
    nodes: int
    script: Path
    told: bool = False
    counted: bool = False
    given_back: int = 0
    joined: Counter[str] = field(default_factory=Counter)
    seen: _Seen = field(init=False)
    _unheard: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        """It waits until more is known."""
        self.seen = _Seen("PENDING", "", 0.0, math.inf, "", self.nodes)

    @property
    def is_active(self) -> bool:
        """Whether it waits or runs; so does one of a state that is not known here."""
        return self.seen.state not in (*_ENDED, *_FAILED, _GONE)

    @property
    def ended_by_fault(self) -> bool:
        """Whether it has ended, and by a fault."""
        return self.seen.state in _FAILED

    @property
    def has_failed(self) -> bool:
        """Whether it has ended before any of its agents joined, or soon and by a fault."""
        at_once = self.ended_by_fault and self.seen.seconds < WORKED
        return not self.is_active and (at_once or not self.joined)

    @property
    def was_cancelled(self) -> bool:
        """Whether somebody has cancelled it before any of its agents joined."""
        return self.seen.state.startswith("CANCELLED") and not self.joined

    def unheard(self) -> int:
        """Number of its agents that have ended before they joined, since this was asked; if it has ended, of all."""
        written = self._written()
        before = self._unheard.total()
        for node, ended in Counter(re.findall(rf"{_ENDS} (\S+)$", written, re.M)).items():
            # One that has joined is not among those that have ended as long as it is there.
            self._unheard[node] = max(self._unheard[node], ended - self.joined[node])
        if not self.is_active:  # what its script wrote is not all: it may have been killed
            begun = self.nodes + self.given_back + written.count(_AGAIN)
            self._unheard[""] += max(0, begun - self.joined.total() - self._unheard.total())
        return self._unheard.total() - before

    @property
    def can_begin(self) -> bool:
        """Whether it has time for another agent: that which ended may have done so for want of it."""
        return self.seen.state == "RUNNING" and self.seen.left >= _TIME

    def without_agent(self, steps: int) -> int:
        """Number of its nodes that another agent can be started on, if so many of its steps run."""
        if not self.can_begin or self.seen.nodes <= steps:
            return 0
        written = self._written()  # a step that is not there may be about to begin
        ended = written.count(_ENDS) - written.count(_AGAIN) - self.given_back
        return max(0, min(self.seen.nodes - steps, ended))

    def give_back(self, node: str) -> None:
        """Become smaller by a node whose agent has just ended; not by the first one, on which the script runs.

        Raises
        ------
        OSError
            If SLURM does not do it.
        """
        nodes = slurm("scontrol", "show", "hostnames", self.seen.on).split() if self.seen.on else []
        if node not in nodes[1:]:
            return
        for pause in (0.2, 0.5, 1.0, 2.0):  # a step that has not ended would be killed
            if not _has_step(self.number, node):
                break
            time.sleep(pause)
        kept = ",".join(name for name in nodes if name != node)
        slurm("scontrol", "update", f"JobId={self.number}", f"NodeList={kept}")
        self.nodes -= 1
        self.given_back += 1

    def _written(self) -> str:
        try:
            file = self.script.parent / f"slurm-{self.number}.out"
            return file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def with_output(self) -> str:
        """It in words, with the last lines that it wrote."""
        return f"{self}{last_words(self.script, str(self.number), _LINES)}"

    def with_troubles(self) -> str:
        """It in words, with the last lines that it wrote if an agent could not join."""
        return self.with_output() if _FAILED_WITH in self._written() else str(self)

    def __str__(self) -> str:
        words, reason = self.seen.state, self.seen.reason
        if self.is_active and self.seen.on:
            words += f" on {self.seen.on}"
        elif reason not in ("", "None"):
            remedy = _REMEDIES.get(reason.split(",")[0]) if self.is_active else None
            words += f" ({reason}{f': {remedy}' if remedy else ''})"
        return f"SLURM job {self.number}: {words}"


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
        f'        echo "{_ENDS} $1"',
        "        exit $code",
        "    } &",
        "    agents[$1]=$!",
        "}",
        """runs() { kill -0 "${agents[$1]}" 2> /dev/null; }""",
        """some() { local node; for node in "${!agents[@]}"; do runs "$node" && return 0; done; return 1; }""",
        # Of the nodes that it has now: some may have been given back.
        """nodes() { scontrol show hostnames "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%N)"; }""",
        """again() { local node; for node in $(nodes); do runs "$node" || anew "$node"; done; }""",
        f"""anew() {{ echo {_AGAIN}; begin "$1"; }}""",
        "trap again USR1",
        'for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do begin "$node"; done',
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


def look_at(jobs: Sequence[AgentsJob]) -> None:
    """Ask squeue, once, for all of some jobs; what it does not know any more ended some minutes ago.

    Raises
    ------
    OSError
        If SLURM does not answer.
    """
    if not jobs:
        return
    shown = slurm(
        "squeue", "--noheader", "--states=all", f"--user={os.geteuid()}", "--format=%i|%T|%r|%M|%L|%N|%D"
    )
    found = {}
    for line in shown.splitlines():
        number, *rest = line.strip().split("|")
        if number.isdecimal() and len(rest) == 6:
            state, reason, elapsed, left, on, nodes = rest
            limit = _seconds(left) if left[:1].isdecimal() else math.inf
            count = int(nodes) if nodes.isdecimal() else 0
            found[int(number)] = _Seen(state, reason, _seconds(elapsed), limit, on, count)
    for job in jobs:
        job.seen = found.get(job.number) or job.seen._replace(state=_GONE, reason="", on="", nodes=0)


def steps_by_job() -> Counter[int]:
    """Number of steps that run, beside the script itself, by job of this user."""
    shown = slurm("squeue", "--steps", "--noheader", f"--user={os.geteuid()}", "--format=%i").split()
    return Counter(int(job) for job, _, step in (name.partition(".") for name in shown) if step.isdecimal())


def _has_step(job: int, node: str) -> bool:
    """Whether a step of a job runs on a node, beside the script itself."""
    shown = slurm(
        "squeue", "--steps", "--noheader", f"--user={os.geteuid()}", f"--nodelist={node}", "--format=%i"
    )
    return any(
        number == str(job) and step.isdecimal()
        for number, _, step in (name.partition(".") for name in shown.split())
    )


def _seconds(elapsed: str) -> float:
    """Seconds of a time that SLURM shows: ``days-hours:mm:ss``, or less of it; 0 for what is none."""
    parts = [int(part) for part in re.split("[-:]", elapsed) if part.isdecimal()]
    return sum(part * unit for part, unit in zip(reversed(parts), (1, 60, 3600, 86400), strict=False))


def controller() -> str:
    """Host of SLURM's controller.

    Raises
    ------
    OSError
        If SLURM does not answer.
    """
    found = re.search(
        r"^SlurmctldHost\S*\s*=\s*([^\s(]+)(?:\((\S+)\))?", slurm("scontrol", "show", "config"), re.M
    )
    return found[2] or found[1] if found else "localhost"


def slurm(*command: str) -> str:
    """What a command of SLURM prints.

    Raises
    ------
    OSError
        If it fails or does not answer; the message quotes it.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=_ANSWER,
            env=environment_of_jobs(os.environ),  # within a job, scontrol would write files about that one
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"{command[0]} has not answered in {_ANSWER:g} s") from None
    if done.returncode:
        raise OSError(f"{command[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout
