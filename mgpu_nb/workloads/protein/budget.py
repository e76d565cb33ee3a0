"""What an experiment costs: where its search branches, how many network calls that takes, what a budget buys.

A network call (NFE, number of function evaluations) is one evaluation of the model at one state.
"""

from __future__ import annotations

import bisect
from dataclasses import replace
from typing import NamedTuple

from .config import Config

__all__ = ["Experiment", "branch_steps", "equal_starts", "evaluations", "experiments", "noise_rounds"]

_NOISE_PROGRESS = (0.0, 0.2, 0.4, 0.6, 0.74, 0.8, 0.86, 0.92, 0.96)
_LEAST = {"sde_path_exploration": 2, "divergence_free_ode": 2, "random_search_divfree": 2}
"""Branches below which a method does nothing of its own; of the other methods 1."""
_NEAR = 0.95  # of a budget that is spent well


class Experiment(NamedTuple):
    """One method with what it is given.

    Attributes
    ----------
    method
        One of `METHODS`.
    num_branches
        Children per kept state; of best_of_n the number of starts, of the baseline 1.
    stride
        Steps between branchings, if they are not those of `Config.branch_interval`.
    budgets
        Budgets that it spends; empty without any.
    """

    method: str
    num_branches: int
    stride: int | None = None
    budgets: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Name of its task and of its folder of structures: ``method-bN``, and ``.everyM`` with a stride."""
        every = "" if self.stride is None else f".every{self.stride}"
        return f"{self.method}-b{self.num_branches}{every}"

    def options(self, config: Config) -> Config:
        """Config of a run, for this experiment."""
        return config if self.stride is None else replace(config, branch_interval=self.stride / config.steps)


def experiments(config: Config) -> list[Experiment]:
    """Experiments of a run: each method at every branch count or budget, the baseline once.

    If best_of_n is one of several searches, it also gets as many starts as the costliest of them has network calls
    for: its first n starts are best_of_n with n, so that there is one with the calls of each of them.

    Raises
    ------
    ValueError
        If a budget is too small for a method; the message says what it needs.
    """
    found = _within(config) if config.budget is not None else _at_counts(config)
    searches = [each for each in found if each.method not in ("standard", "best_of_n")]
    if searches and "best_of_n" in config.methods:
        costliest = max(evaluations(e.method, e.num_branches, e.options(config)) for e in searches)
        starts = equal_starts(costliest, config.steps)
        if starts > max(each.num_branches for each in found if each.method == "best_of_n"):
            last = max(n for n, each in enumerate(found) if each.method == "best_of_n")
            found.insert(last + 1, Experiment("best_of_n", starts))
    return found


def equal_starts(nfe: float, steps: int) -> int:
    """Starts of best_of_n that take as many network calls as another method, rounded up to whole starts."""
    return -int(-nfe // steps)


def _at_counts(config: Config) -> list[Experiment]:
    return [
        Experiment(method, count)
        for method in config.methods
        for count in ((1,) if method == "standard" else config.branch_counts)
    ]


def _within(config: Config) -> list[Experiment]:
    """Experiments that spend the budgets of a config; budgets that buy the same share one."""
    bought: dict[Experiment, tuple[int, ...]] = {}
    lacking = []
    for method in config.methods:
        for budget in sorted(config.budget or ()):
            experiment, least = _best_buy(method, budget, config)
            if experiment is None:
                lacking.append(f"{method} needs {least:,} at least, {budget:,} is too little")
            else:
                bought[experiment] = (*bought.get(experiment, ()), budget)
    if lacking:
        raise ValueError(
            f"budget={config.budget!r}: network calls per sample, of which {'; '.join(lacking)}: raise it, leave the "
            "method out of methods, or take fewer steps"
        )
    return [experiment._replace(budgets=budgets) for experiment, budgets in bought.items()]


def _best_buy(method: str, budget: int, config: Config) -> tuple[Experiment | None, int]:
    """Experiment of a method that costs at most a budget and nearly as much; and the least that one costs.

    Branchings stay as far apart as the config says if some number of branches then spends 95 % of the budget, or else
    are the least wider apart with which one does; if none does, what is nearest is taken.
    """
    if method == "standard":
        return (Experiment(method, 1) if budget >= config.steps else None), config.steps
    own = branch_steps(config).step
    strides: list[int | None] = [None]
    if method in _LEAST:
        strides += range(own + 1, config.steps + 1)
    found: list[tuple[int, Experiment]] = []
    first, least = _LEAST.get(method, 1), 0
    for stride in strides:
        options = Experiment(method, 1, stride).options(config)
        counts = range(first, max(first, budget) + 1)
        fitting = bisect.bisect_right(counts, budget, key=lambda n: evaluations(method, n, options))
        if fitting:
            experiment = Experiment(method, counts[fitting - 1], stride)
            found.append((evaluations(method, experiment.num_branches, options), experiment))
            if found[-1][0] >= _NEAR * budget:
                return experiment, 0
        cost = evaluations(method, first, options)
        least = min(least or cost, cost)
    return (max(found, key=lambda each: each[0])[1] if found else None), least


def branch_steps(config: Config) -> range:
    """Numbers of the steps at which path exploration makes children."""
    first = int(config.steps * config.branch_start_time)
    return range(first, config.steps, max(1, int(config.steps * config.branch_interval + 1e-9)))


def noise_rounds(steps: int) -> list[int]:
    """Numbers of the steps at which the rounds of noise_search start; few steps make fewer rounds."""
    return sorted({int(steps * progress + 1e-9) for progress in _NOISE_PROGRESS})


def evaluations(method: str, num_branches: int, config: Config) -> int:
    """Network evaluations per sample of one experiment: what `Flow` counts when it is run."""
    if method == "standard":
        return config.steps
    if method == "best_of_n":
        return config.steps * num_branches
    if method == "noise_search":
        total, kept = config.steps, 1
        for number, begin in enumerate(noise_rounds(config.steps)):
            total += kept * num_branches * (config.steps - begin)
            kept = min(config.num_keep, kept * num_branches + (number == 0))
        return total
    total = config.steps * num_branches if method == "random_search_divfree" else 0
    branches, kept = branch_steps(config), 1
    for step in range(config.steps):
        if step in branches:
            total += kept * num_branches * (config.steps - step)
            kept = min(config.num_keep, kept * num_branches)
        else:
            total += kept
    return total
