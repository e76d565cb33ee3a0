"""Who runs what, where and when: exact, in virtual time and without processes."""

from __future__ import annotations

import errno
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from virtual import (
    ENVIRONMENT,
    GIB,
    Behaviour,
    LoadEngine,
    Recorded,
    VirtualEngine,
    VirtualWorker,
    call,
    make_dispatcher,
    run,
)

from mgpu_nb import GPUPool, OutOfMemory, SetupError, Task, TaskError, TaskTimeout, WorkerDied
from mgpu_nb.engines import payload
from mgpu_nb.engines.base import Begin, Failure, Payload, Received, Reported, WorkerEvents
from mgpu_nb.scheduler.job import FutureJob, Gang


def starts(engine: VirtualEngine) -> list[tuple[float, int, str]]:
    return [(at, slot, name) for at, slot, _, name in engine.log]


def lasts(seconds: float, **more: Any) -> Behaviour:
    return Behaviour(seconds=seconds, **more)


# Order.


def test_the_longest_first_each_to_the_slot_that_is_free_first() -> None:
    engine = VirtualEngine(2)
    run(engine, *(Recorded(f"{n}", lasts(n), cost=float(n)) for n in (1, 2, 3, 4)))
    assert starts(engine) == [(0.0, 0, "4"), (0.0, 1, "3"), (3.0, 1, "2"), (4.0, 0, "1")]
    assert engine.clock.now == 5.0


def test_costs_that_were_learnt_order_the_next_run(tmp_path: Path) -> None:
    def order(seconds: dict[str, float], folder: str) -> list[str]:
        engine = VirtualEngine(1, blocks=True)
        with GPUPool(engine=engine) as pool:
            tasks = [Task(lasts, s, name=name) for name, s in seconds.items()]
            pool.run(tasks, folder=tmp_path / folder).results(60)
        return [name for _, _, name in starts(engine)]

    seconds = {"short": 1.25, "long": 9.25, "middle": 5.25}
    assert order(seconds, "first") == ["short", "long", "middle"]
    assert order(seconds, "second") == ["long", "middle", "short"]


def test_earlier_batches_first() -> None:
    engine = VirtualEngine(1)
    run(engine, Recorded("b", lasts(1), batch=2, cost=9.0), Recorded("a", lasts(1), batch=1))
    assert [name for _, _, name in starts(engine)] == ["a", "b"]


def test_a_job_of_several_slots_is_not_passed_for_ever() -> None:
    engine = VirtualEngine(2)
    jobs = [
        Recorded("first", lasts(5)),
        Recorded("both", lasts(1), devices=2),
        *(Recorded(f"{n}", lasts(1)) for n in range(3)),
    ]
    run(engine, *jobs)
    assert starts(engine)[:3] == [(0.0, 0, "first"), (5.0, 0, "both"), (6.0, 0, "0")]


def test_tasks_are_spread_over_gpus_before_they_share_one() -> None:
    engine = VirtualEngine([0, 0, 1, 1])
    run(engine, *(Recorded(f"{n}", lasts(n + 1.0)) for n in range(4)))
    assert [slot for _, slot, _ in starts(engine)] == [0, 2, 1, 3]


# Failures.


def test_retries_as_many_as_were_asked_for() -> None:
    bad, good = lasts(1, error=ValueError("no")), lasts(1, value=7)
    saved, lost = Recorded("saved", bad, bad, good, retries=2), Recorded("lost", bad, retries=2)
    run(VirtualEngine(1), saved, lost)
    assert (saved.status, saved.attempt, saved.end.value) == ("ok", 3, 7)
    assert (lost.status, lost.attempt) == ("error", 3)
    assert saved.notes == tuple(f"attempt {n} on host-0 cuda:0: error: ValueError: no" for n in (1, 2))
    assert isinstance(lost.end.exception, ValueError)


