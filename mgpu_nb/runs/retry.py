"""Running again what failed: which tasks that are, and what they were made of."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..tasks import Record, Task

__all__ = ["Origin", "to_retry"]


@dataclass(frozen=True)
class Origin:
    """What a run was made of, and the pool it was started on, if that is still there."""

    tasks: Sequence[Task]
    seed: int
    retry_alone: bool
    gang: bool | Literal["devices"]
    whole: bool
    pool: weakref.ref[Any]
    by_round: bool | Mapping[str, int] = False


def to_retry(
    tasks: Mapping[str, Collection[str]], records: Mapping[str, Record], cancelled: bool
) -> set[str]:
    """Names of the tasks that a retry runs: what failed or has no record, and what was skipped because of these.

    Parameters
    ----------
    tasks
        Names of all tasks, each with those that it waits for.
    records
        Records by name.
    cancelled
        Whether what was cancelled is run as well.
    """
    good = {name for name, record in records.items() if record.ok}
    chosen = {
        name
        for name in tasks
        if name not in good
        and (name not in records or records[name].failed or records[name].status == "skipped" or cancelled)
    }
    left = chosen
    while left:  # without those that wait for a task that stays cancelled
        left = {name for name in chosen if not good.union(chosen).issuperset(tasks[name])}
        chosen -= left
    return chosen
