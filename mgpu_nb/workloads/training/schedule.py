"""Learning rate over a training, as a share of the one that the config states.

It depends on the step and on the validation losses so far, which a checkpoint holds, so it has no state of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .config import Config

__all__ = ["rate_factor"]


def rate_factor(config: Config, step: int, steps: int | None, losses: Sequence[float]) -> float:
    """Factor of the learning rate for optimizer step `step`, from 0.

    Parameters
    ----------
    steps
        Number of optimizer steps of the whole training; needed for a cosine.
    losses
        Validation loss of each epoch so far.
    """
    factor = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "cosine":
        assert steps is not None  # noqa: S101 (the trainer looked)
        passed = min(1.0, max(0, step - config.warmup_steps) / max(1, steps - config.warmup_steps))
        factor *= config.final_rate + (1 - config.final_rate) * (1 + math.cos(math.pi * passed)) / 2
    elif config.schedule == "plateau":
        factor *= config.plateau_factor ** _plateaus(config, losses)
    return factor


def _plateaus(config: Config, losses: Sequence[float]) -> int:
    """Number of plateaus, as ReduceLROnPlateau of torch counts them with ``threshold_mode="abs"``."""
    best, bad, found = math.inf, 0, 0
    for loss in losses:
        best, bad = (loss, 0) if loss < best - config.min_delta else (best, bad + 1)
        if bad > config.plateau_patience:
            found, bad = found + 1, 0
    return found
