"""What runs calls in worker processes, ours and its peers, each behind one function: for the benchmarks beside them.

Each gives a function that submits a call and returns what gets its value.
"""

import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

Submit = Callable[..., Callable[[float], Any]]
Open = Callable[[int], Iterator[Submit]]

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def _by_future(submit: Callable[..., Future[Any]]) -> Submit:
    def call(fn: Callable[..., Any], *arguments: Any) -> Callable[[float], Any]:
        return submit(fn, *arguments).result

    return call


def ours(workers: int) -> Iterator[Submit]:
    """`GPUPool.submit`."""
    from mgpu_nb import GPUPool

    with GPUPool("cpu", slots=workers) as pool:
        yield _by_future(pool.submit)


def ours_with_retries(workers: int) -> Iterator[Submit]:
    """`GPUPool.run` with tasks that have a retry: a run of one task for each call."""
    from mgpu_nb import GPUPool, Task

    with tempfile.TemporaryDirectory() as folder, GPUPool("cpu", slots=workers) as pool:

        def call(fn: Callable[..., Any], *arguments: Any) -> Callable[[float], Any]:
            again = Task(fn, *arguments, retries=1)
            run = pool.run([again], folder=Path(folder) / f"{time.monotonic_ns()}")
            return lambda seconds: run.results(seconds, progress=False)[0]

        yield call


def process_pool_executor(workers: int) -> Iterator[Submit]:
    """`concurrent.futures.ProcessPoolExecutor`."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield _by_future(pool.submit)


def multiprocessing_pool(workers: int) -> Iterator[Submit]:
    """`multiprocessing.Pool`."""
    with get_context("spawn").Pool(workers) as pool:
        yield lambda fn, *arguments: pool.apply_async(fn, arguments).get


def loky(workers: int) -> Iterator[Submit]:
    """`loky.ProcessPoolExecutor`."""
    from loky import ProcessPoolExecutor

    with ProcessPoolExecutor(workers) as pool:
        yield _by_future(pool.submit)


def pebble(workers: int) -> Iterator[Submit]:
    """`pebble.ProcessPool`."""
    from pebble import ProcessPool

    with ProcessPool(max_workers=workers, context=get_context("spawn")) as pool:
        yield _by_future(lambda fn, *arguments: pool.schedule(fn, args=arguments))


def mpire(workers: int) -> Iterator[Submit]:
    """`mpire.WorkerPool`."""
    from mpire import WorkerPool

    with WorkerPool(workers, start_method="spawn") as pool:
        yield lambda fn, *arguments: pool.apply_async(fn, arguments).get


def dask(workers: int) -> Iterator[Submit]:
    """`distributed.Client`, which runs again what a lost worker had."""
    from distributed import Client

    with Client(n_workers=workers, threads_per_worker=1, dashboard_address=None) as client:

        def call(fn: Callable[..., Any], *arguments: Any) -> Callable[[float], Any]:
            return client.submit(fn, *arguments, pure=False).result

        yield call


def ray(workers: int) -> Iterator[Submit]:
    """A `ray.remote` function, which is tried three times more."""
    import ray

    ray.init(num_cpus=workers, include_dashboard=False, logging_level="error", log_to_driver=False)
    remote = functools.cache(ray.remote)

    def call(fn: Callable[..., Any], *arguments: Any) -> Callable[[float], Any]:
        value = remote(fn).remote(*arguments)
        return lambda seconds: ray.get(value, timeout=seconds)

    yield call
    ray.shutdown()


PEERS: dict[str, tuple[Open, str]] = {
    "ours": (ours, "mgpu_nb"),
    "ours, retries=1": (ours_with_retries, "mgpu_nb"),
    "ProcessPoolExecutor": (process_pool_executor, "concurrent.futures"),
    "multiprocessing.Pool": (multiprocessing_pool, "multiprocessing"),
    "loky": (loky, "loky"),
    "pebble": (pebble, "pebble"),
    "mpire": (mpire, "mpire"),
    "dask": (dask, "distributed"),
    "ray": (ray, "ray"),
}


def installed(name: str) -> bool:
    """Whether a peer is there."""
    return find_spec(PEERS[name][1].split(".")[0]) is not None
