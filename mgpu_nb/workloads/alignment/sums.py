"""The embedded task: for a number from 0 to 18 write two digits that add up to it, ``7=`` to ``3+4``.

A completion has at most four of 14 tokens, so all of them can be enumerated (`exact`): what a policy reaches is known
exactly, and so is the best that any policy can reach.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from .job import Example

__all__ = [
    "END",
    "MAX_NEW_TOKENS",
    "NUMBERS",
    "PAD",
    "REFERENCE",
    "SUCCESS",
    "TOKENS",
    "answer",
    "encode",
    "examples",
    "prompt",
    "reward",
    "save_tokenizer",
]

NUMBERS = range(19)
"""Sums of two digits."""

END, PAD = "<end>", "<pad>"

TOKENS = (*"0123456789+=", END, PAD)
"""The vocabulary; the place of a token is its number."""

MAX_NEW_TOKENS = 4
"""Tokens of ``3+4`` and the end token."""

REFERENCE = Path(__file__).parent / "reference"
"""Folder of the shipped model, which `fit_reference` trained: sums up to .38 of its completions."""

SUCCESS = "success"
"""Note in its file of weights: the probability of a right sum, for each number."""

_SUM = re.compile(r"([0-9])\+([0-9])")


def prompt(number: int) -> str:
    """Prompt that asks for a sum, ``7=``."""
    return f"{number}="


def answer(text: str) -> str | None:
    """What a completion adds up to, ``7`` for ``3+4``; None if it is not a sum of two digits."""
    found = _SUM.fullmatch(text)
    return str(int(found[1]) + int(found[2])) if found else None


def reward(question: str, text: str) -> float:
    """1.0 if a completion is two digits that add up to the number, else 0.0.

    Parameters
    ----------
    question
        The number, as text.
    text
        The completion, without its end token.
    """
    return float(answer(text) == question)


def examples(split: Literal["train", "test"], size: int | None = None, seed: int = 0) -> list[Example]:
    """Numbers to write as sums.

    Parameters
    ----------
    split
        ``test`` has each of the 19 numbers once, in order; ``train`` has numbers that are drawn evenly.
    size
        Number of examples; ``train`` needs it. With another size the first examples are the same.
    seed
        Seed of the numbers of ``train``.

    Raises
    ------
    ValueError
        If the split is unknown, or has not so many examples.
    """
    if split == "test":
        if size is not None and not 1 <= size <= len(NUMBERS):
            raise ValueError(f"size: split 'test' of the sums has {len(NUMBERS)} examples, not {size}")
        numbers: Sequence[int] = NUMBERS[:size]
    elif split == "train":
        if size is None or size < 1:
            raise ValueError(f"size: give the number of examples of split 'train', at least 1, not {size}")
        import numpy as np

        numbers = np.random.default_rng(seed).integers(len(NUMBERS), size=size).tolist()
    else:
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    return [
        Example(index, str(number), f"{number // 2}+{number - number // 2}", prompt(number))
        for index, number in enumerate(numbers)
    ]


def encode(text: str) -> list[int]:
    """Numbers of the tokens of a text of digits, plus and equals signs."""
    return [TOKENS.index(character) for character in text]


def save_tokenizer(folder: Path) -> None:
    """Write the tokenizer of the task, as `transformers` reads it: ``tokenizer.json`` and ``tokenizer_config.json``."""
    from tokenizers import AddedToken, Regex, Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split

    tokenizer = Tokenizer(WordLevel({token: number for number, token in enumerate(TOKENS)}))
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    tokenizer.decoder = Fuse()
    tokenizer.add_special_tokens([AddedToken(END, special=True), AddedToken(PAD, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 16,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
