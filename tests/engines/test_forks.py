"""Forks that a task makes and does not end: they never speak for it."""

import atexit
import contextlib
import ctypes
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mgpu_nb
from mgpu_nb import GPUPool, Task


@pytest.fixture(scope="module")
def pool(share: Any) -> Iterator[GPUPool]:
    with share(GPUPool(slots=2)) as pool:
        yield pool


def _fork() -> int:
    return os.fork()


def _fork_in_c() -> int:
    """A fork that Python hears nothing of."""
    pid: int = ctypes.PyDLL(None).fork()
    return pid


def returns(fork: Callable[[], int]) -> str:
    if fork() == 0:
        return "the child's"
    time.sleep(0.2)
    return "the task's"


def raises(fork: Callable[[], int]) -> str:
    if fork() == 0:
        raise ValueError("in the child")
    time.sleep(0.2)
    return "the task's"


def leaves(fork: Callable[[], int]) -> str:
    if fork() == 0:
        sys.exit(3)
    time.sleep(0.2)
    return "the task's"


def reports(fork: Callable[[], int]) -> str:
    if fork() == 0:
        for n in range(1000):
            mgpu_nb.worker().report(child=n)
        os._exit(0)
    mgpu_nb.worker().report(task=1)
    time.sleep(0.2)
    return "the task's"


def forks_in_a_thread(fork: Callable[[], int]) -> str:
    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
    time.sleep(0.2)
    return "the task's"


def runs_threads_in_the_child(fork: Callable[[], int]) -> str:
    if fork() == 0:
        threading.Thread(target=lambda: mgpu_nb.worker().report(child=1)).start()
        atexit.register(lambda: mgpu_nb.worker().report(child=2))
        return "the child's"
    time.sleep(0.2)
    return "the task's"


class ForksWhenPickled:
    def __reduce__(self) -> Any:
        os.fork()
        return str, ("the task's",)


def value_that_forks(fork: Callable[[], int]) -> Any:
    return ForksWhenPickled()


TASKS = [returns, raises, leaves, reports, forks_in_a_thread, runs_threads_in_the_child, value_that_forks]


@pytest.mark.slow
@pytest.mark.parametrize("fork", [_fork, _fork_in_c])
def test_the_answer_is_the_tasks(pool: GPUPool, tmp_path: Path, fork: Callable[[], int]) -> None:
    # A thread of a fork that Python knows nothing of may wait for a lock for ever.
    kinds = [task for task in TASKS if task is not forks_in_a_thread or fork is _fork]
    tasks = [Task(task, fork, name=task.__name__, timeout=60) for task in kinds]
    run = pool.run(tasks, folder=tmp_path / "run").wait(100)
    assert [(r.name, r.status, r.value) for r in run.records] == [
        (t.__name__, "ok", "the task's") for t in kinds
    ]
    assert run.records[kinds.index(reports)].metrics == {"task": 1}


def shouts() -> str:
    """A fork whose child writes to every descriptor it knows as a connection."""
    if os.fork() == 0:
        for fd in range(3, 100):
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.fstat(fd).st_mode):
                    os.write(fd, b"garbage")
        os._exit(0)
    os.wait()
    return "the task's"


@pytest.mark.slow
def test_a_fork_has_no_connection(pool: GPUPool) -> None:
    assert [pool.submit(shouts).result(60) for _ in range(4)] == ["the task's"] * 4


def forks(number: int) -> int:
    os.fork()
    return number


def short(number: int) -> int:
    time.sleep(0.001)
    return number


@pytest.mark.slow
def test_tasks_after_a_fork_are_answered_once_each(pool: GPUPool) -> None:
    assert [f.result(60) for f in [pool.submit(forks, n) for n in range(8)]] == list(range(8))
    assert [f.result(60) for f in [pool.submit(short, n) for n in range(500)]] == list(range(500))


def forks_in_setup() -> str:
    if os.fork() == 0:
        return "the child's"
    return "the worker's"


def state() -> Any:
    return mgpu_nb.worker().state


@pytest.mark.slow
def test_a_fork_in_setup_is_no_worker() -> None:
    with GPUPool(slots=1, setup=forks_in_setup) as pool:
        assert [pool.submit(state).result(60) for _ in range(20)] == ["the worker's"] * 20


def closes_its_streams() -> str:
    sys.stdout.close()
    sys.stderr.close()
    return "done"


@pytest.mark.slow
def test_a_worker_without_streams_ends_and_is_no_second_server() -> None:
    with GPUPool(slots=1, isolation="task") as pool:
        assert [pool.submit(closes_its_streams).result(60) for _ in range(3)] == ["done"] * 3
