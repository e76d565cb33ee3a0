"""A reward model of preferences: the body of the guide, and a head that scores a completion by its end token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .batches import Tokens, left_padded, run_model
from .losses import bradley_terry
from .preferences import Preference

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["CollatePairs", "RewardModel", "preference_loss"]


class RewardModel(nn.Module):
    """Score of a completion: a linear function of the body's state at its end token.

    A completion that was cut off gets one: of two that end in different ways a policy would soon write the kind that
    the model has seen least of.

    Parameters
    ----------
    backbone
        Model without its language head (``model.base_model``): hidden states [B, T, H].
    end_id, pad_id
        Tokens that end a completion and fill batches up.
    """

    def __init__(self, backbone: PreTrainedModel, *, end_id: int, pad_id: int) -> None:
        super().__init__()
        self.backbone = backbone
        config = backbone.config.get_text_config()
        self.collate = CollatePairs(end_id, pad_id, getattr(config, "max_position_embeddings", None))
        hidden = config.hidden_size
        # Zero, so that all completions are alike at first; no bias, for preferences are of differences.
        self.head = nn.Parameter(torch.zeros(hidden, device=backbone.device, dtype=torch.float32))

    def forward(self, tokens: Tokens) -> Tensor:
        """Scores of a batch that is padded on the left, float32 [B]."""
        states: Tensor = run_model(self.backbone, tokens).last_hidden_state
        return states[:, -1].float() @ self.head

    @torch.no_grad()
    def score(
        self, contexts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], batch_size: int
    ) -> list[float]:
        """Scores of completions, each as tokens.

        Parameters
        ----------
        contexts, completions
            Tokens of each context, and of the completion of each.
        batch_size
            Number of them at once.
        """
        rows = [self.collate.row(*both) for both in zip(contexts, completions, strict=True)]
        found: list[float] = []
        for at in range(0, len(rows), batch_size):
            tokens = left_padded(rows[at : at + batch_size], self.collate.pad_id, self.head.device)
            found += self(tokens).tolist()
        return found


class CollatePairs:
    """Puts preferences together; a class, so that processes that load data can be sent it.

    Parameters
    ----------
    end_id, pad_id
        As `RewardModel` takes them.
    longest
        Tokens that the model's context holds; of a text with more the first are left out. None for any number.
    """

    def __init__(self, end_id: int, pad_id: int, longest: int | None) -> None:
        self.end_id, self.pad_id, self.longest = end_id, pad_id, longest

    def __call__(self, pairs: Sequence[Preference]) -> Mapping[str, Tensor]:
        """`Tokens` of one batch on the CPU by name, the chosen completions first."""
        rows = [self.row(pair.context, pair.chosen) for pair in pairs]
        rows += [self.row(pair.context, pair.rejected) for pair in pairs]
        return left_padded(rows, self.pad_id, torch.device("cpu"))._asdict()

    def row(self, context: Sequence[int], completion: Sequence[int]) -> tuple[int, ...]:
        """Tokens of a text and its end token, as many as the context holds."""
        row = (*context, *completion)
        if row[-1] != self.end_id:
            row = (*row, self.end_id)
        return row if self.longest is None else row[-self.longest :]


def preference_loss(model: RewardModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Negative log-likelihood of each preference of a batch of `CollatePairs`, shape [B]."""
    chosen, rejected = model(Tokens(batch["ids"], batch["mask"], batch["positions"])).view(2, -1)
    return bradley_terry(chosen, rejected)
