"""The figures of a policy: votes, divergences and rewards, beside what enumeration says."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from tiny_language_models import FAMILIES, Family, tiny_model
from torch import Tensor

from mgpu_nb.workloads.alignment import sums
from mgpu_nb.workloads.alignment.completions import completion_rewards, enumerate_policy
from mgpu_nb.workloads.alignment.evaluate import answer_of, divergences, evaluate, vote
from mgpu_nb.workloads.alignment.exact import exact_kl, exact_reward
from mgpu_nb.workloads.alignment.generate import Policy
from mgpu_nb.workloads.alignment.job import EMBEDDED, Example
from mgpu_nb.workloads.alignment.models import load_model, load_tokenizer
from mgpu_nb.workloads.alignment.rewards import Scorer, reward_of
from mgpu_nb.workloads.alignment.sampling import next_tokens, uniforms
from mgpu_nb.workloads.alignment.settings import DATASETS, DatasetSettings, Evaluation, SumsData
from mgpu_nb.workloads.alignment.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

SIZE, END, LONGEST = 4, 2, 3


class Table(Policy):
    """A policy of random logits after each prefix, without a model."""

    def __init__(self, seed: int, sharp: float = 1.5, never: int | None = None) -> None:
        self.seed, self.sharp, self.never, self.end_id = seed, sharp, never, END

    @cache  # noqa: B019
    def after(self, prompt: tuple[int, ...], prefix: tuple[int, ...]) -> Tensor:
        seed = hash((self.seed, *prompt, -1, *prefix)) % 2**31
        logits = torch.randn(SIZE, generator=torch.Generator().manual_seed(seed)) * self.sharp
        if self.never is not None:
            logits[self.never] = -torch.inf
        return logits.log_softmax(0)

    def log_softmax(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], *, batch_size: int
    ) -> list[Tensor]:
        return [
            torch.stack([self.after(tuple(prompt), tuple(row[:n])) for n in range(len(row) + 1)])[:-1]
            for prompt, row in zip(prompts, completions, strict=True)
        ]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]] | None,
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        batch_size: int,
    ) -> list[tuple[int, ...]]:
        assert seeds is not None
        found = []
        for prompt, points in zip(prompts, uniforms(seeds, max_new_tokens), strict=True):
            row: tuple[int, ...] = ()
            while len(row) < max_new_tokens and END not in row:
                logits = self.after(tuple(prompt), row)[None]
                point = torch.tensor(points[len(row)])[None]
                row = (*row, int(next_tokens(logits, point, temperature, top_p)))
            found.append(row)
        return found


class Digits(Tokenizer):
    """A token a digit, without a file."""

    def __init__(self) -> None:
        self.end_id, self.pad_id, self.size = END, END, SIZE

    def encode(self, text: str) -> list[int]:
        return [int(character) for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(str(token) for token in ids if token != END)


EXAMPLES = [Example(n, str(n), "", prompt) for n, prompt in enumerate(["0", "13", "3"])]


def reward(question: str, text: str) -> float:
    return ((text.count("3") + 2 * text.count(question)) % 4) / 3


def scorer(batch_size: int = 32) -> Scorer:
    return Scorer(
        lambda examples, texts: [
            reward(example.question, text) for example, text in zip(examples, texts, strict=True)
        ],
        batch_size,
    )


def figures(policy: Policy, reference: Policy, seed: int = 0, **options: float) -> dict[str, float]:
    evaluation = Evaluation(etas=(1.0,), **options)  # type: ignore[arg-type]
    return evaluate(
        policy,
        reference,
        Digits(),
        EXAMPLES,
        scorer(),
        evaluation,
        seed,
        max_new_tokens=LONGEST,
        batch_size=16,
    )


class Exact(NamedTuple):
    reward: float
    kl: float
    majority: float


def exact(policy: Policy, reference: Policy, votes: int = 3) -> Exact:
    """By enumeration; also of all triples of completions."""
    prompts = [Digits().encode(example.prompt) for example in EXAMPLES]
    mine, other = (
        enumerate_policy(each, prompts, vocabulary=SIZE, max_new_tokens=LONGEST)
        for each in (policy, reference)
    )
    rewards = completion_rewards(
        [example.question for example in EXAMPLES],
        reward,
        Digits().decode,
        vocabulary=SIZE,
        end_id=END,
        max_new_tokens=LONGEST,
    )
    others = [0, 1, 3]
    texts = [
        "".join(map(str, row)) for n in range(LONGEST + 1) for row in itertools.product(others, repeat=n)
    ]
    majority = 0.0
    for shares, row in zip(mine.completions().exp().tolist(), rewards.tolist(), strict=True):
        for triple in itertools.combinations_with_replacement(range(len(texts)), votes):
            orders = math.factorial(votes) // math.prod(map(math.factorial, Counter(triple).values()))
            chance = orders * math.prod(shares[n] for n in triple)
            majority += chance * vote([texts[n] for n in triple], [row[n] for n in triple])
    return Exact(exact_reward(mine, rewards), exact_kl(mine, other), majority / len(EXAMPLES))


@pytest.mark.parametrize(
    ("answers", "rewards", "expected"),
    [
        (["7", "7", "3"], [1, 1, 0], 1.0),
        (["7", "3", "3"], [1, 0, 0], 0.0),
        (["7", "3"], [1, 0], 0.5),  # a tie is half right
        (["7", "3", "5"], [1, 0, 0], 1 / 3),
        (["7", "7", "3", "3", "5"], [1, 1, 0, 0, 0], 0.5),
        ([None, None, None, "7"], [0, 0, 0, 1], 1.0),  # no answer is no vote
        ([None, None], [0, 0], 0.0),
        (["a", "b", "c"], [0.2, 0.4, 0.9], 0.5),
        (["a", "a", "b"], [0.2, 0.4, 0.9], 0.3),
        (["7"], [1], 1.0),
    ],
)
def test_a_vote_earns_what_the_most_frequent_answer_earns(
    answers: list[str | None], rewards: list[float], expected: float
) -> None:
    assert vote(answers, rewards) == pytest.approx(expected)
    assert vote(answers[::-1], rewards[::-1]) == pytest.approx(expected)


def test_the_sum_is_the_answer_where_sums_are_asked_for() -> None:
    answer = answer_of(SumsData())
    assert [answer(text) for text in ("3+4", "5+2", "3+")] == ["7", "7", None]
    kind = DatasetSettings(kind="gsm8k")
    assert answer_of(kind)("so it is #### 1,234 apples") == answer_of(kind)("1234") == 1234
    assert answer_of(kind)("no number") is None
    assert answer_of(DatasetSettings(kind="imdb"))(" well made\n") == "well made"
    assert {"sums", "gsm8k"} <= DATASETS.keys()


def test_the_reference_is_no_nat_from_itself() -> None:
    found = figures(Table(1), Table(1), samples_per_example=5)
    assert found["avg_kl"] == 0.0
    assert found["avg_kl_se"] == 0.0


def test_figures_are_those_of_enumeration_but_for_the_samples() -> None:
    policy, reference = Table(1), Table(2)
    true = exact(policy, reference)
    runs = [figures(policy, reference, seed=n, samples_per_example=3) for n in range(100)]
    for name, expected in zip(("avg_reward", "avg_kl", "maj@3"), true, strict=True):
        values = np.array([run[name] for run in runs])
        error = values.std(ddof=1) / np.sqrt(len(runs))
        assert values.mean() == pytest.approx(expected, abs=4 * error), name
        assert 0 < error < 0.1


def test_what_earns_half_or_more_is_right() -> None:
    def scored(question: str, text: str) -> float:
        return {"0": 0.5, "1": 0.49, "2": 1.0}[question]

    rewards = Scorer(lambda examples, texts: [scored(e.question, "") for e in examples], 32)
    evaluation = Evaluation(etas=(1.0,), samples_per_example=2)
    policy = Table(1)
    found = evaluate(
        policy, policy, Digits(), EXAMPLES, rewards, evaluation, 0, max_new_tokens=LONGEST, batch_size=16
    )
    assert found["pass@1"] == pytest.approx(2 / 3)
    assert found["avg_reward"] == pytest.approx(1.99 / 3)


def test_the_divergence_of_a_tempered_policy_is_that_of_what_is_drawn() -> None:
    policy, reference = Table(3), Table(4)
    tempered = Table(3, sharp=1.5 / 0.5)  # the same logits, divided by one half
    true = exact(tempered, reference, votes=1)
    runs = [figures(policy, reference, seed=n, samples_per_example=4, temperature=0.5) for n in range(40)]
    values = np.array([run["avg_kl"] for run in runs])
    assert values.mean() == pytest.approx(true.kl, abs=4 * values.std(ddof=1) / np.sqrt(len(runs)))


def test_the_divergence_of_a_nucleus_is_finite_and_that_of_its_tokens() -> None:
    policy, reference = Table(3), Table(4)
    prompt, completion = (0,), (1,)
    p = policy.after(prompt, ()).exp().double()
    q = reference.after(prompt, ()).exp().double()
    order = p.argsort(descending=True)
    for count in (1, 2, 3):
        kept = order[:count]
        top_p = float(p[kept].sum()) - 1e-4
        law = p[kept] / p[kept].sum()
        expected = float((law * (law / q[kept]).log()).sum())
        [found] = divergences(policy, reference, [prompt], [completion], top_p=top_p, batch_size=1)
        assert found == pytest.approx(expected, abs=1e-5)


def test_the_divergence_does_not_depend_on_batches_or_order() -> None:
    policy, reference = Table(1), Table(2)
    prompts = [(0,), (1, 3), (3,), (0, 0, 1)]
    completions: list[tuple[int, ...]] = [(1, 2), (0, 0, 3), (2,), ()]
    whole = divergences(policy, reference, prompts, completions, batch_size=4)
    each = [
        divergences(policy, reference, [prompt], [row], batch_size=1)[0]
        for prompt, row in zip(prompts, completions, strict=True)
    ]
    assert whole == each
    assert whole[3] == 0.0


def test_what_the_reference_never_writes_is_an_error_and_not_zero() -> None:
    with pytest.raises(ValueError, match=r"KL divergence of a sample of example 0 is inf"):
        figures(Table(1), Table(2, never=1), samples_per_example=2)
    assert figures(Table(2, never=1), Table(1), samples_per_example=2)["avg_kl"] > 0


def test_logits_that_are_no_numbers_are_an_error_and_not_zero() -> None:
    with pytest.raises(ValueError, match=r"KL divergence of a sample of example 0 is nan"):
        figures(Table(1), Table(2, sharp=math.nan), samples_per_example=2)


def test_standard_errors_are_over_examples() -> None:
    found = figures(Table(1), Table(2), samples_per_example=4)
    alone = [
        evaluate(
            Table(1),
            Table(2),
            Digits(),
            [example],
            scorer(),
            Evaluation(etas=(1.0,), samples_per_example=4),
            0,
            max_new_tokens=LONGEST,
            batch_size=16,
        )
        for example in EXAMPLES
    ]
    for name in ("avg_reward", "avg_kl", "pass@1", "maj@4"):
        values = np.array([each[name] for each in alone])
        assert found[name] == pytest.approx(values.mean())  # an example has the same samples alone
        assert found[f"{name}_se"] == pytest.approx(values.std(ddof=1) / np.sqrt(3))
        assert math.isnan(alone[0][f"{name}_se"])


def test_rewards_are_asked_for_in_batches() -> None:
    count = scorer(batch_size=7)
    evaluation = Evaluation(etas=(1.0,), samples_per_example=5)
    evaluate(
        Table(1), Table(2), Digits(), EXAMPLES, count, evaluation, 0, max_new_tokens=LONGEST, batch_size=16
    )
    assert count.calls == math.ceil(15 / 7)


def test_no_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="no examples"):
        evaluate(
            Table(1),
            Table(1),
            Digits(),
            [],
            scorer(),
            Evaluation(etas=(1.0,)),
            0,
            max_new_tokens=1,
            batch_size=1,
        )


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_shipped_reference_earns_what_its_file_states(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    tokenizer = load_tokenizer(EMBEDDED)
    model = load_model(EMBEDDED, device=torch.device(device))
    policy = Policy(model, end_id=tokenizer.end_id, pad_id=tokenizer.pad_id)
    found = evaluate(
        policy,
        policy,
        tokenizer,
        sums.examples("test"),
        Scorer(reward_of(SumsData()), 64),
        Evaluation(etas=(1.0,), samples_per_example=40),
        seed=1,
        max_new_tokens=sums.MAX_NEW_TOKENS,
        batch_size=256,
        answer=sums.answer,
    )
    assert found["avg_reward"] == pytest.approx(0.3781, abs=4 * math.sqrt(0.378 * 0.622 / (19 * 40)))
    assert found["avg_kl"] == 0.0
    assert found["maj@40"] > 0.95  # wrong sums are spread over 18 numbers


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_real_models_diverge_as_enumeration_says(family: Family, tmp_path: Path) -> None:
    folders = [tiny_model(family, tmp_path / str(seed), seed=seed, spread=0.3) for seed in (1, 2)]
    tokenizer = load_tokenizer(folders[0])
    policy, reference = (
        Policy(load_model(folder, device="cpu"), end_id=tokenizer.end_id, pad_id=tokenizer.pad_id)
        for folder in folders
    )
    examples = [Example(n, str(n), "", prompt) for n, prompt in enumerate(["7=", "12=", "+"])]
    found = evaluate(
        policy,
        reference,
        tokenizer,
        examples,
        Scorer(lambda _, texts: [float("3" in text) for text in texts], 32),
        Evaluation(etas=(1.0,), samples_per_example=200),
        0,
        max_new_tokens=2,
        batch_size=150,
    )
    prompts = [tokenizer.encode(example.prompt) for example in examples]
    size = {"vocabulary": tokenizer.size, "max_new_tokens": 2}
    mine, other = (enumerate_policy(each, prompts, **size) for each in (policy, reference))
    rewards = completion_rewards(
        ["", "", ""],
        lambda _, text: float("3" in text),
        tokenizer.decode,
        **size,
        end_id=tokenizer.end_id,
    )
    kl, reward = exact_kl(mine, other), exact_reward(mine, rewards)
    assert kl > 0.05
    # A divergence along a sample varies by no more than its mean here.
    assert found["avg_kl"] == pytest.approx(kl, abs=4 * kl / math.sqrt(600))
    assert found["avg_reward"] == pytest.approx(reward, abs=4 * math.sqrt(reward * (1 - reward) / 600))
