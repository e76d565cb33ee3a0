"""A policy: completions of prompts by a language model, guided or not, and their log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from ..memory import in_memory
from .batches import Tokens, check_context, forced, left_padded, new_cache, run_model
from .logprobs import completion_logits
from .sampling import next_tokens, uniforms

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

__all__ = ["Guidance", "Policy"]


class Guidance(Protocol):
    """What moves the logits of a reference: a value model, with keys and values of its own, and a law.

    `Policy.generate` calls it in torch's inference mode.
    """

    @property
    def eta(self) -> float:
        """Strength; at 0 the guidance is not asked, and the policy is the reference bit for bit."""

    def new_cache(self) -> Cache:
        """Empty keys and values for `values`."""

    def values(self, tokens: Tokens, cache: Cache | None, keep: int) -> Tensor:
        """Values of the next token.

        Parameters
        ----------
        tokens
            A batch; with a cache its mask also covers what is in the cache.
        cache
            Keys and values of what came before, extended in place; None for a pass without.
        keep
            For how many of the last columns.

        Returns
        -------
        Tensor
            [B, keep, ...], a value, or several, for each token of the vocabulary.
        """

    def adjust(self, logits: Tensor, values: Tensor) -> Tensor:
        """Logits of the guided policy, float32 [N, V], from the reference's, [N, V], and values, [N, ...]."""


