"""Losses by their formulas, by autograd, and beside those of TRL."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from mgpu_nb.workloads.alignment.losses import bradley_terry, dpo, group_advantages, grpo, k3


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_dpo_is_log_2_at_the_reference_and_pulls_apart() -> None:
    chosen, rejected = (drawn(5, seed=n).requires_grad_() for n in (1, 2))
    loss = dpo(chosen, rejected, chosen.detach(), rejected.detach(), 0.3)
    torch.testing.assert_close(loss, torch.full_like(loss, math.log(2)))
    loss.sum().backward()
    # By equation 7's gradient: beta * sigmoid(-beta * difference) of 0 is beta / 2.
    torch.testing.assert_close(chosen.grad, torch.full_like(chosen, -0.15))
    torch.testing.assert_close(rejected.grad, torch.full_like(rejected, 0.15))


def test_dpo_by_hand_and_without_overflow() -> None:
    loss = dpo(torch.tensor([-1.0]), torch.tensor([-3.0]), torch.tensor([-2.0]), torch.tensor([-2.5]), 0.5)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.5 * 1.5)))
    far = bradley_terry(torch.tensor([0.0, 1e4]), torch.tensor([1e4, 0.0]))
    assert far.tolist() == [1e4, 0.0]


def test_advantages_are_of_the_unbiased_deviation() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    advantages = group_advantages(rewards)
    assert advantages[0].tolist() == pytest.approx([0.75 / 0.5001, *[-0.25 / 0.5001] * 3], rel=1e-6)
    assert advantages[1].tolist() == [0.0] * 4


def test_k3_gradient_by_autograd() -> None:
    logps, ref = drawn(50, seed=1).requires_grad_(), drawn(50, seed=2)
    value = k3(logps, ref)
    d = (ref - logps).detach()
    torch.testing.assert_close(value.detach(), d.exp() - d - 1)
    assert (value >= 0).all()
    value.sum().backward()
    torch.testing.assert_close(logps.grad, 1 - d.exp())
    assert torch.autograd.gradcheck(k3, (logps, ref))


def test_k3_is_unbiased() -> None:
    """Its mean over pi is KL(pi || ref), exactly: summed over all of a law of seven outcomes."""
    pi, ref = log_softmax(drawn(7, seed=3), 0), log_softmax(drawn(7, seed=4), 0)
    kl = (pi.exp() * (pi - ref)).sum()
    torch.testing.assert_close((pi.exp() * k3(pi, ref)).sum(), kl)
    assert k3(pi, pi).tolist() == [0.0] * 7


def test_k3_keeps_digits_near_the_reference() -> None:
    """`exp(d) - d - 1` in float32 has lost all of them at 1e-4, where the value is d^2 / 2."""
    assert k3(torch.tensor(-1e-4), torch.tensor(0.0)).item() == pytest.approx(0.5e-8, rel=1e-2, abs=2e-9)


@pytest.mark.parametrize(
    ("ratio", "advantage", "wanted", "gradient"),
    [
        (1.0, 2.0, 2.0, True),
        (1.1, 2.0, 2.2, True),
        (1.5, 2.0, 2.4, False),  # clipped above: it was made likelier enough
        (0.5, 2.0, 1.0, True),  # not clipped: the lesser of the two
        (1.5, -2.0, -3.0, True),
        (0.5, -2.0, -1.6, False),  # clipped below: it was made rarer enough
    ],
)
def test_clip_on_both_sides(ratio: float, advantage: float, wanted: float, gradient: bool) -> None:
    logps = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    nothing = torch.zeros(1, 1, dtype=torch.float64)
    gain = torch.tensor([advantage], dtype=torch.float64)
    loss = grpo(logps, nothing, nothing, gain, torch.ones(1, 1, dtype=torch.bool), clip=0.2, beta=0.0)
    assert -loss.item() == pytest.approx(wanted)
    loss.sum().backward()
    assert logps.grad is not None
    assert -logps.grad.item() == pytest.approx(ratio * advantage if gradient else 0.0)


def test_grpo_is_a_mean_over_the_tokens_of_each_completion() -> None:
    logps, old, ref, gain = drawn(2, 3, seed=1), drawn(2, 3, seed=2), drawn(2, 3, seed=3), drawn(2, seed=4)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    loss = grpo(logps, old, ref, gain, mask, clip=0.2, beta=0.3)
    alone = grpo(logps[1:, :1], old[1:, :1], ref[1:, :1], gain[1:], mask[1:, :1], clip=0.2, beta=0.3)
    torch.testing.assert_close(loss[1:], alone)
    ratio = (logps - old).exp()
    term = torch.minimum(ratio * gain[:, None], ratio.clamp(0.8, 1.2) * gain[:, None]) - 0.3 * k3(logps, ref)
    torch.testing.assert_close(loss[0], -term[0].mean())


def test_kl_of_grpo_has_a_gradient() -> None:
    logps = drawn(2, 3, seed=1).requires_grad_()
    ref, mask = drawn(2, 3, seed=2), torch.ones(2, 3, dtype=torch.bool)
    loss = grpo(logps, logps.detach(), ref, torch.zeros(2).double(), mask, clip=0.2, beta=0.5)
    loss.sum().backward()
    torch.testing.assert_close(logps.grad, 0.5 * (1 - (ref - logps.detach()).exp()) / 3)


# --- beside TRL ---


class Batch(NamedTuple):
    """Completions of two prompts, and models that differ.

    The prompts are of one length: TRL pads the shorter on the left and counts its positions from the padding, so that
    a model with absolute positions reads another text.
    """

    model: Any
    reference: Any
    tokenizer: Any
    prompts: list[list[int]]
    completions: list[list[int]]


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    from tokenizers import Tokenizer, models
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = {word: n for n, word in enumerate(["<pad>", "<end>", *"abcdefgh"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="a")),
        pad_token="<pad>",
        eos_token="<end>",
    )
    config = GPT2Config(
        vocab_size=len(words), n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    prompts = [[2, 3, 4], [2, 3, 4], [5, 6, 5], [5, 6, 5]]
    completions = [[6, 7, 1], [8, 1], [2, 2, 9, 4, 1], [9]]
    folder = tmp_path_factory.mktemp("model")  # GRPOTrainer loads a reference of its own from there
    GPT2LMHeadModel(config).save_pretrained(folder)
    model = GPT2LMHeadModel.from_pretrained(folder, local_files_only=True)
    return Batch(model, GPT2LMHeadModel(config), tokenizer, prompts, completions)


def token_logps(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the tokens, one sequence at a time, and the mask of those that are there."""
    logps, mask = torch.zeros(4, 5), torch.zeros(4, 5, dtype=torch.bool)
    rows = []
    for row, (prompt, completion) in enumerate(zip(batch.prompts, batch.completions, strict=True)):
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        picked = log_softmax(logits, 1).gather(1, torch.tensor(completion)[:, None])[:, 0]
        rows.append(torch.nn.functional.pad(picked, (0, 5 - len(completion))))
        mask[row, : len(completion)] = True
    return logps + torch.stack(rows), mask