def test_a_task_that_kills_its_worker_three_times_is_not_tried_again() -> None:
    job = Recorded("kills", lasts(1, status=int(signal.SIGSEGV)), retries=9)
    after = Recorded("after", lasts(1))
    engine = VirtualEngine(1)
    run(engine, job, after)
    assert (job.status, job.attempt, job.deaths, after.status) == ("killed", 3, 3, "ok")
    assert job.notes[-1] == "it ended its process 3 times and was not tried again"
    assert isinstance(job.end.exception, WorkerDied)
    assert "segmentation fault" in job.end.error


def test_the_cgroups_kill_is_out_of_memory() -> None:
    job = Recorded("large", lasts(1, status=int(signal.SIGKILL), out_of_memory=True))
    run(VirtualEngine(1), job)
    assert job.status == "out-of-memory"
    assert isinstance(job.end.exception, OutOfMemory)
    assert job.end.error == (
        "killed by the system for want of memory; it stated no memory, it ran alone. Make it smaller, or give this "
        "process more memory"
    )


def test_what_a_killed_task_had_asked_for_and_what_ran_beside_it_is_told() -> None:
    job = Recorded("large", lasts(1, status=int(signal.SIGKILL), out_of_memory=True), memory=2 * GIB)
    run(VirtualEngine(2), job, Recorded("other", lasts(2)))
    assert job.end.error == (
        f"killed by the system for want of memory; it stated memory={2 * GIB:,}, 1 other task ran beside it. State "
        "memory=, use fewer slots, or retry_alone=True"
    )


def test_what_was_killed_for_memory_has_its_machine_alone_the_next_time() -> None:
    killed = lasts(1, status=int(signal.SIGKILL), out_of_memory=True)
    job = Recorded("large", killed, lasts(2, value=1), retry_alone=True)
    engine = VirtualEngine(2)  # two GPUs of a host
    run(engine, job, *[Recorded(f"{n}", lasts(4)) for n in range(3)])
    assert (job.status, job.attempt) == ("ok", 2)
    began = [at for at, _, name in starts(engine) if name == "large"][1]
    neighbours = [(at, at + 4) for at, _, name in starts(engine) if name != "large"]
    assert all(began >= end or began + 2 <= at for at, end in neighbours)
    assert "alone on its device and its machine" in job.notes[0]


def test_what_ran_out_of_memory_is_alone_the_next_time() -> None:
    short = lasts(1, error=MemoryError("full"), out_of_memory=True)
    job = Recorded("large", short, lasts(2, value=1), retry_alone=True)
    others = [Recorded(f"{n}", lasts(4)) for n in range(2)]
    engine = VirtualEngine([0, 0])
    run(engine, job, *others)
    assert (job.status, job.attempt) == ("ok", 2)
    began = [at for at, _, name in starts(engine) if name == "large"][1]
    neighbours = [(at, at + 4) for at, _, name in starts(engine) if name != "large"]
    assert all(began >= end or began + 2 <= at for at, end in neighbours)


@pytest.mark.parametrize(("stubborn", "ended"), [(False, 3.0), (True, 8.0)])
def test_a_timeout_asks_then_kills(stubborn: bool, ended: float) -> None:
    job = Recorded("slow", lasts(100, ignores_sigterm=stubborn), timeout=3.0)
    engine = VirtualEngine(1)
    run(engine, job, grace=5.0)
    assert job.status == "timeout"
    assert isinstance(job.end.exception, TaskTimeout)
    assert engine.clock.now == ended
    kinds = [signum for _, _, signum in engine.signals]
    assert kinds == [signal.SIGTERM, signal.SIGKILL][: 1 + stubborn]


def test_a_timeout_counts_from_when_the_worker_is_ready() -> None:
    job = Recorded("slow", lasts(2), timeout=3.0)
    run(VirtualEngine(1, start_seconds=30.0), job, isolated=True)
    assert job.status == "ok"


