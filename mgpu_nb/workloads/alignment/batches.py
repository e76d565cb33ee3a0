"""Batches of token sequences: padding, masks and positions, and a pass of a causal model over them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

__all__ = ["Forced", "Tokens", "check_context", "forced", "left_padded", "new_cache", "run_model"]


class Tokens(NamedTuple):
    """A batch of sequences of unequal lengths.

    Attributes
    ----------
    ids
        Tokens, int64 [B, T].
    mask
        1 where there is a token, 0 where there is padding, int64 [B, T].
    positions
        Number of tokens before each, int64 [B, T]; 0 for padding before the first.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor


class Forced(NamedTuple):
    """Prompts, padded on the left, then completions, padded on the right, but for the last token.

    Attributes
    ----------
    tokens
        What a model is given, [B, P + T - 1]; its last T logits are those of the completions' tokens. T is at least
        1, so that there is a pass, and a gradient, where all completions are empty.
    targets
        Tokens of the completions, int64 [B, T], `pad_id` after their ends.
    kept
        Which of them are tokens, bool [B, T].
    """

    tokens: Tokens
    targets: Tensor
    kept: Tensor


def left_padded(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> Tokens:
    """Batch whose rows end in the same column.

    Raises
    ------
    ValueError
        If there is no row, or one of them is empty.
    """
    return _tokens(rows, [()] * len(rows), pad_id, device)


def forced(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> Forced:
    """Batch in which a model sees every completion as far as the token that it is to predict (teacher forcing).

    Raises
    ------
    ValueError
        If there is no prompt, one of them is empty, or there is not one completion for each.
    """
    if len(prompts) != len(completions):
        raise ValueError(f"{len(prompts)} prompts and {len(completions)} completions: give one for each")
    longest = max([1, *map(len, completions)])
    lengths = torch.tensor([[len(completion)] for completion in completions])
    targets = [[*completion, *[pad_id] * (longest - len(completion))] for completion in completions]
    tokens = _tokens(prompts, [completion[: longest - 1] for completion in completions], pad_id, device)
    kept = torch.arange(longest) < lengths
    return Forced(tokens, torch.tensor(targets, dtype=torch.int64, device=device), kept.to(device))


def _tokens(
    before: Sequence[Sequence[int]], after: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> Tokens:
    """Rows `before` padded on the left, then rows `after` padded on the right."""
    if not before:
        raise ValueError("there are no prompts; a batch has at least one")
    for row, prompt in enumerate(before):
        if not len(prompt):
            raise ValueError(f"prompt {row} has no tokens; a model needs at least one to begin from")
    left, right = max(map(len, before)), max(map(len, after))
    # One tensor of all rows: a tensor of each would take several times as long.
    rows = [
        [*[pad_id] * (left - len(prompt)), *prompt, *completion, *[pad_id] * (right - len(completion))]
        for prompt, completion in zip(before, after, strict=True)
    ]
    ids = torch.tensor(rows, dtype=torch.int64, device=device)
    starts = torch.tensor([[left - len(prompt)] for prompt in before])
    ends = torch.tensor([[left + len(completion)] for completion in after])
    place = torch.arange(left + right)
    mask = ((starts <= place) & (place < ends)).long().to(device)
    return Tokens(ids, mask, (mask.cumsum(1) - 1).clamp_(min=0))


def check_context(model: PreTrainedModel, length: int, mask: Tensor | None = None) -> None:
    """Check that a model can read sequences of some length.

    Parameters
    ----------
    model
        The model.
    length
        Largest length, or the width of a batch.
    mask
        Mask of the batch, which is counted if the width is more than the context.

    Raises
    ------
    ValueError
        If its context is shorter.
    """
    context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if context is None or length <= context:
        return
    longest = length if mask is None else int(mask.sum(1).max())
    if longest > context:
        raise ValueError(
            f"a prompt and its completion of {longest} tokens or more are longer than the model's context, {context}: "
            "shorten the prompt or lower generation.max_new_tokens"
        )


def new_cache(model: PreTrainedModel) -> Cache:
    """Empty cache of keys and values, of the kind that the model's layers want; not for training."""
    from .cache import growing_cache

    return growing_cache(model.config.get_text_config(decoder=True))


def run_model(model: PreTrainedModel, tokens: Tokens, cache: Cache | None = None, **options: Any) -> Any:
    """Output of a model for a batch.

    Parameters
    ----------
    model
        A causal language model, or the backbone of one.
    tokens
        The batch; with a cache `mask` also covers what is in the cache.
    cache
        Keys and values of what came before, extended in place.
    options
        Passed on, for example ``logits_to_keep``.

    Raises
    ------
    ValueError
        If there is no cache, and a sequence is longer than the model's context.
    """
    if cache is None:
        check_context(model, tokens.mask.shape[1], tokens.mask)
    given = {} if cache is None else {_cache_keyword(type(model).forward): cache}
    return model(
        input_ids=tokens.ids,
        attention_mask=tokens.mask,
        position_ids=tokens.positions,
        use_cache=cache is not None,
        **given,
        **options,
    )


@functools.cache
def _cache_keyword(forward: Callable[..., Any]) -> str:
    """Name of the argument: transformers renamed it in 5.2x."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"