def trained(trainer: Any, inputs: Mapping[str, Any], model: Any) -> tuple[float, list[Tensor]]:
    """A trainer's loss of a batch and its gradient."""
    model.zero_grad()
    loss = trainer.compute_loss(model, inputs)
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters()]


def check(loss: Tensor, model: Any, theirs: tuple[float, list[Tensor]]) -> None:
    model.zero_grad()
    loss.backward()
    assert loss.item() == pytest.approx(theirs[0], abs=1e-5)
    for (name, parameter), wanted in zip(model.named_parameters(), theirs[1], strict=True):
        torch.testing.assert_close(parameter.grad, wanted, atol=1e-5, rtol=1e-5, msg=name)
    assert max(float(g.abs().max()) for g in theirs[1]) > 1e-2  # there is a gradient to compare


QUIET = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "bf16": False}


@pytest.mark.reference
@pytest.mark.parametrize("sft", [0.0, 0.7])
def test_dpo_of_trl(batch: Batch, tmp_path: Path, sft: float) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    weights = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, sft]}
    rows = [{"prompt": "abc", "chosen": "ef", "rejected": "g"}] * 2
    trainer = DPOTrainer(
        batch.model, batch.reference, DPOConfig(str(tmp_path), beta=0.4, **weights, **QUIET),
        train_dataset=Dataset.from_list(rows), processing_class=batch.tokenizer,
    )  # fmt: skip
    pairs = [
        {
            "prompt_ids": batch.prompts[n],
            "chosen_ids": batch.completions[n],
            "rejected_ids": batch.completions[n + 1],
        }
        for n in (0, 2)
    ]
    theirs = trained(trainer, trainer.data_collator(pairs), batch.model)

    logps, mask = token_logps(batch.model, batch)
    with torch.no_grad():
        ref, _ = token_logps(batch.reference, batch)
    whole, whole_ref = logps.sum(1), ref.sum(1)
    loss = dpo(whole[::2], whole[1::2], whole_ref[::2], whole_ref[1::2], 0.4).mean()
    loss = loss - sft * logps[::2].sum() / mask[::2].sum()
    check(loss, batch.model, theirs)


@pytest.mark.reference
def test_grpo_of_trl(batch: Batch, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def reward(completions: list[str], **kwargs: Any) -> list[float]:
        return [0.0 for _ in completions]

    trainer = GRPOTrainer(
        batch.model, reward,
        GRPOConfig(
            str(tmp_path), beta=0.3, epsilon=0.2, loss_type="grpo", num_generations=2,
            use_bias_correction_kl=False,  # their default weighs k3 by the ratio
            **QUIET,
        ),
        train_dataset=Dataset.from_list([{"prompt": "abc"}] * 8), processing_class=batch.tokenizer,
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    logps, mask = token_logps(batch.model, batch)
    with torch.no_grad():
        ref, _ = token_logps(batch.reference, batch)
    # Ratios on both sides of the clip, and within it.
    old = logps.detach() - torch.tensor([[0.5, -0.5, 0.1, 0.0, -0.1]]) * mask
    gain = group_advantages(torch.tensor([[1.0, 0.0], [0.2, 0.6]])).flatten()
    inputs = {
        "prompt_ids": torch.tensor(batch.prompts),
        "prompt_mask": torch.ones(4, 3, dtype=torch.long),
        "completion_ids": torch.tensor([c + [0] * (5 - len(c)) for c in batch.completions]),
        "completion_mask": mask.int(),
        "advantages": gain,
        "old_per_token_logps": old,
        "ref_per_token_logps": ref,
    }
    theirs = trained(trainer, inputs, batch.model)
    check(grpo(logps, old, ref, gain, mask, clip=0.2, beta=0.3).mean(), batch.model, theirs)
