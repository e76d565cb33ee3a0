"""Slots that come and go: exact, in virtual time and without processes."""

from __future__ import annotations

import signal

import pytest
from virtual import GIB, Behaviour, ElasticEngine, Recorded, VirtualEngine, call, make_dispatcher, run

from mgpu_nb import NoSlots, SetupError, TaskTimeout, WorkerDied
from mgpu_nb.engines.base import Failure, Measured
from mgpu_nb.scheduler.dispatcher import Dispatcher
from mgpu_nb.scheduler.job import Gang, Job
from mgpu_nb.views.activity import waiting


def lasts(seconds: float, **more: object) -> Behaviour:
    return Behaviour(seconds=seconds, **more)  # type: ignore[arg-type]


def places(engine: VirtualEngine, dispatcher_jobs: list[Recorded]) -> dict[str, tuple[str, int]]:
    return {job.name: (job.location.host, job.location.slot) for job in dispatcher_jobs}


def gang_of(*members: Recorded, apart: bool = False) -> Recorded:
    together = Gang(members, apart)
    for member in members:
        member.gang = together
    members[0].devices = len(members)
    return members[0]


def starts(engine: VirtualEngine) -> list[tuple[float, int, str]]:
    return [(at, slot, name) for at, slot, _, name in engine.log]


def submit_last(dispatcher: Dispatcher, job: Job) -> None:
    dispatcher.submit(job)
    dispatcher.close()


# Nodes that come.


@pytest.mark.parametrize("isolated", [False, True])
def test_tasks_start_on_the_node_that_is_there_first(isolated: bool) -> None:
    engine = ElasticEngine(4)
    engine.come(5, "n1", 2)
    engine.come(20, "n2", 2)
    jobs = [Recorded(f"{n}", lasts(10)) for n in range(6)]
    run(engine, *jobs, isolated=isolated)
    assert starts(engine) == [
        (5, 0, "0"), (5, 1, "1"), (15, 0, "2"), (15, 1, "3"), (20, 2, "4"), (20, 3, "5"),
    ]  # fmt: skip
    assert places(engine, jobs)["4"] == ("n2", 2)
    assert [job.attempt for job in jobs] == [1] * 6


@pytest.mark.slow
def test_a_thousand_slots_join() -> None:
    engine = ElasticEngine(1000)
    for n in range(125):
        engine.come(n / 10, f"n{n:03}", 8)
    jobs = [Recorded(f"{n}", lasts(100)) for n in range(1000)]
    run(engine, *jobs)
    assert {job.location.slot for job in jobs} == set(range(1000))
    assert {job.location.host for job in jobs} == {f"n{n:03}" for n in range(125)}
    assert engine.clock.now == pytest.approx(112.4)


@pytest.mark.slow
def test_a_thousand_slots_join_one_by_one_and_leave_so() -> None:
    engine = ElasticEngine(1000)
    for n in range(1000):
        engine.come(1, f"n{n:03}", first=n)
        engine.leave(50, f"n{n:03}")
    jobs = [Recorded(f"{n}", lasts(10)) for n in range(1000)]
    job = Recorded("late", lasts(1))
    dispatcher = make_dispatcher(engine)
    dispatcher.submit(*jobs)
    engine.come(60, "last", first=0)
    engine.at(55, lambda: submit_last(dispatcher, job))
    dispatcher.run()
    assert all(job.status == "ok" for job in jobs)
    assert (job.location.host, job.location.slot, len(dispatcher.slots)) == ("last", 0, 1)


def test_a_job_for_which_slots_are_still_to_come_waits_and_lets_others_pass() -> None:
    engine = ElasticEngine(4)
    engine.come(0, "n1", 2)
    engine.come(10, "n2", 4, first=2)
    large, small = Recorded("large", lasts(1), devices=3), [Recorded(f"{n}", lasts(3)) for n in range(4)]
    run(engine, large, *small)
    assert starts(engine) == [(0, 0, "0"), (0, 1, "1"), (3, 0, "2"), (3, 1, "3"), (10, 2, "large")]


def test_a_job_of_more_slots_than_there_will_be_is_refused() -> None:
    engine = ElasticEngine(4)
    engine.come(0, "n1", 2)
    engine.come(10, "n2", 2)
    job, other = Recorded("large", lasts(1), devices=5), Recorded("other", lasts(30))
    run(engine, job, other)
    assert job.status == "error"
    assert job.end.error == "task 'large': it takes 5 slots, the pool has 2 in use"
    assert other.status == "ok"


