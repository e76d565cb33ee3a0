"""GRPO: what it draws while it trains, its updates, and the policy that comes of them."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stages import models_of, scorer_of, stage_of
from tiny_language_models import tiny_model

from mgpu_nb.workloads.alignment import sums
from mgpu_nb.workloads.alignment.algorithms import grpo as module
from mgpu_nb.workloads.alignment.algorithms.base import Models, Stage, Trained
from mgpu_nb.workloads.alignment.algorithms.grpo import GRPO
from mgpu_nb.workloads.alignment.exact import sums_frontier, sums_point
from mgpu_nb.workloads.alignment.generate import Policy
from mgpu_nb.workloads.alignment.losses import grpo
from mgpu_nb.workloads.alignment.rewards import Scorer

pytestmark = pytest.mark.slow

SMALL = (
    "training.gradient_checkpointing=false", ".steps=3", ".prompts_per_step=4", ".group_size=3", ".batch_size=6",
    "training.micro_batch_size=3", ".learning_rate=0.01",
)  # fmt: skip
EXAMPLES = sums.examples("train", 6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model("gpt2", tmp_path_factory.mktemp("tiny"))


def marks(examples: Any, texts: Any) -> list[float]:
    """A reward that the random model gets in part."""
    return [sum(map(ord, text)) % 7 / 7 for text in texts]


def trained(stage: Stage, into: Path, models: Models | None = None) -> tuple[Trained, list[dict[str, float]]]:
    reports: list[dict[str, float]] = []
    models = models or models_of(stage)
    scorer = Scorer(marks, stage.data_collection.reward_batch_size)
    done = GRPO().train(stage, models, [], EXAMPLES, scorer, into, lambda **figures: reports.append(figures))
    return done, reports


def weights(stage: Stage, folder: Path) -> torch.Tensor:
    model = GRPO().policy(stage, models_of(stage), folder, None).model
    return torch.cat([p.flatten() for p in model.parameters()])


def test_samples_are_what_it_drew(folder: str, tmp_path: Path) -> None:
    stage = stage_of("GRPO", *SMALL, folder=folder)
    done, reports = trained(stage, tmp_path)
    assert len(done.samples) == 3 * 4 * 3
    places = Counter(sample.index for sample in done.samples)
    assert set(places.values()) == {6}  # 12 places for 6 examples, all in turn
    for index, count in places.items():
        assert [s.draw for s in done.samples if s.index == index] == list(range(count))
    for sample in done.samples:
        assert [sample.score_a] == marks(None, [sample.y_a])
        assert math.isnan(sample.score_b)
        assert (sample.preferred, sample.y_b, sample.b_ids) == (-1, "", ())
    # The first step draws from the reference: what its seed alone decides.
    models, first = models_of(stage), done.samples[:12]
    policy = Policy(models.reference, end_id=models.tokenizer.end_id, pad_id=models.tokenizer.pad_id)
    again = policy.generate(
        [sample.prompt_ids for sample in first],
        [stage.seed_of(sample.index, sample.draw, module.DRAW) for sample in first],
        max_new_tokens=stage.generation.max_new_tokens,
        batch_size=8,
    )
    assert again == [sample.a_ids for sample in first]
    assert done.trained_steps == 3 * 2
    assert [report["step"] for report in reports] == [2, 4, 6]
    assert reports[-1]["progress"] == 1.0
    assert reports[0]["reward"] == pytest.approx(sum(sample.score_a for sample in first) / 12)
    assert reports[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert reports[2]["kl"] > 1e-3


def test_rewards_are_asked_in_batches(folder: str, tmp_path: Path) -> None:
    stage = stage_of("GRPO", *SMALL, "data_collection.reward_batch_size=5", folder=folder)
    scorer = Scorer(marks, stage.data_collection.reward_batch_size)
    GRPO().train(stage, models_of(stage), [], EXAMPLES, scorer, tmp_path, lambda **figures: None)
    assert scorer.calls == 3 * math.ceil(12 / 5)


def test_gradients_do_not_depend_on_what_splits_a_batch(folder: str) -> None:
    found = []
    for size, checkpointing in ((12, "false"), (5, "false"), (3, "true")):
        stage = stage_of("GRPO", *SMALL, f"training.gradient_checkpointing={checkpointing}", folder=folder)
        stage = replace(stage, training=replace(stage.training, micro_batch_size=size))
        models = models_of(stage)
        model, pad_id = GRPO().trainable(stage, models), models.tokenizer.pad_id
        prompts = [tuple(models.tokenizer.encode(example.prompt)) for example in EXAMPLES[:4]]
        rollouts = module._drawn(stage, models, models.reference, EXAMPLES[:4], prompts, Counter())
        experience = module._experience(stage, models, model, rollouts, marks(None, rollouts.texts))
        shifted = experience._replace(old=[row + 0.3 * (-1) ** n for n, row in enumerate(experience.old)])
        for part in module._parts(stage, model, shifted, range(12), pad_id):
            part.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    for gradient in found[1:]:
        torch.testing.assert_close(gradient, found[0], atol=1e-6 * float(found[0].norm()), rtol=0)


def test_the_seed_decides(folder: str, tmp_path: Path) -> None:
    stage = stage_of("GRPO", *SMALL, folder=folder)
    one, _ = trained(stage, tmp_path / "1")
    two, _ = trained(stage, tmp_path / "2")
    other, _ = trained(replace(stage, seed=1), tmp_path / "3")
    assert str(one) == str(two)  # NaN is not NaN
    assert torch.equal(weights(stage, tmp_path / "1"), weights(stage, tmp_path / "2"))
    assert [s.a_ids for s in one.samples] != [s.a_ids for s in other.samples]


def test_passes_use_the_ratio_to_the_policy_that_drew(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old log-probabilities are of the step's beginning: the ratio is 1 at its first update, and not at later ones."""
    ratios: list[float] = []

    def seen(logps: Any, old: Any, *rest: Any, **options: Any) -> Any:
        ratios.append(float((logps - old).detach().abs().max()))
        return grpo(logps, old, *rest, **options)

    monkeypatch.setattr(module, "grpo", seen)
    stage = stage_of("GRPO", *SMALL, ".iterations=3", ".batch_size=12", ".steps=2", folder=folder)
    stage = replace(stage, training=replace(stage.training, micro_batch_size=12))
    done, _ = trained(stage, tmp_path)
    assert done.trained_steps == 6
    assert [ratio < 1e-4 for ratio in ratios] == [True, False, False] * 2


