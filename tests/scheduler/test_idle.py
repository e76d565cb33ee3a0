"""Nodes that have nothing to do are given back, and asked for again: exact, in virtual time and without processes."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import pytest
from virtual import Behaviour, IdleEngine, Recorded, call, make_dispatcher, run

from mgpu_nb.scheduler.dispatcher import Dispatcher
from mgpu_nb.scheduler.job import Gang, Job

REASON = "it had nothing to do for 300 s"


def lasts(seconds: float) -> Behaviour:
    return Behaviour(seconds=seconds)


def two_nodes(idle: float | None = 300.0, slots: int = 2) -> IdleEngine:
    engine = IdleEngine(2 * slots, idle)
    engine.come(0, "n1", slots)
    engine.come(0, "n2", slots)
    return engine


def run_at(engine: IdleEngine, jobs: Mapping[float, Sequence[Job]], isolated: bool = False) -> Dispatcher:
    """Run jobs that are submitted at times; the pool is closed with the last."""
    dispatcher = make_dispatcher(engine, isolated=isolated)

    def submit(at: float) -> None:
        dispatcher.submit(*jobs[at])
        if at == max(jobs):
            dispatcher.close()

    for at in jobs:
        engine.at(at, lambda at=at: submit(at))  # type: ignore[misc]
    dispatcher.run()
    return dispatcher


def began(engine: IdleEngine) -> list[tuple[float, str]]:
    return [(at, name) for at, _, _, name in engine.log]


@pytest.mark.parametrize("isolated", [False, True])
def test_nodes_that_never_had_a_job_are_given_back_and_asked_for_again(isolated: bool) -> None:
    engine = two_nodes()
    job = Recorded("late", lasts(10))
    run_at(engine, {1000: [job]}, isolated)
    assert engine.history == [(300, f"n1: {REASON}"), (300, f"n2: {REASON}"), (1000, "n1 again")]
    assert began(engine) == [(1020, "late")]
    assert (job.attempt, job.lost, job.notes) == (1, 0, ())


def test_a_node_is_given_back_so_long_after_its_last_job() -> None:
    engine = two_nodes(slots=1)
    jobs = {
        0.0: [Recorded("long", lasts(900)), Recorded("short", lasts(100))],
        850.0: [Recorded("next", lasts(1))],
    }
    run_at(engine, jobs)
    assert engine.history == [(400, f"n2: {REASON}"), (850, "n2 again")]
    assert began(engine) == [(0, "long"), (0, "short"), (870, "next")]


def test_a_node_whose_workers_are_being_set_up_stays() -> None:
    engine = two_nodes(slots=1)
    engine._start_seconds = 500
    run_at(engine, {900: [Recorded("late", lasts(1))]})
    assert engine.history == [(800, f"n1: {REASON}"), (800, f"n2: {REASON}"), (900, "n1 again")]
    assert began(engine) == [(1420, "late")]


def test_one_job_now_and_then_keeps_one_node() -> None:
    engine = two_nodes()
    run_at(engine, {float(at): [Recorded(f"{at}", lasts(1))] for at in range(0, 2000, 290)})
    assert engine.history == [(300, f"n2: {REASON}")]


def test_a_node_of_which_one_slot_is_busy_stays() -> None:
    engine = IdleEngine(2)
    engine.come(0, "n1", 2)
    run(engine, Recorded("long", lasts(5000)))
    assert engine.history == []


def test_a_node_that_jobs_wait_for_stays() -> None:
    engine = IdleEngine(4)
    engine.come(0, "n1", 2)
    engine.come(2000, "n2", 2, first=2)
    members = [Recorded(f"{n}", lasts(10)) for n in range(4)]
    together = Gang(members)
    for member in members:
        member.gang = together
    members[0].devices = 4
    run(engine, members[0])
    assert engine.history == []
    assert [at for at, _ in began(engine)] == [2000] * 4


def test_a_gang_has_as_many_nodes_asked_for_as_it_needs() -> None:
    engine = two_nodes()
    members = [Recorded(f"{n}", lasts(10)) for n in range(4)]
    together = Gang(members)
    for member in members:
        member.gang = together
    members[0].devices = 4
    run_at(engine, {500: [members[0]]})
    assert engine.history[2:] == [(500, "n1 again"), (500, "n2 again")]
    assert [at for at, _ in began(engine)] == [520] * 4


def test_a_job_that_comes_as_its_node_is_given_back_has_it_again() -> None:
    for at in (299.5, 300.0, 300.5, 301.0):
        engine = two_nodes(slots=1)
        job = Recorded("late", lasts(10))
        run_at(engine, {at: [job]})
        assert (job.status, job.attempt, job.notes) == ("ok", 1, ())
        expected = [] if at < 300 else [(max(at, 301), "n1 again")]
        assert [entry for entry in engine.history if "again" in entry[1]] in (expected, [])


def test_calls_that_are_handed_over_count_as_work() -> None:
    engine = two_nodes(slots=1)
    run_at(engine, {at: [call(lasts(0.001))] for at in (1.0, 200.0, 450.0, 700.0)})
    assert engine.history == [(300, f"n2: {REASON}")]


def test_none_is_given_back_where_that_is_not_wanted() -> None:
    engine = two_nodes(None)
    run_at(engine, {5000: [Recorded("late", lasts(1))]})
    assert engine.history == []


def test_none_is_given_back_once_no_other_would_come() -> None:
    engine = two_nodes()
    engine.give_up(100)
    run_at(engine, {5000: [Recorded("late", lasts(1))]})
    assert engine.history == []


def test_who_waits_for_slots_has_them_asked_for_and_kept() -> None:
    engine = two_nodes()
    dispatcher = make_dispatcher(engine)
    there: list[int] = []

    def wait() -> None:
        dispatcher.wait_for_slots(None, 60)
        there.append(len(dispatcher.slots))
        dispatcher.close()

    waiter = threading.Thread(target=wait)
    engine.at(500, waiter.start)
    engine.at(500.5, lambda: wait_until_registered(dispatcher))
    dispatcher.run()
    waiter.join(60)
    assert there == [4]
    assert [what for _, what in engine.history] == [f"n1: {REASON}", f"n2: {REASON}", "n1 again", "n2 again"]


def wait_until_registered(dispatcher: Dispatcher) -> None:
    for _ in range(6000):
        if dispatcher._awaited:
            return
        threading.Event().wait(0.01)
    raise AssertionError


def test_an_idle_pool_whose_nodes_are_all_given_back_has_no_timer() -> None:
    engine = two_nodes()
    woken: list[int] = []
    dispatcher = make_dispatcher(engine)
    for at in (400, 3_900):
        engine.at(at, lambda: woken.append(dispatcher.loop.wakeups))
    engine.at(3_900, dispatcher.close)
    dispatcher.run()
    assert woken[1] - woken[0] <= 1
