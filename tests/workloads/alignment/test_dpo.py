"""DPO: pairs that a policy drew, its loss on them, and the policy that comes of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stages import models_of, scorer_of, stage_of
from tiny_language_models import CHARACTERS, tiny_model

from mgpu_nb.workloads.alignment import sums
from mgpu_nb.workloads.alignment.algorithms import dpo as module
from mgpu_nb.workloads.alignment.algorithms.dpo import DPO
from mgpu_nb.workloads.alignment.exact import sums_frontier, sums_point
from mgpu_nb.workloads.alignment.job import Sample
from mgpu_nb.workloads.alignment.logprobs import token_logprobs
from mgpu_nb.workloads.alignment.losses import dpo
from mgpu_nb.workloads.alignment.preferences import preferences

pytestmark = pytest.mark.slow

FAST = ("training.gradient_checkpointing=false", ".epochs=1", "data_collection.samples_per_example=2")
EXAMPLES = sums.examples("train", 6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model, whose completions are of unequal lengths and none of them right."""
    return tiny_model("gpt2", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def pairs(folder: str) -> list[Sample]:
    stage = stage_of("DPO", *FAST, folder=folder)
    return DPO().collect(stage, models_of(stage), EXAMPLES, scorer_of(stage))


def test_pairs_do_not_depend_on_their_chunk(folder: str, pairs: list[Sample]) -> None:
    stage = stage_of("DPO", *FAST, folder=folder)
    models, scorer = models_of(stage), scorer_of(stage)
    parts = [DPO().collect(stage, models, EXAMPLES[at : at + 2], scorer) for at in (0, 2, 4)]
    assert [sample for part in parts for sample in part] == pairs
    assert [(sample.index, sample.draw) for sample in pairs] == [(n, d) for n in range(6) for d in range(2)]
    assert scorer.calls == 3
    other = DPO().collect(replace(stage, seed=1), models, EXAMPLES, scorer)
    assert [sample.a_ids for sample in other] != [sample.a_ids for sample in pairs]
    assert {sample.preferred for sample in pairs} == {0, 1}  # all are ties: a coin


def test_the_reference_is_asked_once_and_stays(
    folder: str, pairs: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_of("DPO", *FAST, ".epochs=3", folder=folder)
    models = models_of(stage)
    before = {name: value.clone() for name, value in models.reference.state_dict().items()}
    asked: list[int] = []

    def counted(model: Any, prompts: Any, completions: Any, pad_id: int) -> Any:
        asked.append(len(completions))
        return token_logprobs(model, prompts, completions, pad_id)

    monkeypatch.setattr(module, "token_logprobs", counted)
    trained = DPO().train(stage, models, pairs, [], scorer_of(stage), tmp_path, lambda **figures: None)
    count = sum(sample.y_a != sample.y_b for sample in pairs)
    assert sum(asked) == 2 * count
    assert trained.metrics == {"pairs": count, "left_out": len(pairs) - count}
    for name, value in models.reference.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("sft", [0.0, 0.3])
def test_the_loss_is_the_formula(folder: str, pairs: list[Sample], tmp_path: Path, sft: float) -> None:
    """One step of all pairs, which begins at the reference."""
    stage = stage_of("DPO", *FAST, ".batch_size=24", ".beta=0.2", f".sft_weight={sft}", folder=folder)
    models, wanted = models_of(stage), []
    trained = DPO().train(stage, models, pairs, [], scorer_of(stage), tmp_path, lambda **figures: None)
    for sample in pairs:
        if sample.y_a != sample.y_b:
            both = [sample.a_ids, sample.b_ids][:: 1 - 2 * sample.preferred]
            logps, _ = token_logprobs(
                models.reference, [sample.prompt_ids] * 2, both, models.tokenizer.pad_id
            )
            chosen, rejected = logps.sum(1)
            loss = dpo(chosen, rejected, chosen, rejected, 0.2)
            wanted.append(float(loss - sft * chosen / len(both[0])))
    assert trained.loss == pytest.approx(np.mean(wanted), rel=1e-5)


def test_gradients_do_not_depend_on_what_splits_a_batch(folder: str, pairs: list[Sample]) -> None:
    found = []
    for size, checkpointing in ((24, "false"), (3, "false"), (4, "true"), (1, "true")):
        stage = stage_of("DPO", f"training.gradient_checkpointing={checkpointing}", folder=folder)
        models = models_of(stage)
        model = DPO().trainable(stage, models)
        assert model.training
        rows = module._rows(models, preferences(pairs), size)
        collate = module._Collate(models.tokenizer.pad_id)
        for at in range(0, len(rows), size):
            part = module._loss(model, collate(rows[at : at + size]), 0.1, 0.3).sum() / len(rows)
            part.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    for gradient in found[1:]:
        torch.testing.assert_close(gradient, found[0], atol=1e-6 * float(found[0].norm()), rtol=0)


def test_the_next_round_begins_where_this_one_ended(folder: str, pairs: list[Sample], tmp_path: Path) -> None:
    stage = stage_of("DPO", *FAST, ".learning_rate=0.05", folder=folder)
    first, second = tmp_path / "1", tmp_path / "2"
    report: list[dict[str, float]] = []
    trained = DPO().train(
        stage, models_of(stage), pairs, [], scorer_of(stage), first, lambda **figures: report.append(figures)
    )
    assert trained.trained_steps == report[-1]["step"] == 1
    later = replace(stage, job=replace(stage.job, round=2), algo=replace(stage.algo, learning_rate=1e-12))
    models = models_of(later, first)
    drawn = DPO().collect(later, models, EXAMPLES, scorer_of(later))
    assert [sample.a_ids for sample in drawn] != [sample.a_ids for sample in pairs]
    DPO().train(later, models, drawn, [], scorer_of(later), second, lambda **figures: None)
    one, other = (DPO().policy(stage, models, path, None).model.state_dict() for path in (first, second))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, msg=name)


def test_a_policy_is_a_folder_that_transformers_reads(
    folder: str, pairs: list[Sample], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    stage = stage_of("DPO", *FAST, folder=folder)
    models = models_of(stage)
    DPO().train(stage, models, pairs, [], scorer_of(stage), tmp_path, lambda **figures: None)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    assert AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)("3+4").input_ids == [
        CHARACTERS.index(c) for c in "3+4"
    ]
    policy = DPO().policy(stage, models, tmp_path, None)
    for name, value in model.state_dict().items():
        assert torch.equal(value, policy.model.state_dict()[name]), name
    assert DPO().policy(stage, models, None, None).model is models.reference


@pytest.mark.slow
def test_each_round_is_better_than_the_one_before(tmp_path: Path) -> None:
    """By exact rewards, and below the exact frontier; reference 0.378."""
    fast = ("training.gradient_checkpointing=false", "training.micro_batch_size=24")
    before, rewards = None, [0.378]
    for number in (1, 2):
        stage = stage_of("DPO", *fast, "data_collection.bradley_terry_sampling=false", round=number)
        models, into = models_of(stage, before), tmp_path / str(number)
        drawn = DPO().collect(stage, models, sums.examples("train", 96), scorer_of(stage))
        DPO().train(stage, models, drawn, [], scorer_of(stage), into, lambda **figures: None)
        kl, reward = sums_point(DPO().policy(stage, models, into, None))
        assert reward <= sums_frontier().reward(kl) + 1e-6
        rewards.append(reward)
        before = into
    assert rewards[1] > rewards[0] + 0.2
    assert rewards[2] > rewards[1] + 0.02


def test_twice_the_same_text_is_no_preference(folder: str, pairs: list[Sample], tmp_path: Path) -> None:
    stage = stage_of("DPO", *FAST, folder=folder)
    same = [sample._replace(y_b=sample.y_a, b_ids=sample.a_ids) for sample in pairs]
    with pytest.raises(ValueError, match="each of the 12 pairs is twice the same text"):
        DPO().train(stage, models_of(stage), same, [], scorer_of(stage), tmp_path, lambda **figures: None)
