"""Q# and PITA: what their data are, what a training makes of them, and how near the optimum the policy comes."""

import math
import multiprocessing
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from stages import models_of, rounds_of, scorer_of, stage_of
from tiny_language_models import tiny_model

from mgpu_nb import GPUPool, Task, worker
from mgpu_nb.workloads.alignment import sums
from mgpu_nb.workloads.alignment.algorithms.base import Stage, Trained
from mgpu_nb.workloads.alignment.algorithms.value_guided import PITA, QSharp, ValueGuided
from mgpu_nb.workloads.alignment.batches import left_padded
from mgpu_nb.workloads.alignment.exact import success, sums_frontier, sums_point, sums_reference
from mgpu_nb.workloads.alignment.generate import Policy
from mgpu_nb.workloads.alignment.job import Example, Sample
from mgpu_nb.workloads.alignment.rewards import Scorer
from mgpu_nb.workloads.alignment.value import ValueModel

pytestmark = pytest.mark.slow

BOTH: list[ValueGuided] = [QSharp(), PITA()]
EXAMPLES = sums.examples("train", 10)
SMALL = (".batch_size=8", "training.micro_batch_size=8", ".epochs=2", "data_collection.samples_per_example=3")


def stage(algorithm: ValueGuided, *overrides: str, round: int = 1, seed: int = 0) -> Stage:
    return stage_of(algorithm.name, *SMALL, *overrides, round=round, seed=seed)


def quiet(**metrics: float) -> None:
    """Nobody listens."""


def collected(algorithm: ValueGuided, at: Stage, examples: Sequence[Example] = EXAMPLES) -> list[Sample]:
    return algorithm.collect(at, models_of(at), examples, scorer_of(at))


def trained(
    algorithm: ValueGuided,
    at: Stage,
    folder: Path,
    samples: Sequence[Sample],
    previous: Path | None = None,
    earlier: Sequence[Sample] = (),
) -> Trained:
    folder.mkdir(parents=True, exist_ok=True)
    return algorithm.train(
        at, models_of(at, previous, earlier), samples, EXAMPLES, scorer_of(at), folder, quiet
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return ValueModel.load(folder, "cpu").state_dict()


def same(one: Path, other: Path) -> bool:
    return all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())


@pytest.fixture(scope="module")
def samples() -> dict[str, list[Sample]]:
    return {algorithm.name: collected(algorithm, stage(algorithm)) for algorithm in BOTH}


# --- data ---


@pytest.mark.parametrize("algorithm", BOTH, ids=lambda a: a.name)
def test_a_context_is_the_prompt_and_a_cut_beginning(
    algorithm: ValueGuided, samples: dict[str, list[Sample]]
) -> None:
    found = samples[algorithm.name]
    assert [(s.index, s.draw) for s in found] == [(e.index, draw) for e in EXAMPLES for draw in range(3)]
    tokenizer = models_of(stage(algorithm)).tokenizer
    for sample in found:
        assert sample.context_ids[: len(sample.prompt_ids)] == sample.prompt_ids
        assert len(sample.context_ids) == len(sample.prompt_ids) + sample.t
        assert tokenizer.end_id not in sample.context_ids
        assert sample.context == tokenizer.decode(sample.context_ids)
        assert sample.y_a == tokenizer.decode(sample.a_ids)
        assert 1 <= len(sample.a_ids) <= sums.MAX_NEW_TOKENS - sample.t
        whole = tokenizer.decode(sample.context_ids[len(sample.prompt_ids) :] + sample.a_ids)
        assert sample.score_a == sums.reward(sample.question, whole)
    assert {sample.t for sample in found} == {0, 1, 2, 3}


def test_data_of_q_are_one_completion(samples: dict[str, list[Sample]]) -> None:
    for sample in samples["QSharp"]:
        assert (sample.y_b, sample.b_ids, sample.preferred) == ("", (), -1)
        assert math.isnan(sample.score_b)


def test_data_of_pita_are_a_greedy_and_a_drawn_completion(samples: dict[str, list[Sample]]) -> None:
    models = models_of(stage(PITA()))
    reference = Policy(models.reference, end_id=models.tokenizer.end_id, pad_id=models.tokenizer.pad_id)
    for sample in samples["PITA"]:
        left = sums.MAX_NEW_TOKENS - sample.t
        assert (
            reference.generate([sample.context_ids], None, max_new_tokens=left, batch_size=1)[0]
            == sample.a_ids
        )
        assert 1 <= len(sample.b_ids) <= left
        assert sample.preferred in (0, 1)
    assert any(sample.a_ids != sample.b_ids for sample in samples["PITA"])


