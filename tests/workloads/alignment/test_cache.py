"""Keys and values that are written in place, against transformers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_language_models import CHARACTERS, char_tokenizer, tiny_model

from mgpu_nb.workloads.alignment.generate import Policy
from mgpu_nb.workloads.alignment.models import load_model

pytestmark = pytest.mark.slow


def test_a_growing_layer_holds_what_was_appended() -> None:
    from transformers.cache_utils import DynamicLayer

    from mgpu_nb.workloads.alignment.cache import GrowingLayer

    draws = torch.Generator().manual_seed(0)
    ours, theirs = GrowingLayer(), DynamicLayer()
    rows = 3
    for length in [70, *[1] * 80, 2, 64]:
        states = torch.randn(2, rows, 2, length, 4, generator=draws)
        for one, other in zip(ours.update(*states), theirs.update(*states), strict=True):
            assert torch.equal(one, other)
        if length == 2:
            rows = 5
            for layer in (ours, theirs):
                layer.reorder_cache(torch.tensor([2, 0, 0, 1, 2]))
        assert ours.get_seq_length() == theirs.get_seq_length()


def test_rows_that_are_chosen_do_not_share_memory_with_the_others() -> None:
    from mgpu_nb.workloads.alignment.cache import GrowingLayer

    layer = GrowingLayer()
    layer.update(*torch.zeros(2, 2, 1, 3, 1))
    layer.reorder_cache(torch.tensor([0, 0]))
    keys, values = layer.update(*torch.arange(2.0).view(1, 2, 1, 1, 1).expand(2, 2, 1, 1, 1))
    assert keys[:, 0, :, 0].tolist() == values[:, 0, :, 0].tolist() == [[0, 0, 0, 0], [0, 0, 0, 1]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gpt2"])
def test_long_completions_and_sliding_windows_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    policy = Policy(load_model(_folder(kind, tmp_path), device="cpu"), end_id=-1, pad_id=14)
    prompts = [[1, 2, 3], [4, 10, 5, 5, 11, 7, 7, 7, 7, 1, 2], [9, 9, 9, 9, 9, 9, 10, 1, 11]]
    found = policy.generate(prompts, None, max_new_tokens=150, batch_size=3)
    for prompt, completion in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        written = policy.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=150, eos_token_id=-1
        )
        assert tuple(written[0, len(prompt) :].tolist()) == completion
        rows = policy.log_softmax([prompt], [completion], batch_size=1)[0]
        assert rows.argmax(1).tolist() == list(completion)


def _folder(kind: str, folder: Path) -> str:
    """Random model with a context of 256 tokens, of which a layer sees six, but for GPT-2."""
    if kind == "gpt2":
        return tiny_model("gpt2", folder, context=256)
    import transformers

    pad, end, size = char_tokenizer(folder, CHARACTERS)
    options: dict[str, Any] = {
        "vocab_size": size,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "sliding_window": 6,
        "initializer_range": 1.0,
        "pad_token_id": pad,
        "eos_token_id": end,
    }
    config = {"mistral": transformers.MistralConfig, "gemma2": transformers.Gemma2Config}[kind](**options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)
