"""A small language model of sums, ``7+9=16.``, a character a token: a causal Transformer over texts of any length."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import IterableDataset

TOKENS = " 0123456789+=."  # the first one fills short texts up, and is not learnt
LENGTH = 12


class Sums(IterableDataset[tuple[Tensor, Tensor]]):
    """A stream of texts as tokens [11] and those that come next [11]; other texts in every epoch of the training."""

    def __init__(self, count: int, below: int) -> None:
        self.count, self.below = count, below

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.count):
            first, second = torch.randint(self.below, (2,)).tolist()
            text = f"{first}+{second}={first + second}.".ljust(LENGTH)
            tokens = torch.tensor([TOKENS.index(character) for character in text])
            yield tokens[:-1], tokens[1:]


class LanguageModel(nn.Module):
    """Transformer with a causal mask; logits [B, L, 14] of the token after each of the tokens [B, L]."""

    def __init__(self, width: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(len(TOKENS), width), nn.Embedding(LENGTH, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.head = nn.Linear(width, len(TOKENS))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits."""
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device)
        states = self.tokens(tokens) + self.places(torch.arange(length, device=tokens.device))
        for block in self.blocks:
            states = block(states, src_mask=mask, is_causal=True)
        logits: Tensor = self.head(states)
        return logits


model = LanguageModel


def data() -> tuple[Sums, Sums]:
    """Texts for training, and those held out."""
    return Sums(1024, below=10), Sums(256, below=10)


def loss(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(sum, count) over the tokens that are no filling: long texts count more than short ones, on any rank."""
    every = cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=0)
    return every, (targets != 0).sum()


def metrics(outputs: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Share of the tokens that were said right, as (sum, count)."""
    there = targets != 0
    return {"accuracy": (((outputs.argmax(-1) == targets) & there).sum(), there.sum())}
