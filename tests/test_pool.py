import concurrent.futures
import contextlib
import gc
import os
import resource
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jobs
import numpy as np
import psutil
import pytest
import torch

import mgpu_nb
from mgpu_nb import GPUPool, SetupError, Task, TaskError, WorkerDied


def test_import_is_light() -> None:
    heavy = ("torch", "matplotlib", "ipywidgets", "pandas", "numpy")
    code = f"import sys, mgpu_nb; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_submit_and_remote_traceback(pool: GPUPool) -> None:
    assert pool.submit(jobs.add, 1, b=2).result(60) == 3
    with pytest.raises(ValueError, match="bad") as caught:
        pool.submit(jobs.raises).result(60)
    assert "jobs.py" in str(caught.value.__cause__)


def test_every_kind_of_function(pool: GPUPool) -> None:
    offset = 5

    class Adder:
        def __init__(self, n: int) -> None:
            self.n = n

        def add(self, x: int) -> int:
            return x + self.n

    functions: list[Callable[[int], int]] = [
        jobs.add,
        lambda x: x + 1,
        lambda x: x + offset - 4,
        partial(jobs.add, b=1),
        Adder(1).add,
    ]
    assert [pool.submit(f, 1).result(60) for f in functions] == [2] * 5


def test_map(pool: GPUPool) -> None:
    assert list(pool.map(jobs.add, range(10), range(10), chunksize=3)) == list(range(0, 20, 2))
    assert list(pool.map(jobs.add, range(10), buffersize=2)) == list(range(1, 11))
    with pytest.raises(TimeoutError):
        list(pool.map(jobs.hangs, [1.0], timeout=0.05))
    with pytest.raises(ValueError, match="chunksize"):
        pool.map(jobs.add, [1], chunksize=0)


def test_map_takes_no_more_than_buffersize(pool: GPUPool) -> None:
    taken = []

    def items() -> Iterator[int]:
        for i in range(100):
            taken.append(i)
            yield i

    values = pool.map(jobs.add, items(), buffersize=3)
    assert isinstance(values, Generator)
    assert next(values) == 1
    assert len(taken) <= 4
    values.close()


def test_wait_as_completed_callbacks(pool: GPUPool) -> None:
    futures = [pool.submit(jobs.add, i) for i in range(20)]
    assert sorted(f.result() for f in concurrent.futures.as_completed(futures, 60)) == list(range(1, 21))
    seen = threading.Event()
    inner = []

    def callback(future: Future[int]) -> None:
        inner.append(pool.submit(jobs.add, future.result()))
        seen.set()

    pool.submit(jobs.add, 1).add_done_callback(callback)
    assert seen.wait(60)
    assert inner[0].result(60) == 3


@pytest.mark.parametrize("size", [0, 1000, 2**18, 3 * 2**20])
def test_arrays_and_tensors_round_trip(pool: GPUPool, size: int) -> None:
    values: tuple[Any, ...] = (
        np.arange(size, dtype=np.float32),
        torch.arange(size).bfloat16(),
        torch.zeros(size).requires_grad_(),
    )
    for value in values:
        back = pool.submit(jobs.says_nothing, value).result(60)
        assert type(back) is type(value)
        assert back.dtype == value.dtype
        assert bool((back == value).all())


def test_large_value_outlives_its_worker() -> None:
    with GPUPool(slots=1, isolation="task") as pool:
        value = pool.submit(np.ones, 2**21).result(60)
    assert value.sum() == 2**21
    value += 1  # private to this process
    assert not [*Path("/dev/shm").glob("*mgpu*")]


def test_bytes_beyond_the_pipe(pool: GPUPool) -> None:
    assert pool.submit(len, b"x" * 5_000_000).result(60) == 5_000_000


def test_death_costs_one_task(pool: GPUPool) -> None:
    futures: list[Future[Any]] = [
        pool.submit(jobs.killed) if i == 3 else pool.submit(jobs.add, i) for i in range(10)
    ]
    with pytest.raises(WorkerDied, match="SIGKILL"):
        futures[3].result(60)
    assert [f.result(60) for i, f in enumerate(futures) if i != 3] == [i + 1 for i in range(10) if i != 3]


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (jobs.segfaults, "segmentation fault"),
        (jobs.exits, "exit code 0"),
        (partial(jobs.exits, 7), "exit code 7"),
    ],
)
def test_deaths_in_words(pool: GPUPool, fn: Callable[..., Any], words: str) -> None:
    with pytest.raises(WorkerDied, match=words):
        pool.submit(fn).result(60)