def test_timers_do_not_keep_what_is_over() -> None:
    dispatcher = run(
        VirtualEngine(4), *(Recorded(f"{n}", lasts(1), timeout=1e6) for n in range(2000)), isolated=True
    )
    assert len(dispatcher.loop._timers) < 500


def test_one_slot_that_does_not_start_leaves_the_others_working() -> None:
    jobs = [Recorded(f"{n}", lasts(1)) for n in range(4)]
    engine = VirtualEngine(2, starts=lambda number: 3 << 8 if number in (0, 2, 3) else None)
    dispatcher = run(engine, *jobs)
    assert {job.status for job in jobs} == {"ok"}
    assert [bool(slot.retired) for slot in dispatcher.slots] == [True, False]


def test_without_any_slot_the_queue_ends_with_the_reason() -> None:
    jobs = [Recorded(f"{n}", lasts(1)) for n in range(4)]
    run(VirtualEngine(2, starts=lambda number: 3 << 8), *jobs)
    assert {job.status for job in jobs} == {"error"}
    assert all(isinstance(job.end.exception, SetupError) for job in jobs)
    assert "exit code 3" in jobs[0].end.error


def test_a_worker_that_is_never_ready_is_given_up() -> None:
    job = Recorded("one", lasts(1))
    run(VirtualEngine(1, start_seconds=1e9), job, start_timeout=60.0)
    assert job.status == "error"
    assert "not ready within 60 s" in job.end.error


@pytest.mark.parametrize(
    ("behaviour", "note"),
    [
        (lasts(1, held=600 * 2**20), "it kept 600 MB"),
        (lasts(1, error=RuntimeError("assert"), cuda_broken=True), "CUDA context"),
    ],
)
def test_a_worker_that_is_unfit_is_replaced(behaviour: Behaviour, note: str) -> None:
    first, second = Recorded("first", behaviour), Recorded("second", lasts(1))
    run(VirtualEngine(1), first, second)
    assert second.status == "ok"
    assert first.location.pid != second.location.pid
    assert note in first.notes[0]


# What is recorded.


def test_the_record_has_the_host_of_its_worker() -> None:
    jobs = [Recorded(f"{n}", lasts(1)) for n in range(4)]
    run(VirtualEngine(4, hosts=2), *jobs)
    assert [job.location.host for job in jobs] == ["host-0", "host-1", "host-0", "host-1"]


def test_reports_and_output_reach_their_task() -> None:
    job = Recorded("talks", lasts(2, reports=((0.5, {"loss": 2.0}), (1.5, {"loss": 1.0})), output=b"words\n"))
    run(VirtualEngine(1), job)
    assert (job.metrics, job.written) == ({"loss": 1.0}, b"words\n")


# Memory.


def test_stated_memory_is_never_promised_twice() -> None:
    engine = VirtualEngine([0, 0, 0, 0])
    jobs = [Recorded(f"{n}", lasts(1, memory=30 * GIB), memory=35 * GIB) for n in range(5)]
    run(engine, *jobs)
    assert {job.status for job in jobs} == {"ok"}
    assert [at for at, _, _ in starts(engine)] == [0.0, 0.0, 1.0, 1.0, 2.0]


def test_smaller_tasks_pass_one_that_waits_for_memory() -> None:
    engine = VirtualEngine([0, 0, 0])
    first = Recorded("first", lasts(4, memory=20 * GIB), memory=20 * GIB)
    large = Recorded("large", lasts(1), memory=70 * GIB)
    run(engine, first, large, Recorded("small", lasts(1), memory=GIB))
    assert starts(engine) == [(0.0, 0, "first"), (0.0, 1, "small"), (4.0, 0, "large")]


@pytest.mark.parametrize("count", [50, 400])
def test_tasks_that_wait_for_memory_are_not_looked_at_one_by_one(count: int) -> None:
    engine = VirtualEngine([0, 0, 0, 0])
    run(engine, *(Recorded(f"{n}", lasts(1, memory=50 * GIB), memory=50 * GIB) for n in range(count)))
    assert engine.clock.now == count
    assert engine.memory_readings < 4 * count


