"""What slots do and what jobs wait for, as plain data: read by other threads, so nothing here changes anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from ..telemetry.samples import SlotActivity, Wait
from .job import Job
from .state import SlotState, WorkerProcess

__all__ = ["slot_activity", "waits"]


def slot_activity(slot: SlotState, *, closed: bool = False) -> SlotActivity:
    """What a slot does now."""
    said = partial(SlotActivity, slot=slot.slot.index, label=slot.slot.label, host=slot.slot.host)
    if slot.retired:
        return said(state="out of use", why=slot.retired)
    if slot.resting and not closed:
        return said(state="starting", why=slot.resting)
    process = slot.taken_by or slot.warm
    if slot.draining and not closed and (process is None or process.job is None):
        return said(state="ending", why=slot.draining)
    if closed or process is None:
        return said(state="closed" if closed else "idle")
    job = process.job
    state, why = "busy" if job is not None else "idle", ""
    if process.kill_reason is not None or process.state == "ending":
        state, why = "ending", "" if process.kill_reason is None else process.kill_reason[1]
    elif process.state == "starting":
        state, why = "starting", _starting(process)
    return said(
        state=state,  # type: ignore[arg-type]
        task="" if job is None else job.label,
        run="" if job is None else job.run,
        run_name="" if job is None else job.run_name,
        run_began=None if job is None else job.run_began,
        since=None if state == "idle" else process.began,
        why=why,
    )


def _starting(process: WorkerProcess) -> str:
    return "its libraries are imported" if process.worker.pid is None else "it is being set up"


def waits(
    for_memory: Iterable[Job], for_slots: Job | None, why: str, need: Callable[[Job], int | None]
) -> tuple[Wait, ...]:
    """What the first jobs of the queue wait for while slots are idle; `why` those that there are will not do."""
    found = [
        Wait(task=job.label, run=job.run, run_name=job.run_name, memory=need(job) or 0) for job in for_memory
    ]
    if for_slots is not None and (for_slots.devices > 1 or for_slots.alone):
        found.append(
            Wait(
                task=for_slots.label,
                run=for_slots.run,
                run_name=for_slots.run_name,
                slots=for_slots.devices,
                why=why,
            )
        )
    return tuple(found)
