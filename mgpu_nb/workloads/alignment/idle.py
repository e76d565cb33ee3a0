"""Idle time of the slots of a run, and what a barrier between rounds costs or would cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .names import rounds_of, waits_for
from .schedule import Placed, placements

if TYPE_CHECKING:
    from ...tasks import Record
    from ..base import Finished

__all__ = ["Idle", "idle_time", "planned", "timed"]


class Idle(NamedTuple):
    """Idle time of slots.

    Attributes
    ----------
    slots
        Number of slots.
    seconds, seconds_by_round
        From the first start to the last end of tasks of these durations, without and with a barrier between rounds.
    share, share_by_round
        Share of the time of the slots in which no task ran, 0 to 1, without and with it.
    """

    slots: int
    seconds: float
    seconds_by_round: float
    share: float
    share_by_round: float

    def words(self, by_round: bool) -> str:
        """Sentence that says what a barrier costs."""
        plain = f"idle {self.share:.0%} of {self.seconds:.1f} s"
        barred = f"idle {self.share_by_round:.0%} of {self.seconds_by_round:.1f} s"
        slots = f"{self.slots} slots" if self.slots > 1 else "1 slot"
        if by_round:
            return (
                f"With a barrier between rounds {slots} were {barred}; tasks of these durations without it leave them "
                f"{plain} (system.by_round=false)"
            )
        return f"Tasks of these durations leave {slots} {plain}; with a barrier between rounds they would be {barred}"


def timed(run: Finished) -> dict[str, Record]:
    """Records of the tasks that ended well and whose duration is known, by name."""
    return {record.name: record for record in run.records if record.ok and record.seconds is not None}


def planned(run: Finished, *, by_round: bool) -> dict[str, Placed]:
    """Where and when tasks with the durations of a run's would run, with a barrier between rounds or without."""
    seconds = {name: record.seconds or 0.0 for name, record in timed(run).items()}
    after = {
        name: tuple(other for other in others if other in seconds)
        for name, others in waits_for(seconds).items()
    }
    return placements(seconds, after, _slots(run), rounds_of(seconds) if by_round else None)


def idle_time(run: Finished) -> Idle | None:
    """Idle time of the slots of a run, computed from the durations of its tasks; None before one has ended well."""
    records, slots = timed(run), _slots(run)
    if not records:
        return None
    free, barred = (
        max(place.end for place in planned(run, by_round=by_round).values()) for by_round in (False, True)
    )
    work = sum(record.seconds or 0.0 for record in records.values())
    return Idle(slots, free, barred, 1 - work / (slots * free or 1.0), 1 - work / (slots * barred or 1.0))


def _slots(run: Finished) -> int:
    return len(getattr(run, "slots", ())) or len({record.slot for record in timed(run).values()})
