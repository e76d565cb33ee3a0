"""All completions of a few tokens as a tree, with what a policy thinks of them.

Completions of at most T tokens of a vocabulary of V are the leaves of a tree. With B = V - 1 tokens that do not end a
completion, level l of it has B**l prefixes, in lexical order: prefix `j` and the `k`-th of these tokens make prefix
``j * B + k`` of the next level. Log-probabilities and rewards are in float64.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .generate import Policy

__all__ = ["Tree", "completion_rewards", "enumerate_policy"]


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
        If there is no prompt, or the policy gives no numbers.
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
        if found.isnan().any():
            raise ValueError("the policy gives logits that are no numbers (NaN): its weights have become so")
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


def _without(level: Tensor, end_id: int) -> Tensor:
    """All but the end token, [..., B] of [..., V]."""
    return torch.cat([level[..., :end_id], level[..., end_id + 1 :]], -1)