@pytest.mark.slow
def test_processes_that_prepare_prompts_change_nothing(folder: str, tmp_path: Path) -> None:
    found = []
    for number in (0, 2):
        stage = stage_of("GRPO", *SMALL, f".num_workers={number}", folder=folder)
        trained(stage, tmp_path / str(number))
        found.append(weights(stage, tmp_path / str(number)))
    assert torch.equal(*found)


def test_the_next_round_begins_where_this_one_ended(folder: str, tmp_path: Path) -> None:
    stage = stage_of("GRPO", *SMALL, folder=folder)
    trained(stage, tmp_path / "1")
    later = replace(stage, job=replace(stage.job, round=2), algo=replace(stage.algo, learning_rate=1e-12))
    _, reports = trained(later, tmp_path / "2", models_of(later, tmp_path / "1"))
    torch.testing.assert_close(weights(stage, tmp_path / "1"), weights(stage, tmp_path / "2"))
    assert reports[0]["kl"] > 1e-3  # from the original reference


@pytest.mark.slow
def test_each_round_is_better_than_the_one_before(tmp_path: Path) -> None:
    """By exact rewards, and below the exact frontier; reference 0.378."""
    stage = stage_of(
        "GRPO", ".steps=6", ".prompts_per_step=32", ".batch_size=64", ".iterations=4",
        "training.gradient_checkpointing=false", "training.micro_batch_size=64", "generation.batch_size=256",
    )  # fmt: skip
    rewards, previous = [0.378], None
    for number in (1, 2):
        now, into = replace(stage, job=replace(stage.job, round=number)), tmp_path / str(number)
        models = models_of(now, previous)
        done = GRPO().train(
            now, models, [], sums.examples("train", 128), scorer_of(now), into, lambda **figures: None
        )
        kl, reward = sums_point(GRPO().policy(now, models, into, None))
        assert reward <= sums_frontier().reward(kl) + 1e-6
        assert done.metrics["train_reward"] == pytest.approx(reward, abs=0.1)
        assert done.metrics["train_kl"] == pytest.approx(kl, rel=0.4)
        rewards.append(reward)
        previous = into
    assert rewards[1] > rewards[0] + 0.2
    assert rewards[2] > rewards[1] + 0.02