@pytest.mark.parametrize("algorithm", BOTH, ids=lambda a: a.name)
def test_data_are_the_same_in_any_chunks(
    algorithm: ValueGuided, samples: dict[str, list[Sample]], tmp_path: Path
) -> None:
    at = stage(algorithm)
    for size in (1, 3):
        chunks = [EXAMPLES[n : n + size] for n in range(0, len(EXAMPLES), size)]
        found = [sample for chunk in chunks for sample in collected(algorithm, at, chunk)]
        assert repr(found) == repr(samples[algorithm.name])
    trained(algorithm, at, tmp_path, samples[algorithm.name])
    later = stage(algorithm, round=2)
    whole, *parts = (
        algorithm.collect(later, models_of(later, tmp_path), some, scorer_of(later))
        for some in (EXAMPLES, EXAMPLES[:4], EXAMPLES[4:])
    )
    assert repr(whole) == repr([sample for part in parts for sample in part])


@pytest.mark.parametrize("algorithm", BOTH, ids=lambda a: a.name)
def test_data_depend_on_seed_and_round(algorithm: ValueGuided, samples: dict[str, list[Sample]]) -> None:
    first = repr(samples[algorithm.name])
    assert repr(collected(algorithm, stage(algorithm, seed=1))) != first
    assert repr(collected(algorithm, stage(algorithm, round=2))) != first


@pytest.mark.parametrize(("algorithm", "texts"), [(QSharp(), 30), (PITA(), 60)], ids=["QSharp", "PITA"])
def test_rewards_are_asked_for_in_batches(algorithm: ValueGuided, texts: int) -> None:
    at = stage(algorithm, "data_collection.reward_batch_size=7")
    scorer = scorer_of(at)
    algorithm.collect(at, models_of(at), EXAMPLES, scorer)
    assert scorer.calls == math.ceil(texts / 7)


def test_a_later_round_rolls_in_with_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the reference completes, so that no completion has the guide's hand in it."""
    algorithm = QSharp()
    at = stage(algorithm)
    trained(algorithm, at, tmp_path, collected(algorithm, at))
    asked: list[tuple[bool, int]] = []
    generate = Policy.generate

    def recorded(self: Policy, prompts: Sequence[Sequence[int]], *args: object, **kwargs: object) -> object:
        asked.append((self.guidance is not None, len(prompts)))
        return generate(self, prompts, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Policy, "generate", recorded)
    later = stage(algorithm, round=2)
    algorithm.collect(later, models_of(later, tmp_path), EXAMPLES, scorer_of(later))
    assert asked[0] == (True, 30)
    assert all(not guided for guided, _ in asked[1:])
    assert sum(count for _, count in asked[1:]) == 30


def preferred_shares(*overrides: str) -> dict[tuple[float, float], tuple[float, int]]:
    """Share of the drawn completions that are preferred, and their number, by rewards."""
    algorithm = PITA()
    at = stage(algorithm, "data_collection.samples_per_example=20", *overrides)
    found: dict[tuple[float, float], list[int]] = {}
    for sample in collected(algorithm, at, sums.examples("train", 40)):
        found.setdefault((sample.score_a, sample.score_b), []).append(sample.preferred)
    return {scores: (float(np.mean(choices)), len(choices)) for scores, choices in found.items()}


def test_preferences_are_drawn_by_their_rewards() -> None:
    for (a, b), (share, count) in preferred_shares("data_collection.beta=2").items():
        expected = 1 / (1 + math.exp(2 * (a - b)))
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / count)


def test_the_better_is_preferred_and_ties_are_even() -> None:
    shares = preferred_shares("data_collection.bradley_terry_sampling=false", "generation.temperature=1.5")
    assert {(0.0, 0.0), (1.0, 1.0), (1.0, 0.0)} <= set(shares)
    for (a, b), (share, count) in shares.items():
        if a == b:
            assert abs(share - 0.5) < 4 * 0.5 / math.sqrt(count)
        else:
            assert share == float(b > a)


@pytest.mark.parametrize(
    ("algorithm", "overrides", "reward", "message"),
    [
        (QSharp(), (), 0.5, "law=bernoulli takes rewards of 0 and 1"),
        (QSharp(), (".law=categorical",), 1.5, r"law=categorical takes rewards in \[0, 1\]"),
        (QSharp(), (".law=categorical",), 0.5, None),
        (PITA(), (), -3.5, None),
    ],
)
def test_rewards_that_a_law_does_not_take_are_refused(
    algorithm: ValueGuided, overrides: tuple[str, ...], reward: float, message: str | None
) -> None:
    at = stage(algorithm, *overrides)
    scorer = Scorer(lambda examples, texts: [reward] * len(texts), 32)
    if message is None:
        assert len(algorithm.collect(at, models_of(at), EXAMPLES[:2], scorer)) == 6
    else:
        with pytest.raises(ValueError, match=message):
            algorithm.collect(at, models_of(at), EXAMPLES[:2], scorer)


