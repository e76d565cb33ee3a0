"""GRPO: the policy draws completions as it trains, and those of a prompt are compared with each other."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...threads import one_thread
from ..batches import forced
from ..descent import Rows, loaded
from ..generate import Policy
from ..job import Example, Sample
from ..logprobs import forced_logprobs, token_logprobs
from ..losses import group_advantages, grpo, k3
from ..optimiser import Optimiser
from .base import Models, Stage, Trained
from .post_training import PostTraining, save_policy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .. import settings
    from ..rewards import Scorer
    from ..tokenizer import Tokenizer

__all__ = ["GRPO"]

DRAW, PROMPTS, MINIBATCHES = range(4, 7)  # what random numbers are for
_REPORTS = 100  # most reports of a training


class Rollouts(NamedTuple):
    """Completions that the policy of a step drew, G of each of P prompts, one prompt after the other.

    Attributes
    ----------
    examples, draws
        Example and number of the draw of each completion.
    prompts, completions, texts
        Tokens of both, and the text of a completion.
    """

    examples: list[Example]
    draws: list[int]
    prompts: list[tuple[int, ...]]
    completions: list[tuple[int, ...]]
    texts: list[str]


class Experience(NamedTuple):
    """What rollouts teach.

    Attributes
    ----------
    rollouts
        The completions.
    advantages
        Of each completion, shape [N].
    old, ref
        Log-probabilities of the tokens of each under the policy that drew it, and under the reference.
    """

    rollouts: Rollouts
    advantages: Tensor
    old: list[Tensor]
    ref: list[Tensor]

    @property
    def kl(self) -> float:
        """Estimate of KL(pi || ref) of whole completions, nats, of the policy that drew them."""
        return float(k3(torch.cat(self.old), torch.cat(self.ref)).sum()) / len(self.old)


Reward: TypeAlias = Callable[[Rollouts], Sequence[float]]
"""A reward of each completion."""


class GRPO(PostTraining):
    """Group relative policy optimisation (Z. Shao et al., DeepSeekMath, 2024).

    Each of ``epochs * steps`` steps draws ``group_size`` completions of each of ``prompts_per_step`` prompts from the
    policy itself: at temperature 1 and from all tokens, whatever ``generation`` says, for these are the probabilities
    in its ratio and its divergence. They are rewarded, and then serve for ``iterations`` passes in batches of
    ``batch_size``. Prompts come in an order drawn anew for each pass over the examples; ``num_workers`` processes
    prepare them.
    """

    name = "GRPO"
    generates = False

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
        """Train the policy of the round before on what it draws meanwhile, and write it."""
        drawn: list[Sample] = []

        def reward(rollouts: Rollouts) -> list[float]:
            scores: list[float] = scorer.score(rollouts.examples, rollouts.texts)
            drawn.extend(_samples(rollouts, scores))
            return scores

        with one_thread(str(models.device)):
            trained = optimise(stage, models, self.trainable(stage, models), examples, reward, folder, report)
        return trained._replace(samples=drawn)


def optimise(
    stage: Stage,
    models: Models,
    model: PreTrainedModel,
    examples: Sequence[Example],
    reward: Reward,
    folder: Path,
    report: Callable[..., None],
) -> Trained:
    """Train a policy on rewards of any kind, and write it.

    The loss of a batch is the mean of `losses.grpo` over its completions.
    """
    algo, pad_id = _settings(stage), models.tokenizer.pad_id
    order = _order(stage, len(examples))
    updates = algo.iterations * math.ceil(algo.prompts_per_step * algo.group_size / algo.batch_size)
    optimiser = Optimiser(model, algo.learning_rate, len(order) * updates, stage.system.clear_cache_interval)
    draws: Counter[int] = Counter()
    every = math.ceil(len(order) / _REPORTS)
    rewards, kls = [], []
    prompts = loaded(Rows(examples, _Encode(models.tokenizer)), order, algo.num_workers)
    with closing(prompts):
        for step, rows in enumerate(order):
            rollouts = _drawn(stage, models, model, [examples[n] for n in rows], next(prompts), draws)
            scores = reward(rollouts)
            experience = _experience(stage, models, model, rollouts, scores)
            for batch in _batches(stage, len(scores), step):
                optimiser.step(_parts(stage, model, experience, batch, pad_id))
            rewards.append(sum(scores) / len(scores))
            kls.append(experience.kl)
            if (step + 1) % every == 0 or step + 1 == len(order):
                report(
                    step=len(optimiser.losses),
                    loss=_mean(optimiser.losses[-every * updates :]),
                    reward=_mean(rewards[-every:]),
                    kl=_mean(kls[-every:]),
                    progress=(step + 1) / len(order),
                )
    save_policy(model, stage.pair.reference, folder)
    tail = math.ceil(len(order) / 10)
    return Trained(
        len(optimiser.losses),
        _mean(optimiser.losses[-tail * updates :]),
        metrics={"train_reward": _mean(rewards[-tail:]), "train_kl": _mean(kls[-tail:])},
    )


def _settings(stage: Stage) -> settings.GRPO:
    return cast("settings.GRPO", stage.algo)


class _Encode:
    """Prompts of a step as tokens; a class, so that processes that load data can be sent it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(self, examples: Sequence[Example]) -> list[tuple[int, ...]]:
        return [tuple(self.tokenizer.encode(example.prompt)) for example in examples]