def test_slots_of_two_machines_are_not_those_of_one_task() -> None:
    engine = ElasticEngine(4)
    engine.come(0, "n1", 2)
    engine.come(10, "n2", 2)
    job, other = Recorded("large", lasts(1), devices=3), Recorded("other", lasts(30))
    run(engine, job, other)
    assert job.end.error == "task 'large': it takes 3 slots of one machine, the pool has 2 in use on one"


def test_a_task_takes_its_slots_on_the_machine_that_has_just_enough() -> None:
    engine = ElasticEngine(None)
    engine.come(0, "n1", 4)
    engine.come(0, "n2", 2)
    job = Recorded("two", lasts(1), devices=2)
    run(engine, job)
    assert job.location.host == "n2"
    assert engine.started[-1].begin.pins["CUDA_VISIBLE_DEVICES"] == "GPU-0,GPU-1"


def test_memory_that_no_device_has_is_waited_for_until_all_are_there() -> None:
    engine = ElasticEngine(3)
    engine.totals = {"n1": 40 * GIB, "n2": 80 * GIB}
    engine.come(0, "n1")
    engine.come(10, "n2")
    fits, too_large = (
        Recorded("fits", lasts(1), memory=60 * GIB),
        Recorded("large", lasts(1), memory=90 * GIB),
    )
    other = Recorded("other", lasts(1))
    engine.come(2000, "n3")  # longer than a task waits for memory that others hold
    run(engine, fits, too_large, other)
    assert starts(engine)[:2] == [(0, 0, "other"), (10, 1, "fits")]
    assert too_large.end.error == (
        f"task 'large': it needs {90 * GIB:,} bytes of memory, no device of the pool has more than {80 * GIB:,}"
    )
    assert engine.clock.now == 2000


def test_memory_of_a_node_that_has_not_told_yet() -> None:
    engine = ElasticEngine(1)
    engine.totals["n1"] = None
    engine.come(0, "n1")
    engine.at(5, lambda: engine.totals.update(n1=40 * GIB))
    first, later = (Recorded(name, lasts(10), memory=60 * GIB) for name in ("first", "later"))
    run(engine, first, later)
    assert first.status == "ok"  # nothing was known against it
    assert later.end.error.startswith(
        f"task 'later': it needs {60 * GIB:,} bytes of memory, no device of the pool"
    )


# Devices of two nodes with the same UUIDs.


def test_memory_of_two_hosts_whose_gpus_have_the_same_uuids() -> None:
    engine = ElasticEngine(4)
    engine.come(0, "n1", gpus=[0, 0])
    engine.come(0, "n2", gpus=[0, 0])
    jobs = [Recorded(f"{n}", lasts(10, memory=50 * GIB), memory=50 * GIB) for n in range(3)]
    run(engine, *jobs)
    assert [(at, slot) for at, slot, _ in starts(engine)] == [(0, 0), (0, 2), (10, 0)]


def test_tasks_are_spread_over_the_gpus_of_all_nodes() -> None:
    engine = ElasticEngine(4)
    engine.come(0, "n1", gpus=[0, 0])
    engine.come(0, "n2", gpus=[0, 0])
    run(engine, *(Recorded(f"{n}", lasts(n + 1.0)) for n in range(4)))
    assert [slot for _, slot, _ in starts(engine)] == [0, 2, 1, 3]


def test_a_task_that_is_alone_on_its_device_is_so_on_one_node_only() -> None:
    oom = lasts(1, error=MemoryError(), out_of_memory=True)
    engine = ElasticEngine(4)
    engine.come(0, "n1", gpus=[0, 0])
    engine.come(0, "n2", gpus=[0, 0])
    job = Recorded("alone", oom, lasts(5), retry_alone=True, cost=9.0)
    others = [Recorded(f"{n}", lasts(2), cost=1.0) for n in range(6)]
    run(engine, job, *others)
    began, place = next((at, slot) for at, slot, name in reversed(starts(engine)) if name == "alone")
    same = [0, 1] if place < 2 else [2, 3]
    assert [at for at, slot, _ in starts(engine) if began <= at < began + 5 and slot in same] == [began]
    assert [at for at, slot, _ in starts(engine) if began < at < began + 5 and slot not in same]


# Nodes that are given back.