class Policy:
    """A language model that writes completions, guided or not.

    Parameters
    ----------
    model
        The reference, or a model that was trained. It is asked in evaluation mode, whatever mode it is in.
    end_id
        Token that ends a completion.
    pad_id
        Token that fills batches up; which one it is changes nothing.
    guidance
        What moves its logits.
    halve
        Whether batches of completions are halved if memory runs out; otherwise that is an error.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        end_id: int,
        pad_id: int,
        guidance: Guidance | None = None,
        halve: bool = True,
    ) -> None:
        self.model, self.end_id, self.pad_id, self.guidance = model, end_id, pad_id, guidance
        self.halve = halve

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]] | None,
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        batch_size: int,
    ) -> list[tuple[int, ...]]:
        """Completions, one for each prompt.

        A completion depends on its prompt and its seed, but for the rounding of sums that come in another order in
        another batch; batches are made of the prompts in the order of their lengths, and read a prompt once however
        often it is in them. If memory runs out, they are halved from there on, unless `halve` is False.

        Parameters
        ----------
        prompts
            Tokens of each prompt, at least one.
        seeds
            Non-negative whole numbers for each prompt, which its random numbers come from; None for the most likely
            token at every step.
        max_new_tokens
            Largest number of tokens of a completion.
        temperature
            What logits are divided by, above 0.
        top_p
            Share of the probability that is sampled from: of the fewest tokens that have so much together.
        batch_size
            Number of prompts at once.

        Returns
        -------
        list of tuple of int
            Tokens of each completion, its end token included if it has one.

        Raises
        ------
        ValueError
            If an option is out of its range, a prompt is empty or does not fit the model's context, or a model gives
            logits that are no numbers.
        torch.OutOfMemoryError, MemoryError, RuntimeError
            If there is not enough memory for one prompt, or for a batch that may not be halved.
        """
        _check(prompts, seeds, max_new_tokens, temperature, top_p, batch_size)
        check_context(self.model, max(map(len, prompts), default=0) + max_new_tokens)
        order = sorted(range(len(prompts)), key=lambda n: (len(prompts[n]), *prompts[n]))
        found: list[tuple[int, ...]] = [()] * len(prompts)
        done = 0
        while done < len(order):

            def draw(size: int, start: int = done) -> list[int]:
                rows = order[start : start + size]
                drawn = None if seeds is None else uniforms([seeds[n] for n in rows], max_new_tokens)
                written = self._complete(
                    [prompts[n] for n in rows], drawn, max_new_tokens, temperature, top_p
                )
                for row, completion in zip(rows, written, strict=True):
                    found[row] = completion
                return rows

            with _evaluating(self.model):
                size = min(batch_size, len(order) - done)
                rows, halved = in_memory(draw, size) if self.halve else (draw(size), 0)
            if halved:
                batch_size = len(rows)
            done += len(rows)
        return found

    def _complete(
        self,
        prompts: Sequence[Sequence[int]],
        drawn: np.ndarray | None,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
    ) -> list[tuple[int, ...]]:
        """Completions of one batch."""
        device = self.model.device
        unlike = {tuple(prompt): None for prompt in prompts}
        place = {prompt: n for n, prompt in enumerate(unlike)}
        rows = torch.tensor([place[tuple(prompt)] for prompt in prompts], device=device)
        points = None if drawn is None else torch.from_numpy(drawn).to(device)
        tokens = left_padded(list(unlike), self.pad_id, device)
        width = tokens.ids.shape[1]
        mask = torch.cat([tokens.mask[rows], tokens.mask.new_ones(len(prompts), max_new_tokens)], 1)
        positions = tokens.positions[rows, -1:]
        next_logits = self._stepper()
        logits = next_logits(tokens, rows)
        written = tokens.ids.new_full((len(prompts), max_new_tokens), self.pad_id)
        running = torch.ones(len(prompts), dtype=torch.bool, device=device)
        for step in range(max_new_tokens):
            if step:
                positions = positions + 1
                logits = next_logits(Tokens(written[:, step - 1 : step], mask[:, : width + step], positions))
            chosen = next_tokens(logits, None if points is None else points[:, step], temperature, top_p)
            written[:, step] = torch.where(running, chosen, self.pad_id)
            running &= chosen != self.end_id
            if not running.any():
                break
        return [_until(row, self.end_id, step + 1) for row in written.tolist()]

    def _stepper(self) -> Callable[..., Tensor]:
        """Function of a batch that gives the logits of the next tokens, [B, V]; it keeps keys and values between calls.

        Its second argument repeats rows: logits, keys and values are from then on those of the rows of these numbers.
        """
        guidance, cache = self._active(), new_cache(self.model)
        caches = [cache] if guidance is None else [cache, guidance.new_cache()]

        def next_logits(tokens: Tokens, rows: Tensor | None = None) -> Tensor:
            logits: Tensor = run_model(self.model, tokens, cache, logits_to_keep=1).logits[:, -1].float()
            if guidance is not None:
                logits = guidance.adjust(logits, guidance.values(tokens, caches[1], 1)[:, -1])
            if rows is not None and len(rows) > len(logits):
                for held in caches:
                    held.reorder_cache(rows)  # which can also repeat them
                logits = logits[rows]
            return logits

        return next_logits

    @torch.no_grad()
    def log_softmax(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], *, batch_size: int
    ) -> list[Tensor]:
        """Log-probabilities of every token of the vocabulary at each token of completions, at temperature 1.

        Parameters
        ----------
        prompts, completions
            Tokens of each prompt, and of the completion of each.
        batch_size
            Number of them at once.

        Returns
        -------
        list of Tensor
            For each completion float32 [T, V] on the model's device: `T` times `V` numbers of 4 bytes each, so ask
            for a batch or so at a time.

        Raises
        ------
        ValueError
            If a prompt is empty, or with its completion longer than the model's context, if there is not one completion
            for each, or `batch_size` is below 1.
        """
        if len(prompts) != len(completions):
            raise ValueError(f"{len(prompts)} prompts and {len(completions)} completions: give one for each")
        _at_least_one("batch_size", batch_size)
        guidance = self._active()
        found: list[Tensor] = []
        with _evaluating(self.model):
            while len(found) < len(prompts):

                def measure(size: int, start: int = len(found)) -> list[Tensor]:
                    here = slice(start, start + size)
                    return self._log_softmax(prompts[here], completions[here], guidance)

                measured, halved = in_memory(measure, min(batch_size, len(prompts) - len(found)))
                if halved:
                    batch_size = len(measured)
                found += measured
        return found

    def _log_softmax(
        self,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        guidance: Guidance | None,
    ) -> list[Tensor]:
        logits, targets, _ = completion_logits(self.model, prompts, completions, self.pad_id)
        if guidance is not None:
            tokens = forced(prompts, completions, self.pad_id, self.model.device).tokens
            values = guidance.values(tokens, None, targets.shape[1])
            logits = guidance.adjust(logits.flatten(0, 1), values.flatten(0, 1)).view_as(logits)
        return [
            row[: len(completion)].log_softmax(1) for row, completion in zip(logits, completions, strict=True)
        ]

    def _active(self) -> Guidance | None:
        return None if self.guidance is None or self.guidance.eta == 0 else self.guidance


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout, and with a cache, which transformers switches off while checkpointing gradients."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _until(row: Sequence[int], end_id: int, length: int) -> tuple[int, ...]:
    """Tokens up to the end token."""
    return tuple(row[: row.index(end_id) + 1] if end_id in row[:length] else row[:length])


def _check(
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[Sequence[int]] | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    batch_size: int,
) -> None:
    if seeds is not None and len(seeds) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds: give one for each, or seeds=None")
    for n, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {n} has no tokens; a model needs at least one to begin from")
    _at_least_one("max_new_tokens", max_new_tokens)
    _at_least_one("batch_size", batch_size)
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(
            f"temperature must be a number > 0, got {temperature}; seeds=None takes the most likely token at every step"
        )
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be a number > 0 and <= 1, got {top_p}")


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be an integer >= 1, got {value}")