# --- training ---


@pytest.mark.parametrize("algorithm", BOTH, ids=lambda a: a.name)
def test_memory_and_loading_change_nothing(
    algorithm: ValueGuided, samples: dict[str, list[Sample]], tmp_path: Path
) -> None:
    """The same weights, bit for bit: as micro-batches with what is added up in another order, to rounding."""
    ways = {
        "once": (),
        "again": (),
        "checkpointed": ("training.gradient_checkpointing=true",),
        "loaded": (".num_workers=2",),
        "micro": ("training.micro_batch_size=2",),
    }
    done = {}
    for way, overrides in ways.items():
        at = stage(algorithm, "training.gradient_checkpointing=false", *overrides)
        done[way] = trained(algorithm, at, tmp_path / way, samples[algorithm.name])
    assert not multiprocessing.active_children()
    for way in ("again", "checkpointed", "loaded"):
        assert same(tmp_path / "once", tmp_path / way)
        assert done[way] == done["once"]
    assert done["micro"].loss == pytest.approx(done["once"].loss, rel=1e-4)
    for name, value in weights(tmp_path / "once").items():
        torch.testing.assert_close(weights(tmp_path / "micro")[name], value, atol=2e-3, rtol=0)


def test_the_seed_decides_the_order(samples: dict[str, list[Sample]], tmp_path: Path) -> None:
    for seed in (0, 1):
        trained(QSharp(), stage(QSharp(), seed=seed), tmp_path / str(seed), samples["QSharp"])
    assert not same(tmp_path / "0", tmp_path / "1")


def test_steps_and_reports(samples: dict[str, list[Sample]], tmp_path: Path) -> None:
    at = stage(QSharp(), ".epochs=3", ".batch_size=16", "training.micro_batch_size=4")
    told: list[dict[str, float]] = []
    done = QSharp().train(
        at,
        models_of(at),
        samples["QSharp"],
        EXAMPLES,
        scorer_of(at),
        tmp_path,
        lambda **metrics: told.append(metrics),
    )
    assert done.trained_steps == 6  # 30 completions are 2 steps an epoch
    assert done.metrics == {"completions": 30, "left_out": 0}
    assert [report["step"] for report in told] == [1, 2, 3, 4, 5, 6]
    assert [report["progress"] for report in told] == [n / 6 for n in range(1, 7)]
    assert done.loss == pytest.approx(np.mean([report["loss"] for report in told[-2:]]))
    assert told[0]["loss"] == pytest.approx(math.log(2))  # all values are zero


@pytest.mark.parametrize("algorithm", BOTH, ids=lambda a: a.name)
def test_a_round_goes_on_from_the_one_before(
    algorithm: ValueGuided, samples: dict[str, list[Sample]], tmp_path: Path
) -> None:
    """Its first loss, of all data, is that of the guide that the round before has left."""
    mine = samples[algorithm.name]
    first = trained(algorithm, stage(algorithm, ".learning_rate=1e-4", ".epochs=20"), tmp_path / "1", mine)
    later = stage(algorithm, ".learning_rate=1e-12", ".epochs=1", round=2)
    again = trained(algorithm, later, tmp_path / "2", mine, tmp_path / "1", earlier=mine)
    assert again.metrics["completions"] == 2 * first.metrics["completions"]
    assert again.loss < 0.9 * math.log(2)
    anew = trained(algorithm, later, tmp_path / "anew", mine, None, earlier=mine)
    assert anew.loss == pytest.approx(math.log(2))
    assert same(tmp_path / "1", tmp_path / "2") or again.loss < anew.loss


def test_another_law_does_not_go_on(samples: dict[str, list[Sample]], tmp_path: Path) -> None:
    at = stage(QSharp())
    trained(QSharp(), at, tmp_path, samples["QSharp"])
    other = stage(QSharp(), ".law=categorical", round=2)
    with pytest.raises(ValueError, match="law=bernoulli, atoms=1, and the settings say law=categorical"):
        QSharp().policy(other, models_of(other), tmp_path, 3.0)


