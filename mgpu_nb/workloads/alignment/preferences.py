"""Which of two completions is preferred, and pairs of completions that teach a preference."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .job import Sample
    from .settings import DataCollection

__all__ = ["Preference", "preferences", "same_text", "share_of_first"]

log = logging.getLogger("mgpu_nb.alignment")


class Preference(NamedTuple):
    """A pair of completions of one context, as tokens."""

    context: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


def share_of_first(data: DataCollection, score_a: float, score_b: float) -> float:
    """Probability that the first of two completions is preferred.

    With ``bradley_terry_sampling`` it is ``sigmoid(beta (score_a - score_b))``. Otherwise the larger reward is
    preferred always, and of two equal ones either by a fair coin.
    """
    if data.bradley_terry_sampling:
        difference = data.beta * (score_a - score_b)
        return 1 / (1 + math.exp(-difference)) if difference > -700 else 0.0  # exp overflows at 710
    return 0.5 * (1 + (score_a > score_b) - (score_a < score_b))


def preferences(samples: Sequence[Sample]) -> list[Preference]:
    """Preferences of pairs, without those of twice the same text: nothing is preferred there.

    Raises
    ------
    ValueError
        If none is left.
    """
    found = [
        Preference(sample.context_ids, sample.a_ids, sample.b_ids)
        if sample.preferred == 0
        else Preference(sample.context_ids, sample.b_ids, sample.a_ids)
        for sample in samples
        if sample.y_a != sample.y_b
    ]
    if found and len(found) < len(samples):
        log.info(
            "%d of %d pairs are twice the same text: they are left out",
            len(samples) - len(found),
            len(samples),
        )
    if not found:
        raise ValueError(
            f"each of the {len(samples)} pairs is twice the same text, from which no preference is learnt: raise "
            "generation.temperature, data_collection.samples_per_example or data_collection.max_examples"
        )
    return found


def same_text(samples: Sequence[Sample]) -> int:
    """Number of pairs of twice the same text, which `preferences` leaves out."""
    return sum(sample.preferred >= 0 and sample.y_a == sample.y_b for sample in samples)