def test_the_peaks_of_a_kind_are_learnt() -> None:
    engine = VirtualEngine([0, 0, 0])
    jobs = [Recorded(f"{n}", lasts(1, memory=50 * GIB)) for n in range(3)]
    jobs[0].cost = 2.0  # alone first: nothing is known yet
    jobs[0].devices = 3
    run(engine, *jobs)
    assert [at for at, _, _ in starts(engine)] == [0.0, 1.0, 2.0]


def test_memory_that_others_hold_is_waited_for_and_given_up() -> None:
    engine = VirtualEngine([0, 0])
    engine.others["GPU-0"] = 70 * GIB
    jobs = [Recorded(f"{n}", lasts(1), memory=20 * GIB) for n in range(3)]
    run(engine, *jobs, memory_timeout=30.0)
    assert {job.status for job in jobs} == {"out-of-memory"}
    assert 30.0 <= engine.clock.now <= 32.0
    assert "21,474,836,480 bytes" in jobs[0].end.error


# Gangs.


def gang(*jobs: Recorded, apart: bool = False) -> list[Recorded]:
    together = Gang(jobs, apart)
    for job in jobs:
        job.gang = together
    jobs[0].devices = len(jobs)
    return [*jobs]


def test_a_gang_starts_at_once_or_not_at_all() -> None:
    engine = VirtualEngine(3)
    ranks = gang(*(Recorded(f"rank-{n}", lasts(2)) for n in range(3)))
    run(engine, Recorded("before", lasts(5), cost=1.0), ranks[0])
    assert [at for at, _, name in starts(engine) if name.startswith("rank")] == [5.0] * 3
    pins = {w.begin.pins["CUDA_VISIBLE_DEVICES"] for w in engine.started if w.begin.devices != ("cuda:0",)}
    assert pins == {"GPU-0,GPU-1,GPU-2"}


def test_a_rank_that_fails_ends_the_others() -> None:
    engine = VirtualEngine(2)
    ranks = gang(Recorded("rank-0", lasts(100)), Recorded("rank-1", lasts(1, error=ValueError("no"))))
    run(engine, ranks[0])
    assert [rank.status for rank in ranks] == ["cancelled", "error"]
    assert "'rank-1' ended error" in ranks[0].end.error
    assert engine.clock.now < 2.0


def test_ranks_that_need_a_device_each_wait_for_it() -> None:
    engine = VirtualEngine([0, 0, 1])
    ranks = gang(Recorded("rank-0", lasts(1)), Recorded("rank-1", lasts(1)), apart=True)
    run(engine, Recorded("a", lasts(3), cost=2.0), Recorded("b", lasts(5), cost=1.0), ranks[0])
    assert sorted(slot for _, slot, name in starts(engine) if "rank" in name) == [0, 2]
    assert all(at == 5.0 for at, _, name in starts(engine) if "rank" in name)


# Prefetching.


def test_short_calls_are_prefetched_and_taken_back_from_behind_a_long_one() -> None:
    engine = VirtualEngine(2)
    short = [call(lasts(0.0, value=n)) for n in range(100)]
    blocked = [call(lasts(50.0)), *(call(lasts(0.0)) for _ in range(10))]
    dispatcher = make_dispatcher(engine)
    dispatcher.submit(*short, *blocked)
    dispatcher.close()
    dispatcher.run()
    assert [job.future.result() for job in short] == list(range(100))
    assert engine.most_ahead > 1
    ends = {job: at for at, _, job, _ in engine.log}
    assert all(ends[job.ident] == 0.0 for job in blocked[1:])