def test_no_job_begins_on_a_node_that_drains_and_those_that_run_end_there() -> None:
    engine = ElasticEngine(None)
    engine.come(0, "n1", 2)
    engine.come(0, "n2", 1)
    engine.drain_node(5, "n1")
    engine.leave(16, "n1")
    jobs = [
        Recorded("a", lasts(10)),
        Recorded("b", lasts(4)),
        *(Recorded(f"{n}", lasts(10)) for n in range(3)),
    ]
    dispatcher = run(engine, *jobs)
    assert starts(engine) == [(0, 0, "a"), (0, 1, "b"), (0, 2, "0"), (4, 1, "1"), (10, 2, "2")]
    assert [job.attempt for job in jobs] == [1] * 5
    assert not any(job.notes for job in jobs)
    assert {worker.slot.host for worker in engine.workers} == set()
    assert [slot.slot.host for slot in dispatcher.slots] == ["n2"]


def test_warm_workers_of_a_node_that_drains_end() -> None:
    engine = ElasticEngine(None)
    engine.come(0, "n1", 3)
    engine.come(0, "n2", 1)
    engine.drain_node(5, "n1")
    left: list[str] = []
    engine.at(6, lambda: left.extend(worker.slot.host for worker in engine.workers))
    run(engine, Recorded("long", lasts(10)), Recorded("other", lasts(10)))
    assert sorted(left) == ["n1", "n1", "n2"]  # those of the tasks, and the other node's
    assert len(engine.started) == 4


def test_prefetched_jobs_of_a_node_that_drains_are_asked_back() -> None:
    engine = ElasticEngine(None)
    engine.answers_after = 0.01
    engine.come(0, "n1")
    calls = [call(lasts(0)), call(lasts(0)), call(lasts(100)), *(call(lasts(0)) for _ in range(10))]
    engine.drain_node(5, "n1")
    engine.come(10, "n2", first=1)
    run(engine, *calls)
    assert [slot for _, slot, _, _ in engine.log] == [0] * 3 + [1] * 10
    assert [at for at, *_ in engine.log][3:] == [10] * 10
    assert engine.asked_back == 10


# Nodes that are lost.


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("workers_first", [True, False])
@pytest.mark.parametrize("isolated", [True, False])
def test_the_tasks_of_a_lost_node_are_tried_elsewhere(
    retries: int, workers_first: bool, isolated: bool
) -> None:
    engine = ElasticEngine(4)
    engine.come(0, "n1", 2)
    engine.come(0, "n2", 2)
    engine.lose(5, "n2", workers_first=workers_first)
    bad = lasts(10, error=ValueError("no"))
    jobs = [Recorded(f"{n}", lasts(10), retries=retries) for n in range(3)]
    failing = Recorded("bad", bad, retries=retries)
    run(engine, *jobs, failing, isolated=isolated)
    assert [job.status for job in jobs] == ["ok"] * 3
    assert [job.attempt for job in jobs] == [1, 1, 2]
    assert jobs[2].notes == ("attempt 1 was lost with node n2: its link closed",)
    assert jobs[2].location.host == "n1"
    assert (failing.status, failing.attempt, failing.lost) == ("error", 2 + retries, 1)
    assert failing.deaths == jobs[2].deaths == 0
    assert len(failing.notes) == 1 + retries


def test_a_plain_call_of_a_lost_node_is_tried_elsewhere() -> None:
    engine = ElasticEngine(None)
    engine.come(0, "n1")
    engine.lose(5, "n1")
    engine.come(20, "n1")
    made = call(lasts(10, value=3))
    run(engine, made)
    assert made.future.result(0) == 3
    assert [at for at, *_ in engine.log] == [0, 20]


def test_a_node_comes_back_with_the_same_numbers() -> None:
    engine = ElasticEngine(4)
    for n in range(3):
        engine.come(10 * n, "n1", 2, first=0)
        engine.lose(10 * n + 5, "n1")
    engine.come(0, "n2", 2, first=2)
    engine.come(30, "n3", 2, first=0)
    jobs = [Recorded(f"{n}", lasts(4)) for n in range(30)]
    dispatcher = run(engine, *jobs)
    assert all(job.status == "ok" for job in jobs)
    assert [slot.slot.host for slot in dispatcher.slots] == ["n3", "n3", "n2", "n2"]
    assert [slot.position for slot in dispatcher.slots] == [0, 1, 2, 3]
    admission = dispatcher._admission
    assert {group.host for group in admission._groups.values()} == {"n2", "n3"}
    assert set(admission._by_memory) == {f"{host}/GPU-{gpu}" for host in ("n2", "n3") for gpu in (0, 1)}
    assert not any(group.taken or group.alone for group in admission._groups.values())


