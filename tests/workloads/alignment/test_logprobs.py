"""Log-probabilities by one pass, against a pass for each token, and their gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_language_models import FAMILY_PARAMS, tiny_model

from mgpu_nb.workloads.alignment.logprobs import token_logprobs
from mgpu_nb.workloads.alignment.models import checkpoint_activations, load_model

PROMPTS = [[1], [2, 3, 11], [9, 9, 9, 9, 9, 9, 10, 1, 11]]
COMPLETIONS = [(3, 4, 15), (), (5, 10, 6, 1, 2, 15)]


@pytest.fixture(scope="module", params=FAMILY_PARAMS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(request.param, tmp_path_factory.mktemp(request.param), spread=0.4)


def plainly(model: Any, prompt: list[int], completion: tuple[int, ...]) -> torch.Tensor:
    """Log-probability of each token, by a pass of the whole sequence before it."""
    found = []
    for n, token in enumerate(completion):
        ids = torch.tensor([[*prompt, *completion[:n]]])
        found.append(model(ids, attention_mask=torch.ones_like(ids)).logits[0, -1].log_softmax(0)[token])
    return torch.stack(found) if found else torch.zeros(0)


def test_one_pass_gives_what_a_pass_for_each_token_gives(folder: str) -> None:
    model = load_model(folder, device="cpu")
    for pad in (14, 3):
        found, kept = token_logprobs(model, PROMPTS, COMPLETIONS, pad)
        assert kept.tolist() == [[n < len(completion) for n in range(6)] for completion in COMPLETIONS]
        assert not found[~kept].any()
        for row, prompt, completion in zip(found, PROMPTS, COMPLETIONS, strict=True):
            torch.testing.assert_close(
                row[: len(completion)], plainly(model, prompt, completion), atol=1e-5, rtol=0
            )


def test_gradients_are_those_of_micro_batches_and_of_checkpoints(folder: str) -> None:
    def gradients(*parts: slice, checkpointing: bool = False) -> list[torch.Tensor]:
        model = load_model(folder, device="cpu", train=True)
        if checkpointing:
            checkpoint_activations(model)
        for part in parts:
            token_logprobs(model, PROMPTS[part], COMPLETIONS[part], 14)[0].sum().backward()
        return [weight.grad for weight in model.parameters() if weight.grad is not None]

    whole = gradients(slice(0, 3))
    assert whole
    for other in (
        gradients(slice(0, 1), slice(1, 2), slice(2, 3)),
        gradients(slice(0, 3), checkpointing=True),
    ):
        for one, two in zip(whole, other, strict=True):
            torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


def test_prompts_without_tokens_and_without_completions_are_refused(folder: str) -> None:
    model = load_model(folder, device="cpu")
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        token_logprobs(model, [[1], []], [(2,), (2,)], 14)
    with pytest.raises(ValueError, match="2 prompts and 1 completions"):
        token_logprobs(model, [[1], [2]], [(2,)], 14)
    found, _ = token_logprobs(model, [[1], [2] * 60], [(3,) * 20, (2,) * 4], 14)  # 80 columns
    assert found.isfinite().all()
    with pytest.raises(ValueError, match="of 65 tokens or more are longer than the model's context, 64"):
        token_logprobs(model, [[1], [2] * 61], [(2,), (2,) * 5], 14)
    with pytest.raises(ValueError, match="there are no prompts"):
        token_logprobs(model, [], [], 14)


def test_training_has_no_dropout(tmp_path: Path) -> None:
    model = load_model(tiny_model("gpt2", tmp_path), device="cpu", train=True)
    assert model.training
    assert all(weight.requires_grad for weight in model.parameters())
    first, second = (token_logprobs(model, PROMPTS, COMPLETIONS, 14)[0] for _ in range(2))
    assert torch.equal(first, second)
