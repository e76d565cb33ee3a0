"""What slots do and what tasks wait for, in words."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..tables import gib
from ..telemetry.samples import PoolActivity, SlotActivity, Wait

__all__ = ["clock", "doing", "named", "reason_to_wait", "waiting", "waits_of"]


def clock(at: float | None) -> str:
    """Time of day of a Unix time, with the date if that is not today's; empty if unknown."""
    if at is None:
        return ""
    then, now = time.localtime(at), time.localtime()
    return time.strftime("%H:%M:%S" if then[:3] == now[:3] else "%Y-%m-%d %H:%M:%S", then)


def named(run: str, began: float | None) -> str:
    """A run by name and start: two executions of a cell start runs of one name."""
    return f"run {run!r} of {clock(began)}" if began is not None else f"run {run!r}"


def doing(slot: SlotActivity, run: str | None = None, idle: str = "") -> str:
    """What a slot does.

    Parameters
    ----------
    slot
        The slot.
    run
        Folder of the run that asks: of its own tasks the name is enough. None if no run asks.
    idle
        Why it is idle, if there is a reason.
    """
    who = slot.task
    if slot.task and slot.run != run:
        who = named(slot.run_name, slot.run_began) if slot.run else slot.task
        if run is None and slot.run:
            who = f"{slot.task!r} of {who}"
    if slot.state == "busy":
        return who if slot.run == run and run is not None else f"busy with {who}"
    if slot.state == "idle":
        return f"idle: {idle}" if idle else "idle"
    words = f"{who} ({slot.state}" if who else slot.state
    if slot.why:
        words += f": {slot.why}"
    return f"{words})" if who else words


def waiting(wait: Wait, run: str | None = None) -> str:
    """What a task waits for."""
    task = f"{wait.task!r}" + (f" of run {wait.run_name!r}" if wait.run and wait.run != run else "")
    if wait.memory is not None:
        return f"{task} waits for {gib(wait.memory)} GiB of memory"
    if wait.why:
        return f"{task} waits for more slots: {wait.why}"
    return (
        f"{task} waits for {wait.slots} slots at once"
        if wait.slots > 1
        else f"{task} waits for a device alone"
    )


def reason_to_wait(
    activity: PoolActivity | None, run: str | None = None, after: Sequence[tuple[str, str]] = ()
) -> str:
    """Why slots are idle or tasks of a run wait; empty if there is no reason to name.

    Parameters
    ----------
    activity
        What its pool does.
    run
        Folder of the run that asks.
    after
        Tasks of it, each with the running task that it waits for.
    """
    if activity is None:
        return ""
    reasons = [waiting(wait, run) for wait in sorted(activity.waits, key=lambda wait: wait.run != run)]
    if run is not None:
        own = any(wait.run == run for wait in activity.waits)
        after_words = [f"{task!r} waits for {other!r}" for task, other in after]
        reasons = reasons + after_words if own else after_words + reasons
    if not reasons and not any(slot.state == "idle" for slot in activity.slots):
        reasons = _taken(activity, run)
    return reasons[0] if reasons else ""


def waits_of(activity: PoolActivity | None) -> str:
    """What a pool waits for before all its slots are there; empty for nothing."""
    return "" if activity is None or not activity.waits_for else f"the pool waits for {activity.waits_for}"


def _taken(activity: PoolActivity, run: str | None) -> list[str]:
    """Who has the slots, if none is left for this run."""
    if any(slot.run == run for slot in activity.slots if slot.task):
        return []
    usable = [slot for slot in activity.slots if slot.state not in ("out of use", "closed")]
    holders = {
        named(slot.run_name, slot.run_began) if slot.run else slot.task for slot in usable if slot.task
    }
    if not usable:
        return [waits_of(activity) or "no slot is in use"]
    if not holders:
        return ["its workers are starting"]
    return [f"every slot is busy with {', '.join(sorted(holders)[:3])}"]
