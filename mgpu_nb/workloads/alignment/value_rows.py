"""Completions that teach a value model, as rows of training data, and its loss on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .batches import Tokens, forced, run_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .value import ValueModel

__all__ = ["Collate", "ValueRow", "value_loss"]


class ValueRow(NamedTuple):
    """A completion to train on: its tokens after a context, and what is said of each of them."""

    context: tuple[int, ...]
    completion: tuple[int, ...]
    target: float


class Collate:
    """A micro-batch of rows as tensors on the CPU; a class, so that processes that load data can be sent it."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: Sequence[ValueRow]) -> Mapping[str, Tensor]:
        """Tensors that `value_loss` takes."""
        batch = forced(
            [row.context for row in rows],
            [row.completion for row in rows],
            self.pad_id,
            torch.device("cpu"),
        )
        return {
            **batch.tokens._asdict(),
            "chosen": batch.targets,
            "kept": batch.kept,
            "targets": torch.tensor([row.target for row in rows], dtype=torch.float32),
        }


def value_loss(
    model: ValueModel,
    batch: Mapping[str, Tensor],
    reference: PreTrainedModel,
    *,
    top_k: int,
    penalty: float,
) -> Tensor:
    """Sum of the losses of all tokens of the completions of a micro-batch.

    Data say nothing of a token that is hardly ever drawn, and a value that it has by chance is multiplied by eta: at a
    large one the policy writes it. The penalty draws the values of all guided tokens to 0 wherever they are guided, so
    those of which the data say nothing stay there, and others where the data say more than the penalty.

    Parameters
    ----------
    model
        The value model, in train mode.
    batch
        Of `Collate`, on the model's device.
    reference
        Says which tokens are guided; it is run if these are not all there are, and there is a penalty.
    top_k
        Number of tokens that are guided, the likeliest of the reference.
    penalty
        Weight of half the sum of their squared values, at each token of a completion.
    """
    kept, chosen = batch["kept"], batch["chosen"]
    tokens = Tokens(batch["ids"], batch["mask"], batch["positions"])
    features = model.features(tokens, None, kept.shape[1])[kept]
    values = model.values(features, chosen[kept][:, None])[:, 0]
    loss = model.law.loss(values, batch["targets"][:, None].expand(kept.shape)[kept]).sum()
    if not penalty:
        return loss
    top = None
    if top_k < model.vocabulary:
        with torch.no_grad():
            logits = run_model(reference, tokens, logits_to_keep=kept.shape[1]).logits[kept]
        top = logits.topk(top_k).indices
    return loss + penalty / 2 * model.values(features, top).square().sum()
