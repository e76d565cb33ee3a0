"""Which of two completions is preferred, and which pairs teach it."""

import math
from typing import Any

import pytest

from mgpu_nb.workloads.alignment.job import Sample
from mgpu_nb.workloads.alignment.preferences import Preference, preferences, same_text, share_of_first
from mgpu_nb.workloads.alignment.settings import DataCollection


def sample(**changes: Any) -> Sample:
    whole: dict[str, Any] = {
        "index": 0, "draw": 0, "question": "7", "answer": "3+4", "prompt": "7=", "t": 0, "context": "7=",
        "y_a": "3+4", "y_b": "1+1", "score_a": 1.0, "score_b": 0.0, "preferred": 0,
        "prompt_ids": (7, 11), "context_ids": (7, 11), "a_ids": (3, 10, 4, 12), "b_ids": (1, 10, 1, 12),
    }  # fmt: skip
    return Sample(**whole | changes)


def test_bradley_terry() -> None:
    data = DataCollection(bradley_terry_sampling=True, beta=2.0)
    assert share_of_first(data, 1.0, 0.0) == pytest.approx(1 / (1 + math.exp(-2)))
    assert share_of_first(data, 0.0, 1.0) == pytest.approx(1 / (1 + math.exp(2)))
    assert share_of_first(data, 0.3, 0.3) == 0.5
    assert share_of_first(data, -1e9, 0.0) == 0.0
    assert share_of_first(data, 1e9, 0.0) == 1.0


def test_the_larger_reward_wins_and_ties_are_a_fair_coin() -> None:
    data = DataCollection(bradley_terry_sampling=False)
    assert [share_of_first(data, *scores) for scores in ((1, 0), (0, 1), (1, 1))] == [1.0, 0.0, 0.5]


def test_preferred_and_twice_the_same_text(caplog: pytest.LogCaptureFixture) -> None:
    same = sample(y_b="3+4", b_ids=(3, 10, 4))  # without its end token it is the same text yet
    with caplog.at_level("INFO", "mgpu_nb.alignment"):
        found = preferences([sample(), sample(preferred=1), same])
    assert "1 of 3 pairs are twice the same text: they are left out" in caplog.text
    assert same_text([sample(), same, same, same._replace(y_a="", y_b="", preferred=-1)]) == 2
    first = Preference((7, 11), (3, 10, 4, 12), (1, 10, 1, 12))
    assert found == [first, first._replace(chosen=first.rejected, rejected=first.chosen)]
    with pytest.raises(
        ValueError, match=r"each of the 2 pairs is twice the same text.*generation\.temperature"
    ):
        preferences([same, same])
