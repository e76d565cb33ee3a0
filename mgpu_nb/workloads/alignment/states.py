"""What has become of each job, and the results of those that are done: read off the records of their tasks."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ...store.files import atomic_write
from ...tasks import Record
from .files import write_result
from .job import Job
from .names import JobTasks, by_job, jobs_of, read_name, references_of
from .settings import Settings

__all__ = [
    "STATES",
    "JobResult",
    "State",
    "job_results",
    "read_states",
    "state_of",
    "write_states",
]

State = Literal["NOT_STARTED", "DATA_GENERATED", "MODEL_TRAINED", "EVAL_COMPLETED", "FAILED"]
STATES = "job_states.json"
"""File with the state of each job by `Job.id`, in the folder of a run."""
_REMEDY = "start the run again, which writes it anew"
NO_ETA = "none"
_COUNTS = ("reward_calls", "scored")
_SAMPLES = "samples"


def state_of(tasks: JobTasks, good: Collection[str], failed: Collection[str] = ()) -> State:
    """State of a job.

    Parameters
    ----------
    tasks
        Its tasks.
    good, failed
        Names of tasks, of any jobs, that have ended ok, and that have failed.
    """
    if any(task in failed for task in tasks.every):
        return "FAILED"
    stages: tuple[tuple[list[str], State], ...] = (
        (tasks.generate, "DATA_GENERATED"),
        (tasks.train, "MODEL_TRAINED"),
        (tasks.evaluate, "EVAL_COMPLETED"),
    )
    state: State = "NOT_STARTED"
    for names, reached in stages:
        if not all(task in good for task in names):
            return state
        if names:
            state = reached
    return state


def write_states(folder: Path, states: Mapping[str, State]) -> None:
    """Write the state of each job into the folder of a run."""
    with atomic_write(folder / STATES) as part:
        part.write_text(json.dumps(dict(states), indent=2) + "\n", encoding="utf-8")


def read_states(folder: str | Path) -> dict[str, State]:
    """State of each job of a run by `Job.id`, as of its last record; of a killed run perhaps of one not in the journal.

    Raises
    ------
    FileNotFoundError
        If the folder has no such file.
    ValueError
        If it is damaged.
    """
    file = Path(folder).expanduser() / STATES
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: there is no such file: give the folder of an alignment, outputs/NAME/seed_42 say"
        )
    try:
        found: dict[str, State] = json.loads(file.read_bytes())
        wrong = [state for state in found.values() if state not in get_args(State)]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} does not hold the states of jobs: {error}; {_REMEDY}") from error
    if wrong:
        raise ValueError(f"{file}: a job has the state {wrong[0]!r}, which there is not; {_REMEDY}")
    return found


@dataclass
class JobResult:
    """A job and the records of its tasks that have ended.

    Attributes
    ----------
    job
        The job; one of round 0 is the evaluation of a reference.
    tasks
        Names of its tasks.
    records
        Records by task.
    eta
        Strength that a value-guided algorithm is meant for; None for another.
    """

    job: Job
    tasks: JobTasks
    records: dict[str, Record] = field(default_factory=dict)
    eta: float | None = None

    @property
    def state(self) -> State:
        """Its state."""
        good = {name for name, record in self.records.items() if record.ok}
        return state_of(self.tasks, good, {name for name, record in self.records.items() if record.failed})

    @property
    def failures(self) -> list[Record]:
        """Records of its tasks that failed."""
        return [record for record in self.records.values() if record.failed]

    @property
    def trained(self) -> Mapping[str, Any]:
        """Value of its training; empty without one."""
        return next(iter(self._values(self.tasks.train).values()), {})

    @property
    def evaluated(self) -> dict[float | None, dict[str, float]]:
        """Figures of its evaluations by eta; that of a policy without one is None."""
        found = {}
        for task, value in self._values(self.tasks.evaluate).items():
            name = read_name(task)
            eta = float(name.part) if name is not None and name.part else None
            found[eta] = {key: figure for key, figure in value.items() if key not in (*_COUNTS, _SAMPLES)}
        return found

    @property
    def completions(self) -> Sequence[Mapping[str, Any]]:
        """What it wrote for some test examples: index, prompt, texts, rewards; of the eta of `figures`."""
        values = [*self._values(self.tasks.evaluate).values()]
        return values[[*self.evaluated].index(self.shown_eta)].get(_SAMPLES, ()) if values else ()

    @property
    def shown_eta(self) -> float | None:
        """The eta that is evaluated and is nearest to its own; None for a policy without one."""
        known = [eta for eta in self.evaluated if eta is not None]
        wanted = 0.0 if self.eta is None else self.eta
        return min(known, key=lambda eta: abs(eta - wanted), default=None)

    @property
    def figures(self) -> dict[str, float]:
        """Figures at `shown_eta`; empty without an evaluation."""
        return self.evaluated.get(self.shown_eta, {})

    @property
    def seconds(self) -> float:
        """Seconds that its tasks took, of all slots."""
        return sum(record.seconds or 0.0 for record in self.records.values())

    def counts(self, tasks: Iterable[str] | None = None) -> tuple[int, int]:
        """Calls of the reward and texts in them, of some tasks or all."""
        values = self._values(self.tasks.every if tasks is None else tasks).values()
        calls, scored = (sum(int(value.get(name, 0)) for value in values) for name in _COUNTS)
        return calls, scored

    def content(self) -> dict[str, Any]:
        """What its result file holds."""
        known = {name: self.trained.get(name) for name in ("trained_steps", "loss")}
        evaluated = {NO_ETA if eta is None else f"{eta:g}": of for eta, of in self.evaluated.items()}
        training = dict(self.trained.get("metrics", {}))
        return {"metrics": {**known, **self.figures}, "training": training, "eval": evaluated}

    def write(self, folder: Path) -> Path:
        """Write its result file below the folder of a run; return the path."""
        return write_result(folder, self.job, self.content())

    def _values(self, tasks: Iterable[str]) -> dict[str, Mapping[str, Any]]:
        records = {task: self.records.get(task) for task in tasks}
        return {
            task: record.value
            for task, record in records.items()
            if record is not None and record.ok and isinstance(record.value, Mapping)
        }


def job_results(
    settings: Settings, tasks: Sequence[str], records: Iterable[Record] = ()
) -> dict[str, JobResult]:
    """Jobs of a run by `Job.id`, references first, with the records of their tasks.

    Parameters
    ----------
    settings
        Settings of the run.
    tasks
        Names of all its tasks.
    records
        Records of those that have ended.
    """
    by_name = {record.name: record for record in records}
    found = {}
    of_jobs = by_job(tasks)
    for job in (*references_of(settings), *jobs_of(settings)):
        if (own := of_jobs.get(job.id)) is not None:
            kept = {task: by_name[task] for task in own.every if task in by_name}
            eta = getattr(settings.algos.get(job.algo), "eta", None)
            found[job.id] = JobResult(job, own, kept, eta)
    return found
