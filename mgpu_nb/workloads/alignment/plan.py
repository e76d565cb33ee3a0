"""What an alignment will do: its tasks, their rounds, the pool that they need."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...tasks import Task
from ...value_of import ValueOf
from .algorithms.base import Stage, load_algorithm
from .check import PRELOAD
from .config import Config
from .identity import Execution
from .inputs import Inputs, check_inputs, pair_of
from .job import Job
from .names import jobs_of, name_of, references_of, rounds_of
from .resume import check_resume
from .settings import Evaluation, System, Training, load_settings
from .worker import evaluate_policy, evaluate_reference, generate, train

__all__ = ["pool_options", "rounds", "tasks"]

RETRIES = 1  # of a task whose worker is killed: a neighbour on the machine may have taken the memory


def tasks(config: Config, slots: int | None = None) -> list[Task]:
    """Tasks of all jobs: chunks of data, trainings, evaluations; and the references' evaluations.

    Parameters
    ----------
    config
        The options; a run that its ``output_dir`` holds must have the same settings where they decide results.
    slots
        Number of slots; tasks are the same for any.

    Raises
    ------
    ValueError, TypeError, OSError, ImportError
        As `check_inputs`; if settings do not fit the slots; if the run that is resumed had other settings, or has lost
        a model folder that is needed.
    """
    inputs = check_inputs(config)
    settings = inputs.settings
    if slots is not None and slots > 1 and not settings.system.use_parallel_execution:
        raise ValueError(
            f"system.use_parallel_execution=false has one slot, and there are {slots}: leave it out, or take one slot"
        )
    planner = _Planner(inputs, config.seed)
    found = [planner.reference(job) for job in references_of(settings)]
    for job in jobs_of(settings):
        found += planner.tasks(job)
    if config.output_dir is not None:
        names = [task.name for task in found if task.name is not None]
        check_resume(config.output_dir, settings, config.seed, names)
    return found


def rounds(config: Config, tasks: Sequence[Task]) -> bool | Mapping[str, int]:
    """Round of each task by name if ``system.by_round`` asks for a barrier between rounds; False without one."""
    if not load_settings(config).system.by_round:
        return False
    return rounds_of(task.name for task in tasks if task.name is not None)


def pool_options(config: Config) -> dict[str, Any]:
    """Options of the pool: transformers imported once for all workers, one slot without parallel execution."""
    there = importlib.util.find_spec("transformers") is not None  # without it the tasks are refused
    options: dict[str, Any] = {"preload": (PRELOAD,) if there else ()}
    if not load_settings(config).system.use_parallel_execution:
        named = isinstance(config.gpu_ids, tuple)
        if config.slots not in (None, 1):
            raise ValueError(
                f"system.use_parallel_execution=false has one slot, got slots={config.slots}: give one of the two"
            )
        if named and len(config.gpu_ids or ()) > 1:
            raise ValueError(
                f"system.use_parallel_execution=false has one slot, got gpu_ids={config.gpu_ids}: give one id"
            )
        options["slots"] = None if named else 1  # an id is a slot already
    return options


class _Planner:
    """Makes tasks of jobs; their arguments hold only what decides their results."""

    def __init__(self, inputs: Inputs, seed: int) -> None:
        self.inputs, self.seed = inputs, seed
        self.execution = Execution(inputs.settings.system)
        self.algorithms = {name: load_algorithm(name) for name in inputs.settings.algos}

    def reference(self, job: Job) -> Task:
        settings = self.inputs.settings
        return self._task(
            evaluate_reference,
            name_of(job, "evaluate"),
            job,
            pair_of(settings, job.family),
            self.inputs.test[job.dataset],
            settings.generation_for(job.dataset),
            self._evaluation(),
            settings.data_collection.reward_batch_size,
            self.seed,
            self.inputs.pairs[job.family],
            self.execution,
        )

    def tasks(self, job: Job) -> list[Task]:
        """Tasks of a job."""
        algorithm, stage = self.algorithms[job.algo], self._stage(job)
        data, inputs = self.inputs.train[job.dataset], self.inputs.pairs[job.family]
        before = replace(job, round=job.round - 1)
        previous = ValueOf(name_of(before, "train")) if before.round else None
        found = []
        if algorithm.generates:
            untrained = replace(stage, training=Training())
            for span in self._spans(job):
                name = name_of(job, "generate", span[0])
                found.append(
                    self._task(generate, name, untrained, data, span, inputs, self.execution, previous)
                )
        name = name_of(job, "train")
        chunks, earlier = self._chunks(job), []
        if algorithm.aggregates:
            for number in range(1, job.round):
                earlier += self._chunks(replace(job, round=number))
        found.append(self._task(train, name, stage, data, inputs, self.execution, chunks, earlier, previous))
        test, evaluation = self.inputs.test[job.dataset], self._evaluation()
        for eta in algorithm.etas(stage, self.inputs.settings.evaluation):
            arguments = (stage, test, evaluation, eta, inputs, self.execution, ValueOf(name))
            found.append(self._task(evaluate_policy, name_of(job, "evaluate", eta), *arguments))
        return found

    def _task(self, fn: Callable[..., Any], name: str, *arguments: Any) -> Task:
        return Task(fn, args=arguments, name=name, seed=self.seed, retries=RETRIES)

    def _stage(self, job: Job) -> Stage:
        settings = self.inputs.settings
        return Stage(
            job,
            pair_of(settings, job.family),
            settings.algos[job.algo],
            settings.datasets[job.dataset],
            settings.generation_for(job.dataset),
            settings.training,
            settings.data_collection,
            System(),
            self.seed,
        )

    def _evaluation(self) -> Evaluation:
        """How a policy is evaluated; the etas are tasks of their own."""
        evaluation = self.inputs.settings.evaluation
        return replace(evaluation, etas=(0.0,))

    def _spans(self, job: Job) -> list[tuple[int, int]]:
        count, size = self.inputs.sizes[job.dataset], self.inputs.settings.data_collection.examples_per_task
        return [(at, min(at + size, count)) for at in range(0, count, size)]

    def _chunks(self, job: Job) -> list[ValueOf]:
        if not self.algorithms[job.algo].generates:
            return []
        return [ValueOf(name_of(job, "generate", first)) for first, _ in self._spans(job)]
