"""What decides the result of a task, beside its settings: the examples and models that it reads. And what does not."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .job import Example, Pair
from .models import model_folder
from .settings import DatasetSettings, System

__all__ = ["Data", "Execution", "examples_digest", "pair_digest"]

_PART, _PARTS = 2**20, 64  # bytes of a part of a file, number of parts of a large one


@dataclass(frozen=True)
class Data:
    """Examples that a task reads.

    Attributes
    ----------
    dataset
        The data set.
    split
        ``train`` or ``test``.
    limit
        Number of examples that are used; None for all.
    digest
        `examples_digest` of them when the run was made: with other examples it is another task.
    """

    dataset: DatasetSettings
    split: Literal["train", "test"]
    limit: int | None
    digest: str


@dataclass(init=False, eq=False)
class Execution:
    """How a task is executed, which does not decide what comes of it.

    It has no fields, and so it is no part of the identity of a task.
    """

    def __init__(self, system: System) -> None:
        self.system = system


def examples_digest(examples: Sequence[Example]) -> str:
    """Digest of the content of examples."""
    digest = hashlib.blake2b(digest_size=16)
    for example in examples:
        digest.update(repr(tuple(example)).encode(errors="surrogatepass"))
    return digest.hexdigest()


def pair_digest(pair: Pair) -> str:
    """Digest of the files of a pair of models. Of a file of more than 64 MiB it is of parts all over it."""
    digest = hashlib.blake2b(digest_size=16)
    for place in dict.fromkeys((pair.reference, pair.guide)):
        folder = model_folder(place)
        for file in sorted(each for each in folder.iterdir() if each.is_file()):
            size = file.stat().st_size
            digest.update(f"{file.name}:{size}:".encode())
            with file.open("rb") as opened:
                for at in range(0, size, max(_PART, size // _PARTS)):
                    opened.seek(at)
                    digest.update(opened.read(_PART))
    return digest.hexdigest()
