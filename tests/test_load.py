"""Many of everything: threads, pools, values, tasks. Nothing is left, nothing is lost, and the cost of each stays."""

import gc
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jobs
import numpy as np
import psutil
import pytest

from mgpu_nb import GPUPool, Task
from mgpu_nb.runs.graph import Graph

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_heap")]


def held() -> tuple[int, int, int]:
    """Descriptors, threads and processes of this one."""
    me = psutil.Process()
    return me.num_fds(), threading.active_count(), len(me.children(recursive=True))


def is_held_again(before: tuple[int, int, int]) -> bool:
    end = time.monotonic() + 60
    while any(now > then for now, then in zip(held(), before, strict=True)) and time.monotonic() < end:
        gc.collect()
        time.sleep(0.05)
    return all(now <= then for now, then in zip(held(), before, strict=True))


def test_sixteen_threads_submit_and_each_has_its_own_values(pool: GPUPool) -> None:
    def submit(thread: int) -> list[int]:
        futures = [pool.submit(jobs.add, 1000 * thread, n) for n in range(200)]
        return [future.result(120) for future in futures]

    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(submit, range(16)))
    assert found == [[1000 * thread + n for n in range(200)] for thread in range(16)]


def test_sixteen_threads_start_runs_at_once(pool: GPUPool, tmp_path: Path) -> None:
    def run(thread: int) -> list[int]:
        tasks = [Task(jobs.add, thread, n) for n in range(5)]
        return pool.run(tasks, folder=tmp_path / str(thread)).results(120)

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(run, range(16))) == [[t + n for n in range(5)] for t in range(16)]


def test_of_pools_one_after_the_other_and_at_once_nothing_is_left() -> None:
    def use(number: int) -> int:
        with GPUPool(slots=1, share=True) as pool:
            return pool.submit(jobs.add, number, 1).result(120)

    assert use(0) == 1  # its server stays
    gc.collect()
    before = held()
    assert [use(n) for n in range(20)] == list(range(1, 21))
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(use, range(16))) == list(range(1, 17))
    assert is_held_again(before)


def test_rows_by_chunks_come_in_their_order(pool: GPUPool) -> None:
    rows = range(100_000)
    assert sum(
        1 for row, value in zip(rows, pool.map(abs, rows, chunksize=1000), strict=True) if row == value
    ) == len(rows)


def test_values_that_are_held_hold_no_descriptors_and_give_their_memory_back(pool: GPUPool) -> None:
    pool.submit(np.ones, 2**19).result(60)
    gc.collect()
    before, rss = held(), psutil.Process().memory_info().rss
    values = [future.result(120) for future in [pool.submit(np.full, 2**19, n) for n in range(100)]]
    assert held()[0] <= before[0] + 8
    assert [int(value[-1]) for value in values] == list(range(100))
    values.clear()
    gc.collect()
    assert psutil.Process().memory_info().rss < rss + 2**27
    assert is_held_again(before)


def test_arguments_of_more_calls_than_there_are_descriptors(pool: GPUPool) -> None:
    before = held()
    futures: list[Future[float]] = [pool.submit(np.sum, np.full(2**16, n)) for n in range(1200)]
    assert held()[0] < before[0] + 1200
    assert [future.result(120) for future in futures] == [n * 2.0**16 for n in range(1200)]
    assert is_held_again((before[0] + 4, *before[1:]))  # what is kept to be used again


@pytest.mark.parametrize("chained", [False, True], ids=["alone", "chained"])
def test_a_large_run_begins_and_is_cancelled(pool: GPUPool, tmp_path: Path, chained: bool) -> None:
    after: Callable[[int], tuple[str, ...]] = lambda n: (f"{n - 1}",) if chained and n % 100 else ()
    tasks = [Task(abs, n, name=f"{n}", after=after(n)) for n in range(5000)]
    block = [pool.submit(time.sleep, 0.5) for _ in pool.slots]
    run = pool.run(tasks, folder=tmp_path / "run")
    run.cancel()
    run.wait(120)
    counts = Counter(record.status for record in run.records)
    assert sum(counts.values()) == 5000
    assert counts["cancelled"] >= 40
    assert pool.submit(abs, -1).result(60) == 1
    assert all(future.done() for future in block)


def test_what_waits_for_a_task_that_failed_is_skipped_however_many(pool: GPUPool, tmp_path: Path) -> None:
    wide = [Task(jobs.raises, name="first"), *(Task(abs, n, name=f"{n}", after="first") for n in range(2000))]
    deep = [
        Task(jobs.raises, name="0"),
        *(Task(abs, n, name=f"{n}", after=f"{n - 1}") for n in range(1, 2000)),
    ]
    for name, tasks in {"wide": wide, "deep": deep}.items():
        run = pool.run(tasks, folder=tmp_path / name).wait(120)
        counts = Counter(record.status for record in run.records)
        assert counts == {"error": 1, "skipped": len(tasks) - 1}


def cpu(call: Callable[[], object]) -> float:
    """Least CPU seconds of three calls."""
    times = []
    for _ in range(3):
        gc.collect()
        began = time.thread_time()
        call()
        times.append(time.thread_time() - began)
    return min(times)


@pytest.mark.parametrize("shape", ["alone", "chain", "star", "layers"])
def test_a_graph_is_linear(shape: str) -> None:
    def graph(n: int) -> Graph:
        waits: dict[str, tuple[str, ...]] = {}
        for k in range(n):
            before = {
                "alone": (),
                "chain": (k - 1,),
                "star": (0,),
                "layers": tuple(range(k - k % 20 - 20, k - k % 20)),
            }[shape]
            waits[f"{k}"] = tuple(f"{b}" for b in before if k and b >= 0)
        made = Graph(waits)
        for name in made.order():
            made.done(name)
        return made

    assert cpu(lambda: graph(20_000)) < 4 * 8 * max(cpu(lambda: graph(2_500)), 0.001)  # 8 times the tasks


def test_a_queued_call_takes_little_memory(pool: GPUPool) -> None:
    blocks = [pool.submit(time.sleep, 2) for _ in pool.slots]
    gc.collect()
    rss = psutil.Process().memory_info().rss
    futures = [pool.submit(abs, n) for n in range(20_000)]
    each = (psutil.Process().memory_info().rss - rss) / len(futures)
    assert each < 4096, f"{each:.0f} bytes"
    for future in futures:
        future.cancel()
    assert all(block.result(60) is None for block in blocks)