def test_short_calls_are_taken_back_though_a_task_waits_for_memory() -> None:
    engine = VirtualEngine(2, total=10 * GIB)
    engine.others = {"GPU-0": 5 * GIB, "GPU-1": 5 * GIB}
    waits = Recorded("waits", lasts(1), memory=8 * GIB)
    short = [call(lasts(0.0), batch=1) for n in range(100)]
    blocked = [call(lasts(50.0), batch=2), *(call(lasts(0.0), batch=2) for _ in range(10))]
    dispatcher = make_dispatcher(engine, memory_timeout=200.0)
    dispatcher.submit(waits, *short, *blocked)
    dispatcher.close()
    dispatcher.run()
    assert engine.most_ahead > 1
    assert waits.status == "out-of-memory"
    ends = {job: at for at, _, job, _ in engine.log}
    assert all(ends[job.ident] == 0.0 for job in blocked[1:])


def test_a_job_that_comes_while_the_pool_ends_is_cancelled() -> None:
    dispatcher = make_dispatcher(VirtualEngine(1))
    dispatcher.close()
    dispatcher.run()
    late = call(lasts(1))
    dispatcher.follow([late])
    assert late.future.cancelled()
    with pytest.raises(RuntimeError, match="after shutdown"):
        dispatcher.submit(call(lasts(1)))


# Values.


class Slow:
    """An object whose unpickling says in which thread it was."""

    def __reduce__(self) -> Any:
        return _thread, ()


class Broken:
    def __reduce__(self) -> Any:
        return divmod, (1, 0)


def _thread() -> str:
    return threading.current_thread().name


def test_code_of_a_value_runs_outside_the_scheduler() -> None:
    jobs = [FutureJob(payload.dumps_call(kind, (), {}), ENVIRONMENT, 1) for kind in (Slow, Broken)]
    run(VirtualEngine(1, blocks=True), *jobs)
    assert jobs[0].future.result() == "mgpu_nb-decoder"
    with pytest.raises(TaskError, match="does not unpickle here: ZeroDivisionError"):
        jobs[1].future.result()


# Size.


@pytest.mark.slow
def test_tasks_on_a_thousand_slots() -> None:
    """As `benchmarks/scheduler.py` does with a million."""
    engine = LoadEngine(1000)
    body = payload.dumps_call(pow, (2, 2), {}).body
    jobs = [FutureJob(payload.Payload(body), ENVIRONMENT, 1) for _ in range(200_000)]
    run(engine, *jobs)
    assert all(job.future.done() for job in jobs)
    assert engine.clock.now == pytest.approx(400, rel=0.02)


@pytest.mark.slow
def test_many_slots_and_tasks() -> None:
    engine = VirtualEngine(1000, hosts=125)
    jobs = [call(lasts(1.0 + n % 7)) for n in range(10_000)]
    run(engine, *jobs)
    assert all(job.future.done() for job in jobs)
    assert engine.clock.now == pytest.approx(
        sum(1.0 + n % 7 for n in range(10_000)) / 1000, rel=0.15
    )  # and a tail


# Starts that fail.


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize(
    "end",
    [
        int(signal.SIGTERM),
        int(signal.SIGHUP),
        int(signal.SIGKILL),
        None,
        "the server ended",
        BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
        OSError(errno.EMFILE, "Too many open files"),
    ],
    ids=repr,
)
def test_starts_that_are_no_fault_of_their_slot_are_tried_again_after_pauses_that_grow(
    end: int | str | OSError | None, isolated: bool
) -> None:
    lost = "unknown" if end is None else end
    engine = VirtualEngine(1, starts=lambda number: lost if number < 6 else None)
    job = Recorded("task", Behaviour(seconds=1.0))
    dispatcher = run(engine, job, isolated=isolated)
    assert (job.status, job.attempt) == ("ok", 1)
    assert engine.start_times == pytest.approx([0.0, 0.0, 0.1, 1.1, 11.1, 21.1, 31.1])
    assert not dispatcher.slots[0].resting
    assert not dispatcher.slots[0].retired


