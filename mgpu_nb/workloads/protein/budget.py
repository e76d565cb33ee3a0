"""What an experiment costs: where its search branches, and how many network evaluations that takes."""

from __future__ import annotations

from .config import Config

__all__ = ["branch_steps", "evaluations", "noise_rounds"]

_NOISE_PROGRESS = (0.0, 0.2, 0.4, 0.6, 0.74, 0.8, 0.86, 0.92, 0.96)


def branch_steps(config: Config) -> range:
    """Numbers of the steps at which path exploration makes children."""
    first = int(config.steps * config.branch_start_time)
    return range(first, config.steps, max(1, int(config.steps * config.branch_interval)))


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
