"""Log-probabilities of completions under a model, by one pass with teacher forcing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .batches import Forced, forced, run_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["completion_logits", "forced_logprobs", "token_logprobs"]


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
        If there is no prompt, one of them is empty, or with its completion longer than the model's context, or if
        there is not one completion for each.
    """
    batch = forced(prompts, completions, pad_id, model.device)
    return forced_logprobs(model, batch), batch.kept


def forced_logprobs(model: PreTrainedModel, batch: Forced) -> Tensor:
    """Log-probability of each token of completions of a batch on the model's device, as `token_logprobs`.

    Returns
    -------
    Tensor
        float32 [B, T], 0 after the end of a completion.
    """
    logits = _logits(model, batch)
    chosen = logits.gather(2, batch.targets[..., None])[..., 0] - logits.logsumexp(2)
    return torch.where(batch.kept, chosen, 0.0)


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
    batch = forced(prompts, completions, pad_id, model.device)
    return _logits(model, batch), batch.targets, batch.kept


def _logits(model: PreTrainedModel, batch: Forced) -> Tensor:
    found: Tensor = run_model(model, batch.tokens, logits_to_keep=batch.targets.shape[1]).logits.float()
    return found
