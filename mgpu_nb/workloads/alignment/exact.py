"""What a policy reaches, and the best that any can reach, by enumeration of all completions of a few tokens.

Completions of at most T tokens of a vocabulary of V are the leaves of a tree. With B = V - 1 tokens that do not end a
completion, level l of it has B**l prefixes, in lexical order: prefix `j` and the `k`-th of these tokens make prefix
``j * B + k`` of the next level. All sums are in float64; averages are over prompts.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from .job import EMBEDDED
from .sums import MAX_NEW_TOKENS, NUMBERS, REFERENCE, SUCCESS, TOKENS, encode, prompt, reward

if TYPE_CHECKING:
    from .generate import Policy

__all__ = [
    "Frontier",
    "Point",
    "Tree",
    "completion_rewards",
    "enumerate_policy",
    "exact_kl",
    "exact_reward",
    "soft_values",
    "success",
    "sums_frontier",
    "sums_point",
]


class Point(NamedTuple):
    """Where a policy is: KL divergence from the reference in nats, and average reward."""

    kl: float
    reward: float


@dataclass(frozen=True)
class Tree:
    """A policy after every prefix of a completion.

    Attributes
    ----------
    log_probs
        Log-probability of each token after each prefix, float64 [P, B**l, V] for `l` from 0 to T - 1; -inf in all of a
        row after a prefix that was left out.
    end_id
        Token that ends a completion.
    whole
        Whether no prefix was left out.
    """

    log_probs: tuple[Tensor, ...]
    end_id: int
    whole: bool

    def completions(self) -> Tensor:
        """Log-probability of each completion, [P, N]: those that end, by length, then those of T tokens that do not."""
        before = self.log_probs[0].new_zeros(len(self.log_probs[0]), 1)
        ended = []
        for level in self.log_probs:
            after = before[:, :, None] + level
            ended.append(after[:, :, self.end_id])
            before = _without(after, self.end_id).flatten(1)
        return torch.cat([*ended, before], 1)


def enumerate_policy(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    *,
    vocabulary: int,
    max_new_tokens: int,
    least: float = 0.0,
    batch_size: int = 512,
) -> Tree:
    """Ask a policy for the next token after every prefix of a completion.

    Parameters
    ----------
    policy
        The policy, at temperature 1.
    prompts
        Tokens of each prompt.
    vocabulary
        Number of tokens, V.
    max_new_tokens
        Largest number of tokens of a completion, T; the policy is asked ``(V - 1) ** (T - 1)`` times a prompt and more.
    least
        Prefixes that the policy writes less often are left out, and with them at most ``least * (V - 1) ** (T - 1)`` of
        its completions: 1e-9 on the embedded task makes it a few times as fast, and averages are right to 2e-6.
    batch_size
        Number of prefixes at once.

    Raises
    ------
    ValueError
        If there is no prompt.
    """
    if not prompts:
        raise ValueError("give at least one prompt")
    others = [token for token in range(vocabulary) if token != policy.end_id]
    levels: list[Tensor] = []
    reached = torch.zeros(len(prompts), 1, dtype=torch.float64)
    whole = True
    for length in range(max_new_tokens):
        prefixes = [*itertools.product(others, repeat=length)]
        level = torch.full((len(prompts), len(prefixes), vocabulary), -torch.inf, dtype=torch.float64)
        kept = reached.exp() >= least
        whole &= bool(kept.all())
        rows = kept.nonzero().tolist()
        asked = policy.log_softmax(
            [prompts[prompt] for prompt, _ in rows],
            [(*prefixes[prefix], policy.end_id) for _, prefix in rows],  # its last row is after the prefix
            batch_size=batch_size,
        )
        found = torch.stack([row[-1] for row in asked]).cpu().double()
        level[kept] = found.log_softmax(-1)  # float32 sums to 1 to 1e-7 only
        levels.append(level)
        reached = _without(reached[:, :, None] + level, policy.end_id).flatten(1)
    return Tree(tuple(levels), policy.end_id, whole)


def completion_rewards(
    questions: Sequence[str],
    reward: Callable[[str, str], float],
    decode: Callable[[Sequence[int]], str],
    *,
    vocabulary: int,
    end_id: int,
    max_new_tokens: int,
) -> Tensor:
    """Reward of each completion in the order of `Tree.completions`, float64 [P, N].

    Parameters
    ----------
    questions
        Question of each prompt.
    reward
        Reward of a question and a text.
    decode
        Text of tokens.
    vocabulary, end_id, max_new_tokens
        As in `enumerate_policy`.
    """
    others = [token for token in range(vocabulary) if token != end_id]
    lengths = range(max_new_tokens + 1)
    texts = [decode(row) for length in lengths for row in itertools.product(others, repeat=length)]
    return torch.tensor(
        [[reward(question, text) for text in texts] for question in questions], dtype=torch.float64
    )


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
    written = log_p != -torch.inf  # NaN among them
    if not log_q[written].isfinite().all():
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
    reference, rewards = _sums()
    some = Tree(tuple(level[[*numbers]] for level in reference.log_probs), reference.end_id, reference.whole)
    return Point(exact_kl(tree, some), exact_reward(tree, rewards[[*numbers]]))


@functools.cache
def _sums() -> tuple[Tree, Tensor]:
    """The shipped reference after every prefix, and the rewards of all completions."""
    from .generate import Policy
    from .models import load_model, load_tokenizer

    tokenizer = load_tokenizer(EMBEDDED)
    size = {"vocabulary": tokenizer.size, "max_new_tokens": MAX_NEW_TOKENS}
    model = load_model(EMBEDDED, device="cpu")
    policy = Policy(model, end_id=tokenizer.end_id, pad_id=tokenizer.pad_id)
    tree = enumerate_policy(policy, [encode(prompt(number)) for number in NUMBERS], **size)
    questions = [str(number) for number in NUMBERS]
    return tree, completion_rewards(questions, reward, tokenizer.decode, **size, end_id=tokenizer.end_id)


def _without(level: Tensor, end_id: int) -> Tensor:
    """All but the end token, [..., B] of [..., V]."""
    return torch.cat([level[..., :end_id], level[..., end_id + 1 :]], -1)


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
