"""What policies wrote for the same test examples, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ...options import PositiveInt, check_choice, check_value
from ...tables import Document, Html, Table, escape
from .names import REFERENCE
from .states import JobResult

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Completions"]

_MOST = 120  # characters of a completion that a table shows


class Completions(Document):
    """Completions of test examples by several policies, a column each.

    Those of a row were drawn with the same random numbers. As many examples are there as evaluations keep,
    `worker.SHOWN` at most, spread evenly over those that were evaluated.

    Parameters
    ----------
    results
        Jobs by `Job.id`.
    algos
        Algorithms to show beside the reference; all if there is none. Of each it is the last round that was evaluated,
        at the eta that the algorithm is meant for.
    prompts, draws
        Number of prompts of each data set, and of completions of each prompt.

    Raises
    ------
    ValueError, TypeError
        If an algorithm has no completions, or a number is not an integer >= 1.
    """

    def __init__(
        self, results: Mapping[str, JobResult], algos: Sequence[str] = (), prompts: int = 3, draws: int = 4
    ) -> None:
        self._prompts: int = check_value("prompts", prompts, PositiveInt)
        self._draws: int = check_value("draws", draws, PositiveInt)
        last: dict[tuple[str, str], dict[str, JobResult]] = {}
        for result in results.values():
            if result.completions:
                last.setdefault((result.job.family, result.job.dataset), {})[result.job.algo] = result
        there = {algo: None for of in last.values() for algo in of}
        for algo in algos:
            check_choice(algo, [*there], "an algorithm that was evaluated")
        wanted = [*dict.fromkeys((REFERENCE, *(algos or there)))]
        self._shown = {place: [of[algo] for algo in wanted if algo in of] for place, of in last.items()}

    def frame(self) -> pd.DataFrame:
        """Table with a row per completion, of all examples and draws that are kept.

        Columns: algo, family, dataset, round, index and prompt of the example, draw, completion, reward.
        """
        import pandas as pd

        rows = [
            (*result.job.__dict__.values(), of["index"], of["prompt"], draw, text, reward)
            for results in self._shown.values()
            for result in results
            for of in result.completions
            for draw, (text, reward) in enumerate(zip(of["texts"], of["rewards"], strict=True))
        ]
        head = ["algo", "family", "dataset", "round", "index", "prompt", "draw", "completion", "reward"]
        return pd.DataFrame(rows, columns=head)

    def _content(self) -> list[str | Table]:
        return [self._table(*place, results) for place, results in self._shown.items()]

    def _table(self, family: str, dataset: str, results: Sequence[JobResult]) -> Table:
        names = [
            result.job.algo + (f", round {result.job.round}" if result.job.round else "")
            for result in results
        ]
        kept = [result.completions for result in results]
        right = {reward for of in kept for example in of for reward in example["rewards"]} <= {0.0, 1.0}
        rows: list[list[object]] = []
        every = [*range(len(kept[0]))]
        count = min(self._prompts, len(every))
        for place in (every[(2 * n + 1) * len(every) // (2 * count)] for n in range(count)):
            examples = [of[place] for of in kept]
            for draw in range(min(self._draws, *(len(example["texts"]) for example in examples))):
                cells = [
                    _cell(example["texts"][draw], example["rewards"][draw], right) for example in examples
                ]
                rows.append([_one_line(examples[0]["prompt"]) if draw == 0 else "", *cells])
        return Table(
            [("prompt", "t"), *((name, "t") for name in names)], rows, f"completions, {family} on {dataset}"
        )


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str, reward: float, right: bool) -> object:
    """A completion and its reward: a mark where rewards are 0 and 1."""
    shown = _one_line(text) or "(nothing)"
    mark = ("✓" if reward else "✗") if right else f"({reward:.2f})"
    shown = shown if len(shown) <= _MOST else f"{shown[: _MOST - 1]}…"
    if right and not reward:
        return Html(f'<span class="q">{escape(shown)} {mark}</span>')
    return f"{shown} {mark}"