def test_a_guide_may_be_another_model(samples: dict[str, list[Sample]], tmp_path: Path) -> None:
    at = stage(QSharp())
    small = tiny_model("llama", tmp_path / "guide", hidden=8, layers=1, characters=sums.TOKENS[:12])
    at = Stage(**{**vars(at), "pair": at.pair.__class__("mixed", at.pair.reference, small)})
    trained(QSharp(), at, tmp_path / "1", samples["QSharp"])
    policy = QSharp().policy(at, models_of(at), tmp_path / "1", 3.0)
    assert policy.generate([[3, 11]], None, max_new_tokens=4, batch_size=1)


def _trained_by_a_worker(samples: list[Sample], folder: Path) -> tuple[float, int]:
    at = stage(QSharp(), ".num_workers=2")
    folder.mkdir()
    done = QSharp().train(at, models_of(at), samples, EXAMPLES, scorer_of(at), folder, worker().report)
    return done.loss, len(multiprocessing.active_children())


@pytest.mark.slow
def test_a_task_of_a_pool_may_have_processes_that_load(
    samples: dict[str, list[Sample]], tmp_path: Path
) -> None:
    mine = samples["QSharp"]
    here = trained(QSharp(), stage(QSharp()), tmp_path / "here", mine)
    with GPUPool("cpu", slots=1) as pool:
        run = pool.run([Task(_trained_by_a_worker, mine, tmp_path / "there", name="train")])
        run.wait()
        record = run.records[0]
    assert record.ok, record.error
    assert record.value == (here.loss, 0)
    assert same(tmp_path / "here", tmp_path / "there")


# --- what comes of it, on the embedded task, where the best is known ---


@pytest.mark.parametrize(
    ("algorithm", "draws", "eta", "least"),
    [(QSharp(), 8, 3.0, (0.6, 0.75)), (PITA(), 24, 8.0, (0.8, 0.88))],
    ids=["QSharp", "PITA"],
)
def test_each_round_is_better_and_none_above_the_frontier(
    algorithm: ValueGuided, draws: int, eta: float, least: tuple[float, float], tmp_path: Path
) -> None:
    """As ``--profile embedded``, with less data."""
    at = stage_of(
        algorithm.name, f"data_collection.samples_per_example={draws}", ".epochs=4", profile=("embedded",)
    )
    folders = rounds_of(algorithm.name, at, sums.examples("train", 128), tmp_path)
    models, frontier = models_of(at), sums_frontier()
    rewards = []
    for folder in folders:
        kl, reward = sums_point(algorithm.policy(at, models, folder, eta))
        assert reward <= frontier.reward(kl) + 1e-5
        rewards.append(reward)
    assert frontier.at(0).reward < rewards[0] < rewards[1]
    assert all(reward >= wanted for reward, wanted in zip(rewards, least, strict=True))


def test_a_penalty_keeps_values_small(samples: dict[str, list[Sample]], tmp_path: Path) -> None:
    sizes = []
    for number, penalty in enumerate((0.0, 0.1, 10.0)):
        at = stage(PITA(), f".value_penalty={penalty}", ".learning_rate=1e-4", ".epochs=5")
        trained(PITA(), at, tmp_path / str(number), samples["PITA"])
        sizes.append(weights(tmp_path / str(number))["weight"].norm().item())
    assert sizes[0] > sizes[1] > sizes[2] > 0


@pytest.mark.slow
def test_what_q_learns_is_the_value_of_the_reference(tmp_path: Path) -> None:
    """Rank correlation of the learned and the exact logit of success, over tokens that the reference writes."""
    at = stage_of("QSharp", "data_collection.samples_per_example=16", ".epochs=4", profile=("embedded",))
    folder = rounds_of("QSharp", at, sums.examples("train", 128), tmp_path, rounds=1)[0]
    model = ValueModel.load(folder, "cpu")
    tree, rewards = sums_reference()
    exact = success(tree, rewards)
    generator = np.random.default_rng(0)
    learned, true = [], []
    for number in sums.NUMBERS:
        prompt = sums.encode(sums.prompt(number))
        for _ in range(20):
            written: list[int] = []
            place = 0
            for level in range(sums.MAX_NEW_TOKENS):
                shares = tree.log_probs[level][number, place].exp().numpy()
                token = int(generator.choice(len(shares), p=shares / shares.sum()))
                tokens = left_padded([prompt + written], 13, torch.device("cpu"))
                with torch.no_grad():
                    learned.append(float(model.values(model.features(tokens, None, 1))[0, 0, token, 0]))
                true.append(float(exact[level][number, place, token]))
                if token == tree.end_id:
                    break
                written.append(token)
                others = [other for other in range(len(shares)) if other != tree.end_id]
                place = place * len(others) + others.index(token)
    assert pd.Series(learned).rank().corr(pd.Series(true).rank()) > 0.8
