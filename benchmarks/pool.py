"""The pool beside its peers, those of `peers` that are installed, in one run.

    python benchmarks/pool.py [starts | throughput | calls | schedules | load ...]

Each line: our figure, the peer's, and ours as a share of it. Medians of several rounds.
"""

import gc
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import psutil
import torch  # processes that are spawned import it with this module, as with the scripts of most users
from peers import PEERS, installed

from mgpu_nb import GPUPool, Task

SETTLED = 5  # seconds: until then processes of the one before may end, Ray's say
# Seconds of calls before those that count: a virtual machine that has slept takes half of that to wake.
WARM = 1


def nothing(x):
    return x


def imports_torch():
    return torch.__version__


def double(array):
    return array * 2


def make(n):
    return np.ones(n // 8)


def served(tasks, results):
    for item in iter(tasks.get, None):
        results.put(nothing(item))


def clock(action, rounds=5):
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def line(name, ours, **peers):
    shown = ", ".join(f"{peer} {value:.4g} (ours {ours / value:.3g} of it)" for peer, value in peers.items())
    print(f"{name:48s} ours {ours:.4g}; {shown}", flush=True)


def shared_queue(n):
    """Two processes on one task queue, as the guide of the runner describes."""
    context = multiprocessing.get_context("spawn")
    tasks, results = context.Queue(), context.Queue()
    workers = [context.Process(target=served, args=(tasks, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for _ in workers:
        tasks.put(0)
        results.get()

    def go():
        for i in range(n):
            tasks.put(i)
        for _ in range(n):
            results.get()

    seconds = clock(go)
    for _ in workers:
        tasks.put(None)
    for worker in workers:
        worker.join()
    return seconds / n


def starts():
    with GPUPool(slots=1, isolation="task") as pool:
        pool.submit(imports_torch).result()
        ours = clock(lambda: pool.submit(imports_torch).result(), 20)
    context = multiprocessing.get_context("spawn")

    def spawn():
        with ProcessPoolExecutor(1, mp_context=context) as executor:
            executor.submit(imports_torch).result()

    line("fresh process with torch, ms", 1e3 * ours, spawn=1e3 * clock(spawn, 3))
    with GPUPool(slots=8, isolation="task") as pool:
        pool.submit(imports_torch).result()
        eight = clock(lambda: [f.result() for f in [pool.submit(imports_torch) for _ in range(8)]], 5)
    print(f"{'eight at once, s':48s} ours {eight:.3f}")
    with GPUPool(slots=8) as pool:
        pids = {f.result() for f in [pool.submit(os.getpid) for _ in range(200)]}
        infos = [psutil.Process(pid).memory_full_info() for pid in pids]
        pss, uss = (max(getattr(info, kind) for info in infos) / 2**20 for kind in ("pss", "uss"))
        print(f"{'idle worker of eight, MB':48s} ours {pss:.1f} (PSS), {uss:.1f} nobody else's (USS)")


def throughput():
    n = 10_000
    context = multiprocessing.get_context("spawn")
    import loky

    peers = {}
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        list(executor.map(nothing, range(100)))
        peers["ppe"] = (
            1e6 * clock(lambda: [f.result() for f in [executor.submit(nothing, i) for i in range(n)]]) / n
        )
        mega, peers_mega = np.ones(125_000), {}
        peers_mega["ppe"] = 1e3 * clock(lambda: executor.submit(double, mega).result(), 30)
        peers_64 = {"ppe": 1e3 * clock(lambda: executor.submit(make, 2**26).result(), 5)}
    executor = loky.get_reusable_executor(max_workers=2)
    list(executor.map(nothing, range(100)))
    peers["loky"] = (
        1e6 * clock(lambda: [f.result() for f in [executor.submit(nothing, i) for i in range(n)]], 3) / n
    )
    peers_mega["loky"] = 1e3 * clock(lambda: executor.submit(double, mega).result(), 30)
    executor.shutdown(kill_workers=True)
    peers["shared_queue"] = 1e6 * shared_queue(n)
    with GPUPool(slots=2) as pool:
        list(pool.map(nothing, range(1000)))
        ours = 1e6 * clock(lambda: [f.result() for f in [pool.submit(nothing, i) for i in range(n)]]) / n
        line("no-op by submit, us", ours, **peers)
        mapped = 1e6 * clock(lambda: list(pool.map(nothing, range(100_000), chunksize=500))) / 100_000
        print(f"{'no-op by map, chunks of 500, us':48s} ours {mapped:.2f}")
        line(
            "1 MB array in and out, ms",
            1e3 * clock(lambda: pool.submit(double, mega).result(), 30),
            **peers_mega,
        )
        line("64 MB array back, ms", 1e3 * clock(lambda: pool.submit(make, 2**26).result(), 9), **peers_64)
        before = pool._dispatcher.loop.wakeups
        time.sleep(3)
        print(f"{'wake-ups of an idle pool in 3 s':48s} ours {pool._dispatcher.loop.wakeups - before}")


def negative(x):
    return -x


def measure_calls(name):
    """Rows of one of them, from nothing on."""
    began = time.perf_counter()
    for submit in PEERS[name][0](2):
        submit(negative, 1)(60)
        print(
            json.dumps(
                {"first result from nothing, with torch, ms": 1e3 * (time.perf_counter() - began)}
                | warm_calls(submit)
            )
        )


def warm_calls(submit):
    """Rows of a pool that has started."""
    n, large, alone = 5000, np.ones(2**23), []
    [value(60) for value in [submit(negative, i) for i in range(500)]]
    end = time.perf_counter() + WARM
    while time.perf_counter() < end:
        submit(negative, 1)(60)
    for _ in range(1000):
        start = time.perf_counter()
        submit(negative, 1)(60)
        alone.append(time.perf_counter() - start)
    many = clock(lambda: [value(60) for value in [submit(negative, i) for i in range(n)]], 3) / n
    return {
        "one call alone, us": 1e6 * statistics.median(alone),
        "no-op by submit, us": 1e6 * many,
        "64 MB there and back, ms": 1e3 * clock(lambda: submit(negative, large)(60), 9),
    }


def calls(rounds=3):
    """Ours beside every peer that is installed, in turns, each in a process of its own: medians of the rounds."""
    names = [name for name in PEERS if "retries" not in name and installed(name)]
    rows = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            time.sleep(SETTLED)
            command = [sys.executable, __file__, "--calls-of", name]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
            found = [line for line in done.stdout.splitlines() if line.startswith("{")]
            if found:
                rows[name].append(json.loads(found[-1]))
    for row in rows["ours"][0]:
        ours, *theirs = (
            (name, statistics.median(each[row] for each in found)) for name, found in rows.items() if found
        )
        line(row, ours[1], **{name.replace(" ", "_"): value for name, value in theirs})


def schedules(tmp):
    seconds = np.random.default_rng(0).lognormal(np.log(0.1) - 0.5, 1.0, 64)
    bound = max(seconds.sum() / 4, seconds.max())
    with GPUPool(slots=4) as pool:
        list(pool.map(nothing, range(100)))
        none = [None] * 64
        for name, costs in (("costs unknown", none), ("learnt from the first run", none), ("given", seconds)):
            tasks = [Task(time.sleep, float(s), cost=c) for s, c in zip(seconds, costs, strict=True)]
            records = pool.run(tasks, folder=f"{tmp}/{name.replace(' ', '-')}").wait().records
            makespan = max(r.finished for r in records) - min(r.queued for r in records)
            print(f"{'64 sleeping tasks on 4 slots, efficiency: ' + name:64s} ours {bound / makespan:.3f}")


def load(tmp):
    """A table: how much, seconds of the call, CPU of this process and memory for each."""
    me = psutil.Process()

    def row(name, n, action):
        gc.collect()
        rss, cpu, began = me.memory_info().rss, time.process_time(), time.perf_counter()
        result = action()
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        each = (me.memory_info().rss - rss) / n
        print(
            f"{name:56s} {n:9,d} {seconds:9.2f} {1e6 * seconds / n:9.1f} {1e6 * cpu / n:9.1f} {each:11,.0f}",
            flush=True,
        )
        return result

    print(f"{'':56s} {'n':>9s} {'s':>9s} {'us each':>9s} {'us CPU':>9s} {'bytes each':>11s}")
    with GPUPool(slots=2) as pool:
        list(pool.map(nothing, range(1000)))
        for n in (10_000, 100_000):
            blocks = [pool.submit(time.sleep, 5) for _ in pool.slots]
            futures = row(
                "calls queued by submit", n, lambda n=n: [pool.submit(nothing, i) for i in range(n)]
            )
            [block.result() for block in blocks]
            row("their values, from the first", n, lambda futures=futures: [f.result() for f in futures])
            for chain in (False, True):
                tasks = [
                    Task(nothing, i, name=f"{i}", after=f"{i - 1}" if chain and i % 100 else ())
                    for i in range(n)
                ]
                blocks = [pool.submit(time.sleep, 60) for _ in pool.slots]
                title = "tasks in chains of 100" if chain else "tasks"
                folder = f"{tmp}/{chain}-{n}"
                run = row(f"{title}: pool.run returns", n, lambda t=tasks, f=folder: pool.run(t, folder=f))
                row(f"{title}: cancelled before they began", n, lambda run=run: (run.cancel(), run.wait()))
                pool._dispatcher.cancel(lambda job: True)
        row(
            "rows by map in chunks of 1,000",
            10**6,
            lambda: sum(pool.map(nothing, range(10**6), chunksize=1000)),
        )

        def threads():
            def submit(_):
                return [f.result() for f in [pool.submit(nothing, i) for i in range(1000)]]

            with ThreadPoolExecutor(16) as executor:
                return list(executor.map(submit, range(16)))

        row("calls by sixteen threads", 16_000, threads)
        size = 20 if psutil.virtual_memory().available > 16 * 2**30 else 2
        before = me.num_fds()
        values = row(
            f"values of {size} MB held",
            500,
            lambda: [f.result() for f in [pool.submit(make, size * 2**20) for _ in range(500)]],
        )
        print(f"{'descriptors that these hold':56s} {me.num_fds() - before:9d}")
        del values
        array = np.ones(100 * 2**17)
        folder = f"{tmp}/shared"
        tasks = [Task(shape_of, array, i) for i in range(60)]
        row("tasks with the same 100 MB", 60, lambda: pool.run(tasks, folder=folder).wait())
    before = me.num_fds(), threading.active_count(), len(me.children(recursive=True))

    def pools():
        for _ in range(100):
            with GPUPool(slots=1) as pool:
                pool.submit(nothing, 1).result()

    row("pools one after the other", 100, pools)
    gc.collect()
    after = me.num_fds(), threading.active_count(), len(me.children(recursive=True))
    print(f"{'descriptors, threads and processes before and after':56s} {before} {after}")


def shape_of(array, number):
    return array.shape


if __name__ == "__main__":
    import tempfile

    if sys.argv[1:2] == ["--calls-of"]:
        measure_calls(sys.argv[2])
        sys.exit()
    parts = sys.argv[1:] or ["starts", "throughput", "calls", "schedules", "load"]
    if "calls" in parts:
        calls()
    if "starts" in parts:
        starts()
    if "throughput" in parts:
        throughput()
    if "load" in parts:
        with tempfile.TemporaryDirectory() as folder:
            load(folder)
    if "schedules" in parts:
        with tempfile.TemporaryDirectory() as folder:
            schedules(folder)
