"""What is aligned: algorithms x model pairs x data sets x rounds, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["EMBEDDED", "Example", "Job", "Pair", "Sample"]

EMBEDDED = "embedded"
"""Path of a model that stands for the one that is shipped."""


@dataclass(frozen=True)
class Pair:
    """A large reference model and a small guide that share a tokenizer.

    Attributes
    ----------
    family
        Name of the pair in jobs and files.
    reference, guide
        Folders of the models, or `EMBEDDED`.
    """

    family: str
    reference: str
    guide: str


@dataclass(frozen=True)
class Job:
    """One round of an algorithm for a pair of models and a data set.

    Attributes
    ----------
    algo, family, dataset
        Names of algorithm, pair and data set.
    round
        From 1.
    """

    algo: str
    family: str
    dataset: str
    round: int

    @property
    def id(self) -> str:
        """Name, ``{algo}_{family}_{dataset}_r{round}``."""
        return f"{self.algo}_{self.family}_{self.dataset}_r{self.round}"

    @property
    def stem(self) -> str:
        """Stem of its files, ``{dataset}_{family}_r{round}``."""
        return f"{self.dataset}_{self.family}_r{self.round}"


class Example(NamedTuple):
    """An example of a data set.

    Attributes
    ----------
    index
        Place in the data set.
    question, answer
        As the data have them.
    prompt
        What a model is given.
    """

    index: int  # type: ignore[assignment]  # instead of tuple.index, which nothing here needs
    question: str
    answer: str
    prompt: str


class Sample(NamedTuple):
    """What data generation wrote for an example.

    Attributes
    ----------
    index, draw
        Place of the example, number of the sample of it, from 0: its random numbers depend on these two alone.
    question, answer, prompt
        Those of the example.
    t
        Number of tokens of the roll-in that are kept.
    context
        Prompt and the kept tokens, as text.
    y_a, y_b
        Completions of the context; `y_b` is empty where there is only one.
    score_a, score_b
        Rewards; `score_b` is NaN where there is only one completion.
    preferred
        0 for `y_a`, 1 for `y_b`; -1 where there is only one.
    prompt_ids, context_ids, a_ids, b_ids
        The same texts as tokens; a completion has its end token if the model wrote one.
    """

    index: int  # type: ignore[assignment]  # instead of tuple.index, which nothing here needs
    draw: int
    question: str
    answer: str
    prompt: str
    t: int
    context: str
    y_a: str
    y_b: str
    score_a: float
    score_b: float
    preferred: int
    prompt_ids: tuple[int, ...]
    context_ids: tuple[int, ...]
    a_ids: tuple[int, ...]
    b_ids: tuple[int, ...]
