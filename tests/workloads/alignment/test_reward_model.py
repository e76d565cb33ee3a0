"""A reward model: scores by the last token, whatever the batch, fitted to preferences."""

from pathlib import Path

import pytest
import torch
from tiny_language_models import FAMILIES, Family, tiny_model

from mgpu_nb.workloads.alignment.batches import Tokens
from mgpu_nb.workloads.alignment.models import load_model
from mgpu_nb.workloads.alignment.preferences import Preference
from mgpu_nb.workloads.alignment.reward_model import CollatePairs, RewardModel, preference_loss

END = 14


def reward_model(folder: Path, family: Family = "gpt2") -> RewardModel:
    model = RewardModel(
        load_model(tiny_model(family, folder), device="cpu", train=True).base_model, end_id=END, pad_id=0
    )
    with torch.no_grad():
        model.head.normal_(generator=torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_score_depends_on_its_text_alone(family: Family, tmp_path: Path) -> None:
    model = reward_model(tmp_path, family)
    contexts, completions = [(1, 2), (3,), (4, 5, 6, 7), (1, 2)], [(3, 4), (5,), (6,), (3, 5)]
    together = model.score(contexts, completions, 4)
    assert model.score(contexts, completions, 3) == pytest.approx(together, abs=1e-4)
    assert model.score(contexts[1:2], completions[1:2], 1) == pytest.approx(together[1:2], abs=1e-4)
    assert len({round(score, 4) for score in together}) == 4


def test_the_first_loss_is_log_2_and_pulls_the_chosen_up(tmp_path: Path) -> None:
    model = reward_model(tmp_path)
    with torch.no_grad():
        model.head.zero_()
    pairs = [Preference((1, 2), (3, 4), (5,)), Preference((6,), (7, 8, 9), (1, 1))]
    batch = model.collate(pairs)
    loss = preference_loss(model, batch)
    assert loss.tolist() == pytest.approx([0.6931472] * 2)
    loss.sum().backward()
    assert model.head.grad is not None
    with torch.no_grad():
        model.head.sub_(0.01 * model.head.grad)
    assert (preference_loss(model, batch) < loss).all()
    scores = model(Tokens(batch["ids"], batch["mask"], batch["positions"])).tolist()
    assert scores == pytest.approx(model.score([(1, 2), (6,)] * 2, [(3, 4), (7, 8, 9), (5,), (1, 1)], 4))


def test_a_completion_that_was_cut_off_is_scored_as_one_that_ended(tmp_path: Path) -> None:
    model = reward_model(tmp_path)
    ended, cut = model.score([(1, 2)] * 2, [(3, 4, END), (3, 4)], 2)
    assert cut == pytest.approx(ended, abs=1e-6)
    pairs = [Preference((1, 2), (3, 4, END), (3, 4))]
    assert preference_loss(model, model.collate(pairs)).item() == pytest.approx(0.6931472)


def test_an_end_token_stays_within_the_context() -> None:
    collate = CollatePairs(END, 0, 4)
    assert collate.row((1, 2), (3, 4)) == (2, 3, 4, END)
    assert collate.row((1, 2), (3, END)) == (1, 2, 3, END)
    assert CollatePairs(END, 0, None).row((1, 2), (3, 4)) == (1, 2, 3, 4, END)
