"""What an algorithm is: how it collects data, trains, and what policy comes of it; the table of all of them."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ....options import check_choice
from ....tasks import import_path
from ..generate import Policy
from ..job import Example, Job, Pair, Sample
from ..rewards import Scorer
from ..settings import (
    AlgoSettings,
    DataCollection,
    DatasetSettings,
    Evaluation,
    Generation,
    System,
    Training,
)
from ..tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

__all__ = ["ALGORITHMS", "Algorithm", "Models", "Stage", "Trained", "load_algorithm"]

ALGORITHMS: Mapping[str, str] = {
    "PITA": "mgpu_nb.workloads.alignment.algorithms.value_guided:PITA",
    "QSharp": "mgpu_nb.workloads.alignment.algorithms.value_guided:QSharp",
    "DPO": "mgpu_nb.workloads.alignment.algorithms.dpo:DPO",
    "GRPO": "mgpu_nb.workloads.alignment.algorithms.grpo:GRPO",
    "GRPO-HF": "mgpu_nb.workloads.alignment.algorithms.grpo_hf:GRPOHF",
}
"""Import path of each algorithm by its name in ``algos``; it is imported when it is used."""


@dataclass(frozen=True)
class Stage:
    """A job and all settings that decide what comes of it, as plain data: it travels to workers in each task.

    Attributes
    ----------
    job, pair
        The job, and the models it starts from.
    algo, dataset, generation, training, data_collection, system
        Settings by section; `algo` and `dataset` are those of the job.
    seed
        Seed of the run. Random numbers are made of it, the algorithm, the round, the index of an example and the
        number of a draw, never of a chunk or a worker.
    """

    job: Job
    pair: Pair
    algo: AlgoSettings
    dataset: DatasetSettings
    generation: Generation
    training: Training
    data_collection: DataCollection
    system: System
    seed: int

    def seed_of(self, index: int, draw: int, purpose: int) -> tuple[int, ...]:
        """Seed of the random numbers of an example and a draw; `purpose` says what for. They depend on nothing else."""
        return (self.seed, zlib.crc32(self.job.algo.encode()), self.job.round, index, draw, purpose)


@dataclass
class Models:
    """What a worker has loaded for a stage, and what earlier rounds left.

    Attributes
    ----------
    tokenizer
        Tokenizer of the pair.
    reference
        The reference model: frozen, in eval mode, loaded once for all tasks of a warm worker. An algorithm that trains
        a copy of it calls `load_model` for the copy.
    device
        Device of the worker.
    previous
        Model folder that the round before wrote; None in round 1.
    earlier
        Samples of all earlier rounds, oldest first; in `Algorithm.train` of an algorithm that aggregates alone.
    """

    tokenizer: Tokenizer
    reference: PreTrainedModel
    device: torch.device
    previous: Path | None = None
    earlier: Sequence[Sample] = ()


class Trained(NamedTuple):
    """What a training reports.

    Attributes
    ----------
    trained_steps
        Steps of the optimiser.
    loss
        Mean loss of the last epoch, or of the last tenth of the steps.
    samples
        What the training itself drew, in the order in which it was drawn; empty if data were collected before.
    metrics
        Further figures by name, finite numbers.
    """

    trained_steps: int
    loss: float
    samples: Sequence[Sample] = ()
    metrics: Mapping[str, float] = {}


class Algorithm(ABC):
    """A way to a better policy, in rounds of collecting data and training.

    An instance has no state: all that decides a result is in its arguments.

    Attributes
    ----------
    name
        Name in ``algos``, in jobs and in files.
    generates
        Whether data are collected in tasks of their own; otherwise the training draws its own.
    aggregates
        Whether the training takes the data of all earlier rounds.
    """

    name: str
    generates: bool = True
    aggregates: bool = False

    @abstractmethod
    def collect(
        self, stage: Stage, models: Models, examples: Sequence[Example], scorer: Scorer
    ) -> list[Sample]:
        """Samples of a chunk of the examples, by index and draw, scored in batches.

        A sample depends on its example, its draw and the stage alone, not on what else is in the chunk.
        """

    @abstractmethod
    def train(
        self,
        stage: Stage,
        models: Models,
        samples: Sequence[Sample],
        examples: Sequence[Example],
        scorer: Scorer,
        folder: Path,
        report: Callable[..., None],
    ) -> Trained:
        """Train, and write the model.

        Parameters
        ----------
        stage, models
            The job and what is loaded.
        samples
            Samples of this round; those of earlier ones are in ``models.earlier``.
        examples
            Examples of the data set, for an algorithm that draws its own samples.
        scorer
            Rewards in batches.
        folder
            New, empty folder for the model and all that `policy` needs; weights as safetensors.
        report
            `Worker.report`: ``report(step=10, loss=0.3, reward=0.5, kl=0.1, progress=0.25)``.
        """

    @abstractmethod
    def policy(self, stage: Stage, models: Models, folder: Path | None, eta: float | None) -> Policy:
        """Policy of a model folder that `train` wrote; of None the reference.

        Raises
        ------
        ValueError, OSError
            If the folder has no such model.
        """

    @abstractmethod
    def etas(self, stage: Stage, evaluation: Evaluation) -> tuple[float | None, ...]:
        """Values of eta to evaluate; ``(None,)`` if the policy has none."""


def load_algorithm(name: str) -> Algorithm:
    """Algorithm by its name.

    Raises
    ------
    ValueError
        If there is none; the message names the nearest.
    """
    kind = import_path(ALGORITHMS[check_choice(name, ALGORITHMS, "algorithm")])
    algorithm: Algorithm = kind()
    return algorithm
