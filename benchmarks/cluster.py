"""Workers on other nodes, beside bare Ray: two agents, or two nodes of Ray, on this machine; and what many nodes cost.

    python benchmarks/cluster.py                          # both
    python benchmarks/cluster.py --parts many --agents 125 --slots 8 --tasks 100000

Of several rounds the best counts, in turns: other programs only ever make them slower. Needs `pip install '.[ray]'`.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from mgpu_nb import Agents, GPUPool, Task
from mgpu_nb.cluster.engine import ClusterEngine
from mgpu_nb.cluster.placer import Placer

HELPERS = Path(__file__).parents[1] / "tests" / "helpers"
CALLS, MANY, MIB = 300, 3000, 2**20


def nothing(x):
    return x


def make(size):
    return np.ones(size // 8)


def total(array):
    return float(array.sum())


def measured(submit, wait, put):
    """Best seconds: a call there and back, a call of many at once, 64 MB back and there."""
    found = {}

    def keep(name, seconds):
        found[name] = min(seconds, found.get(name, seconds))

    wait([submit(nothing, 0) for _ in range(8)])
    for _ in range(5):
        began = time.perf_counter()
        for n in range(CALLS):
            wait([submit(nothing, n)])
        keep("one call alone, us", 1e6 * (time.perf_counter() - began) / CALLS)
        began = time.perf_counter()
        wait([submit(nothing, n) for n in range(MANY)])
        keep("a call of many, us", 1e6 * (time.perf_counter() - began) / MANY)
    array = np.ones(8 * MIB)
    for _ in range(5):
        began = time.perf_counter()
        wait([submit(make, 64 * MIB)])
        keep("64 MB back, ms", 1e3 * (time.perf_counter() - began))
        began = time.perf_counter()
        wait([submit(total, put(array))])
        keep("64 MB there, ms", 1e3 * (time.perf_counter() - began))
    return found


def ours(here):
    cluster = {"cluster": Agents(here=2)} if here is None else {}
    with GPUPool("cpu", slots=1 if here is None else here, **cluster) as pool:
        if here is None:
            pool.wait_for_slots(2, timeout=120)
        return measured(pool.submit, lambda futures: [f.result() for f in futures], lambda array: array)


def by_ray():
    import ray
    from ray.cluster_utils import Cluster

    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    cluster = Cluster()
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=500 * MIB)
        ray.init(address=cluster.address, log_to_driver=False)
        remote = {fn: ray.remote(fn) for fn in (nothing, make, total)}
        return measured(lambda fn, *arguments: remote[fn].remote(*arguments), ray.get, lambda array: array)
    finally:
        ray.shutdown()
        cluster.shutdown()


def beside():
    rows = {"agents": [], "Ray": [], "this machine": []}
    for _ in range(ROUNDS):
        rows["agents"].append(ours(None))
        rows["Ray"].append(by_ray())
        rows["this machine"].append(ours(2))
    for name in rows["agents"][0]:
        best = {who: min(each[name] for each in found) for who, found in rows.items()}
        shown = ", ".join(f"{who} {value:.0f}" for who, value in best.items())
        print(f"{name}: {shown}; agents {best['agents'] / best['Ray']:.2f} of Ray", flush=True)


class FakeAgents(Placer):
    """A placer of agents without processes."""

    slots_per_node = None

    def __init__(self, agents, slots):
        self.nodes, self.slots = agents, slots
        self.process = None

    def start(self, command, invitation, count):
        del command
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fake_agents", str(invitation), str(count), str(self.slots)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HELPERS), *sys.path])},
        )
        return count

    def status(self):
        return ""

    def close(self):
        if self.process is not None:
            self.process.wait(60)


def many():
    slots = OPTIONS.agents * OPTIONS.slots
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with GPUPool(
            "cpu", slots=OPTIONS.slots, engine=ClusterEngine(FakeAgents(OPTIONS.agents, OPTIONS.slots))
        ) as pool:
            pool.wait_for_slots(slots, timeout=300)
            print(
                f"{slots} slots over {OPTIONS.agents} agents are there after {time.perf_counter() - began:.1f} s",
                flush=True,
            )
            tasks = [Task(nothing, n, name=f"t{n}") for n in range(OPTIONS.tasks)]
            began, spent = time.perf_counter(), time.process_time()
            run = pool.run(tasks, folder=Path(folder, "run"))
            begun = time.perf_counter() - began
            run.wait(progress=False)
            clock, spent = time.perf_counter() - began, time.process_time() - spent
            assert len(run.records) == OPTIONS.tasks
            assert all(record.ok for record in run.records)
            descriptors = len(list(Path("/proc/self/fd").iterdir()))
            print(
                f"{OPTIONS.tasks} recorded tasks: {OPTIONS.tasks / clock:.0f} a second, "
                f"{1e6 * spent / OPTIONS.tasks:.0f} us of this process's processor each; "
                f"{100 * begun / clock:.0f} % of the clock until pool.run returned; "
                f"{descriptors} descriptors, {threading.active_count()} threads, "
                f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB at the most",
                flush=True,
            )
            began = time.perf_counter()
            futures = [pool.submit(nothing, n) for n in range(OPTIONS.tasks)]
            for future in futures:
                future.result()
            print(
                f"{OPTIONS.tasks} plain calls: {OPTIONS.tasks / (time.perf_counter() - began):.0f} a second",
                flush=True,
            )


PARTS = {"beside": beside, "many": many}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--agents", type=int, default=125)
    parser.add_argument("--slots", type=int, default=8, help="of each agent")
    parser.add_argument("--tasks", type=int, default=20_000)
    OPTIONS = parser.parse_args()
    ROUNDS = OPTIONS.rounds
    for part in OPTIONS.parts:
        PARTS[part]()