def test_exceptions_and_values_that_do_not_pickle(pool: GPUPool) -> None:
    with pytest.raises(TaskError, match="BadToUnpickle: one-two"):
        pool.submit(jobs.raises_bad).result(60)
    with pytest.raises(TypeError, match="pickle"):
        pool.submit(jobs.unpicklable).result(60)
    with pytest.raises(TaskError, match="does not unpickle here"):
        pool.submit(jobs.returns_bomb).result(60)
    with pytest.raises(TypeError, match="pickle"):
        pool.submit(jobs.add, threading.Lock())  # type: ignore[arg-type]


def test_bad_pickles_among_good_tasks(pool: GPUPool) -> None:
    futures = [pool.submit(jobs.add, jobs.Bomb() if i % 2 else i) for i in range(200)]  # type: ignore[arg-type]
    outcomes = [f.exception(60) for f in futures]
    assert [e is None for e in outcomes] == [i % 2 == 0 for i in range(200)]
    assert {str(e) for e in outcomes if e} == {"in unpickling"}


def test_environment_folder_and_path_reach_the_next_task(
    pool: GPUPool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MGPU_TEST", "one")
    assert pool.submit(os.getenv, "MGPU_TEST").result(60) == "one"
    monkeypatch.setenv("MGPU_TEST", "two")
    monkeypatch.chdir(tmp_path)
    assert pool.submit(os.getenv, "MGPU_TEST").result(60) == "two"
    assert pool.submit(os.getcwd).result(60) == str(tmp_path)


def test_edited_module_runs_anew(pool: GPUPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "edited_by_user.py"
    module.write_text("def f():\n    return 'old'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import edited_by_user  # type: ignore[import-not-found]

    assert [pool.submit(edited_by_user.f).result(60) for _ in range(4)] == ["old"] * 4
    module.write_text("def f():\n    return 'new and longer'\n")
    assert [pool.submit(edited_by_user.f).result(60) for _ in range(4)] == ["new and longer"] * 4


def test_setup_and_state() -> None:
    with GPUPool(slots=2, setup=lambda: {"pid": os.getpid()}) as pool:
        same = [pool.submit(lambda: mgpu_nb.worker().state["pid"] == os.getpid()) for _ in range(6)]
        assert all(f.result(60) for f in same)


@pytest.mark.parametrize("isolation", ["worker", "task"])
def test_setup_that_raises_ends_every_task(isolation: Literal["worker", "task"]) -> None:
    with GPUPool(slots=2, setup=jobs.raises, isolation=isolation) as pool:
        for future in [pool.submit(jobs.add, i) for i in range(5)]:
            with pytest.raises(SetupError, match=r"setup failed on .*cpu:\d.*ValueError: bad"):
                future.result(60)


def test_isolated_tasks_have_their_own_process() -> None:
    with GPUPool(slots=2, isolation="task") as pool:
        pids = [pool.submit(os.getpid).result(60) for _ in range(5)]
    assert len(set(pids)) == 5
    assert not any(map(psutil.pid_exists, pids))


def test_max_tasks_and_memory_growth(tmp_path: Path) -> None:
    with GPUPool(slots=1, max_tasks=2) as pool:
        pids = [pool.submit(os.getpid).result(60) for _ in range(4)]
        assert pids[0] == pids[1] != pids[2] == pids[3]

    def hoard() -> None:
        import builtins

        vars(builtins)["hoard"] = bytearray(os.urandom(1)) * (64 * 2**20)

    with GPUPool(slots=1, memory_growth=16 * 2**20) as pool:
        tasks = [mgpu_nb.Task(hoard, name="hoard"), mgpu_nb.Task(jobs.add, 1, after="hoard")]
        run = pool.run(tasks, folder=tmp_path / "run").wait(60)
        assert "worker replaced: it kept" in run.records[0].notes[0]
        assert run.records[0].pid != run.records[1].pid


def test_devices_tasks_do_not_deadlock(tmp_path: Path) -> None:
    tasks = [mgpu_nb.Task(jobs.add, i, devices=1 + i % 3) for i in range(12)]
    with GPUPool(slots=3) as pool:
        assert pool.run(tasks, folder=tmp_path / "run").results(60) == list(range(1, 13))


def test_shutdown_cancels_what_has_not_begun(tmp_path: Path) -> None:
    pool = GPUPool(slots=1)
    first = pool.submit(jobs.blocks_until, str(tmp_path / "go"))
    while not first.running():
        time.sleep(0.005)
    rest = [pool.submit(jobs.add, i) for i in range(5)]
    pool.shutdown(wait=False, cancel_futures=True)
    (tmp_path / "go").touch()
    assert first.result(60)
    concurrent.futures.wait(rest, 60)
    assert all(f.cancelled() for f in rest)
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(jobs.add, 1)
    pool.shutdown()


def test_shutdown_while_a_task_dies() -> None:
    pool = GPUPool(slots=2)
    future = pool.submit(jobs.killed)
    pool.shutdown()
    assert isinstance(future.exception(0), WorkerDied)


def test_dropping_the_pool_ends_its_workers() -> None:
    pool = GPUPool(slots=2)
    pid = pool.submit(os.getpid).result(60)
    thread = pool._dispatcher.thread
    del pool
    gc.collect()
    thread.join(30)
    assert not thread.is_alive()
    assert not psutil.pid_exists(pid)


def test_orphans_of_a_dead_worker_are_ended(pool: GPUPool, tmp_path: Path) -> None:
    with pytest.raises(WorkerDied):
        pool.submit(jobs.spawns_child, str(tmp_path / "pid")).result(60)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int((tmp_path / "pid").read_text())).wait(60)


def test_a_task_that_ended_well_leaves_no_children_nor_theirs(tmp_path: Path) -> None:
    with GPUPool(slots=1, isolation="task") as pool:
        pool.submit(jobs.leaves_a_family, str(tmp_path / "pids")).result(60)
        for pid in map(int, (tmp_path / "pids").read_text().split()):
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(pid).wait(60)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_start_methods(method: Literal["fork", "spawn"]) -> None:
    with GPUPool(slots=1, start_method=method) as pool:
        assert (
            pool.submit(lambda: float((torch.ones(64, 64) @ torch.ones(64, 64)).sum())).result(120) == 64**3
        )


def test_no_task_waits_behind_a_long_one(tmp_path: Path) -> None:
    go = str(tmp_path / "go")
    with GPUPool(slots=2) as pool:
        for _ in range(5):
            quick = [pool.submit(jobs.add, i) for i in range(200)]
            long = pool.submit(jobs.blocks_until, go)
            after = [pool.submit(jobs.add, i) for i in range(200)]
            assert [f.result(30) for f in quick + after] == [*range(1, 201)] * 2
            (tmp_path / "go").touch()
            assert long.result(30)
            (tmp_path / "go").unlink()


def test_death_amid_very_short_tasks_costs_one_task() -> None:
    with GPUPool(slots=2) as pool:
        futures = [pool.submit(jobs.killed) if i % 50 == 25 else pool.submit(jobs.add, i) for i in range(300)]
        kinds = [type(f.exception(60)).__name__ for f in futures]
    assert kinds == ["WorkerDied" if i % 50 == 25 else "NoneType" for i in range(300)]


def test_idle_pool_does_not_wake(pool: GPUPool) -> None:
    pool.submit(jobs.add, 1).result(60)
    while any(post.state != "ready" for post in list(pool._dispatcher.workers.processes.values())):
        time.sleep(0.01)
    before = pool._dispatcher.loop.wakeups
    time.sleep(0.5)
    assert pool._dispatcher.loop.wakeups == before


SCRIPT = """
    import sys, os, signal, time
    sys.path.insert(0, {tests!r})
    import jobs
    from mgpu_nb import GPUPool
    pool = GPUPool(slots=2)
    futures = [pool.submit(jobs.hangs, 600) for _ in range(2)]
    while not all(f.running() for f in futures):
        time.sleep(0.01)
    print(*[post.worker.pid for post in pool._dispatcher.workers.processes.values()], flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_workers_die_with_the_kernel() -> None:
    code = textwrap.dedent(SCRIPT).format(tests=str(Path(jobs.__file__).parent))
    kernel = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert kernel.stdout
    pids = [int(pid) for pid in kernel.stdout.readline().split()]
    assert len(pids) == 2
    workers = [psutil.Process(pid) for pid in pids]
    kernel.kill()
    kernel.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
    kernel.stdout.close()


@pytest.mark.slow
def test_interpreter_exit_finishes_what_was_submitted(tmp_path: Path) -> None:
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(jobs.__file__).parent)!r})
        import jobs
        from mgpu_nb import GPUPool
        pool = GPUPool(slots=2)
        for i in range(5):
            pool.submit(jobs.touches, {str(tmp_path / "out")!r}, i)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)
    assert (tmp_path / "out").read_text() == "xxxxx"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gpu_ids": [99]}, "slots=|exist"),
        ({"slots": 0}, "slots"),
        ({"isolation": "thread"}, "isolation"),
        ({"slots": 1, "preload": ["no_such_module_x"]}, "no_such_module_x"),
        ({"slots": 1, "max_tasks": 0}, "max_tasks"),
        ({"slots": 1, "grace": 0}, "grace"),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPUPool(**arguments)


def test_more_large_arguments_than_descriptors(pool: GPUPool) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        futures = [pool.submit(np.sum, np.ones(40_000)) for _ in range(300)]
        assert {float(future.result(120)) for future in futures} == {40_000.0}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


_SPAWNED = """
import multiprocessing

def double(x):
    return 2 * x

def f(x):
    return double(x) + 1

def child():
    from mgpu_nb import GPUPool

    with GPUPool(slots=1) as pool:
        print(pool.submit(f, 3).result(60))

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=child)
    process.start()
    process.join()
"""


@pytest.mark.slow
def test_a_pool_in_a_process_that_multiprocessing_spawned(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SPAWNED)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "7\n", done.stderr


def test_what_a_task_caches_on_purpose_does_not_replace_its_worker(tmp_path: Path) -> None:
    with GPUPool(slots=1, memory_growth=20 * 2**20) as pool:
        tasks = [Task(jobs.uses, name, name=f"{n}") for n, name in enumerate("aabbca")]
        run = pool.run(tasks, folder=tmp_path / "cached").wait(60)
        assert [record.value[0] for record in run.records] == [
            1,
            1,
            2,
            2,
            3,
            4,
        ]  # times that anything was loaded
        assert len({record.value[1] for record in run.records}) == 1
        assert [record.notes for record in run.records] == [()] * 6
        run = pool.run([Task(jobs.leaks, name=f"{n}") for n in range(2)], folder=tmp_path / "leaked").wait(60)
        assert len({record.value for record in run.records}) == 2
        assert "worker replaced: it kept 4" in run.records[0].notes[0]


def writes_to_the_channel(data: bytes) -> None:
    import stat

    for fd in (int(entry.name) for entry in Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):
            if fd > 2 and stat.S_ISSOCK(os.fstat(fd).st_mode):
                os.write(fd, data)
    time.sleep(60)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("!BBIQQ", 32, 1, 0, 4, 1) + b"none",  # a descriptor that does not come
        struct.pack("!BBIQQ", 33, 0, 4, 0, 1) + b"junk",  # no pickle
        struct.pack("!BBIQQ", 38, 0, 3, 0, 1) + b"cos",
    ],
    ids=["descriptor", "failure", "memory"],
)
def test_what_a_task_writes_into_the_channel_ends_its_worker_alone(tmp_path: Path, data: bytes) -> None:
    with GPUPool(slots=2) as pool:
        tasks = [Task(writes_to_the_channel, data, name="garbage"), Task(jobs.add, 1, name="good")]
        run = pool.run(tasks, folder=tmp_path / "run").wait(60)
        assert [record.status for record in run.records] == ["killed", "ok"]
        assert "cannot be read" in run.records[0].error
        assert pool.submit(jobs.add, 1).result(60) == 2


def test_tasks_of_a_run_see_what_was_given_and_not_what_others_wrote(pool: GPUPool, tmp_path: Path) -> None:
    def use(array: Any, n: int) -> float:
        before = float(array.sum())
        array += n
        return before

    array = np.ones(2**17)
    first = pool.run([Task(use, array, n) for n in range(8)], folder=tmp_path / "first")
    array[:] = 2
    second = pool.run([Task(use, array, n) for n in range(8)], folder=tmp_path / "second")
    assert first.results(60) == [2.0**17] * 8
    assert second.results(60) == [2.0**18] * 8
    assert first.records[0].fingerprint != second.records[0].fingerprint


@pytest.mark.slow
def test_a_model_in_a_global_variable_is_loaded_twice_and_a_leak_is_bounded(tmp_path: Path) -> None:
    with GPUPool(slots=1, memory_growth=20 * 2**20) as pool:
        tasks = [Task(jobs.keeps_a_model, name=f"{n}") for n in range(6)]
        run = pool.run(tasks, folder=tmp_path / "model").wait(60)
        assert len({record.value for record in run.records}) == 2
        assert ["worker replaced" in "".join(record.notes) for record in run.records] == [True, *[False] * 5]
        run = pool.run([Task(jobs.leaks, name=f"{n}") for n in range(6)], folder=tmp_path / "leaks").wait(60)
        assert len({record.value for record in run.records}) == 3
