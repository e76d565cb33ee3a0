"""A reward model of preferences: the body of the guide, and a head that scores a completion by its last token."""

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
    """Score of a completion: a linear function of the body's state at its last token.

    Parameters
    ----------
    backbone
        Model without its language head (``model.base_model``): hidden states [B, T, H].
    pad_id
        Token that fills batches up.
    """

    def __init__(self, backbone: PreTrainedModel, pad_id: int) -> None:
        super().__init__()
        self.backbone, self.pad_id = backbone, pad_id
        hidden = backbone.config.get_text_config().hidden_size
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
        rows = [(*context, *completion) for context, completion in zip(contexts, completions, strict=True)]
        found: list[float] = []
        for at in range(0, len(rows), batch_size):
            tokens = left_padded(rows[at : at + batch_size], self.pad_id, self.head.device)
            found += self(tokens).tolist()
        return found


class CollatePairs:
    """Puts preferences together; a class, so that processes that load data can be sent it."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, pairs: Sequence[Preference]) -> Mapping[str, Tensor]:
        """`Tokens` of one batch on the CPU by name, the chosen completions first."""
        rows = [(*pair.context, *pair.chosen) for pair in pairs] + [
            (*pair.context, *pair.rejected) for pair in pairs
        ]
        return left_padded(rows, self.pad_id, torch.device("cpu"))._asdict()


def preference_loss(model: RewardModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Negative log-likelihood of each preference of a batch of `CollatePairs`, shape [B]."""
    chosen, rejected = model(Tokens(batch["ids"], batch["mask"], batch["positions"])).view(2, -1)
    return bradley_terry(chosen, rejected)