def test_what_is_lost_four_times_ends_and_says_so() -> None:
    engine = ElasticEngine(None)
    for n in range(6):
        engine.come(10 * n, "n1")
        engine.lose(10 * n + 5, "n1")
    engine.come(100, "n1")
    job, call_ = Recorded("job", lasts(20), retries=9), Recorded("after", lasts(1))
    run(engine, job, call_)
    assert (job.status, job.attempt, job.lost, job.deaths) == ("killed", 4, 4, 0)
    assert job.notes == (
        *(f"attempt {n} was lost with node n1: its link closed" for n in (1, 2, 3)),
        "it was lost with its node 4 times and was not tried again",
    )
    assert isinstance(job.end.exception, WorkerDied)
    assert job.end.error == "it was lost with node n1: its link closed"
    assert call_.status == "ok"


def test_a_job_that_its_worker_had_not_begun_is_returned() -> None:
    engine = ElasticEngine(None, start_seconds=10)
    engine.come(0, "n1")
    engine.lose(5, "n1")
    engine.come(6, "n2")
    job = Recorded("job", lasts(1))
    run(engine, job, isolated=True)
    assert (job.status, job.attempt, job.lost, job.notes) == ("ok", 1, 0, ())


def test_prefetched_jobs_of_a_lost_node_are_returned() -> None:
    engine = ElasticEngine(None)
    engine.come(0, "n1")
    calls = [call(lasts(0)), call(lasts(0)), call(lasts(100)), *(call(lasts(0)) for _ in range(10))]
    engine.lose(5, "n1")
    engine.come(10, "n2")
    run(engine, *calls)
    assert all(job.future.done() for job in calls)
    assert [(job.attempt, job.lost) for job in calls[2:]] == [(2, 1)] + [(1, 0)] * 10


def test_a_task_that_was_being_ended_when_its_node_was_lost_ends_so() -> None:
    engine = ElasticEngine(None)
    engine.come(0, "n1")
    engine.lose(5, "n1")
    engine.come(10, "n1")
    job = Recorded("job", lasts(20, ignores_sigterm=True), timeout=3.0)
    run(engine, job)
    assert (job.status, job.attempt, job.lost) == ("timeout", 1, 0)
    assert isinstance(job.end.exception, TaskTimeout)


def test_a_task_that_was_cancelled_is_not_tried_elsewhere() -> None:
    engine = ElasticEngine(None)
    engine.come(0, "n1")
    engine.lose(5, "n1")
    engine.come(10, "n1")
    job = Recorded("job", lasts(20, ignores_sigterm=True))
    dispatcher = make_dispatcher(engine)
    engine.at(3, lambda: dispatcher.cancel(lambda job: True))
    dispatcher.submit(job)
    dispatcher.close()
    dispatcher.run()
    assert job.status == "cancelled"


def test_a_worker_that_is_lost_alone_is_replaced() -> None:
    engine = ElasticEngine(1)
    engine.come(0, "n1")

    def lose() -> None:
        (worker,) = engine.workers
        worker.alive = False
        engine.workers.discard(worker)
        engine.events.lost(worker, "its agent closed its channel")

    engine.at(5, lose)
    job = Recorded("job", lasts(10))
    run(engine, job)
    assert starts(engine) == [(0, 0, "job"), (6, 0, "job")]
    assert job.status == "ok"


# Prefetched jobs that are asked back.


def test_a_worker_is_asked_once_for_what_does_not_come_back_at_once() -> None:
    engine = ElasticEngine(2)
    engine.answers_after = 0.5
    engine.come(0, "n1")
    engine.come(1, "n2")
    calls = [call(lasts(0)), call(lasts(0)), call(lasts(20)), *(call(lasts(0)) for _ in range(8))]
    dispatcher = run(engine, *calls)
    assert engine.most_ahead >= 8
    assert engine.asked_back == 8
    assert [slot for _, slot, _, _ in engine.log] == [0] * 3 + [1] * 8
    assert [at for at, *_ in engine.log][3:] == [1.5 + 0.5 * n for n in range(8)]
    assert dispatcher.loop.wakeups < 100


def test_what_a_worker_begins_is_not_taken_back() -> None:
    engine = ElasticEngine(2)
    engine.answers_after = 50.0
    engine.come(0, "n1")
    engine.come(1, "n2")
    calls = [call(lasts(0)), call(lasts(0)), call(lasts(20)), *(call(lasts(1)) for _ in range(3))]
    run(engine, *calls)
    assert [slot for _, slot, _, _ in engine.log] == [0] * 6
    assert all(job.future.done() and job.attempt == 1 for job in calls)


