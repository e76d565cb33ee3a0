"""Jobs of a run and the names of their tasks: what waits for what is read off them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from .job import Job
from .settings import Settings

__all__ = [
    "REFERENCE",
    "JobTasks",
    "TaskName",
    "by_job",
    "jobs_of",
    "name_of",
    "read_name",
    "references_of",
    "rounds_of",
    "waits_for",
]

REFERENCE = "reference"
"""What stands for the algorithm of a job of round 0: the evaluation of the reference."""

Kind = Literal["generate", "train", "evaluate"]
_NAME = re.compile(r"(?P<job>.+_r\d+)_(?P<kind>generate|train|evaluate)(?:-(?P<part>.+))?")


class TaskName(NamedTuple):
    """A task by what it does.

    Attributes
    ----------
    job
        `Job.id` of its job.
    kind
        ``generate``, ``train`` or ``evaluate``.
    part
        Place of the first example of a chunk of data, eta of an evaluation; empty where there is one of them.
    """

    job: str
    kind: Kind
    part: str = ""

    @property
    def round(self) -> int:
        """Round of its job."""
        return int(self.job.rpartition("_r")[2])

    @property
    def job_before(self) -> str:
        """`Job.id` of the round before."""
        return f"{self.job.rpartition('_r')[0]}_r{self.round - 1}"

    def __str__(self) -> str:
        return f"{self.job}_{self.kind}" + (f"-{self.part}" if self.part else "")


@dataclass
class JobTasks:
    """Names of the tasks of a job, in order."""

    generate: list[str] = field(default_factory=list)
    train: list[str] = field(default_factory=list)
    evaluate: list[str] = field(default_factory=list)

    @property
    def every(self) -> list[str]:
        """All of them."""
        return [*self.generate, *self.train, *self.evaluate]


def name_of(job: Job, kind: Kind, part: int | float | None = None) -> str:
    """Name of a task; `part` is the first index of a chunk, the eta of an evaluation."""
    return str(
        TaskName(job.id, kind, "" if part is None else f"{part:g}" if kind == "evaluate" else str(part))
    )


def read_name(task: str) -> TaskName | None:
    """What a name says; None for the name of no task of this workload."""
    found = _NAME.fullmatch(task)
    if found is None:
        return None
    return TaskName(found["job"], found["kind"], found["part"] or "")  # type: ignore[arg-type]


def jobs_of(settings: Settings) -> list[Job]:
    """All jobs but the references, round by round."""
    return [
        Job(algo, family, dataset, number)
        for number in range(1, settings.rounds_of_training + 1)
        for algo in settings.algos
        for family in settings.models
        for dataset in settings.datasets
    ]


def references_of(settings: Settings) -> list[Job]:
    """The reference of each pair of models on each data set, as jobs of round 0."""
    return [Job(REFERENCE, family, dataset, 0) for family in settings.models for dataset in settings.datasets]


def by_job(tasks: Iterable[str]) -> Mapping[str, JobTasks]:
    """Tasks of each job by `Job.id`, in the order in which the jobs are met first."""
    found: dict[str, JobTasks] = {}
    for task in tasks:
        if (name := read_name(task)) is not None:
            getattr(found.setdefault(name.job, JobTasks()), name.kind).append(task)
    return found


def rounds_of(tasks: Iterable[str]) -> dict[str, int]:
    """Round of each task; the references are evaluated in the first."""
    names = {task: read_name(task) for task in tasks}
    return {task: max(1, name.round) for task, name in names.items() if name is not None}


def waits_for(tasks: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Tasks of which each reads the values; those of samples of earlier rounds are among what these have read."""
    jobs, found = by_job(tasks), {}
    for own in jobs.values():
        for task in own.every:
            name = read_name(task)
            assert name is not None  # noqa: S101 (by `by_job`)
            before = jobs.get(name.job_before, JobTasks()).train
            needed = {"generate": before, "train": [*own.generate, *before], "evaluate": own.train}
            found[task] = tuple(needed[name.kind])
    return found
