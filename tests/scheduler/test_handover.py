"""Calls that the submitting thread gives to an idle worker itself."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jobs
import pytest

from mgpu_nb import GPUPool, Task, WorkerDied
from mgpu_nb.engines.base import SystemClock
from mgpu_nb.scheduler.handover import HandOver


@pytest.fixture
def go(tmp_path: Path) -> Iterator[Path]:
    """A file that ends what waits for it, at the latest when the test has ended."""
    yield tmp_path / "go"
    (tmp_path / "go").touch()


def asleep(pool: GPUPool) -> GPUPool:
    """The pool, whose thread sleeps with a worker on offer; in a test, for pytest changes the environment before it."""
    pool.submit(jobs.add, 1).result(60)
    dispatcher, end, before = pool._dispatcher, time.monotonic() + 60, -1
    while before != dispatcher.loop.wakeups or any(
        process.state != "ready" for process in list(dispatcher.workers.processes.values())
    ):
        assert time.monotonic() < end
        before = dispatcher.loop.wakeups
        time.sleep(0.05)
    assert dispatcher._hand_over._offered is not None
    return pool


def test_scheduler_sleeps_while_a_call_is_given_and_shown(pool: GPUPool, go: Path) -> None:
    asleep(pool)
    dispatcher = pool._dispatcher
    before = dispatcher.loop.wakeups
    future = pool.submit(jobs.blocks_until, str(go))
    assert future.running()
    assert not future.cancel()
    assert dispatcher.loop.wakeups == before
    assert [slot.task for slot in dispatcher.activity().slots if slot.state == "busy"] == [
        "a call of blocks_until"
    ]
    assert time.time() - 60 < max(slot.since or 0.0 for slot in dispatcher.activity().slots)
    go.touch()
    assert future.result(60)


def test_calls_behind_it_are_queued_in_order(go: Path) -> None:
    with GPUPool(slots=1) as pool:
        asleep(pool)
        ended: list[int] = []
        first = pool.submit(jobs.blocks_until, str(go))
        rest = [pool.submit(jobs.add, i, 0) for i in range(5)]
        for future in rest:
            future.add_done_callback(lambda future: ended.append(future.result()))
        assert first.running()
        assert not any(future.running() for future in rest)
        go.touch()
    assert first.done()
    assert ended == [0, 1, 2, 3, 4]


def test_death_of_its_worker_is_its_end(pool: GPUPool) -> None:
    asleep(pool)
    with pytest.raises(WorkerDied):
        pool.submit(jobs.killed).result(60)


def test_shutdown_waits_for_it(go: Path) -> None:
    with GPUPool(slots=1) as pool:
        asleep(pool)
        future = pool.submit(jobs.blocks_until, str(go))
        timer = threading.Timer(0.1, go.touch)
        timer.start()
    assert future.done()
    assert future.result()
    timer.join()


def test_it_takes_another_environment_along(pool: GPUPool, monkeypatch: pytest.MonkeyPatch) -> None:
    asleep(pool)
    monkeypatch.setenv("MGPU_NB_TEST_HANDOVER", "there")
    assert pool.submit(os.environ.get, "MGPU_NB_TEST_HANDOVER").result(60) == "there"


def test_many_threads_lose_nothing(pool: GPUPool) -> None:
    asleep(pool)
    found: list[int] = []

    def submit(start: int) -> None:
        for i in range(start, start + 100):
            found.append(pool.submit(jobs.add, i).result(60))

    threads = [threading.Thread(target=submit, args=(1000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(1000 * n + i + 1 for n in range(4) for i in range(100))


def test_a_task_of_a_run_goes_by_the_scheduler(pool: GPUPool, tmp_path: Path) -> None:
    asleep(pool)
    (record,) = pool.run([Task(jobs.add, 1)], folder=tmp_path).wait(60).records
    assert record.attempt == 1


def test_error_while_it_is_sent_ends_it_and_its_worker(
    pool: GPUPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asleep(pool)
    process = pool._dispatcher._hand_over._offered
    assert process is not None

    def fail(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(process.worker, "assign", fail)
    with pytest.raises(MemoryError):
        pool.submit(jobs.add, 1)
    job = process.job
    assert job is not None
    pid = process.worker.pid
    assert {pool.submit(os.getpid).result(60) for _ in range(4)} - {pid}
    while process.worker.number in pool._dispatcher.workers.processes:
        time.sleep(0.01)
    assert "interrupted while it was given" in str(job.future.exception(60))  # type: ignore[attr-defined]


def test_lock_of_a_thread_that_was_thrown_out_is_taken(pool: GPUPool) -> None:
    asleep(pool)
    assert pool._dispatcher._hand_over._lock.acquire(timeout=60)
    assert pool.submit(jobs.add, 1).result(60) == 2
    asleep(pool)


def test_lock_of_a_thread_at_work_is_waited_for() -> None:
    began, go = threading.Event(), threading.Event()

    class Process:
        job = None
        began = 0.0

        def send(self, job: object) -> None:
            began.set()
            assert go.wait(60)

    class Job:
        def begin(self) -> bool:
            return True

    over = HandOver(SystemClock())
    process, job = Process(), Job()
    over.offer(process)  # type: ignore[arg-type]
    giving = threading.Thread(target=over.give, args=(job,))
    giving.start()
    assert began.wait(60)
    assert not over.give(job)  # type: ignore[arg-type]
    threading.Timer(0.2, go.set).start()
    handed = over.take_back()
    giving.join()
    assert handed is not None
    assert handed.sent
