"""What a policy reaches, and the best that any can reach, from all completions of a few tokens.

Sums are over completions, in float64; averages are over prompts.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from .completions import Tree, completion_rewards, enumerate_policy
from .job import EMBEDDED
from .sums import MAX_NEW_TOKENS, NUMBERS, REFERENCE, SUCCESS, TOKENS, encode, prompt, reward

if TYPE_CHECKING:
    from .generate import Policy

__all__ = [
    "Frontier",
    "Point",
    "exact_kl",
    "exact_reward",
    "soft_values",
    "success",
    "sums_frontier",
    "sums_point",
    "sums_reference",
]


class Point(NamedTuple):
    """Where a policy is: KL divergence from the reference in nats, and average reward."""

    kl: float
    reward: float


def exact_reward(tree: Tree, rewards: Tensor) -> float:
    """Average reward of a policy; `rewards` are those of `completion_rewards`."""
    return float((tree.completions().exp() * rewards).sum(1).mean())


def exact_kl(tree: Tree, reference: Tree) -> float:
    """KL divergence of a policy from the reference, nats per completion.

    Raises
    ------
    ValueError
        If the policy writes what the reference never does: the divergence is infinite.
    """
    log_p, log_q = tree.completions(), reference.completions()
    written = log_p > -torch.inf
    if not (log_q[written] > -torch.inf).all():
        raise ValueError(
            "the policy writes what the reference never writes, or what its tree left out (enumerate it with least=0)"
        )
    terms = torch.where(written, log_p.exp() * (log_p - log_q), 0.0)
    return float(terms.sum(1).mean())


def success(reference: Tree, rewards: Tensor) -> list[Tensor]:
    """Expected reward after each prefix and next token if the reference goes on, [P, B**l, V] for each level.

    With rewards of 0 and 1 this is the probability of success; its `torch.logit` is what Q# and PITA learn.
    """
    return _backwards(reference, rewards, lambda log_probs, values: (log_probs.exp() * values).sum(-1))


def soft_values(reference: Tree, rewards: Tensor, eta: float) -> list[Tensor]:
    """Q* after each prefix and next token, ``log E[exp(eta r)] / eta`` if the reference goes on; as `success`.

    The best policy at this eta is the reference times ``exp(eta Q*)``, normalised, token by token.

    Raises
    ------
    ValueError
        If `eta` is not above 0.
    """
    if not eta > 0:
        raise ValueError(f"eta must be a number > 0, got {eta}; at 0 the value is that of success()")
    return _backwards(
        reference, rewards, lambda log_probs, values: (log_probs + eta * values).logsumexp(-1) / eta
    )


class Frontier:
    """The best rewards at each KL divergence: those of the reference times ``exp(eta r)``, normalised for each prompt.

    No policy has a higher average reward at the same average KL divergence, for these maximise ``r - KL / eta``.

    Parameters
    ----------
    log_probs
        Log-probability of each completion under the reference, [P, N].
    rewards
        Reward of each, [P, N].

    Examples
    --------
    >>> frontier = sums_frontier()
    >>> round(frontier.at(3.0).reward, 2)
    0.92
    """

    def __init__(self, log_probs: Tensor, rewards: Tensor) -> None:
        # Completions with the same reward keep their shares of each other: only what they have together counts.
        self._values = rewards.double().unique()
        masses = [
            torch.where(rewards == value, log_probs.double(), -torch.inf).logsumexp(1)
            for value in self._values
        ]
        self._masses = torch.stack(masses, 1).log_softmax(1)

    def at(self, eta: float) -> Point:
        """The point of a strength `eta` >= 0; at 0 the reference, at infinity the highest rewards.

        Raises
        ------
        ValueError
            If `eta` is negative.
        """
        if not eta >= 0:
            raise ValueError(f"eta must be a number >= 0, got {eta}")
        if eta == float("inf"):
            best = torch.where(self._masses > -torch.inf, self._values, -torch.inf).amax(1)
            kl = -self._masses.masked_fill(self._values != best[:, None], -torch.inf).logsumexp(1)
            return Point(float(kl.mean()), float(best.mean()))
        tilted = self._masses + eta * self._values
        law = tilted.log_softmax(1).exp()
        reward = (law * self._values).sum(1)
        # The masses sum to 1 but for rounding; as it is at eta 0, it is taken off at all.
        kl = (eta * reward - (tilted.logsumexp(1) - self._masses.logsumexp(1))).clamp_min(0.0)
        return Point(float(kl.mean()), float(reward.mean()))

    def reward(self, kl: float) -> float:
        """Highest average reward of all policies whose average KL divergence is `kl` nats or less.

        Raises
        ------
        ValueError
            If `kl` is negative.
        """
        if not kl >= 0:
            raise ValueError(f"kl must be a number >= 0, got {kl}")
        if kl >= self.at(float("inf")).kl:
            return self.at(float("inf")).reward
        low, high = 0.0, 1.0
        while self.at(high).kl < kl:
            low, high = high, 2 * high
        for _ in range(60):  # as many as a float64 has bits
            middle = (low + high) / 2
            low, high = (middle, high) if self.at(middle).kl < kl else (low, middle)
        return self.at(high).reward

    def curve(self, count: int = 200) -> list[Point]:
        """Points from the reference to the highest rewards, close to each other along the whole frontier."""
        spread = float(self._values[-1] - self._values[0]) or 1.0
        steps = torch.linspace(0, 4, count - 1, dtype=torch.float64).expm1() / spread
        return [self.at(eta) for eta in (*steps.tolist(), float("inf"))]


def sums_frontier(numbers: Sequence[int] = NUMBERS) -> Frontier:
    """The frontier of the embedded task with the shipped reference, from what its file states: no model is loaded.

    Parameters
    ----------
    numbers
        Numbers that are asked, each as often as it is given.

    Raises
    ------
    ValueError
        If there is none, or one that is not from 0 to 18.
    """
    if not numbers or not all(number in NUMBERS for number in numbers):
        raise ValueError(f"numbers: give at least one, each from 0 to 18, not {[*numbers]}")
    with safe_open(REFERENCE / "model.safetensors", "pt") as file:
        stated = json.loads(file.metadata()[SUCCESS])
    right = torch.tensor([stated[number] for number in numbers], dtype=torch.float64)
    return Frontier(
        torch.stack([1 - right, right], 1).log(), torch.tensor([[0.0, 1.0]]).expand(len(numbers), 2)
    )


def sums_point(policy: Policy, numbers: Sequence[int] = NUMBERS) -> Point:
    """Exact divergence from the shipped reference and reward of a policy on the embedded task, to 2e-6.

    It takes 2 s on a core, 6 s more the first time.

    Parameters
    ----------
    policy
        Policy of the shipped tokenizer.
    numbers
        Numbers that are asked, each once.

    Raises
    ------
    ValueError
        As `enumerate_policy`; if a number is not from 0 to 18.
    """
    if not all(number in NUMBERS for number in numbers):
        raise ValueError(f"numbers: each must be from 0 to 18, got {[*numbers]}")
    prompts = [encode(prompt(number)) for number in numbers]
    tree = enumerate_policy(
        policy, prompts, vocabulary=len(TOKENS), max_new_tokens=MAX_NEW_TOKENS, least=1e-9
    )
    reference, rewards = sums_reference()
    some = Tree(tuple(level[[*numbers]] for level in reference.log_probs), reference.end_id, reference.whole)
    return Point(exact_kl(tree, some), exact_reward(tree, rewards[[*numbers]]))


@functools.cache
def sums_reference() -> tuple[Tree, Tensor]:
    """The shipped reference after every prefix of all 19 numbers, and the rewards of all completions, [19, N].

    It takes 6 s on a core the first time.
    """
    from .generate import Policy
    from .models import load_model, load_tokenizer

    tokenizer = load_tokenizer(EMBEDDED)
    size = {"vocabulary": tokenizer.size, "max_new_tokens": MAX_NEW_TOKENS}
    model = load_model(EMBEDDED, device="cpu")
    policy = Policy(model, end_id=tokenizer.end_id, pad_id=tokenizer.pad_id)
    tree = enumerate_policy(policy, [encode(prompt(number)) for number in NUMBERS], **size)
    questions = [str(number) for number in NUMBERS]
    return tree, completion_rewards(questions, reward, tokenizer.decode, **size, end_id=tokenizer.end_id)


def _backwards(reference: Tree, rewards: Tensor, average: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    """Values after each prefix and next token, from those of whole completions."""
    if not reference.whole:
        raise ValueError("prefixes were left out of the tree of the reference: enumerate it with least=0")
    count = [level.shape[1] for level in reference.log_probs]
    *ended, after = rewards.split([*count, rewards.shape[1] - sum(count)], 1)
    found: list[Tensor] = []
    for log_probs, end in zip(reversed(reference.log_probs), reversed(ended), strict=True):
        going_on = after.reshape(*log_probs.shape[:2], -1)
        place = reference.end_id
        values = torch.cat([going_on[..., :place], end[:, :, None], going_on[..., place:]], -1)
        after = average(log_probs, values)
        found.append(values)
    return found[::-1]
