"""The worker's part: a chunk of data, a training, an evaluation."""

from __future__ import annotations

import hashlib
import logging
import math
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...context import Worker, cached, worker
from ..threads import one_thread
from .algorithms.base import Models, Stage, Trained, load_algorithm
from .datasets import load_examples
from .evaluate import answer_of, evaluate
from .files import (
    check_model,
    dataset_file,
    digests,
    model_folder,
    new_model,
    pack,
    unpack,
    write_samples,
)
from .generate import Policy
from .identity import Data, Execution, examples_digest, pair_digest
from .job import Example, Job, Pair
from .models import load_model, load_tokenizer
from .names import name_of
from .rewards import Scorer, reward_of
from .settings import DatasetSettings, Evaluation, Generation, System

__all__ = [
    "evaluate_policy",
    "evaluate_reference",
    "generate",
    "train",
]


log = logging.getLogger("mgpu_nb.alignment")

SHOWN = 8
"""Examples of an evaluation whose completions are kept."""


def generate(
    stage: Stage,
    data: Data,
    span: tuple[int, int],
    inputs: str,
    execution: Execution,
    previous: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Collect the samples of a chunk of the examples; a task of a pool.

    Parameters
    ----------
    stage
        The job and its settings.
    data
        The examples of the data set.
    span
        Places of the first example of the chunk, and of the one after its last.
    inputs
        `pair_digest` of the models when the run was made.
    execution
        How it is executed.
    previous
        Value of the training of the round before; None in round 1.

    Returns
    -------
    dict
        ``samples`` as `pack` has them, ``reward_calls`` and ``scored``, the number of texts in these.

    Raises
    ------
    ValueError, OSError
        If models, examples or the model folder of the round before are not those of the run.
    """
    here = worker()
    stage = replace(stage, system=execution.system)
    with one_thread(here.device):
        _seed(stage.seed, stage.job, "generate", span[0])
        models = _models(stage.pair, inputs, stage.system, here)
        models.previous = _previous(stage.job, previous, here)
        scorer = _Counter(stage.dataset, stage.data_collection.reward_batch_size, here)
        began = time.perf_counter()
        samples = load_algorithm(stage.job.algo).collect(stage, models, _examples(data)[slice(*span)], scorer)
    took, tokens = time.perf_counter() - began, sum(len(each.a_ids) + len(each.b_ids) for each in samples)
    log.debug(
        "round %d: %d samples of examples %d to %d, %s; %d tokens of completions, %.0f a second",
        stage.job.round, len(samples), span[0], span[1] - 1, scorer.words, tokens, tokens / took,
    )  # fmt: skip
    scores = [score for sample in samples for score in (sample.score_a, sample.score_b)]
    known = [score for score in scores if math.isfinite(score)]
    here.report(step=span[0], progress=1.0, **({"reward": float(np.mean(known))} if known else {}))
    return {"samples": pack(samples), **scorer.counts}


def train(
    stage: Stage,
    data: Data,
    inputs: str,
    execution: Execution,
    chunks: Sequence[dict[str, Any]] = (),
    earlier: Sequence[dict[str, Any]] = (),
    previous: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train on the samples of a round; a task of a pool.

    It writes the data set of the samples, and the model folder, which appears when it is whole.

    Parameters
    ----------
    stage, data, inputs, execution, previous
        As `generate` takes them.
    chunks, earlier
        Values of the chunks of this round and of all earlier ones, in order.

    Returns
    -------
    dict
        ``folder`` of the model below that of the run and ``files``, see `digests`; ``trained_steps``, ``loss`` and
        ``metrics``; ``samples``, the number of rows of the data set; ``reward_calls`` and ``scored`` as of `generate`.

    Raises
    ------
    FloatingPointError
        If the loss is not finite.
    ValueError, OSError
        As `generate`.
    """
    here = worker()
    run = here.need_folder()
    stage = replace(stage, system=execution.system)
    algorithm = load_algorithm(stage.job.algo)
    samples = [sample for chunk in chunks for sample in unpack(chunk["samples"])]
    if algorithm.generates:
        write_samples(run / dataset_file(stage.job), samples)
    with one_thread(here.device):
        _seed(stage.seed, stage.job, "train")
        models = _models(stage.pair, inputs, stage.system, here)
        models.previous = _previous(stage.job, previous, here)
        models.earlier = [sample for chunk in earlier for sample in unpack(chunk["samples"])]
        scorer = _Counter(stage.dataset, stage.data_collection.reward_batch_size, here)
        began = time.perf_counter()
        with new_model(run / model_folder(stage.job)) as folder:
            trained = algorithm.train(stage, models, samples, _examples(data), scorer, folder, here.report)
            _check_finite(stage.job, trained)
            files = digests(folder)
    log.debug(
        "round %d: %d steps in %.2f s, loss %.4g, on %d samples and %d of earlier rounds; %s%s",
        stage.job.round, trained.trained_steps, time.perf_counter() - began, trained.loss,
        len(trained.samples) or len(samples), len(models.earlier), scorer.words,
        "".join(f", {name} {value:.4g}" for name, value in trained.metrics.items()),
    )  # fmt: skip
    if not algorithm.generates:
        samples = list(trained.samples)
        write_samples(run / dataset_file(stage.job), samples)
    here.report(progress=1.0)
    return {
        "folder": str(model_folder(stage.job)),
        "files": files,
        "trained_steps": int(trained.trained_steps),
        "loss": float(trained.loss),
        "metrics": {name: float(value) for name, value in trained.metrics.items()},
        "samples": len(samples),
        **scorer.counts,
    }


def evaluate_policy(
    stage: Stage,
    data: Data,
    evaluation: Evaluation,
    eta: float | None,
    inputs: str,
    execution: Execution,
    trained: dict[str, Any],
) -> dict[str, Any]:
    """Evaluate the policy of a job; a task of a pool.

    Parameters
    ----------
    stage, data, inputs, execution
        As `generate` takes them.
    evaluation
        How it is evaluated.
    eta
        Strength of a value-guided policy; None for another.
    trained
        Value of the training.

    Returns
    -------
    dict
        Figures of `evaluate.evaluate`; ``reward_calls`` and ``scored`` as of `generate`; ``samples``, completions of up
        to `SHOWN` examples: index, prompt, texts, rewards.

    Raises
    ------
    ValueError, OSError
        As `generate`.
    """
    here = worker()
    stage = replace(stage, system=execution.system)
    algorithm = load_algorithm(stage.job.algo)
    folder = _written(name_of(stage.job, "train"), trained, here)
    with one_thread(here.device):
        _seed(stage.seed, stage.job, "evaluate")
        models = _models(stage.pair, inputs, stage.system, here)
        policy = algorithm.policy(stage, models, folder, eta)
        size = stage.data_collection.reward_batch_size
        return _figures(policy, models, data, stage.generation, evaluation, size, stage.seed, here)


def evaluate_reference(
    job: Job,
    pair: Pair,
    data: Data,
    generation: Generation,
    evaluation: Evaluation,
    reward_batch_size: int,
    seed: int,
    inputs: str,
    execution: Execution,
) -> dict[str, Any]:
    """Evaluate the reference of a pair on a data set; a task of a pool. See `evaluate_policy`."""
    here = worker()
    with one_thread(here.device):
        _seed(seed, job, "evaluate")
        models = _models(pair, inputs, execution.system, here)
        return _figures(
            _reference(models), models, data, generation, evaluation, reward_batch_size, seed, here
        )


def _reference(models: Models) -> Policy:
    return Policy(models.reference, end_id=models.tokenizer.end_id, pad_id=models.tokenizer.pad_id)


def _figures(
    policy: Policy,
    models: Models,
    data: Data,
    generation: Generation,
    evaluation: Evaluation,
    reward_batch_size: int,
    seed: int,
    here: Worker,
) -> dict[str, Any]:
    """Figures of a policy beside the reference."""
    scorer = _Counter(data.dataset, reward_batch_size, here)
    began, examples = time.perf_counter(), _examples(data)
    found = evaluate(
        policy,
        _reference(models),
        models.tokenizer,
        examples,
        scorer,
        evaluation,
        seed,
        max_new_tokens=generation.max_new_tokens,
        batch_size=generation.batch_size,
        answer=answer_of(data.dataset),
    )
    figures = {name: float(value) for name, value in found.items()}
    log.debug(
        "%d examples in %.2f s, %s; %s",
        len(examples), time.perf_counter() - began, scorer.words,
        ", ".join(f"{name} {value:.4g}" for name, value in figures.items()),
    )  # fmt: skip
    live = {"reward": "avg_reward", "kl": "avg_kl"}
    here.report(progress=1.0, **{name: figures[key] for name, key in live.items() if key in figures})
    return figures | scorer.counts | {"samples": scorer.shown()}


class _Counter(Scorer):
    """Counts the texts that are scored, and the calls that it takes; keeps what was scored last."""

    def __init__(self, dataset: DatasetSettings, batch_size: int, here: Worker) -> None:
        super().__init__(_reward(dataset, here.device), batch_size)
        self.scored = 0
        self._last: list[tuple[Example, str, float]] = []

    def score(self, examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
        """Rewards of texts."""
        self.scored += len(texts)
        rewards = super().score(examples, texts)
        self._last = [*zip(examples, texts, rewards, strict=True)]
        return rewards

    def shown(self) -> list[dict[str, Any]]:
        """What was scored last, by example: of some examples, spread evenly, for a reader to look at."""
        found: dict[int, dict[str, Any]] = {}
        for example, text, reward in self._last:
            new = {"index": example.index, "prompt": example.prompt, "texts": [], "rewards": []}
            own = found.setdefault(example.index, new)
            own["texts"].append(text)
            own["rewards"].append(float(reward))
        every = [*found.values()]
        count = min(SHOWN, len(every))
        return [every[n * len(every) // count] for n in range(count)]

    @property
    def words(self) -> str:
        """Both, for a log."""
        return f"{self.scored} texts scored by {self.calls} calls"

    @property
    def counts(self) -> dict[str, int]:
        """Calls and texts."""
        return {"reward_calls": self.calls, "scored": self.scored}


def _seed(seed: int, job: Job, what: str, place: int = 0) -> None:
    """Seed all generators by the run's seed, the job, and what is done."""
    words = f"{seed}:{job.id}:{what}:{place}"
    made = int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "big")
    torch.manual_seed(made >> 1)  # of CUDA, too
    np.random.seed(made % 2**32)
    random.seed(made)


def _models(pair: Pair, inputs: str, system: System, here: Worker) -> Models:
    tokenizer, reference = _loaded(pair, inputs, here.device, system.attn_impl)
    return Models(tokenizer=tokenizer, reference=reference, device=torch.device(here.device))


@cached(1)
def _loaded(pair: Pair, inputs: str, device: str, attn_impl: str) -> tuple[Any, Any]:
    """Load tokenizer and reference once in a warm worker."""
    if pair_digest(pair) != inputs:
        raise ValueError(
            f"the files of models.{pair.family} have changed since the run was started: start it again, so that all "
            "of it is of the same models"
        )
    tokenizer, model = (
        load_tokenizer(pair.reference),
        load_model(pair.reference, device=device, attn_impl=attn_impl),
    )
    log.debug(
        "models.%s: %s, %s weights of %s on %s",
        pair.family, pair.reference, f"{model.num_parameters():,}", model.dtype, device,
    )  # fmt: skip
    return tokenizer, model


@cached(4)
def _examples(data: Data) -> list[Example]:
    """Load examples once in a warm worker."""
    examples = load_examples(data.dataset, data.split, data.limit)
    if examples_digest(examples) != data.digest:
        raise ValueError(
            f"the {data.split} examples of kind {data.dataset.kind} have changed since the run was started: start it "
            "again, so that all of it is of the same examples"
        )
    return examples


@cached(1)
def _reward(dataset: DatasetSettings, device: str) -> Any:
    """Make a reward, which may be a model, once in a warm worker."""
    return reward_of(dataset, device)


def _previous(job: Job, value: dict[str, Any] | None, here: Worker) -> Path | None:
    """Model folder of the round before, which is as it was written."""
    if value is None:
        return None
    return _written(name_of(replace(job, round=job.round - 1), "train"), value, here)


def _written(task: str, value: dict[str, Any], here: Worker) -> Path:
    """Model folder that a task has written, unchanged since."""
    folder = here.need_folder() / str(value["folder"])
    check_model(folder, value["files"], task)
    return folder


def _check_finite(job: Job, trained: Trained) -> None:
    if not math.isfinite(trained.loss):
        raise FloatingPointError(
            f"the loss of {job.id} is {trained.loss} after {trained.trained_steps} steps: give a smaller "
            f"algos.{job.algo}.learning_rate"
        )