def test_what_was_taken_back_before_its_turn_is_not_waited_for() -> None:
    """The value of the call before it comes first: the call that was taken back is thought to have begun."""
    engine = ElasticEngine(2)
    engine.answers_after, engine.takes_at_once = 50.0, True
    engine.come(0, "n1")
    engine.come(1, "n2")
    calls = [call(lasts(0)), call(lasts(0)), call(lasts(5)), *(call(lasts(1)) for _ in range(3))]
    run(engine, *calls)
    assert engine.asked_back == 1
    assert [slot for _, slot, _, _ in engine.log] == [0] * 5 + [0]
    assert all(job.future.done() and job.attempt == 1 for job in calls)


# No more slots.


def test_jobs_that_wait_are_refused_when_no_slot_will_come() -> None:
    engine = ElasticEngine(4)
    engine.come(0, "n1", 2)
    engine.give_up(5)
    engine.lose(6, "n1")
    running, plain, large = (
        Recorded("running", lasts(5)),
        call(lasts(30)),
        Recorded("large", lasts(1), devices=3),
    )
    dispatcher = make_dispatcher(engine)
    dispatcher.submit(running, plain, large)
    late = call(lasts(1))
    engine.at(20, lambda: submit_last(dispatcher, late))
    dispatcher.run()
    assert running.status == "ok"
    assert large.end.error == (
        "task 'large': it takes 3 slots, the pool has 2 in use; no more will come: SLURM job 17 ended: TIMEOUT"
    )
    for refused in (plain, late):
        with pytest.raises(
            NoSlots, match="no slot is left, and no more will come: SLURM job 17 ended: TIMEOUT"
        ):
            refused.future.result(0)


def test_a_pool_that_never_gets_a_slot_ends() -> None:
    engine = ElasticEngine(None)
    engine.give_up(600)
    jobs = [Recorded("job", lasts(1)), gang_of(Recorded("rank-0", lasts(1)), Recorded("rank-1", lasts(1)))]
    run(engine, *jobs)
    assert [type(job.end.exception) for job in jobs] == [NoSlots] * 2
    assert engine.clock.now == 600


@pytest.mark.parametrize("expected", [2, None])
def test_slots_that_all_fail_are_waited_out_if_more_will_come(expected: int | None) -> None:
    engine = ElasticEngine(expected, starts=lambda n: 256 if n < 3 else None)
    engine.come(0, "n1")
    engine.come(100, "n2")
    job = Recorded("job", lasts(1))
    run(engine, job, start_timeout=600.0)
    assert job.status == ("ok" if expected else "error")


def test_slots_that_all_fail_are_not_waited_out_for_ever() -> None:
    engine = ElasticEngine(2, starts=lambda n: 256)
    engine.come(0, "n1")
    job = Recorded("job", lasts(1))
    run(engine, job, start_timeout=600.0)
    assert isinstance(job.end.exception, SetupError)
    assert 600 < engine.clock.now < 620


def test_a_setup_that_raises_is_not_waited_out() -> None:
    engine = ElasticEngine(2, start_seconds=1.0)
    engine.come(0, "n1")

    def fail() -> None:
        (worker,) = engine.workers
        engine.events.setup_failed(worker, Failure("ValueError", "no", "", False, b"", Measured()))
        worker.exit(256)

    engine.at(0.5, fail)
    job = Recorded("job", lasts(1))
    run(engine, job)
    assert isinstance(job.end.exception, SetupError)
    assert "ValueError: no" in job.end.error
    assert engine.clock.now < 20


# Gangs over nodes.


def test_a_gang_takes_as_few_nodes_as_will_do() -> None:
    engine = ElasticEngine(None)
    for host, slots in {"n1": 1, "n2": 4, "n3": 2, "n4": 3}.items():
        engine.come(0, host, slots)
    ranks = [Recorded(f"rank-{n}", lasts(1)) for n in range(6)]
    run(engine, gang_of(*ranks))
    assert [rank.location.host for rank in ranks] == ["n2"] * 4 + ["n3"] * 2
    assert [worker.begin.pins["CUDA_VISIBLE_DEVICES"] for worker in engine.started[-6:]] == [
        *["GPU-0,GPU-1,GPU-2,GPU-3"] * 4, *["GPU-0,GPU-1"] * 2,
    ]  # fmt: skip
    assert [worker.begin.devices for worker in engine.started[-6:]] == [
        ("cuda:0",), ("cuda:1",), ("cuda:2",), ("cuda:3",), ("cuda:0",), ("cuda:1",),
    ]  # fmt: skip


