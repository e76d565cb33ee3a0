"""The SLURM job of a detached run, as any process sees it that has the run's folder open."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

from .slurm_jobs import AgentsJob, look_at, slurm

__all__ = ["SCRIPT", "SlurmJob"]

SCRIPT = "run.sbatch"
ASK_EVERY = 10.0  # seconds between two squeue of this process
PATIENCE = 600.0  # seconds without an answer, after which nothing more is expected


class _Looks:
    """What squeue said last of the jobs that this process has an eye on: one squeue for all of them.

    Without a lock, which an interrupt of the main thread could leave locked: at worst two threads ask at once.
    """

    def __init__(self) -> None:
        self._jobs: dict[tuple[int, Path], AgentsJob] = {}
        self._asked = -math.inf
        self._since: float | None = None  # that there is no answer
        self.problem = ""

    def job(self, number: int, nodes: int, script: Path) -> AgentsJob:
        """The job of a number and script, which is one for all that ask."""
        if (number, script) not in self._jobs:
            self._jobs.setdefault((number, script), AgentsJob(number, nodes, script))
            self.again()
        return self._jobs[number, script]

    def again(self) -> None:
        """Ask at the next look: something was done."""
        self._asked = -math.inf

    def look(self) -> float:
        """Ask squeue, unless it was asked a moment ago; seconds for which there was no answer."""
        if time.monotonic() - self._asked >= ASK_EVERY:
            self._asked = time.monotonic()
            try:
                look_at([job for job in list(self._jobs.values()) if job.is_active])
                self.problem, self._since = "", None
            except OSError as error:  # the controller is busy or starts anew; or there is no SLURM here
                gone = isinstance(error, FileNotFoundError)
                self.problem = "there is no squeue on this machine" if gone else str(error)
                self._since = time.monotonic() if self._since is None else self._since
                self._since = -math.inf if gone else self._since
            self._asked = time.monotonic()
        since = self._since
        return 0.0 if since is None else time.monotonic() - since


_looks = _Looks()


class SlurmJob:
    """A batch job that runs the pool of a detached run on its first node.

    Parameters
    ----------
    number, nodes
        The job.
    folder
        Folder of its script and of what it writes.
    """

    def __init__(self, number: int, nodes: int, folder: Path) -> None:
        self._job = _looks.job(number, nodes, folder / SCRIPT)

    @property
    def name(self) -> str:
        """What it is called."""
        return f"SLURM job {self.number}"

    @property
    def number(self) -> str:
        """SLURM's."""
        return str(self._job.number)

    @property
    def has_ended(self) -> bool:
        """Whether SLURM has said that it is over."""
        return not self._job.is_active

    @property
    def is_own(self) -> bool:
        """Whether this process is a part of it."""
        return os.environ.get("SLURM_JOB_ID") == self.number

    def is_active(self, *, now: bool = False) -> bool:
        """Whether it waits or runs; no more if SLURM has not answered for ten minutes, or cannot be asked here."""
        if now:
            _looks.again()
        return self._job.is_active and _looks.look() < PATIENCE and self._job.is_active

    def cancel(self) -> None:
        """Have the pool cancel its run, which ends the job; a job that waits leaves the queue.

        Raises
        ------
        OSError
            If SLURM does not answer, or refuses.
        """
        problems = []
        for what in ("--state=PENDING",), ("--batch", "--signal=TERM"):  # a signal waits for a job that waits
            try:
                slurm("scancel", "--quiet", *what, self.number)
            except OSError as error:  # it was cancelled by the first, or has ended
                problems.append(error)
        _looks.again()
        if len(problems) == 2 and self.is_active(now=True):
            raise problems[-1]

    def __str__(self) -> str:
        job = self._job
        if job.is_active:
            return f"{self.name}: its state is not known ({_looks.problem})" if _looks.problem else str(job)
        if job.ended_by_fault and not (job.script.parent / f"slurm-{job.number}.out").exists():
            return f"{job}; it has written nothing: {_SHARED}"
        return job.with_output() if job.script.is_file() else str(job)


_SHARED = "a detached run needs the folder of the run on a file system that its nodes share"