def test_a_crash_at_each_start_is_told_and_a_single_one_is_nothing() -> None:
    job = Recorded("task", Behaviour(seconds=1.0))
    run(VirtualEngine(1, starts=lambda number: int(signal.SIGSEGV) if number < 4 else None), job)
    assert job.status == "ok"
    job = Recorded("task", Behaviour(seconds=1.0))
    run(engine := VirtualEngine(1, starts=lambda number: int(signal.SIGSEGV)), job)
    assert job.status == "error"
    assert "SIGSEGV" in job.end.error
    assert engine.clock.now < 60


def test_starts_that_fail_for_longer_than_the_start_timeout_are_told() -> None:
    job = Recorded("task", Behaviour(seconds=1.0))
    run(engine := VirtualEngine(1, starts=lambda number: "no process is left"), job, start_timeout=60.0)
    assert job.status == "error"
    assert "no process is left" in job.end.error
    assert 60 < engine.clock.now < 80


def test_what_is_not_there_is_told_at_once() -> None:
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", "/gone/python")
    job = Recorded("task", Behaviour(seconds=1.0))
    run(engine := VirtualEngine(1, starts=lambda number: missing), job)
    assert job.status == "error"
    assert "/gone/python" in job.end.error
    assert engine.clock.now < 1


@pytest.mark.parametrize("isolated", [False, True])
def test_a_retired_slot_is_tried_again_while_tasks_wait(isolated: bool) -> None:
    jobs = [Recorded(f"{n}", lasts(30)) for n in range(4)]
    engine = VirtualEngine(2, starts=lambda number: 3 << 8 if number in (0, 2, 3) else None)
    dispatcher = run(engine, *jobs, isolated=isolated)
    assert {job.status for job in jobs} == {"ok"}
    assert not any(slot.retired for slot in dispatcher.slots)
    assert engine.clock.now < 90  # both slots had two of them


def test_a_pool_without_slots_is_tried_again_by_later_tasks() -> None:
    engine = VirtualEngine(1, starts=lambda number: 3 << 8 if number < 3 else None)
    first, soon, later = (Recorded(name, lasts(1)) for name in ("first", "soon", "later"))
    dispatcher = make_dispatcher(engine)
    dispatcher.submit(first)
    engine.loop.call_later(5.0, lambda: dispatcher.submit(soon))
    engine.loop.call_later(20.0, lambda: dispatcher.submit(later))
    engine.loop.call_later(20.0, dispatcher.close)
    dispatcher.run()
    assert [job.status for job in (first, soon, later)] == ["error", "error", "ok"]


def test_a_setup_that_raises_is_told_at_once_and_not_tried_again() -> None:
    class Raises(VirtualEngine):
        def start(self, begin: Begin, setup: Payload) -> VirtualWorker:
            worker = super().start(begin, setup)
            self.loop.call_later(
                0.5, lambda: self.events.setup_failed(worker, Failure("ValueError", "bad", "", False))
            )
            self.loop.call_later(0.6, lambda: worker.exit(0))
            return worker

    engine = Raises(1, start_seconds=1.0)
    first, later = (Recorded(name, lasts(1)) for name in ("first", "later"))
    dispatcher = make_dispatcher(engine)
    dispatcher.submit(first)
    engine.loop.call_later(50.0, lambda: dispatcher.submit(later))
    engine.loop.call_later(50.0, dispatcher.close)
    dispatcher.run()
    assert [job.status for job in (first, later)] == ["error", "error"]
    assert "ValueError: bad" in later.end.error
    assert len(engine.started) == 1


def test_a_pool_that_ends_says_why_in_every_record() -> None:
    engine = VirtualEngine(1)
    jobs = [Recorded("runs", Behaviour(seconds=9.0)), Recorded("waits", Behaviour(seconds=9.0))]
    dispatcher = make_dispatcher(engine)
    dispatcher.submit(*jobs)
    engine.loop.call_later(
        1.0, lambda: dispatcher.close(cancel_running=True, reason="the notebook kernel ended")
    )
    dispatcher.run()
    assert {(job.status, job.end.error) for job in jobs} == {("cancelled", "the notebook kernel ended")}


