"""Methods compared: paired differences, and best_of_n with the network calls of each other method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .budget import equal_starts
from .config import Config

__all__ = ["SURE", "AtEqualWork", "at_equal_work", "curve", "described", "direction", "paired_difference"]

SURE = 2.0
"""Standard errors of a difference from which on it counts."""


@dataclass(frozen=True)
class AtEqualWork:
    """An experiment beside best_of_n with as many network calls, rounded up to whole starts.

    Attributes
    ----------
    result
        Result of the experiment.
    starts, nfe
        Starts of best_of_n, and their network calls per sample: at most one start more than those of the experiment.
    mean
        Mean score of best_of_n.
    difference, error
        Mean over the samples of the experiment's score less that of best_of_n, both of the same noise, turned so that
        more is better for scores in angstrom too; and its standard error, infinite for a single sample.
    """

    result: dict[str, Any]
    starts: int
    nfe: int
    mean: float
    difference: float
    error: float

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` than best_of_n by more than two standard errors, or ``not told apart``."""
        if abs(self.difference) <= SURE * self.error:
            return "not told apart"
        return "better" if self.difference > 0 else "worse"


def at_equal_work(results: Sequence[dict[str, Any]]) -> list[AtEqualWork]:
    """Each search beside best_of_n at equal work, in the order of the results.

    Left out are experiments for which no best_of_n with enough starts was run with the same options.
    """
    found = []
    for result in results:
        if result["method"] in ("standard", "best_of_n") or not np.isfinite(result["scores"]).all():
            continue
        steps = int(result["config"].get("steps", Config.steps))
        starts = equal_starts(result["nfe"], steps)
        rivals = [
            each for each in results if len(curve(each)) >= starts and _options(each) == _options(result)
        ]
        if rivals:
            scores = np.asarray(rivals[0]["scores_by_n"], float)[:, starts - 1]
            difference, error = paired_difference(result["scores"], scores, direction(result))
            found.append(AtEqualWork(result, starts, starts * steps, float(scores.mean()), difference, error))
    return found


def curve(result: dict[str, Any]) -> npt.NDArray[np.float64]:
    """Best score [n, S] of best_of_n with 1 ... n starts, of each sample; empty for other methods."""
    return np.asarray(result.get("scores_by_n") or [[]], float).T


def paired_difference(one: npt.ArrayLike, two: npt.ArrayLike, sign: int) -> tuple[float, float]:
    """Mean of ``sign (one - two)`` over samples that begin at the same noise, and its standard error."""
    a, b = np.asarray(one, float), np.asarray(two, float)
    paired = a.shape == b.shape
    difference = sign * float((a - b).mean() if paired else a.mean() - b.mean())
    if min(len(a), len(b)) < 2:
        return difference, math.inf
    if paired:
        return difference, float(np.std(a - b, ddof=1)) / math.sqrt(len(a))
    return difference, math.hypot(*(float(np.std(each, ddof=1)) / math.sqrt(len(each)) for each in (a, b)))


def direction(result: dict[str, Any]) -> int:
    """1 where a higher score is better, -1 where a lower one is."""
    return 1 if Config(scoring_function=result["scoring_function"]).higher_is_better else -1


def described(result: dict[str, Any]) -> str:
    """Name of an experiment in a sentence."""
    branches = result["num_branches"]
    if result["method"] == "standard":
        return "standard"
    each = "branch" if branches == 1 else "branches"
    return f"{result['method']} with {branches} {each}"


def _options(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result["config"].items() if name != "branch_interval"}