def _order(stage: Stage, count: int) -> list[list[int]]:
    """Examples of each step: all of them in turn, in an order drawn anew for each pass."""
    algo = _settings(stage)
    size, steps = algo.prompts_per_step, algo.epochs * algo.steps
    rng = np.random.default_rng(stage.seed_of(0, 0, PROMPTS))
    passes = math.ceil(steps * size / count)
    places = np.concatenate([rng.permutation(count) for _ in range(passes)]).tolist()
    return [places[at : at + size] for at in range(0, steps * size, size)]


def _drawn(
    stage: Stage,
    models: Models,
    model: PreTrainedModel,
    examples: Sequence[Example],
    prompts: Sequence[tuple[int, ...]],
    draws: Counter[int],
) -> Rollouts:
    """Completions of the prompts of a step; `draws` counts those of each example."""
    group = _settings(stage).group_size
    each = [example for example in examples for _ in range(group)]
    numbers = []
    for example in each:
        numbers.append(draws[example.index])
        draws[example.index] += 1
    repeated = [prompt for prompt in prompts for _ in range(group)]
    policy = Policy(model, end_id=models.tokenizer.end_id, pad_id=models.tokenizer.pad_id)
    completions = policy.generate(
        repeated,
        [stage.seed_of(example.index, draw, DRAW) for example, draw in zip(each, numbers, strict=True)],
        max_new_tokens=stage.generation.max_new_tokens,
        batch_size=stage.generation.batch_size,
    )
    return Rollouts(each, numbers, repeated, completions, [models.tokenizer.decode(c) for c in completions])


def _experience(
    stage: Stage, models: Models, model: PreTrainedModel, rollouts: Rollouts, scores: Sequence[float]
) -> Experience:
    """What rollouts teach; the reference is asked here, once."""
    rewards = torch.tensor(scores, dtype=torch.float32, device=models.device)
    advantages = group_advantages(rewards.view(-1, _settings(stage).group_size)).flatten()
    old, ref = (
        _logprobs(of, rollouts, models.tokenizer.pad_id, stage.generation.batch_size)
        for of in (model, models.reference)
    )
    return Experience(rollouts, advantages, old, ref)


@torch.no_grad()
def _logprobs(model: PreTrainedModel, rollouts: Rollouts, pad_id: int, batch_size: int) -> list[Tensor]:
    """Log-probabilities of the tokens of each completion."""
    found: list[Tensor] = []
    for at in range(0, len(rollouts.completions), batch_size):
        here = slice(at, at + batch_size)
        logps, kept = token_logprobs(model, rollouts.prompts[here], rollouts.completions[here], pad_id)
        found += [row[there] for row, there in zip(logps, kept, strict=True)]
    return found


def _batches(stage: Stage, count: int, step: int) -> list[list[int]]:
    """Completions of each update of a step, shuffled anew for each pass."""
    rng = np.random.default_rng(stage.seed_of(step, 0, MINIBATCHES))
    size = stage.algo.batch_size
    passes = [rng.permutation(count).tolist() for _ in range(_settings(stage).iterations)]
    return [rows[at : at + size] for rows in passes for at in range(0, count, size)]


def _parts(
    stage: Stage, model: PreTrainedModel, experience: Experience, batch: Sequence[int], pad_id: int
) -> Iterator[Tensor]:
    """What each micro-batch adds to the loss of a batch."""
    rollouts, algo, size = experience.rollouts, _settings(stage), stage.training.micro_batch_size
    for at in range(0, len(batch), size):
        rows = batch[at : at + size]
        tokens = forced(
            [rollouts.prompts[row] for row in rows],
            [rollouts.completions[row] for row in rows],
            pad_id,
            model.device,
        )
        old, ref = (
            pad_sequence([of[row] for row in rows], batch_first=True)
            for of in (experience.old, experience.ref)
        )
        loss = grpo(
            forced_logprobs(model, tokens),
            old,
            ref,
            experience.advantages[rows],
            tokens.kept,
            clip=algo.clip,
            beta=algo.beta,
        )
        yield loss.sum() / len(batch)


def _samples(rollouts: Rollouts, scores: Sequence[float]) -> Iterator[Sample]:
    """Rollouts as rows of a data set."""
    for example, draw, prompt, completion, text, score in zip(*rollouts, scores, strict=True):
        yield Sample(
            index=example.index,
            draw=draw,
            question=example.question,
            answer=example.answer,
            prompt=example.prompt,
            t=0,
            context=example.prompt,
            y_a=text,
            y_b="",
            score_a=score,
            score_b=math.nan,
            preferred=-1,
            prompt_ids=prompt,
            context_ids=prompt,
            a_ids=completion,
            b_ids=(),
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
