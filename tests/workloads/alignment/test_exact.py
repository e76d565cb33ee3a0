"""Enumeration of completions, the best policies and the values of tokens, beside brute force."""

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from mgpu_nb.workloads.alignment import sums
from mgpu_nb.workloads.alignment.completions import Tree, completion_rewards, enumerate_policy
from mgpu_nb.workloads.alignment.exact import (
    Frontier,
    exact_kl,
    exact_reward,
    soft_values,
    success,
    sums_frontier,
    sums_point,
)
from mgpu_nb.workloads.alignment.generate import Policy

SIZE, END, LONGEST = 4, 2, 3
PROMPTS = [(0,), (1, 3)]
NUMBERS = [0, 7, 12]  # of the embedded task


class Random(Policy):
    """A policy whose logits after each prefix are random numbers."""

    def __init__(self, seed: int, sharp: float = 1.5) -> None:
        self.seed, self.sharp, self.end_id, self.asked = seed, sharp, END, 0

    def after(self, prompt: Sequence[int], prefix: Sequence[int]) -> Tensor:
        seed = hash((self.seed, *prompt, -1, *prefix)) % 2**31
        return (torch.randn(SIZE, generator=torch.Generator().manual_seed(seed)) * self.sharp).log_softmax(0)

    def log_softmax(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], *, batch_size: int
    ) -> list[Tensor]:
        self.asked += len(prompts)
        return [
            torch.stack([self.after(prompt, completion[:n]) for n in range(len(completion))])
            for prompt, completion in zip(prompts, completions, strict=True)
        ]


def tree_of(policy: Policy, least: float = 0.0) -> Tree:
    return enumerate_policy(policy, PROMPTS, vocabulary=SIZE, max_new_tokens=LONGEST, least=least)


def completions() -> Iterator[tuple[int, ...]]:
    """By brute force, in another order than that of the tree."""
    for row in itertools.product(range(SIZE), repeat=LONGEST):
        if END not in row[:-1]:
            yield row
    for length in (1, 2):
        yield from ((*row, END) for row in itertools.product([0, 1, 3], repeat=length - 1))


def log_prob(policy: Random, prompt: Sequence[int], completion: Sequence[int]) -> float:
    rows = [policy.after(prompt, completion[:n]).double().log_softmax(0) for n in range(len(completion))]
    return sum(float(row[token]) for row, token in zip(rows, completion, strict=True))


def reward(question: str, text: str) -> float:
    """Between 0 and 1, with many ties."""
    return ((text.count("3") + 2 * text.count(question)) % 4) / 3


def decode(ids: Sequence[int]) -> str:
    return "".join(str(token) for token in ids if token != END)


QUESTIONS = ["0", "1"]
REWARDS = completion_rewards(QUESTIONS, reward, decode, vocabulary=SIZE, end_id=END, max_new_tokens=LONGEST)


def brute(policy: Random, other: Random, eta: float) -> tuple[float, float, float, float]:
    """Reward and KL from `other` of a policy, KL and reward of the best policy beside `other`."""
    figures = torch.zeros(4, dtype=torch.float64)
    for prompt, question in zip(PROMPTS, QUESTIONS, strict=True):
        log_p = torch.tensor([log_prob(policy, prompt, row) for row in completions()], dtype=torch.float64)
        log_q = torch.tensor([log_prob(other, prompt, row) for row in completions()], dtype=torch.float64)
        r = torch.tensor([reward(question, decode(row)) for row in completions()], dtype=torch.float64)
        best = (log_q + eta * r).log_softmax(0)
        figures += torch.stack(
            [
                (log_p.exp() * r).sum(),
                (log_p.exp() * (log_p - log_q)).sum(),
                (best.exp() * (best - log_q)).sum(),
                (best.exp() * r).sum(),
            ]
        )
    first, second, third, fourth = (figures / len(PROMPTS)).tolist()
    return first, second, third, fourth


@pytest.mark.parametrize("eta", [0.5, 4.0])
def test_the_tree_says_what_brute_force_says(eta: float) -> None:
    policy, other = Random(1), Random(2)
    mine, reference = tree_of(policy), tree_of(other)
    assert REWARDS.shape == (2, len([*completions()])) == mine.completions().shape
    assert mine.completions().exp().sum(1).tolist() == pytest.approx([1, 1], abs=1e-12)
    found = Frontier(reference.completions(), REWARDS).at(eta)
    assert [exact_reward(mine, REWARDS), exact_kl(mine, reference), *found] == pytest.approx(
        brute(policy, other, eta), abs=1e-12
    )
    assert exact_kl(reference, reference) == 0.0