# What a worker says that cannot be true.


class Lies(VirtualEngine):
    """An engine whose first worker tells something `seconds` after it was started."""

    def __init__(
        self, tell: Callable[[WorkerEvents, VirtualWorker], None], seconds: float, **options: Any
    ) -> None:
        super().__init__(1, **options)
        self._tell: Callable[[WorkerEvents, VirtualWorker], None] | None = tell
        self._seconds = seconds

    def start(self, begin: Begin, setup: Payload) -> VirtualWorker:
        worker = super().start(begin, setup)
        if (tell := self._tell) is not None:
            self._tell = None
            self.loop.call_later(self._seconds, lambda: tell(self.events, worker))
        return worker


NONE = payload.dumps(None).body


@pytest.mark.parametrize(
    "lie",
    [
        lambda events, worker: events.value(worker, 10**9, Received(NONE), None),
        lambda events, worker: events.error(worker, 10**9, Failure("E", "m", "t", False)),
        lambda events, worker: events.report(worker, 10**9, Reported({"a": 1})),
        lambda events, worker: events.ready(worker),
        lambda events, worker: events.setup_failed(worker, Failure("E", "m", "t", False)),
        lambda events, worker: events.broken(worker, "garbage"),
    ],
    ids=["value", "error", "report", "ready", "setup", "broken"],
)
def test_a_worker_that_lies_is_ended_and_costs_its_task(lie: Callable[..., None]) -> None:
    jobs = [Recorded(f"{n}", lasts(10)) for n in range(3)]
    dispatcher = run(engine := Lies(lie, 5.0), *jobs)
    assert [job.status for job in jobs] == ["killed", "ok", "ok"]
    assert jobs[0].end.error
    assert len(engine.started) == 2
    assert not any(slot.retired for slot in dispatcher.slots)


def test_two_ends_of_one_task_cost_no_other() -> None:
    jobs = [Recorded(f"{n}", lasts(10)) for n in range(3)]

    def twice(events: WorkerEvents, worker: VirtualWorker) -> None:
        for _ in range(2):
            events.value(worker, jobs[0].ident, Received(NONE), None)

    run(engine := Lies(twice, 5.0), *jobs)
    assert [job.status for job in jobs] == ["ok"] * 3
    assert [job.attempt for job in jobs] == [1, 1, 1]
    assert len(engine.started) == 2


def test_a_task_that_no_worker_begins_ends() -> None:
    class Unfit(VirtualEngine):
        def start(self, begin: Begin, setup: Payload) -> VirtualWorker:
            worker = super().start(begin, setup)
            self.loop.call_later(1.0, lambda: self.events.unfit(worker))
            return worker

    job = Recorded("one", lasts(1e6))
    run(Unfit(1), job, isolated=True)
    assert job.status == "killed"
    assert "10 workers in a row" in job.end.error


def test_a_setup_that_breaks_the_channel_ends_every_task() -> None:
    class Breaks(VirtualEngine):
        def start(self, begin: Begin, setup: Payload) -> VirtualWorker:
            worker = super().start(begin, setup)
            self.loop.call_later(1.0, lambda: self.events.broken(worker, "garbage"))
            return worker

    jobs = [Recorded(f"{n}", lasts(1)) for n in range(2)]
    run(Breaks(1, start_seconds=2.0), *jobs)
    assert {job.status for job in jobs} == {"error"}
    assert "garbage" in jobs[0].end.error


def test_a_worker_that_says_it_ends_and_does_not_is_killed() -> None:
    job = Recorded("one", lasts(20), lasts(1))
    run(engine := Lies(lambda events, worker: events.unfit(worker), 5.0), job)
    assert job.status == "ok"
    assert [signum for _, _, signum in engine.signals] == [signal.SIGKILL]
