"""Which job comes first."""

from mgpu_nb.engines.environment import Environment
from mgpu_nb.engines.payload import Payload
from mgpu_nb.scheduler.job import FutureJob
from mgpu_nb.scheduler.queue import ReadyQueue


def call(batch: int, cost: float | None = None) -> FutureJob:
    job = FutureJob(Payload(b""), Environment({}, "", ()), batch)
    job.cost = cost
    return job


def test_earlier_batches_first_then_the_costliest_then_as_they_came() -> None:
    order = [call(1, 9.0), call(1, 2.0), call(1, 0.0), call(1), call(1), call(2, 100.0)]
    queue = ReadyQueue()
    for n in (5, 3, 2, 0, 4, 1):
        queue.push(order[n])
    assert queue.first() is order[0]
    assert [queue.pop() for _ in order] == order
    assert not queue
    assert queue.first() is None


def test_one_that_comes_back_takes_its_old_place() -> None:
    jobs = [call(1) for _ in range(3)]
    queue = ReadyQueue()
    for job in jobs:
        queue.push(job)
    first = queue.pop()
    queue.push(first)
    assert queue.pop() is first


def test_one_that_comes_back_with_another_need_is_there_once() -> None:
    needs = {"before": 1}
    jobs = [call(1), call(2)]
    queue = ReadyQueue(lambda job: needs["before"] if job is jobs[0] else 0)
    for job in jobs:
        queue.push(job)
    assert (
        queue.pop() is jobs[0]
    )  # what it was offered for is stale now, and is looked at when it comes first
    for need in (2, 3, 1):
        needs["before"] = need
        queue.push(jobs[0])
        queue.push(call(3))
        assert queue.pop() is jobs[0]
        queue.push(jobs[0])
        assert queue.remove(lambda job: job is jobs[0]) == [jobs[0]]
    assert queue.pop() is jobs[1]


def test_unwanted_ones_leave_in_order_and_the_others_keep_theirs() -> None:
    jobs = [call(1, float(n % 3)) for n in range(9)]
    queue = ReadyQueue()
    for job in jobs:
        queue.push(job)
    assert queue.remove(lambda job: job.cost == 1.0) == jobs[1::3]
    assert [queue.pop() for _ in range(len(queue))] == jobs[2::3] + jobs[0::3]
