"""Completions: batches, padding, caches and sampling, against transformers and plain formulas."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_language_models import FAMILIES, tiny_model

from mgpu_nb.workloads.alignment.generate import Policy
from mgpu_nb.workloads.alignment.models import load_model, load_tokenizer

PROMPTS = [[1], [2, 3, 11], [4, 10, 5, 5, 11], [9, 9, 9, 9, 9, 9, 10, 1, 11], [0]]


@pytest.fixture(scope="module", params=FAMILIES)
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return policy_of(tiny_model(request.param, tmp_path_factory.mktemp(request.param)))


def policy_of(folder: str | Path) -> Policy:
    tokenizer = load_tokenizer(str(folder))
    return Policy(load_model(str(folder), device="cpu"), end_id=tokenizer.end_id, pad_id=tokenizer.pad_id)


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