def test_ranks_that_are_apart_take_gpus_of_the_same_uuid_on_two_nodes() -> None:
    engine = ElasticEngine(4)
    engine.come(0, "n1", gpus=[0, 0])
    engine.come(3, "n2", gpus=[0, 0])
    ranks = [Recorded(f"rank-{n}", lasts(1)) for n in range(2)]
    run(engine, gang_of(*ranks, apart=True))
    assert [rank.location.host for rank in ranks] == ["n1", "n2"]
    assert [at for at, *_ in engine.log] == [3, 3]


@pytest.mark.parametrize("workers_first", [True, False])
def test_a_gang_is_tried_again_as_one_when_a_node_is_lost(workers_first: bool) -> None:
    engine = ElasticEngine(4)
    engine.come(0, "n1", 2)
    engine.come(0, "n2", 2)
    engine.lose(5, "n2", workers_first=workers_first)
    engine.come(20, "n3", 2, first=2)
    ranks = [Recorded(f"rank-{n}", lasts(10, value=n)) for n in range(4)]
    other = Recorded("other", lasts(1))
    run(engine, gang_of(*ranks), other)
    assert [rank.status for rank in ranks] == ["ok"] * 4
    assert [rank.attempt for rank in ranks] == [2] * 4
    assert [rank.location.host for rank in ranks] == ["n1", "n1", "n3", "n3"]
    assert [at for at, _, name in starts(engine) if name.startswith("rank")] == [0] * 4 + [20] * 4
    lost = [rank for rank in ranks if rank.notes == ("attempt 1 was lost with node n2: its link closed",)]
    assert [rank.name for rank in lost] == ["rank-2"]
    assert ranks[0].notes == (
        "attempt 1 was ended with its gang: 'rank-2' was lost with node n2: its link closed",
    )
    assert other.status == "ok"


def test_a_gang_whose_nodes_are_lost_four_times_ends() -> None:
    engine = ElasticEngine(2)
    engine.come(0, "n1")
    for n in range(4):
        engine.come(20 * n, "n2", first=1)
        engine.lose(20 * n + 5, "n2")
    ranks = [Recorded(f"rank-{n}", lasts(10)) for n in range(2)]
    run(engine, gang_of(*ranks))
    assert [rank.status for rank in ranks] == ["cancelled", "killed"]
    assert [rank.attempt for rank in ranks] == [4, 4]
    assert ranks[1].notes[-1] == "its gang was lost with a node 4 times and was not tried again"
    assert ranks[0].end.error == "'rank-1' ended killed: it was lost with node n2: its link closed"


def test_a_gang_of_which_a_part_has_returned_is_not_tried_again() -> None:
    engine = ElasticEngine(2)
    engine.come(0, "n1")
    engine.come(0, "n2")
    engine.lose(5, "n2")
    ranks = [Recorded("rank-0", lasts(1)), Recorded("rank-1", lasts(10))]
    run(engine, gang_of(*ranks))
    assert [rank.status for rank in ranks] == ["ok", "killed"]
    assert ranks[1].notes == ("its gang was not tried again: others of it had returned",)
    assert ranks[1].end.error == "it was lost with node n2: its link closed"


@pytest.mark.parametrize("at", [5.5, 12.0])
def test_a_gang_that_is_cancelled_while_it_is_to_be_tried_again_ends(at: float) -> None:
    engine = ElasticEngine(2)
    engine.come(0, "n1")
    engine.come(0, "n2")
    engine.lose(5, "n2")
    ranks = [Recorded(f"rank-{n}", lasts(20, ignores_sigterm=True)) for n in range(2)]
    dispatcher = make_dispatcher(engine)
    gang = gang_of(*ranks)
    engine.at(at, lambda: dispatcher.cancel(lambda job: True))
    dispatcher.submit(gang)
    dispatcher.close()
    dispatcher.run()
    assert ranks[0].status == "cancelled"
    assert at > 10 or ranks[1].status == "cancelled"  # later the first stands for both


def test_a_rank_whose_process_does_not_start_is_started_again_on_its_node() -> None:
    def fails(number: int) -> int | None:
        return 9 if number == 7 else None  # four warm workers, then the ranks: the last of them

    engine = ElasticEngine(4, starts=fails)
    engine.come(0, "n1", 2)
    engine.come(0, "n2", 2)
    ranks = [Recorded(f"rank-{n}", lasts(10)) for n in range(4)]
    run(engine, gang_of(*ranks))
    assert [rank.location.host for rank in ranks] == ["n1", "n1", "n2", "n2"]
    assert [rank.attempt for rank in ranks] == [1] * 4


