"""Completions: batches, padding, caches and sampling, against transformers and plain formulas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tiny_language_models import FAMILY_PARAMS, tiny_model

from mgpu_nb.workloads.alignment.batches import Tokens, new_cache, run_model
from mgpu_nb.workloads.alignment.generate import Policy
from mgpu_nb.workloads.alignment.logprobs import token_logprobs
from mgpu_nb.workloads.alignment.models import checkpoint_activations, load_model, load_tokenizer

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

PROMPTS = [[1], [2, 3, 11], [4, 10, 5, 5, 11], [9, 9, 9, 9, 9, 9, 10, 1, 11], [0]]


@pytest.fixture(scope="module", params=FAMILY_PARAMS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def policy(folder: str) -> Policy:
    return policy_of(folder)


def policy_of(folder: str, attn_impl: str = "eager") -> Policy:
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, device="cpu", attn_impl=attn_impl)
    return Policy(model, end_id=tokenizer.end_id, pad_id=tokenizer.pad_id)


def test_greedy_completions_are_those_of_transformers_whatever_is_beside_them(policy: Policy) -> None:
    together = policy.generate(PROMPTS, None, max_new_tokens=12, batch_size=8)
    for prompt, completion in zip(PROMPTS, together, strict=True):
        assert policy.generate([prompt], None, max_new_tokens=12, batch_size=1) == [completion]
        ids = torch.tensor([prompt])
        written = policy.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12
        )
        assert tuple(written[0, len(prompt) :].tolist()) == completion
    assert len(set(together)) == len(together)


@pytest.mark.parametrize("attn_impl", ["eager", "sdpa"])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_samples_depend_on_their_seed_and_prompt_alone(folder: str, attn_impl: str, top_p: float) -> None:
    policy, seeds = policy_of(folder, attn_impl), [(5, n) for n in range(5)]

    def drawn(order: Sequence[int], batch_size: int, longest: int = 12) -> list[tuple[int, ...]]:
        return policy.generate(
            [PROMPTS[n] for n in order],
            [seeds[n] for n in order],
            max_new_tokens=longest,
            temperature=0.8,
            top_p=top_p,
            batch_size=batch_size,
        )

    together = drawn(range(5), 8)
    assert [drawn([n], 1)[0] for n in range(5)] == together
    assert drawn([3, 1, 4, 0, 2], 2) == [together[n] for n in (3, 1, 4, 0, 2)]
    assert drawn(range(5), 3, longest=5) == [completion[:5] for completion in together]


def test_a_prompt_is_read_once_however_often_it_is_in_a_batch(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, seeds = [PROMPTS[n] for n in (1, 0, 1, 1, 0, 2)], [(n,) for n in range(6)]
    singly = [
        policy.generate([prompt], [seed], max_new_tokens=8, batch_size=1)[0]
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    shapes = calls_of(policy, monkeypatch)
    assert policy.generate(prompts, seeds, max_new_tokens=8, batch_size=6) == singly
    assert shapes[0] == (3, 5)
    assert set(shapes[1:]) == {(6, 1)}


def test_a_batch_ends_when_all_its_rows_have(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Policy(policy.model, end_id=-1, pad_id=policy.pad_id).generate(
        PROMPTS, None, max_new_tokens=12, batch_size=8
    )
    assert {len(completion) for completion in whole} == {12}
    shapes = calls_of(policy, monkeypatch)
    for end in {token for completion in whole for token in completion}:
        shapes.clear()
        ending = Policy(policy.model, end_id=end, pad_id=policy.pad_id)
        cut = [row[: row.index(end) + 1] if end in row else row for row in whole]
        assert ending.generate(PROMPTS, None, max_new_tokens=12, batch_size=8) == cut
        assert len(shapes) == max(map(len, cut))


def calls_of(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the batches that the model is given from here on."""
    shapes: list[tuple[int, ...]] = []
    forward = policy.model.forward

    def spied(**given: Any) -> Any:
        shapes.append(tuple(given["input_ids"].shape))
        return forward(**given)

    monkeypatch.setattr(policy.model, "forward", spied)
    return shapes


@pytest.mark.parametrize("spread", [1.0, 0.1])
def test_log_probabilities_are_those_of_a_pass_for_each_token(folder: str, spread: float) -> None:
    policy = policy_of(folder)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.mul_(spread)
    completions = policy.generate(PROMPTS, [(n,) for n in range(5)], max_new_tokens=6, batch_size=5)
    completions[2] = ()
    found = policy.log_softmax(PROMPTS, completions, batch_size=2)
    for prompt, completion, rows in zip(PROMPTS, completions, found, strict=True):
        assert rows.shape == (len(completion), policy.model.config.vocab_size)
        for n, row in enumerate(rows):
            ids = torch.tensor([[*prompt, *completion[:n]]])
            with torch.no_grad():
                logits = policy.model(ids, attention_mask=torch.ones_like(ids)).logits[0, -1]
            torch.testing.assert_close(row, logits.log_softmax(0), atol=1e-5, rtol=1e-5)


