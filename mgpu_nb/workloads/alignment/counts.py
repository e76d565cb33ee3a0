"""How many examples of each data set a run uses, and how many it leaves out: ``data.json`` in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ...store.files import atomic_write
from .datasets import Split, limited, read_examples
from .job import Example
from .settings import Settings
from .sources import DatasetSettings, FileData

__all__ = ["COUNTS", "Counts", "count_data", "count_split", "read_counts", "write_counts"]

COUNTS = "data.json"
"""File with `Counts` by data set and split, in the folder of a run."""


class Counts(NamedTuple):
    """What is used of a split.

    Attributes
    ----------
    file
        Its file; None for the embedded task.
    examples, used
        Number of its examples, and of those that are used: the others are left out by ``max_examples``.
    repeated
        Of those used, the number whose prompt an earlier one has, too. They stay.
    """

    file: str | None
    examples: int
    used: int
    repeated: int

    def words(self, split: str) -> str:
        """Both numbers, and what is left out or repeated."""
        left_out = self.examples - self.used
        texts = [
            f"{self.used:,} of {self.examples:,} {split} examples",
            f"{left_out:,} left out by max_examples" if left_out else "",
            f"{self.repeated:,} with the prompt of another" if self.file and self.repeated else "",
        ]
        return ", ".join(text for text in texts if text)


def count_split(dataset: DatasetSettings, split: Split, limit: int | None) -> tuple[Counts, list[Example]]:
    """What is used of a split, and these examples; raises as `load_examples`."""
    every = read_examples(dataset, split)
    used = limited(dataset, every, limit)
    file = getattr(dataset, split) if isinstance(dataset, FileData) else None
    return Counts(file, len(every), len(used), len(used) - len({example.prompt for example in used})), used


def count_data(settings: Settings) -> dict[str, dict[Split, Counts]]:
    """What is used of each data set, by split."""
    return {
        name: {split: count_split(dataset, split, limit)[0] for split, limit in settings.limits.items()}
        for name, dataset in settings.datasets.items()
    }


def write_counts(folder: Path, counts: Mapping[str, Mapping[Split, Counts]]) -> None:
    """Write what is used of each data set into the folder of a run."""
    plain = {name: {split: each._asdict() for split, each in of.items()} for name, of in counts.items()}
    with atomic_write(folder / COUNTS) as part:
        part.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")


def read_counts(folder: Path) -> dict[str, dict[str, Counts]]:
    """What a run used of each data set, by split; empty if its folder does not say so.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    file = folder / COUNTS
    if not file.is_file():  # of an earlier version
        return {}
    try:
        plain = json.loads(file.read_bytes())
        return {name: {split: Counts(**each) for split, each in of.items()} for name, of in plain.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} does not hold counts of data: {error}; start the run again, which writes it anew"
        ) from error
