"""Nodes of a SLURM cluster: a batch job starts an agent on each of its machines."""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Unpack

from ..distributed.slurm import BatchJob, SubmitError, render_commands, submit, write_script
from ..engines.base import Engine, EngineOptions
from ..options import Between, NonNegativeInt, PositiveFloat, PositiveInt, check_options
from ..pool import GPUPool
from ..store.files import make_private
from .placer import Failures, Host, NoMore
from .slurm_jobs import (
    AgentsJob,
    agents_of_all_nodes,
    controller,
    environment_of_jobs,
    look_at,
    slurm,
    steps_by_job,
)

__all__ = ["Slurm", "SlurmPlacer"]

log = logging.getLogger("mgpu_nb")

_END = 60.0  # seconds that SLURM has to end jobs: it gives processes its KillWait, 30 s unless the site says otherwise


@dataclass(frozen=True)
class Slurm:
    """Nodes of a SLURM cluster, for ``GPUPool(cluster=Slurm(nodes=2, gpus_per_node=4))``.

    One batch job asks for all of them; its script starts an agent on each, which dials this process. Their folders must
    be the same as here: that of the Python environment, this one, and the user's home, where the invitation is. The
    pool begins with the first agent that is there. One that is lost is started again on its node; for a node that
    failed another is asked for, as a job of its own. A job ends when all of its agents have ended: with the pool at the
    latest, or with this process.

    A node without a task for `idle` seconds is given back: its agent ends, and the job becomes smaller by the node. The
    first node of a job, on which its script runs, and nodes of a cluster that has jobs keep their size
    (``disable_job_shrink``), stay with the job until its last agent has ended. When tasks wait again, nodes are asked
    for again, as a job of their own.

    With ``detach=True`` each `GPUPool.run` is a batch job of its own, which outlives this process: the pool itself is
    on the job's first node, and ``Run.open(folder)`` follows the run live from any process. Its folder must be on a
    file system that the nodes share. ``run.cancel()`` or ``scancel`` ends it. A job that ends early leaves the run
    interrupted, and `GPUPool.run` with the same tasks, name and folder, or ``sbatch FOLDER/detached/run.sbatch``, goes
    on with it. Such a pool has runs alone (`GPUPool.run`, `GPUPool.sweep`, `launch`), no calls (`GPUPool.submit`,
    `GPUPool.map`). Its nodes stay with it until its end, whatever `idle` says.

    A minute before the time limit (with ``send_user_signal`` among the PreemptParameters of the cluster also before a
    pre-emption), nodes take no more tasks. Tasks that SLURM ends with their node are tried elsewhere.

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
    idle: PositiveFloat | None = 300.0
    """Seconds without a task after which a node is given back; None for never."""
    address: Host | None = None
    """Address of this machine that the nodes reach; by default that of the way to SLURM's controller."""
    port: Annotated[int, Between(0, 65535)] = 0
    """Port of this machine that agents dial, where only some are let through; by default any that is free."""
    detach: bool = False
    """Whether each run is a batch job of its own, with the pool on its first node: it outlives this process."""

    def __post_init__(self) -> None:
        """Check what can be checked without the cluster."""
        for name in ("time", "mem"):  # 60 minutes, 4000 megabytes
            if type(number := getattr(self, name)) is int:
                object.__setattr__(self, name, str(number))
        check_options(self)
        if self.detach and self.address is not None:
            raise ValueError(
                f"address={self.address!r} is of this machine, and with detach=True agents dial the first node of the "
                "job: leave it out"
            )
        if self.detach and self.idle not in (None, Slurm.idle):
            raise ValueError(
                f"idle={self.idle:g}: the nodes of a detached run stay until its end: leave it out"
            )
        for directive in self.sbatch:
            name = directive.partition("=")[0]
            if name in ("array", "signal", "no-kill"):
                raise ValueError(f"sbatch: {name} is settled for the agents of a pool: leave it out")
        object.__setattr__(self, "_job", self._checked())

    @property
    def pool_class(self) -> type[GPUPool] | None:
        """What `GPUPool` makes of this cluster; None for a pool of this process."""
        if not self.detach:
            return None
        from .detached import DetachedPool

        return DetachedPool

    def job(self, nodes: int) -> BatchJob:
        """What a batch job of so many nodes asks the cluster for."""
        job: BatchJob = copy.copy(self._job)  # type: ignore[attr-defined]
        object.__setattr__(job, "nodes", nodes)  # without another check, which would warn once more
        return job

    def _checked(self) -> BatchJob:
        same = {f.name for f in fields(BatchJob)} - {"sbatch"}
        options = {f.name: getattr(self, f.name) for f in fields(self) if f.name in same}
        if self.detach and self.job_name == Slurm.job_name:
            options["job_name"] = "mgpu_nb-run"
        return BatchJob(
            **options,
            ranks_per_node=1,
            cpus_per_task=self.cpus_per_node,
            # One node that fails does not take the job. The signal goes to all processes of the agents' steps: workers
            # ignore this one, and agents take it for SIGTERM.
            sbatch=(*self.sbatch, "no-kill", "signal=URG@60"),
        )

    def engine(self, **options: Unpack[EngineOptions]) -> Engine:
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
        facing = controller()
        from .door import route_to
        from .engine import ClusterEngine

        return ClusterEngine(
            SlurmPlacer(self),
            address=self.address or route_to(facing),
            port=self.port,
            **options,
        )


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
        self.idle = wanted.idle
        self._wanted = wanted
        self._jobs: list[AgentsJob] = []
        self._scripts = itertools.count()
        self._failures = Failures("allocations in a row have failed, so no other is asked for")
        self._over = ""  # why no other is asked for, whatever failed
        self._surplus = 0  # agents that began and were not asked for: for them there is no room
        self._folder: Path | None = None

    def start(self, command: Sequence[str], invitation: Path, count: int) -> int:
        """Begin agents on nodes that jobs hold and that have none, and submit a job for the others.

        Raises
        ------
        NoMore
            If three allocations in a row have failed, or somebody has cancelled one that waited.
        OSError
            If SLURM refuses it.
        ValueError
            If the script of the job cannot be written for these folders.
        """
        if self._over:
            raise NoMore(self._over)
        self._failures.check()
        begun = self._begin_again() if self._jobs else 0
        self._surplus += max(0, begun - count)
        if begun < count:
            try:
                self._submit(command, invitation, count - begun)
            except OSError:
                if not begun:
                    raise
                return begun
        return max(begun, count)

    def joined(self, facts: Mapping[str, Any]) -> None:
        """Take note of an agent that has joined."""
        for job in self._jobs:
            if facts["slurm"].get("job") == str(job.number):
                job.joined[facts["node"]] += 1

    def unheard(self) -> int:
        """Number of agents that have ended before they joined, or whose job did, since this was asked."""
        found = 0
        for job in [job for job in self._jobs if not job.told]:
            job.told = not job.is_active
            found += (unheard := job.unheard())
            self._surplus -= (surplus := min(unheard, self._surplus))
            if unheard > surplus or (job.has_failed and not job.counted):
                job.counted = True
                self._failures.add(job.with_output())
            if job.was_cancelled:
                self._over = str(job)
        return found

    def worked(self) -> None:
        """Take note that an agent has worked for a while."""
        self._failures.reset()

    def _submit(self, command: Sequence[str], invitation: Path, count: int) -> None:
        self._folder = folder = invitation.with_suffix("")
        make_private(folder)
        own = self._wanted
        lines = agents_of_all_nodes(
            command, gpus=bool(own.gpus_per_node), other_python=own.environment is not None
        )
        script = render_commands(self._wanted.job(count), lines, folder)
        # One that was refused stays there to be read.
        path = write_script(script, folder / f"agents-{next(self._scripts)}.sbatch")
        try:
            number = submit(path, env=environment_of_jobs(os.environ))
        except SubmitError as error:
            raise OSError(str(error).replace("cpus_per_task", "cpus_per_node")) from error
        self._jobs.append(AgentsJob(number, count, path))

    def _begin_again(self) -> int:
        """Have agents started on the nodes that jobs hold and that have none; the number of those that begin.

        SLURM may know a moment after the pool that an agent has ended. A node that has failed is none of its job's.
        """
        idle = self._idle()
        for pause in (1.0, 2.0):
            if idle:
                break
            time.sleep(pause)
            idle = self._idle()
        asked = 0
        for job, count in idle.items():
            with contextlib.suppress(OSError):  # it has just ended
                slurm("scancel", "--batch", "--signal=USR1", str(job.number))
                asked += count
        left = sum(idle.values())
        for pause in (0.2, 0.5, 1.0, 2.0) if asked else ():
            time.sleep(pause)
            still = self._idle()
            # One that is completing, or gone, heard the signal too late.
            left = sum(
                still.get(job, 0) if job.seen.state == "RUNNING" else count for job, count in idle.items()
            )
            if not left:
                break
        return sum(idle.values()) - left

    def _idle(self) -> dict[AgentsJob, int]:
        """Number of nodes without an agent, by the job that holds them."""
        self._look()
        steps = steps_by_job()
        free = {job: job.without_agent(steps[job.number]) for job in self._jobs}
        return {job: count for job, count in free.items() if count}

    def give_back(self, facts: Mapping[str, Any]) -> None:
        """Have the job of an agent become smaller by its node, where SLURM can; else the job keeps it."""
        try:
            self._look()
            for job in self._jobs:
                if job.is_active and facts["slurm"].get("job") == str(job.number):
                    job.give_back(facts["node"])
        except OSError as error:
            log.info("node %s stays with its job: %s", facts["node"], error)

    def status(self) -> str:
        """States of the jobs in words, by one squeue.

        Raises
        ------
        OSError
            If no job is left, with the end of what the last one wrote.
        """
        try:
            self._look()
        except OSError as error:  # SLURM's controller is busy, or started anew: jobs go on
            return str(error)
        if self._jobs and not self._active:
            raise OSError(self._jobs[-1].with_output())
        failed = [job for job in self._jobs if job.has_failed][-1:] if self._failures.count else []
        said = [*(job.with_output() for job in failed), *(job.with_troubles() for job in self._active)]
        return "; ".join(said)

    @property
    def _active(self) -> list[AgentsJob]:
        return [job for job in self._jobs if job.is_active]

    def _look(self) -> None:
        """Ask squeue."""
        look_at(self._active)

    def close(self) -> None:
        """Cancel the jobs and wait until none is in the queue any more."""
        with contextlib.suppress(Exception):
            self._cancel()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _cancel(self) -> None:
        end = time.monotonic() + _END
        pause = 0.1
        while (left := [job for job in self._jobs if job.is_active]) and time.monotonic() < end:
            with contextlib.suppress(OSError):  # it is tried again
                slurm("scancel", "--quiet", *(str(job.number) for job in left))
                look_at(left)
            if any(job.is_active for job in left):
                time.sleep(pause)
                pause = min(2.0, 2 * pause)