def test_values_of_tokens_are_those_of_all_that_can_follow() -> None:
    policy = Random(2)
    reference = tree_of(policy)
    found = success(reference, REWARDS)
    soft = soft_values(reference, REWARDS, 2.0)
    assert [level.shape for level in found] == [(2, 1, 4), (2, 3, 4), (2, 9, 4)]
    others = [0, 1, 3]
    for place, token in itertools.product(range(3), range(SIZE)):
        began = (others[place], token)
        following = [row for row in completions() if row[:2] == began]
        log_q = torch.tensor([log_prob(policy, PROMPTS[1], row) for row in following]).double().log_softmax(0)
        r = torch.tensor([reward("1", decode(row)) for row in following], dtype=torch.float64)
        assert float(found[1][1, place, token]) == pytest.approx(float((log_q.exp() * r).sum()), abs=1e-6)
        expected = float((log_q + 2 * r).logsumexp(0)) / 2
        assert float(soft[1][1, place, token]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("eta", [0.7, 5.0])
def test_the_reference_moved_by_soft_values_is_on_the_frontier(eta: float) -> None:
    reference = tree_of(Random(3))
    levels = zip(reference.log_probs, soft_values(reference, REWARDS, eta), strict=True)
    best = Tree(tuple((level + eta * values).log_softmax(-1) for level, values in levels), END, True)
    point = Frontier(reference.completions(), REWARDS).at(eta)
    assert (exact_kl(best, reference), exact_reward(best, REWARDS)) == pytest.approx(point, abs=1e-12)


@pytest.mark.slow
def test_the_frontier_begins_at_the_reference_rises_and_bends_down() -> None:
    reference = tree_of(Random(4))
    frontier = Frontier(reference.completions(), REWARDS)
    points = frontier.curve()
    assert points[0] == pytest.approx((0.0, exact_reward(reference, REWARDS)), abs=1e-12)
    assert points[-1].reward == pytest.approx(float(REWARDS.amax(1).mean()))
    slopes = []
    for before, after in itertools.pairwise(points):
        assert after.kl >= before.kl
        assert after.reward >= before.reward
        if after.kl - before.kl > 1e-6:
            slopes.append((after.reward - before.reward) / (after.kl - before.kl))
    assert len(slopes) > 100
    assert all(after <= before + 1e-6 for before, after in itertools.pairwise(slopes))
    assert frontier.at(2.0).kl < frontier.at(3.0).kl < frontier.at(math.inf).kl


@pytest.mark.parametrize("seed", range(5, 15))
def test_no_policy_is_above_the_frontier(seed: int) -> None:
    reference = tree_of(Random(4))
    frontier = Frontier(reference.completions(), REWARDS)
    policy = tree_of(Random(seed, sharp=0.2 * seed))
    assert exact_reward(policy, REWARDS) < frontier.reward(exact_kl(policy, reference))


def test_the_frontier_at_a_divergence_is_that_of_its_eta() -> None:
    frontier = sums_frontier()
    for eta in (0.0, 0.3, 3.0, 8.0):
        point = frontier.at(eta)
        assert frontier.reward(point.kl) == pytest.approx(point.reward, abs=1e-7)
    assert frontier.reward(5.0) == frontier.at(math.inf).reward == 1.0


def test_a_reference_that_is_right_in_385_of_1000_can_reach_926() -> None:
    frontier = Frontier(torch.tensor([[0.615, 0.385]]).double().log(), torch.tensor([[0.0, 1.0]]))
    assert frontier.at(3.0).reward == pytest.approx(0.926, abs=5e-4)
    assert frontier.at(6.0).reward == pytest.approx(0.996, abs=5e-4)
    assert frontier.at(math.inf).kl == pytest.approx(-math.log(0.385))


def test_what_is_written_hardly_ever_can_be_left_out() -> None:
    sharp = Random(7, sharp=6.0)
    whole = tree_of(sharp)
    asked, sharp.asked = sharp.asked, 0
    pruned = tree_of(sharp, least=1e-4)
    assert sharp.asked < asked == 2 * (1 + 3 + 9)
    assert whole.whole
    assert not pruned.whole
    lost = 1 - pruned.completions().exp().sum(1)
    assert 0 < float(lost.max()) <= 1e-4 * 12
    assert exact_reward(pruned, REWARDS) == pytest.approx(exact_reward(whole, REWARDS), abs=1.2e-3)
    assert exact_kl(pruned, whole) == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="with least=0"):
        success(pruned, REWARDS)
    with pytest.raises(ValueError, match="with least=0"):
        exact_kl(whole, pruned)


