"""Examples of a data set: the embedded sums, GSM8K, IMDB, and tables of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from ...options import check_choice
from ...tasks import derive_seed
from . import sums
from .answers import final_answer
from .job import Example
from .rows import read_rows
from .settings import DATASETS, DatasetSettings, Gsm8kData, ImdbData, SumsData, TableData

__all__ = ["load_examples"]

T = TypeVar("T")
Split = Literal["train", "test"]


def load_examples(dataset: DatasetSettings, split: Split, limit: int | None = None) -> list[Example]:
    """Examples of a split, by their places in the data.

    Parameters
    ----------
    dataset
        The data set.
    split
        ``train`` or ``test``.
    limit
        Largest number of examples; None for all. Of more the same ones are left out always, whatever the seed of the
        run: they are drawn evenly from all over the file, which may be sorted, and a larger limit keeps those of a
        smaller.

    Raises
    ------
    FileNotFoundError, ValueError
        If the data cannot be read, see `read_rows`, or are not of the kind.
    """
    check_choice(split, ("train", "test"), "split")
    read = _READERS[check_choice(dataset.kind, DATASETS, "kind")]
    return read(dataset, split, limit)


def _limited(rows: Sequence[T], limit: int | None) -> list[tuple[int, T]]:
    """Rows with their places, no more than so many."""
    numbered = list(enumerate(rows))
    if limit is None or limit >= len(numbered):
        return numbered
    chosen = sorted(numbered, key=lambda row: derive_seed(0, row[0]))[:limit]
    return sorted(chosen, key=lambda row: row[0])


def _sums(dataset: SumsData, split: Split, limit: int | None) -> list[Example]:
    most = dataset.train_examples if split == "train" else len(sums.NUMBERS)
    return sums.examples(split, most if limit is None else min(limit, most))


def _gsm8k(dataset: Gsm8kData, split: Split, limit: int | None) -> list[Example]:
    path = getattr(dataset, split)
    rows = read_rows(path, ("question", "answer"))
    for number, row in enumerate(rows, 1):
        if "####" not in row["answer"] or final_answer(row["answer"]) is None:
            raise ValueError(
                f"{path}, example {number}: answer must end with '#### NUMBER', got {row['answer'][-60:]!r}"
            )
    return [_asked(n, row["question"], row["answer"], dataset.prompt) for n, row in _limited(rows, limit)]


def _table(dataset: TableData, split: Split, limit: int | None) -> list[Example]:
    columns = [dataset.question] if dataset.answer is None else [dataset.question, dataset.answer]
    rows = read_rows(getattr(dataset, split), columns)
    return [
        _asked(
            n, row[dataset.question], "" if dataset.answer is None else row[dataset.answer], dataset.prompt
        )
        for n, row in _limited(rows, limit)
    ]


def _asked(index: int, question: str, answer: str, prompt: str) -> Example:
    return Example(index, question, answer, prompt.replace("{question}", question))


def _imdb(dataset: ImdbData, split: Split, limit: int | None) -> list[Example]:
    """Beginnings of reviews. The question is the beginning itself: nothing is asked."""
    rows = read_rows(getattr(dataset, split), (dataset.text, dataset.label))
    found = []
    for n, row in _limited(rows, limit):
        beginning = " ".join(row[dataset.text].split()[: dataset.prompt_words])
        found.append(Example(n, beginning, row[dataset.label], beginning))
    return found


_READERS: dict[str, Callable[[Any, Split, int | None], list[Example]]] = {
    "sums": _sums,
    "gsm8k": _gsm8k,
    "imdb": _imdb,
    "table": _table,
}
