"""The nodes of the SLURM job that this process is in: srun starts an agent on each."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Unpack

from ..distributed.environment import gpus_per_node
from ..engines.base import Engine, EngineOptions
from ..options import Between, check_options
from ..store.files import make_private
from .children import Child, PlacesChildren
from .placer import Host, NoMore
from .slurm_jobs import AgentsJob, look_at, slurm

__all__ = ["Allocation", "AllocationPlacer"]

_GRACE = 10.0  # seconds in which agents may end by themselves
# What srun would take over of the job, and which is for ranks and not for an agent that has all of a node.
_OF_RANKS = ("SLURM_CPU_BIND", "SLURM_DISTRIBUTION", "SLURM_NPROCS", "SLURM_NTASKS", "SLURM_CPUS_PER_TASK")


@dataclass(frozen=True)
class Allocation:
    """The nodes of the SLURM job that this process is in, for ``GPUPool(cluster=Allocation())``.

    For a batch script of your own, ``mgpu-nb protein --cluster allocation``, or a Python within ``salloc``: an agent is
    started on each node by srun, with all cores and GPUs that the job has there. One that is lost is started again,
    unless the job ends within three minutes.

    Raises
    ------
    ValueError, TypeError
        If an option is invalid; the message names it and the accepted values.
    """

    address: Host | None = None
    """Address of this machine that the nodes reach; by default that of the way to another of them."""
    port: Annotated[int, Between(0, 65535)] = 0
    """Port of this machine that agents dial, where only some are let through; by default any that is free."""

    def __post_init__(self) -> None:
        """Check the options."""
        check_options(self)

    @property
    def nodes(self) -> int | None:
        """Number of nodes; None outside of a job."""
        count = os.environ.get("SLURM_JOB_NUM_NODES", "")
        return int(count) if count.isdecimal() else None

    def engine(self, **options: Unpack[EngineOptions]) -> Engine:
        """Engine of a pool whose workers are on the nodes of the job.

        Raises
        ------
        OSError
            If this process is in no job, or SLURM does not answer.
        """
        placer = AllocationPlacer()
        from .door import route_to
        from .engine import ClusterEngine

        return ClusterEngine(
            placer,
            address=self.address or route_to(placer.facing()),
            port=self.port,
            **options,
        )


class AllocationPlacer(PlacesChildren):
    """Starts the agents of a pool on the nodes of the job that this process is in.

    Raises
    ------
    OSError
        If it is in none, there is no srun, or SLURM does not answer.
    """

    def __init__(self) -> None:
        super().__init__()
        job, listed = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_JOB_NODELIST", "")
        if not (job.isdecimal() and listed):
            raise OSError(
                "this process is in no SLURM job (SLURM_JOB_ID): start it in a batch script or within salloc, or take "
                "Slurm(nodes=...), which asks for nodes"
            )
        if not shutil.which("srun"):
            raise FileNotFoundError("there is no srun on this machine, which starts agents on the nodes")
        self._hosts = slurm("scontrol", "show", "hostnames", listed).split()
        self.nodes: int | None = len(self._hosts)
        here = os.environ.get("SLURM_GPUS_ON_NODE", "")
        self.slots_per_node: int | None = gpus_per_node() or (int(here) if here.isdecimal() else None) or None
        self._job = AgentsJob(int(job), len(self._hosts), Path())
        self._over = ""  # why no other agent is started
        self._folder: Path | None = None

    def facing(self) -> str:
        """Address of a node that is not this machine, as SLURM has it; loopback if there is none.

        Raises
        ------
        OSError
            If SLURM does not answer.
        """
        others = [host for host in self._hosts if host != os.environ.get("SLURMD_NODENAME")]
        if not others:
            return "127.0.0.1"
        found = re.search(r"\bNodeAddr=(\S+)", slurm("scontrol", "show", "node", others[-1]))
        return found[1] if found else others[-1]

    def start(self, command: Sequence[str], invitation: Path, count: int) -> int:
        """Start agents on nodes that have none.

        Raises
        ------
        NoMore
            If the job ends soon, or the last three agents have ended at once.
        OSError
            If there is no such node, or none can be started there.
        """
        self._children.look()
        self._children.failures.check()
        idle = self._idle(count)
        if any(child.name in idle for child in self._children):
            look_at([self._job])
            if not self._job.can_begin:
                self._over = f"{self._job}: it ends too soon for another agent"
                raise NoMore(self._over)
        if not idle:
            raise OSError(f"each of its {self.nodes} nodes has an agent")
        self._folder = invitation.with_suffix("")
        make_private(self._folder)
        gpus = ["--gpu-bind=none"] if self.slots_per_node else []
        for host in idle[:count]:
            # A process that MPI does not look for, with all cores and GPUs that the job has on the node, also beside
            # the step that this process may be in.
            own = [
                "srun", "--nodes=1", "--ntasks=1", f"--nodelist={host}", "--input=none", "--mpi=none", "--overlap",
                "--cpu-bind=none", *gpus, *command, "--name", host,
            ]  # fmt: skip
            self._children.drop(host)  # one on each node, by its name
            log = self._folder / f"{host}.log"
            self._children.append(Child(own, host, log, _environment_of_steps(os.environ)))
        return len(idle[:count])

    def _idle(self, count: int) -> list[str]:
        """Nodes without an agent; srun may know a moment after the pool that one has ended."""
        for pause in (0.0, 0.2, 0.5, 1.0, 2.0):
            time.sleep(pause)
            busy = {child.name for child in self._children.alive}
            idle = [host for host in self._hosts if host not in busy]
            if len(idle) >= count:
                break
        return idle

    def status(self) -> str:
        """What became of the agents that could not join, or where the others start.

        Raises
        ------
        OSError
            If all have ended.
        """
        if self._children and not self._children.alive:
            raise OSError(self._over or self._children.last_words)
        failed = [str(child) for child in self._children if child.failed]
        return "; ".join(failed) or f"srun starts an agent on each node of SLURM job {self._job.number}"

    def close(self) -> None:
        """End the agents."""
        self._children.close(_GRACE)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _environment_of_steps(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables to start agents with: without those by which the job shapes its ranks."""
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith(("SRUN_", "SLURM_STEP", *_OF_RANKS))
    }