def test_a_rank_that_waits_for_its_node_when_that_goes_has_its_gang_tried_again() -> None:
    engine = ElasticEngine(2, starts=lambda number: "no process" if number in (3, 4) else None)
    engine.come(0, "n1")
    engine.come(0, "n2")
    engine.lose(0.05, "n2")
    engine.come(20, "n3", first=1)
    ranks = [Recorded(f"rank-{n}", lasts(10)) for n in range(2)]
    run(engine, gang_of(*ranks))
    assert [(rank.status, rank.location.host) for rank in ranks] == [("ok", "n1"), ("ok", "n3")]
    assert "node n2 is gone, where 'rank-1' was to start" in ranks[0].notes[0]


def test_a_gang_whose_node_has_no_slot_that_starts_a_worker_ends() -> None:
    engine = ElasticEngine(2, starts=lambda number: 256 if number >= 4 else None)
    for host in ("n1", "n2", "n3"):
        engine.come(0, host)
    ranks = [Recorded(f"rank-{n}", lasts(500)) for n in range(2)]
    run(engine, gang_of(*ranks))
    assert isinstance(ranks[1].end.exception, SetupError)
    assert ranks[0].status == "cancelled"
    assert engine.clock.now < 10


# Waiting for slots is tested with pools, in tests/test_pool.py.


def test_what_a_lost_worker_says_afterwards_is_ignored() -> None:
    engine = ElasticEngine(None)
    engine.come(0, "n1")
    engine.lose(5, "n1")
    engine.come(6, "n2")
    job = Recorded("job", lasts(10))

    def late() -> None:
        worker = engine.started[0]
        engine.events.ready(worker)
        engine.events.output(worker, b"late")
        engine.events.taken_back(worker, 1)
        engine.events.lost(worker, "again")
        engine.events.exited(worker, int(signal.SIGKILL))

    engine.at(7, late)
    dispatcher: Dispatcher = run(engine, job)
    assert (job.status, job.attempt, job.written) == ("ok", 2, b"")
    assert dispatcher.workers.busy == 0


# Tasks of several slots.


def test_a_task_of_several_slots_has_a_node_kept_and_others_pass_it_elsewhere() -> None:
    engine = ElasticEngine(4)
    engine.come(0, "n1", 2)
    engine.come(0, "n2", 2)
    first = [Recorded(f"long-{n}", lasts(seconds)) for n, seconds in enumerate((10, 40, 20, 90))]
    wide, small = Recorded("wide", lasts(10), devices=2), [Recorded(f"{n}", lasts(5)) for n in range(8)]
    run(engine, *first, wide, *small)
    assert starts(engine)[4:] == [
        (20, 2, "0"), (25, 2, "1"), (30, 2, "2"), (35, 2, "3"), (40, 2, "4"),
        (40, 0, "wide"), (45, 2, "5"), (50, 0, "6"), (50, 1, "7"),
    ]  # fmt: skip


def test_short_calls_do_not_hold_a_node_that_is_kept() -> None:
    engine = ElasticEngine(4)
    engine.come(0, "n1", 2)
    engine.come(0, "n2", 2)
    dispatcher = make_dispatcher(engine)
    wide = Recorded("wide", lasts(10), devices=2)
    short = [call(lasts(0.0005 + 0.0001 * (n % 7)), batch=2 * (n > 40)) for n in range(4_000)]
    dispatcher.submit(*short[:40])
    engine.at(0.003, lambda: dispatcher.submit(wide, *short[40:]))
    engine.at(1, dispatcher.close)
    dispatcher.run()
    (began,) = [at for at, _, name in starts(engine) if name == "wide"]
    assert began < 1
    assert len({slot for at, slot, _, _ in engine.log if 0.2 < at < 1}) == 2  # of the other node


def test_a_cancelled_task_of_several_slots_keeps_no_node() -> None:
    engine = ElasticEngine(4)
    engine.come(0, "n1", 2)
    engine.come(0, "n2", 2)
    dispatcher = make_dispatcher(engine)
    first = [Recorded(f"long-{n}", lasts(seconds)) for n, seconds in enumerate((10, 40, 90, 90))]
    wide, small = Recorded("wide", lasts(10), devices=2), Recorded("small", lasts(1))
    dispatcher.submit(*first, wide, small)
    engine.at(15, lambda: dispatcher.cancel(lambda job: job is wide))
    engine.at(16, dispatcher.close)
    dispatcher.run()
    assert starts(engine)[4:] == [(15, 0, "small")]


# What may never come.


