"""What is aligned, as settings: pairs of models, kinds of data sets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from ...options import Matches, PositiveInt
from .schema import Checked

__all__ = [
    "DATASETS",
    "DatasetSettings",
    "FileData",
    "Gsm8kData",
    "ImdbData",
    "ModelPair",
    "Split",
    "SumsData",
    "TableData",
]

Split = Literal["train", "test"]
_ANY = re.compile(r"(?s).*\S.*")
ModelFolder = Annotated[
    str, Matches(_ANY, "the folder of a model that save_pretrained has written, or embedded")
]
ClassifierFolder = Annotated[
    str, Matches(_ANY, "the folder of a sequence classifier that save_pretrained has written")
]
DataFile = Annotated[str, Matches(_ANY, "the path of a .jsonl, .csv or .parquet file")]
ColumnName = Annotated[str, Matches(_ANY, "the name of a column")]
Prompt = Annotated[str, Matches(re.compile(r"(?s).*\{question\}.*"), "a text with {question} in it")]
Function = Annotated[
    str, Matches(re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*"), "'package.module:function' of a reward")
]


@dataclass(frozen=True)
class ModelPair(Checked):
    """A reference model and a guide of the same tokenizer."""

    reference: ModelFolder
    """Folder of a model, or `EMBEDDED`."""
    guide: ModelFolder
    """Likewise; by default the reference once more."""
    enabled: bool = True
    """Whether it is used."""


@dataclass(frozen=True, kw_only=True)
class DatasetSettings(Checked):
    """What all data sets have."""

    kind: str
    """Key of `DATASETS`."""
    enabled: bool = True
    """Whether it is used."""
    max_new_tokens: PositiveInt | None = None
    """Longest completion; by default that of ``generation``."""


@dataclass(frozen=True, kw_only=True)
class SumsData(DatasetSettings):
    """The embedded task: a sum of two numbers that makes the number of the prompt."""

    kind: Literal["sums"] = "sums"
    train_examples: PositiveInt = 128
    """Training examples; as test examples there are all 19 numbers."""


@dataclass(frozen=True, kw_only=True)
class FileData(DatasetSettings):
    """Examples of files."""

    train: DataFile
    """File of the training examples: .jsonl, .parquet or .csv."""
    test: DataFile
    """File of the test examples."""


@dataclass(frozen=True, kw_only=True)
class Gsm8kData(FileData):
    """GSM8K: word problems with columns question and answer, the number behind ``####``."""

    kind: Literal["gsm8k"] = "gsm8k"
    prompt: Prompt = "Question: {question}\nAnswer:"
    """Prompt, with the question in it."""


@dataclass(frozen=True, kw_only=True)
class ImdbData(FileData):
    """IMDB: reviews with columns text and label, which are gone on with."""

    kind: Literal["imdb"] = "imdb"
    reward_model: ClassifierFolder
    """Folder of a sequence classifier: the reward is the probability of its last class, positive."""
    prompt_words: PositiveInt = 8
    """Words of a review that are the prompt."""
    text: ColumnName = "text"
    """Column of the review."""
    label: ColumnName = "label"
    """Column of its label, which is kept as the answer."""


@dataclass(frozen=True, kw_only=True)
class TableData(FileData):
    """Examples and a reward of one's own."""

    kind: Literal["table"] = "table"
    reward: Function
    """``package.module:function`` that makes rewards of examples and texts, a number each."""
    question: ColumnName = "question"
    """Column of the question."""
    answer: ColumnName | None = "answer"
    """Column of the answer; None if there is none."""
    prompt: Prompt = "{question}"
    """Prompt, with question in it."""


DATASETS: dict[str, type[DatasetSettings]] = {
    "sums": SumsData,
    "gsm8k": Gsm8kData,
    "imdb": ImdbData,
    "table": TableData,
}
"""Settings of each kind of data set."""
