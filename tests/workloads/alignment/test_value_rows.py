"""The loss that a value model is trained by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
import torch
from tiny_language_models import tiny_model

from mgpu_nb.workloads.alignment.batches import forced
from mgpu_nb.workloads.alignment.laws import CategoricalLaw, Law, PreferenceLaw
from mgpu_nb.workloads.alignment.models import load_model
from mgpu_nb.workloads.alignment.value import ValueModel
from mgpu_nb.workloads.alignment.value_rows import Collate, ValueRow, value_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

pytestmark = pytest.mark.slow

ROWS = [
    ValueRow((1, 11), (3, 10, 4, 12), 1.0),
    ValueRow((1, 7, 11), (9,), 0.0),
    ValueRow((3, 11), (2, 5), 1.0),
]
PAD = 13


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return load_model(tiny_model("llama", tmp_path_factory.mktemp("llama")), device="cpu")


def value_model(reference: PreTrainedModel, law: Law, folder: Path) -> ValueModel:
    """One whose head is not zero, with a body smaller than the reference."""
    body = load_model(tiny_model("llama", folder / law.name, hidden=8, layers=1), device="cpu").base_model
    model = ValueModel(body, reference.config.vocab_size, law)
    with torch.no_grad():
        model.weight.normal_(0, 0.01, generator=torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize("law", [PreferenceLaw(), CategoricalLaw(3)], ids=lambda law: law.name)
@pytest.mark.parametrize("top_k", [2, 5, 1000])
def test_the_penalty_is_of_the_values_of_guided_tokens(
    reference: PreTrainedModel, law: Law, top_k: int, tmp_path: Path
) -> None:
    model = value_model(reference, law, tmp_path)
    plain = value_loss(model, Collate(PAD)(ROWS), reference, top_k=top_k, penalty=0.0)
    whole = value_loss(model, Collate(PAD)(ROWS), reference, top_k=top_k, penalty=0.3)
    loss = penalty = 0.0
    for row in ROWS:  # one by one, and by all values
        batch = forced([row.context], [row.completion], PAD, torch.device("cpu"))
        values = model(batch.tokens)[0, -len(row.completion) :]
        logits = reference(batch.tokens.ids).logits[0, -len(row.completion) :]
        for own, of_reference, token in zip(values, logits, row.completion, strict=True):
            loss += law.loss(own[token][None], torch.tensor([row.target])).item()
            guided = of_reference.argsort(descending=True)[:top_k]
            penalty += own[guided].square().sum().item()
    assert plain.item() == pytest.approx(loss, rel=1e-4)
    assert whole.item() == pytest.approx(loss + 0.15 * penalty, rel=1e-4)
    parts = [value_loss(model, Collate(PAD)([row]), reference, top_k=top_k, penalty=0.3) for row in ROWS]
    assert sum(part.item() for part in parts) == pytest.approx(whole.item(), rel=1e-4)


def test_the_reference_runs_where_it_decides_and_is_not_trained(
    reference: PreTrainedModel, tmp_path: Path
) -> None:
    model, none = value_model(reference, PreferenceLaw(), tmp_path), cast("PreTrainedModel", None)
    for options in ({"top_k": 2, "penalty": 0.0}, {"top_k": model.vocabulary, "penalty": 1.0}):
        value_loss(model, Collate(PAD)(ROWS), none, top_k=int(options["top_k"]), penalty=options["penalty"])
    value_loss(model, Collate(PAD)(ROWS), reference, top_k=2, penalty=1.0).backward()
    assert model.weight.grad is not None
    assert all(weight.grad is None for weight in reference.parameters())