def test_a_job_of_which_nobody_knows_whether_its_slots_come_is_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = ElasticEngine(None)
    engine.come(0, "n1", 2)
    wide, small = Recorded("wide", lasts(1), devices=3), [Recorded(f"{n}", lasts(40)) for n in range(8)]
    said: dict[float, list[str]] = {}
    shown: list[str] = []
    dispatcher = make_dispatcher(engine)
    for at in (59.0, 85.0, 500.0):
        engine.at(at, lambda at=at: said.update({at: list(caplog.messages)}))  # type: ignore[misc]
    engine.at(500, lambda: shown.extend(waiting(wait) for wait in dispatcher.activity().waits))
    engine.come(1000, "n2", 4, first=2)
    dispatcher.submit(wide, *small)
    dispatcher.close()
    dispatcher.run()
    assert said[59.0] == []
    words = "it takes 3 slots, the pool has 2 in use"
    assert said[85.0] == [
        f"task 'wide' waits for more nodes, and nobody has said how many will come: {words}. Start more agents, or "
        "cancel it"
    ]
    assert said[500.0] == said[85.0] == caplog.messages
    assert shown == [f"'wide' waits for more slots: {words}"]
    assert [at for at, _, name in starts(engine) if name == "wide"] == [1000]


# What a node lacks.

LACKS = ModuleNotFoundError("module 'x'")


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize("retries", [0, 1])
def test_what_a_node_lacks_is_looked_for_on_another_and_does_not_count(isolated: bool, retries: int) -> None:
    engine = ElasticEngine(4)
    engine.come(0, "n1", 2)
    engine.come(0, "n2", 2)
    bad = lasts(10, error=ValueError("no"))
    job = Recorded("a", lasts(1, error=LACKS), *[bad] * retries, lasts(5), retries=retries)
    run(engine, job, Recorded("b", lasts(100)), isolated=isolated)
    assert (job.status, job.attempt, job.location.host) == ("ok", 2 + retries, "n2")
    assert job.notes[0] == "attempt 1 was on node n1, which lacks module 'x'"
    assert [slot for _, slot, name in starts(engine) if name == "a"] == [0] + [2] * (1 + retries)


def test_what_no_node_has_is_the_tasks_own_error() -> None:
    engine = ElasticEngine(None)
    for n in range(6):
        engine.come(0, f"n{n}")
    job = Recorded("a", lasts(1, error=LACKS))
    run(engine, job)
    assert (job.status, job.attempt) == ("error", 4)
    assert len({slot for _, slot, _ in starts(engine)}) == 4
    alone = ElasticEngine(2)
    alone.come(0, "n1")
    job = Recorded("a", lasts(1, error=LACKS))
    run(alone, job)
    assert (job.status, job.attempt, job.notes) == ("error", 1, ())


def test_others_pass_a_task_that_waits_for_a_node_which_has_what_it_needs() -> None:
    engine = ElasticEngine(2)
    engine.come(0, "n1")
    engine.come(0, "n2")
    jobs = [Recorded("a", lasts(1, error=LACKS), lasts(1)), Recorded("long", lasts(50))]
    run(engine, *jobs, *(Recorded(f"{n}", lasts(10)) for n in range(6)))
    assert starts(engine) == [
        (0, 0, "a"), (0, 1, "long"), *((1 + 10 * n, 0, f"{n}") for n in range(5)), (50, 1, "a"), (51, 0, "5"),
    ]  # fmt: skip


def test_a_task_that_waits_for_a_node_whose_worker_starts() -> None:
    engine = ElasticEngine(2, start_seconds=5)
    engine.come(0, "n1")
    engine.come(3, "n2")
    job = Recorded("a", lasts(1, error=LACKS), lasts(1))
    run(engine, job)
    assert starts(engine) == [(5, 0, "a"), (8, 1, "a")]


def test_where_only_nodes_are_left_that_lack_it_the_task_ends_there() -> None:
    engine = ElasticEngine(None)
    engine.come(0, "n1")
    engine.come(0, "n2")
    job = Recorded("a", *[lasts(1, error=LACKS)] * 3)
    engine.lose(1.5, "n2")
    run(engine, job)
    assert [(at, slot) for at, slot, _ in starts(engine)] == [(0, 0), (1, 1), (1.5, 0)]
    assert (job.status, job.attempt) == ("error", 3)


def test_a_call_that_wants_what_a_node_lacks() -> None:
    engine = ElasticEngine(2)
    engine.come(0, "n1")
    engine.come(0, "n2")
    lacking = call(Behaviour(error=LACKS))
    run(engine, lacking, *(call(lasts(0.001)) for _ in range(20)))
    assert isinstance(lacking.future.exception(), ModuleNotFoundError)
    assert sorted(slot for _, slot, job, _ in engine.log if job == lacking.ident) == [0, 1]
