"""Storms by number, and the table of what they came to."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ..hardware.slots import devices
from ..options import NonEmpty, NonNegativeInt, PositiveInt, Seconds, check_options
from ..tables import Document, Table
from .storm import Isolation, Outcome, storm

__all__ = ["Chaos", "ChaosReport", "run_storms"]

MOST_FINDINGS = 50  # of those shown
VIRTUAL = 4  # slots on a machine without GPUs


@dataclass(frozen=True)
class Chaos:
    """Options of storms.

    Raises
    ------
    TypeError, ValueError
        If an option is invalid; the message names it and what is accepted.
    """

    seed: NonNegativeInt = 0
    """Seed of the first storm."""
    storms: PositiveInt = 1
    """Number of storms, each with the next seed."""
    tasks: PositiveInt = 2000
    """Tasks of each."""
    isolation: Literal["worker", "task", "both"] = "both"
    """Warm workers, a fresh process per task, or a storm of each."""
    slots: PositiveInt | None = None
    """Number of slots; by default one per GPU, or 4 virtual CPU devices."""
    gpu_ids: Annotated[tuple[NonNegativeInt, ...], NonEmpty()] | Literal["cpu"] | None = None
    """GPUs to use, or cpu for none; all by default."""
    limit: Seconds = 600.0
    """Seconds until a storm must be over."""

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class ChaosReport(Document):
    """What storms came to.

    Attributes
    ----------
    outcomes
        Of each storm, in order.
    """

    outcomes: tuple[Outcome, ...]

    @property
    def findings(self) -> list[str]:
        """Promises that the pool broke, each after its storm; empty if none."""
        return [f"{each.name}: {finding}" for each in self.outcomes for finding in each.findings]

    def _content(self) -> Iterable[str | Table]:
        columns = ["storm", "tasks", "ok", "error", "killed", "timeout", "skipped", "calls", "lost"]
        columns += ["workers killed", "stopped", "servers killed", "seconds", "broken promises"]
        rows = [
            (
                each.name,
                each.tasks,
                *(each.statuses[status] for status in ("ok", "error", "killed", "timeout", "skipped")),
                each.calls,
                each.calls_lost,
                *(each.strikes[kind] for kind in ("kill", "stop", "server")),
                f"{each.seconds:.1f}",
                len(each.findings),
            )
            for each in self.outcomes
        ]
        yield Table([(columns[0], ""), *((name, "n") for name in columns[1:])], rows, "storms")
        yield from self.findings[:MOST_FINDINGS]
        if (more := len(self.findings) - MOST_FINDINGS) > 0:
            yield f"... {more} more"
        count = len(self.outcomes)
        if not self.findings:
            storms = "storm" if count == 1 else f"{count} storms"
            yield f"Every promise held in the {storms}: one record for each task, nothing lost, doubled, hung or left."


def run_storms(options: Chaos, told: Callable[[Outcome], object] = lambda outcome: None) -> ChaosReport:
    """Run storms one after the other, in folders of their own.

    Parameters
    ----------
    options
        Which.
    told
        Called with the outcome of each when it is over.

    Returns
    -------
    ChaosReport
        What they came to.
    """
    kinds: tuple[Isolation, ...] = ("worker", "task") if options.isolation == "both" else (options.isolation,)
    on_gpus = options.gpu_ids != "cpu" and devices().has_gpu
    slots = options.slots or (None if on_gpus else VIRTUAL)
    outcomes = []
    for seed in range(options.seed, options.seed + options.storms):
        for isolation in kinds:
            with _folder() as folder, _quiet():
                outcome = storm(
                    seed,
                    folder=folder,
                    tasks=options.tasks,
                    slots=slots,
                    gpu_ids=options.gpu_ids,
                    isolation=isolation,
                    limit=options.limit,
                )
            outcomes.append(outcome)
            told(outcome)
    return ChaosReport(tuple(outcomes))


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mgpu-nb-chaos-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Within the block the warnings that a storm is meant to cause are not shown."""
    logger = logging.getLogger("mgpu_nb")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