def test_bad_input_is_refused() -> None:
    reference = tree_of(Random(1))
    frontier = Frontier(reference.completions(), REWARDS)
    with pytest.raises(ValueError, match="at least one prompt"):
        enumerate_policy(Random(1), [], vocabulary=SIZE, max_new_tokens=2)
    with pytest.raises(ValueError, match="no numbers"):
        tree_of(Random(1, sharp=math.nan))
    for eta in (-1.0, math.nan):
        with pytest.raises(ValueError, match="eta must be"):
            frontier.at(eta)
        with pytest.raises(ValueError, match="eta must be"):
            soft_values(reference, REWARDS, eta)
    with pytest.raises(ValueError, match="kl must be"):
        frontier.reward(-0.1)
    for numbers in ([], [19], [-1]):
        with pytest.raises(ValueError, match="from 0 to 18"):
            sums_frontier(numbers)


@cache
def shipped() -> tuple[Policy, Tree, Tensor]:
    """The reference, its tree for some numbers, and the rewards."""
    from mgpu_nb.workloads.alignment.job import EMBEDDED
    from mgpu_nb.workloads.alignment.models import load_model, load_tokenizer

    tokenizer = load_tokenizer(EMBEDDED)
    model = load_model(EMBEDDED, device=torch.device("cpu"))
    policy = Policy(model, end_id=tokenizer.end_id, pad_id=tokenizer.pad_id)
    some = [sums.examples("test")[number] for number in NUMBERS]
    size = {"vocabulary": tokenizer.size, "max_new_tokens": sums.MAX_NEW_TOKENS}
    tree = enumerate_policy(policy, [tokenizer.encode(e.prompt) for e in some], **size, least=1e-9)
    questions = [example.question for example in some]
    rewards = completion_rewards(questions, sums.reward, tokenizer.decode, **size, end_id=tokenizer.end_id)
    return policy, tree, rewards


@pytest.mark.slow
def test_the_file_of_the_reference_states_how_often_it_is_right() -> None:
    from mgpu_nb.workloads.alignment.fit_reference import success_of

    policy, tree, rewards = shipped()
    exact = exact_reward(tree, rewards)
    assert sums_frontier(NUMBERS).at(0.0).reward == pytest.approx(exact, abs=1e-6)
    right = success_of(policy.model)
    assert [sums_frontier([n]).at(0.0).reward for n in sums.NUMBERS] == pytest.approx(right, abs=1e-6)


@pytest.mark.slow
def test_the_sums_of_the_file_have_the_frontier_of_all_completions() -> None:
    _, tree, rewards = shipped()
    for eta in (1.0, 3.0, 12.0):
        expected = Frontier(tree.completions(), rewards).at(eta)
        assert sums_frontier(NUMBERS).at(eta) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_a_policy_on_the_embedded_task_is_placed_below_its_frontier() -> None:
    policy, *_ = shipped()
    assert sums_point(policy) == pytest.approx(sums_frontier().at(0.0), abs=1e-6)

    class Sharper(Policy):
        def log_softmax(self, *args: Any, **options: Any) -> list[Tensor]:
            return [(1.2 * row).log_softmax(-1) for row in super().log_softmax(*args, **options)]

    sharper = Sharper(policy.model, end_id=policy.end_id, pad_id=policy.pad_id)
    point = sums_point(sharper, NUMBERS)
    assert point.kl > 0.01
    assert sums_frontier(NUMBERS).at(0.0).reward < point.reward < sums_frontier(NUMBERS).reward(point.kl)
    with pytest.raises(ValueError, match="from 0 to 18"):
        sums_point(policy, [19])


def test_the_shipped_reference_is_right_in_37_to_39_of_100() -> None:
    point = sums_frontier().at(0.0)
    assert point.kl == 0.0
    assert 0.37 <= point.reward <= 0.39
    each = [sums_frontier([number]).at(0.0).reward for number in sums.NUMBERS]
    assert min(each) > 0.33
    assert max(each) < 0.43
    assert sums_frontier().at(3.0).reward == pytest.approx(0.924, abs=5e-4)
    assert sums_frontier().at(6.0).reward == pytest.approx(0.996, abs=5e-4)
