"""A worker is killed in the middle of a hundred tasks: what the pool and its peers lose.

    python benchmarks/faults.py [NAME ...]

Each has four workers and a process of its own, which is ended after `LIMIT` seconds. Task 50 sends SIGKILL to its own
process the first time it runs. Peers that are not installed are left out.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

TASKS, WORKERS, KILLED = 100, 4, 50
LIMIT = 60.0  # seconds of one of them
PATIENCE = 10.0  # seconds without an answer that count as never

# A peer gives a function that submits a call and returns what gets its value.
Submit = Callable[..., Callable[[float], Any]]


def task(number: int, flag: str) -> int:
    """Ten milliseconds of a task; one of them is killed, once."""
    time.sleep(0.01)
    if number == KILLED:
        try:
            os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return number
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def _by_future(submit: Callable[..., Future[Any]]) -> Submit:
    def call(*arguments: Any) -> Callable[[float], Any]:
        return submit(task, *arguments).result

    return call


def ours() -> Iterator[Submit]:
    """`GPUPool.submit`."""
    from mgpu_nb import GPUPool

    with GPUPool("cpu", slots=WORKERS) as pool:
        yield _by_future(pool.submit)


def ours_with_retries() -> Iterator[Submit]:
    """`GPUPool.run` with tasks that have a retry: a run of one task for each call."""
    from mgpu_nb import GPUPool, Task

    with tempfile.TemporaryDirectory() as folder, GPUPool("cpu", slots=WORKERS) as pool:

        def call(number: int, flag: str) -> Callable[[float], Any]:
            again = Task(task, number, flag, name=f"task-{number}", retries=1)
            run = pool.run([again], folder=Path(folder) / f"{time.monotonic_ns()}")
            return lambda seconds: run.results(seconds, progress=False)[0]

        yield call


def process_pool_executor() -> Iterator[Submit]:
    """`concurrent.futures.ProcessPoolExecutor`."""
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        yield _by_future(pool.submit)


def multiprocessing_pool() -> Iterator[Submit]:
    """`multiprocessing.Pool`."""
    with get_context("spawn").Pool(WORKERS) as pool:
        yield lambda *arguments: pool.apply_async(task, arguments).get


def loky() -> Iterator[Submit]:
    """`loky.ProcessPoolExecutor`."""
    from loky import ProcessPoolExecutor

    with ProcessPoolExecutor(WORKERS) as pool:
        yield _by_future(pool.submit)


def pebble() -> Iterator[Submit]:
    """`pebble.ProcessPool`."""
    from pebble import ProcessPool

    with ProcessPool(max_workers=WORKERS, context=get_context("spawn")) as pool:
        yield _by_future(lambda fn, *arguments: pool.schedule(fn, args=arguments))


def mpire() -> Iterator[Submit]:
    """`mpire.WorkerPool`."""
    from mpire import WorkerPool

    with WorkerPool(WORKERS, start_method="spawn") as pool:
        yield lambda *arguments: pool.apply_async(task, arguments).get


def dask() -> Iterator[Submit]:
    """`distributed.Client`, which runs again what a lost worker had."""
    from distributed import Client

    with Client(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None) as client:

        def call(*arguments: Any) -> Callable[[float], Any]:
            return client.submit(task, *arguments, pure=False).result

        yield call


def ray() -> Iterator[Submit]:
    """A `ray.remote` function, which is tried three times more."""
    import ray

    ray.init(num_cpus=WORKERS, include_dashboard=False, logging_level="error", log_to_driver=False)
    remote = ray.remote(task)

    def call(*arguments: Any) -> Callable[[float], Any]:
        value = remote.remote(*arguments)
        return lambda seconds: ray.get(value, timeout=seconds)

    yield call
    ray.shutdown()


PEERS: dict[str, tuple[Callable[[], Iterator[Submit]], str]] = {
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


def attempt(name: str, account: Path) -> None:
    """Lose a worker; write after each step what is known, for a peer may hang at any."""
    known: dict[str, Any] = {"values": 0, "errors": {}, "works": False}

    def note() -> None:
        (account.with_suffix(".part")).write_text(json.dumps(known))
        account.with_suffix(".part").replace(account)

    note()
    flag = str(account.with_suffix(".flag"))
    for call in PEERS[name][0]():
        call(0, flag)(PATIENCE * 3)  # the workers are there
        began = time.perf_counter()
        waiting: list[Any] = []
        for number in range(TASKS):
            try:
                waiting.append(call(number, flag))
            except Exception as error:
                waiting.append(error)
        for number, value in enumerate(waiting):
            try:
                if isinstance(value, Exception):
                    raise value
                if (found := value(PATIENCE)) != number:
                    raise ValueError(f"task {number} gave {found!r}")
                known["values"] += 1
            except Exception as error:
                kind = "never" if "imeout" in type(error).__name__ else type(error).__name__
                known["errors"][kind] = known["errors"].get(kind, 0) + 1
                known.setdefault("said", str(error).strip().splitlines()[:1])
            note()
        known["seconds"] = time.perf_counter() - began
        try:
            known["works"] = call(1, flag)(PATIENCE) == 1
        except Exception as error:
            known["works"] = type(error).__name__
        note()


def row(name: str) -> str:
    """What came of one of them, as a line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        account = Path(folder) / "account"
        command = [sys.executable, __file__, "--attempt", name, str(account)]
        environment = os.environ | {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=environment,
        )
        try:
            process.wait(LIMIT)
            ended = "ends"
        except subprocess.TimeoutExpired:
            ended = "never ends"
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        known = json.loads(account.read_text())
    errors = ", ".join(f"{count} {kind}" for kind, count in known["errors"].items())
    works = {True: "works", False: "unknown"}.get(known["works"], known["works"])
    seconds = f"{known['seconds']:.2f} s" if "seconds" in known else ""
    said = " ".join(known.get("said", []))[:110]
    lost = TASKS - known["values"]
    return f"{name:22s} {lost:4d}  {works:20s} {ended:11s} {seconds:9s} {errors}: {said}"


def main(names: list[str]) -> None:
    """Print a line for each."""
    print(f"{'':22s} lost  the pool after it   the process seconds   errors of the tasks")
    for name in names or PEERS:
        if importlib.util.find_spec(PEERS[name][1].split(".")[0]) is not None:
            print(row(name), flush=True)
        else:
            print(f"{name:22s} is not installed", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--attempt"]:
        attempt(sys.argv[2], Path(sys.argv[3]))
    else:
        main(sys.argv[1:])