class Sum:
    """Guidance that adds the logits of another model."""

    def __init__(self, model: PreTrainedModel, eta: float) -> None:
        self.model, self.eta, self.asked = model, eta, 0

    def new_cache(self) -> Cache:
        return new_cache(self.model)

    def values(self, tokens: Tokens, cache: Cache | None, keep: int) -> torch.Tensor:
        self.asked += 1
        logits: torch.Tensor = run_model(self.model, tokens, cache, logits_to_keep=keep).logits
        return logits

    def adjust(self, logits: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return logits + self.eta * values


def test_guided_completions_are_those_of_the_sum(folder: str, tmp_path: Path) -> None:
    policy = policy_of(folder)
    guide = policy_of(tiny_model("llama", tmp_path, seed=1)).model
    guided = Policy(policy.model, end_id=-1, pad_id=14, guidance=Sum(guide, 0.7))
    completions = guided.generate(PROMPTS, None, max_new_tokens=6, batch_size=3)
    alone = Policy(policy.model, end_id=-1, pad_id=14)
    assert completions != alone.generate(PROMPTS, None, max_new_tokens=6, batch_size=3)
    found = guided.log_softmax(PROMPTS, completions, batch_size=3)
    for prompt, completion, rows in zip(PROMPTS, completions, found, strict=True):
        for n, row in enumerate(rows):
            ids = torch.tensor([[*prompt, *completion[:n]]])
            with torch.no_grad():
                one, other = (m(ids).logits[0, -1] for m in (policy.model, guide))
            torch.testing.assert_close(row, (one + 0.7 * other).log_softmax(0), atol=1e-4, rtol=1e-4)
            assert row.argmax() == completion[n]


def test_eta_of_zero_is_the_reference_bit_for_bit(policy: Policy) -> None:
    guidance = Sum(policy.model, 0.0)
    guided = Policy(policy.model, end_id=policy.end_id, pad_id=policy.pad_id, guidance=guidance)
    seeds = [(n,) for n in range(5)]
    completions = policy.generate(PROMPTS, seeds, max_new_tokens=9, batch_size=2)
    assert guided.generate(PROMPTS, seeds, max_new_tokens=9, batch_size=2) == completions
    for one, other in zip(
        policy.log_softmax(PROMPTS, completions, batch_size=2),
        guided.log_softmax(PROMPTS, completions, batch_size=2),
        strict=True,
    ):
        assert torch.equal(one, other)
    assert not guidance.asked


def test_batches_are_halved_where_memory_runs_out(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = [(n,) for n in range(5)]
    completions = policy.generate(PROMPTS, seeds, max_new_tokens=6, batch_size=5)
    expected = policy.log_softmax(PROMPTS, completions, batch_size=5)
    shapes, forward = [], policy.model.forward

    def small(**given: Any) -> Any:
        shapes.append(len(given["input_ids"]))
        if shapes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(**given)

    monkeypatch.setattr(policy.model, "forward", small)
    assert policy.generate(PROMPTS, seeds, max_new_tokens=6, batch_size=5) == completions
    assert [size for size in shapes if size > 2] == [5, 3]
    for one, other in zip(policy.log_softmax(PROMPTS, completions, batch_size=5), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_model_that_is_being_trained_writes_the_same_and_goes_on_training(folder: str) -> None:
    expected = policy_of(folder).generate(PROMPTS, None, max_new_tokens=8, batch_size=5)
    model = load_model(folder, device="cpu", train=True)
    checkpoint_activations(model)
    policy = Policy(model, end_id=15, pad_id=14)
    for _ in range(2):
        assert policy.generate(PROMPTS, None, max_new_tokens=8, batch_size=5) == expected
        policy.log_softmax(PROMPTS, expected, batch_size=5)
        assert model.training
        token_logprobs(model, PROMPTS, expected, 14)[0].sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"temperature": 0.0},
            r"temperature must be a number > 0, got 0.0; seeds=None takes the most likely",
        ),
        ({"temperature": float("nan")}, "temperature must be a number > 0, got nan"),
        ({"temperature": float("inf")}, "temperature must be a number > 0, got inf"),
        ({"top_p": 0.0}, "top_p must be a number > 0 and <= 1, got 0.0"),
        ({"top_p": 1.1}, "top_p must be a number > 0 and <= 1, got 1.1"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be an integer >= 1, got 0"),
        ({"max_new_tokens": 60}, "of 69 tokens or more are longer than the model's context, 64: shorten"),
        ({"seeds": [(1,)]}, "5 prompts and 1 seeds"),
        ({"prompts": [[1], [], [2], [3], [4]]}, "prompt 1 has no tokens"),
    ],
)
def test_what_cannot_be_generated_is_refused(policy: Policy, changes: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {
        "prompts": PROMPTS,
        "seeds": [(n,) for n in range(5)],
        "max_new_tokens": 4,
        "batch_size": 5,
    }
    with pytest.raises(ValueError, match=message):
        policy.generate(**options | changes)


def test_nothing_to_do(policy: Policy) -> None:
    assert policy.generate([], [], max_new_tokens=4, batch_size=2) == []
    assert policy.log_softmax([], [], batch_size=2) == []
    with pytest.raises(ValueError, match="batch_size must be an integer >= 1, got 0"):
        policy.log_softmax([[1]], [(2,)], batch_size=0)
    with pytest.raises(ValueError, match="1 prompts and 2 completions"):
        policy.log_softmax([[1]], [(2,), (3,)], batch_size=1)
