"""Log-probabilities of completions under a model, by one pass with teacher forcing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .batches import forced, run_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["completion_logits", "token_logprobs"]


def token_logprobs(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    pad_id: int,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token of completions, with gradient where it is enabled.

    Parameters
    ----------
    model
        A causal language model, in the mode that it is to have: dropout in ``train()`` makes the figures noisy.
    prompts
        Tokens of each prompt, at least one.
    completions
        Tokens of the completion of each, at most as many as the model's context leaves.
    pad_id
        Token that fills the batch up; which one it is changes nothing.

    Returns
    -------
    Tensor, Tensor
        Log-probabilities at temperature 1, float32 [B, T], 0 after the end of a completion, and which of them are of
        tokens, bool [B, T]. T is that of the longest completion, or 1 if all are empty.

    Raises
    ------
    ValueError
        If there is no prompt, one of them is empty, or there is not one completion for each.
    """
    logits, targets, kept = completion_logits(model, prompts, completions, pad_id)
    chosen = logits.gather(2, targets[..., None])[..., 0] - logits.logsumexp(2)
    return torch.where(kept, chosen, 0.0), kept


def completion_logits(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    pad_id: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits at each token of completions, with gradient where it is enabled.

    Parameters
    ----------
    model, prompts, completions, pad_id
        As `token_logprobs` takes them.

    Returns
    -------
    Tensor, Tensor, Tensor
        Logits, float32 [B, T, V]; tokens, int64 [B, T]; which are tokens, bool [B, T]. What is after the end of a
        completion has no meaning.
    """
    tokens, targets, kept = forced(prompts, completions, pad_id, model.device)
    return run_model(model, tokens, logits_to_keep=targets.shape[1]).logits.float(), targets, kept
