"""Jobs of a cluster's scheduler that run what a folder holds, whatever becomes of the process that submitted them.

The folder says which job it is, as data: ``detached/job.json``. How a scheduler is asked is known to the room above
that submits jobs.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Protocol

from ..store.files import atomic_write, make_private
from ..tasks import import_path

__all__ = ["DETACHED", "SubmittedJob", "job_elsewhere", "submitted_job", "write_job"]

DETACHED = "detached"
"""Folder, within that of a run, of what its job reads and writes."""
_JOB = "job.json"
_KINDS = {"slurm": "mgpu_nb.cluster.submitted:SlurmJob"}


class SubmittedJob(Protocol):
    """A job that has a run under way, or will have. Its words are those of the last look."""

    @property
    def name(self) -> str:
        """What it is called: ``SLURM job 17``."""

    @property
    def number(self) -> str:
        """Its number, as the journal of a run has it that it has begun."""

    @property
    def has_ended(self) -> bool:
        """Whether its scheduler has said that it is over, at the last look."""

    @property
    def is_own(self) -> bool:
        """Whether this process is a part of it."""

    def is_active(self, *, now: bool = False) -> bool:
        """Whether it waits or runs, as far as its scheduler can be asked, which may take a while.

        Without `now` an answer that is some seconds old will do.
        """

    def cancel(self) -> None:
        """Have what runs ended, with records that say so; what has not begun leaves the queue.

        Raises
        ------
        OSError
            If its scheduler does not answer; the message says why.
        """

    def __str__(self) -> str:
        """Its name and state: ``SLURM job 17: PENDING (Resources)``; how it has ended, if it has failed."""


def write_job(folder: Path, scheduler: str, number: int, nodes: int) -> None:
    """Have a run's folder say which job runs it."""
    make_private(folder / DETACHED)
    with atomic_write(folder / DETACHED / _JOB) as part:
        part.write_text(json.dumps({"scheduler": scheduler, "job": number, "nodes": nodes}) + "\n")


def submitted_job(folder: Path) -> SubmittedJob | None:
    """The job that ran, runs or will run what a folder holds; None if there is none, or none of a known kind."""
    try:
        content = json.loads((folder / DETACHED / _JOB).read_text())
        kind, number, nodes = (content[key] for key in ("scheduler", "job", "nodes"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if kind not in _KINDS or type(number) is not int or type(nodes) is not int:
        return None
    job: SubmittedJob = import_path(_KINDS[kind])(number, nodes, folder / DETACHED)
    return job


def job_elsewhere(folder: str | os.PathLike[str]) -> SubmittedJob | None:
    """The job that has a folder, or will have, and that this process is no part of."""
    job = submitted_job(Path(folder))
    return job if job is not None and not job.is_own and job.is_active(now=True) else None
