"""Examples of a data set: the embedded sums, GSM8K, IMDB, and tables of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...options import check_choice
from ...tasks import derive_seed
from . import sums
from .answers import final_answer
from .job import Example
from .rows import read_rows
from .sources import DATASETS, DatasetSettings, FileData, Gsm8kData, ImdbData, Split, SumsData, TableData

__all__ = ["Split", "limited", "load_examples", "place_of", "read_examples"]


def load_examples(dataset: DatasetSettings, split: Split, limit: int | None = None) -> list[Example]:
    """Examples of a split, by their places in the data.

    Parameters
    ----------
    dataset
        The data set.
    split
        ``train`` or ``test``.
    limit
        Largest number of examples; None for all. See `limited`.

    Raises
    ------
    FileNotFoundError, ValueError
        If the data cannot be read, see `read_rows`, or are not of the kind.
    """
    return limited(dataset, read_examples(dataset, split), limit)


def read_examples(dataset: DatasetSettings, split: Split) -> list[Example]:
    """All examples of a split; raises as `load_examples`."""
    check_choice(split, ("train", "test"), "split")
    read = _READERS[check_choice(dataset.kind, DATASETS, "kind")]
    return read(dataset, split)


def limited(dataset: DatasetSettings, examples: Sequence[Example], limit: int | None) -> list[Example]:
    """Examples of a split, no more than so many.

    The same ones are left out always, whatever the seed of the run: those kept are drawn evenly from all over the file,
    which may be sorted, and a larger limit keeps those of a smaller. Of the sums the first are kept.
    """
    if limit is None or limit >= len(examples):
        return list(examples)
    if isinstance(dataset, SumsData):
        return list(examples[:limit])
    chosen = sorted(examples, key=lambda example: derive_seed(0, example.index))[:limit]
    return sorted(chosen, key=lambda example: example.index)


def place_of(dataset: DatasetSettings, split: Split, example: Example) -> str:
    """Place of an example for a reader: its file and line, or its number; reads the file once more."""
    if not isinstance(dataset, FileData):
        return f"{split} example {example.index + 1} of {dataset.kind}"
    file = getattr(dataset, split)
    return f"{file}, {read_rows(file, ())[example.index].where}"


def _sums(dataset: SumsData, split: Split) -> list[Example]:
    return sums.examples(split, dataset.train_examples if split == "train" else None)


def _gsm8k(dataset: Gsm8kData, split: Split) -> list[Example]:
    path, found = getattr(dataset, split), []
    for n, row in enumerate(read_rows(path, ("question", "answer"))):
        question, answer = row.values["question"], row.values["answer"]
        if "####" not in answer or final_answer(answer) is None:
            raise ValueError(
                f"{path}, {row.where}: answer must end with '#### NUMBER', got {answer[-60:]!r}; write it so, or give "
                "datasets.NAME.kind=table and a reward of your own"
            )
        found.append(_asked(n, question, answer, dataset.prompt))
    return found


def _table(dataset: TableData, split: Split) -> list[Example]:
    columns = [dataset.question] if dataset.answer is None else [dataset.question, dataset.answer]
    return [
        _asked(
            n,
            row.values[dataset.question],
            "" if dataset.answer is None else row.values[dataset.answer],
            dataset.prompt,
        )
        for n, row in enumerate(read_rows(getattr(dataset, split), columns))
    ]


def _asked(index: int, question: str, answer: str, prompt: str) -> Example:
    return Example(index, question, answer, prompt.replace("{question}", question))


def _imdb(dataset: ImdbData, split: Split) -> list[Example]:
    """Beginnings of reviews. The question is the beginning itself: nothing is asked."""
    found = []
    for n, row in enumerate(read_rows(getattr(dataset, split), (dataset.text, dataset.label))):
        beginning = " ".join(row.values[dataset.text].split()[: dataset.prompt_words])
        found.append(Example(n, beginning, row.values[dataset.label], beginning))
    return found


_READERS: dict[str, Callable[[Any, Split], list[Example]]] = {
    "sums": _sums,
    "gsm8k": _gsm8k,
    "imdb": _imdb,
    "table": _table,
}
