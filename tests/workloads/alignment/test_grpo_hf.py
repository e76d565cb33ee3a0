"""GRPO-HF: a reward model of the pairs of all rounds, and a policy that is trained on it alone."""

from pathlib import Path

import pytest
from stages import models_of, rounds_of, scorer_of, stage_of

from mgpu_nb.workloads.alignment import sums
from mgpu_nb.workloads.alignment.algorithms import grpo_hf as module
from mgpu_nb.workloads.alignment.algorithms.grpo_hf import GRPOHF
from mgpu_nb.workloads.alignment.exact import sums_frontier, sums_point
from mgpu_nb.workloads.alignment.preferences import preferences

SMALL = (
    "training.gradient_checkpointing=false", ".steps=2", ".prompts_per_step=2", ".group_size=4", ".batch_size=8",
    ".reward_epochs=1",
)  # fmt: skip


@pytest.mark.slow
def test_the_reward_of_the_data_set_is_not_asked_while_it_trains(tmp_path: Path) -> None:
    stage = stage_of("GRPO-HF", *SMALL)
    examples, scorer = sums.examples("train", 6), scorer_of(stage)
    pairs = GRPOHF().collect(stage, models_of(stage), examples, scorer)
    assert len(pairs) == 24
    calls, reports = scorer.calls, list[dict[str, float]]()
    models = models_of(stage, earlier=pairs[:12])
    done = GRPOHF().train(
        stage, models, pairs[12:], examples, scorer, tmp_path, lambda **figures: reports.append(figures)
    )
    assert scorer.calls == calls == 2
    assert not done.samples  # the data set is that of the pairs
    assert done.metrics["pairs"] == sum(sample.y_a != sample.y_b for sample in pairs)
    shares = [report["progress"] for report in reports]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert reports[-1]["step"] == done.trained_steps == 2
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_reward_model_tells_right_from_wrong() -> None:
    stage = stage_of(
        "GRPO-HF", "training.micro_batch_size=64", "training.gradient_checkpointing=false",
        "data_collection.bradley_terry_sampling=false",
    )  # fmt: skip
    models = models_of(stage)
    samples = GRPOHF().collect(stage, models, sums.examples("train", 128), scorer_of(stage))
    judge, loss = module._fitted(stage, models, preferences(samples), lambda **figures: None)
    assert loss < 0.69
    contexts, completions, rewards = [], [], []
    for example in sums.examples("test"):
        for text in ("3+4", "1+1", "5+5", "9+4", "8+8"):
            contexts.append(models.tokenizer.encode(example.prompt))
            completions.append([*models.tokenizer.encode(text), models.tokenizer.end_id])
            rewards.append(sums.reward(example.question, text))
    scores = judge.score(contexts, completions, 32)
    right = [score for score, reward in zip(scores, rewards, strict=True) if reward]
    wrong = [score for score, reward in zip(scores, rewards, strict=True) if not reward]
    above = sum(r > w for r in right for w in wrong) / (len(right) * len(wrong))
    assert above > 0.7


@pytest.mark.slow
def test_each_round_is_better_than_the_one_before(tmp_path: Path) -> None:
    """By exact rewards, of which the policy is told none, and below the exact frontier; reference 0.378."""
    stage = stage_of(
        "GRPO-HF", ".steps=60", "training.micro_batch_size=64", "training.gradient_checkpointing=false",
        "data_collection.bradley_terry_sampling=false", "generation.batch_size=64",
    )  # fmt: skip
    rewards = [0.378]
    for folder in rounds_of("GRPO-HF", stage, sums.examples("train", 256), tmp_path):
        kl, reward = sums_point(GRPOHF().policy(stage, models_of(stage), folder, None))
        assert reward <= sums_frontier().reward(kl) + 1e-6
        rewards.append(reward)
    assert rewards[1] > rewards[0] + 0.1
    assert rewards[2] > rewards[1] + 0.01
