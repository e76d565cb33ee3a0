"""How good a policy is: rewards and votes of its samples, and its divergence from the reference along them."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .answers import final_answer
from .sampling import least_share
from .sums import answer as sum_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .generate import Policy
    from .job import Example
    from .rewards import Scorer
    from .settings import DatasetSettings, Evaluation
    from .tokenizer import Tokenizer

__all__ = ["Answer", "answer_of", "divergences", "evaluate", "vote"]

Answer = Callable[[str], Hashable | None]
"""What a completion answers, which a vote counts; None if it has no answer."""

_RIGHT = 0.5  # least reward of a completion that is right
_SEED = 1_702_257_004  # keeps the random numbers apart from those of data generation


def answer_of(dataset: DatasetSettings) -> Answer:
    """What completions of a data set answer: the number of ``sums`` and ``gsm8k``, else the text without its margins.

    Where each text is its own answer most votes are ties, and the expected reward of a vote is near the average.
    """
    known: dict[str, Answer] = {"sums": sum_of, "gsm8k": final_answer}
    return known.get(dataset.kind, str.strip)


def evaluate(
    policy: Policy,
    reference: Policy,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    scorer: Scorer,
    evaluation: Evaluation,
    seed: int,
    *,
    max_new_tokens: int,
    batch_size: int,
    answer: Answer = str.strip,
) -> dict[str, float]:
    """Figures of a policy beside its reference.

    Parameters
    ----------
    policy, reference
        The policy, and that from which its divergence is measured.
    tokenizer
        Tokenizer of both.
    examples
        The test examples, all of which are used.
    scorer
        Rewards; it gets all samples at once.
    evaluation
        Samples per example, temperature and top_p.
    seed
        Seed of the samples. They depend on it, on the index of the example and on the number of the draw: policies are
        compared on the same random numbers.
    max_new_tokens
        Largest number of tokens of a completion.
    batch_size
        Number of completions at once.
    answer
        What a completion answers, see `answer_of`.

    Returns
    -------
    dict
        With k samples of each example: ``avg_reward``, their mean reward; ``pass@1``, the share that is right, with a
        reward of 0.5 or more: the unbiased estimate of Chen et al. 2021, https://arxiv.org/abs/2107.03374;
        ``maj@k``, mean of `vote`; ``avg_kl``, mean of `divergences` in nats per completion. And the standard error of
        each over examples, with ``_se`` after its name; NaN if there is one example only.

    Raises
    ------
    ValueError
        If there are no examples, or a divergence is not finite.
    """
    if not examples:
        raise ValueError("there are no examples to evaluate on")
    count = evaluation.samples_per_example
    each = [example for example in examples for _ in range(count)]
    encoded = [tokenizer.encode(example.prompt) for example in examples]
    prompts = [row for row in encoded for _ in range(count)]
    completions = policy.generate(
        prompts,
        [(seed, _SEED, example.index, draw) for example in examples for draw in range(count)],
        max_new_tokens=max_new_tokens,
        temperature=evaluation.temperature,
        top_p=evaluation.top_p,
        batch_size=batch_size,
    )
    texts = [tokenizer.decode(completion) for completion in completions]
    rewards = np.array(scorer.score(each, texts)).reshape(-1, count)
    apart = divergences(
        policy,
        reference,
        prompts,
        completions,
        temperature=evaluation.temperature,
        top_p=evaluation.top_p,
        batch_size=batch_size,
    )
    for example, kl in zip(each, apart, strict=True):
        if not math.isfinite(kl):
            raise ValueError(
                f"the KL divergence of a sample of example {example.index} is {kl}: the policy writes what the "
                "reference never does, or one of them gives logits that are no numbers"
            )
    answers = [answer(text) for text in texts]
    votes = [vote(answers[n * count : (n + 1) * count], row.tolist()) for n, row in enumerate(rewards)]
    by_example = {
        "avg_reward": rewards.mean(1),
        "avg_kl": np.array(apart).reshape(-1, count).mean(1),
        "pass@1": (rewards >= _RIGHT).mean(1),
        f"maj@{count}": np.array(votes),
    }
    figures: dict[str, float] = {}
    for name, values in by_example.items():
        figures |= {name: float(values.mean()), f"{name}_se": _standard_error(values)}
    return figures


def vote(answers: Sequence[Hashable | None], rewards: Sequence[float]) -> float:
    """Expected reward of the answer that most of some samples give.

    A sample without an answer has no vote; if none has one, this is the mean of all rewards. If several answers have
    the most votes, one of them is drawn evenly, so this is their mean. The reward of an answer is the mean of those of
    its samples.

    Parameters
    ----------
    answers
        Answer of each sample, at least one.
    rewards
        Reward of each.
    """
    given: dict[Hashable, list[float]] = {}
    for said, reward in zip(answers, rewards, strict=True):
        if said is not None:
            given.setdefault(said, []).append(reward)
    if not given:
        return sum(rewards) / len(rewards)
    most = max(map(len, given.values()))
    first = [sum(own) / most for own in given.values() if len(own) == most]
    return sum(first) / len(first)


@torch.no_grad()
def divergences(
    policy: Policy,
    reference: Policy,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    batch_size: int,
) -> list[float]:
    """KL divergence along completions: that of the next token, over the whole vocabulary, summed over the tokens.

    Its mean over completions that the policy has written is the divergence of whole completions, in nats; it has less
    variance than the mean of ``log pi - log ref`` of the tokens that were drawn. The policy is that which is sampled,
    with its temperature and top_p; the reference is that at temperature 1, from which rewards are bought.

    Parameters
    ----------
    policy, reference
        The policy and the reference.
    prompts, completions
        Tokens of each prompt, and of the completion of each.
    temperature, top_p
        How the policy is sampled.
    batch_size
        Number of completions at once.

    Returns
    -------
    list of float
        Not finite where the policy has a token that the reference never writes.
    """
    found = [0.0] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]) + len(completions[n]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch: Any = ([prompts[n] for n in rows], [completions[n] for n in rows])
        own = policy.log_softmax(*batch, batch_size=batch_size)
        other = reference.log_softmax(*batch, batch_size=batch_size)
        for row, log_p, log_q in zip(rows, own, other, strict=True):
            sampled = _sampled(log_p, temperature, top_p).double().log_softmax(1)
            known = log_q.to(sampled.device).double().log_softmax(1)
            terms = torch.where(sampled == -torch.inf, 0.0, sampled.exp() * (sampled - known))  # NaN stays
            found[row] = float(terms.sum())
    return found


def _sampled(log_probs: Tensor, temperature: float, top_p: float) -> Tensor:
    """Log-probabilities, but for a constant, of what is drawn from."""
    tempered = log_probs / temperature
    if top_p < 1:
        shares = tempered.softmax(1)
        tempered = tempered.masked_fill(shares < least_share(shares, top_p), -torch.inf)
    return tempered


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
