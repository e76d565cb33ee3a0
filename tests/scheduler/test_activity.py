"""What each slot does and why jobs wait, at any time: exact, in virtual time."""

from __future__ import annotations

from typing import Any

import pytest
from virtual import GIB, Behaviour, Recorded, VirtualEngine, call, make_dispatcher

from mgpu_nb.scheduler.job import Job
from mgpu_nb.telemetry.samples import PoolActivity
from mgpu_nb.views.activity import doing, reason_to_wait


class OfRun(Recorded):
    """A job of a run."""

    folder = "/runs/a"

    @property
    def run(self) -> str:
        return self.folder

    @property
    def run_name(self) -> str:
        return self.folder[6:]

    @property
    def run_began(self) -> float | None:
        return 0.0


def task(name: str, seconds: float, run: str = "a", **more: Any) -> OfRun:
    behaviour = Behaviour(
        seconds=seconds, memory=more.pop("uses", 0), ignores_sigterm=more.pop("stubborn", False)
    )
    job = OfRun(name, behaviour, **more)
    job.folder = f"/runs/{run}"
    return job


def seen(
    engine: VirtualEngine, *jobs: Job, at: tuple[float, ...], cancel_at: float | None = None, **options: Any
) -> list[PoolActivity]:
    """What a pool does at these times while it runs jobs."""
    dispatcher = make_dispatcher(engine, **options)
    found: list[PoolActivity] = []
    for when in at:
        engine.loop.call_later(when, lambda: found.append(dispatcher.activity()))
    if cancel_at is not None:
        engine.loop.call_later(cancel_at, lambda: dispatcher.cancel(lambda job: True))
    dispatcher.submit(*jobs)
    dispatcher.close()
    dispatcher.run()
    assert {slot.state for slot in dispatcher.activity().slots} <= {"closed", "out of use"}
    return found


def words(activity: PoolActivity, run: str | None = "/runs/a") -> list[str]:
    idle = reason_to_wait(activity, run)
    return [doing(slot, run, idle) for slot in activity.slots]


def test_a_slot_starts_works_and_is_idle() -> None:
    first, then = seen(VirtualEngine(2, start_seconds=2.0), task("x", 3.0), at=(1.0, 3.0))
    assert words(first) == ["starting: its libraries are imported"] * 2
    assert [slot.since for slot in first.slots] == [0.0, 0.0]
    assert words(then) == ["x", "idle"]
    assert [(slot.task, slot.since) for slot in then.slots] == [("x", 2.0), ("", None)]


def test_a_process_of_its_own_starts_for_its_task() -> None:
    first, then = seen(VirtualEngine(1, start_seconds=2.0), task("x", 3.0), at=(1.0, 3.0), isolated=True)
    assert words(first) == ["x (starting: its libraries are imported)"]
    assert words(then) == ["x"]


def test_another_run_has_all_slots() -> None:
    jobs = [task(f"b{i}", 10.0, run="b") for i in range(2)] + [task("mine", 1.0, batch=2)]
    (now,) = seen(VirtualEngine(2), *jobs, at=(5.0,))
    clock = doing(now.slots[0]).removeprefix("busy with 'b0' of run 'b' of ")
    assert words(now) == [f"busy with run 'b' of {clock}"] * 2
    assert reason_to_wait(now, "/runs/a") == f"every slot is busy with run 'b' of {clock}"
    assert now.queued == 1


def test_a_plain_call_is_named_by_its_function() -> None:
    named = call(Behaviour(seconds=3.0))
    named._function = "fit"
    (now,) = seen(VirtualEngine(2), named, call(Behaviour(seconds=3.0)), at=(1.0,))
    assert words(now) == ["busy with a call of fit", "busy with a call"]


def test_a_task_waits_for_memory_and_says_how_much() -> None:
    jobs = [task("small", 5.0, memory=50 * GIB, uses=50 * GIB), task("large", 1.0, memory=40 * GIB)]
    now, later = seen(VirtualEngine([0, 0]), *jobs, at=(1.0, 5.5))
    assert words(now) == ["small", "idle: 'large' waits for 40.0 GiB of memory"]
    assert words(now, "/runs/b")[1] == "idle: 'large' of run 'a' waits for 40.0 GiB of memory"
    assert later.waits == ()


def test_a_task_waits_for_several_slots_at_once() -> None:
    jobs = [task("one", 5.0, cost=2.0), task("two", 1.0, devices=2, cost=1.0), task("last", 1.0, cost=0.5)]
    now, later = seen(VirtualEngine(2), *jobs, at=(1.0, 5.5))
    assert words(now) == ["one", "idle: 'two' waits for 2 slots at once"]
    assert {slot.task for slot in later.slots} == {"two"}
    assert later.waits == ()


def test_a_cancelled_task_waits_no_more() -> None:
    jobs = [
        task("small", 5.0, memory=50 * GIB, uses=50 * GIB, stubborn=True),
        task("large", 1.0, memory=40 * GIB),
    ]
    before, after = seen(VirtualEngine([0, 0]), *jobs, at=(1.0, 3.0), cancel_at=2.0)
    assert [wait.task for wait in before.waits] == ["large"]
    assert after.waits == ()
    assert doing(after.slots[0], "/runs/a") == "small (ending: cancelled while it ran)"


def test_a_slot_out_of_use_says_why() -> None:
    engine = VirtualEngine(2, starts=lambda number: 1 << 8 if number in (0, 2, 3) else None)
    (now,) = seen(engine, task("x", 3.0), at=(1.0,))
    assert now.slots[0].state == "out of use"
    assert words(now)[0].startswith("out of use: 3 workers ended before they were set up")
    assert words(now)[1] == "x"


@pytest.mark.slow
@pytest.mark.parametrize("slots", [10, 1000])
def test_a_look_costs_a_slot_each_and_no_task(slots: int) -> None:
    looked = 0

    class Counted(OfRun):
        @property
        def run(self) -> str:
            nonlocal looked
            looked += 1
            return super().run

    jobs = [Counted(f"t{i}", Behaviour(seconds=1.0)) for i in range(slots + 5000)]
    engine = VirtualEngine(slots)
    engine.keeps = False
    (now,) = seen(engine, *jobs, at=(0.5,))
    assert now.queued == 5000
    assert sum(slot.state == "busy" for slot in now.slots) == slots
    assert looked <= slots
