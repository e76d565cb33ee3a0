"""What the toolkit does on a GPU, beside its peers in the same run: a table, and JSON.

    python benchmarks/gpu.py [--json FILE] [--seconds 165] [--sections start protein ...]

Each section runs in a process of its own within its share of the time, so that none takes the others with it, and
prints a figure as soon as it has one. All processes import and start their servers at the same time, before the first
section: what stands before the ``yield`` of a section. With ``MGPU_GPU_DRY=1`` everything is small and on virtual CPU
devices: what is tried then is this script.
"""

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from mgpu_nb import GPUPool, Task, devices, speedup, worker

DRY = os.environ.get("MGPU_GPU_DRY") == "1"
RESULT, READY = "figure: ", "ready"
MIB = 2**20
# In the order in which they run, with their shares of the time. What ends early leaves its time to the later ones.
SECTIONS = {"protein": 70, "training": 22, "start": 36, "tracin": 18, "speedup": 18}
PREPARATION = 60.0  # seconds that the imports may take at the most


def pool_of(slots, **options):
    """Return a pool of so many slots on the first GPU; dry, of virtual devices."""
    return GPUPool("cpu", slots, **options) if DRY else GPUPool([0] * slots, **options)


def tell(name, value, unit="", **peers):
    """Print a figure with its peers', for the process that started this one."""
    print(RESULT + json.dumps({"name": name, "value": value, "unit": unit, "peers": peers}), flush=True)


def clock(action, rounds=5):
    """Return the median seconds of several rounds."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def attempt(action):
    """Return what a peer gives; None, and a line that says why, where it cannot."""
    try:
        return action()
    except Exception as error:
        print(f"  a peer failed: {type(error).__name__}: {str(error)[:300]}", flush=True)
        return None


def place():
    return "cpu" if DRY else worker().device


def synchronise(device):
    import torch

    if str(device).startswith("cuda"):
        torch.cuda.synchronize()


# Start of processes, and values.


def first_kernel():
    """Run one kernel to its end."""
    import torch

    return float(torch.ones(1000, device=place()).sum())


def nothing(x):
    return x


def make(size):
    """Return a tensor of `size` bytes on the GPU."""
    import torch

    return torch.ones(size // 4, device=place())


def device_of_a_peer():
    return "cpu" if DRY else "cuda:0"


def peer_sends(queue, done, sizes):
    """Run a kernel, then put CUDA tensors into a queue of torch.multiprocessing, which sends handles, not bytes."""
    import torch

    device = device_of_a_peer()
    assert float(torch.ones(1000, device=device).sum()) == 1000
    queue.put("first kernel done")
    for size in sizes:
        queue.put(torch.ones(size // 4, device=device))
    done.wait(60)


def kernel_of_a_peer():
    import torch

    return float(torch.ones(1000, device=device_of_a_peer()).sum())


def by_process_pool(rounds):
    """Seconds a call in a warm process of concurrent.futures: one at a time, many at once, and with one kernel."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        pool.submit(kernel_of_a_peer).result(timeout=30)
        return {
            "one": clock(lambda: pool.submit(nothing, 1).result(), rounds),
            "many": clock(lambda: [f.result() for f in [pool.submit(nothing, i) for i in range(rounds)]], 3)
            / rounds,
            "kernel": clock(lambda: pool.submit(kernel_of_a_peer).result(), rounds // 5),
        }


def by_torch_multiprocessing(sizes, rounds):
    """Seconds to the first kernel of one spawned process, then by size until a CUDA tensor is here as a CPU tensor."""
    import torch.multiprocessing as mp

    context = mp.get_context("spawn")
    queue, done = context.Queue(maxsize=1), context.Event()
    every = [size for size in sizes for _ in range(rounds + 1)]
    process = context.Process(target=peer_sends, args=(queue, done, every))
    began = time.perf_counter()
    process.start()
    try:
        queue.get(timeout=30)
        found = {"start": time.perf_counter() - began}
        for size in sizes:
            queue.get(timeout=10).cpu()
            found[size] = clock(lambda: queue.get(timeout=10).cpu(), rounds)
        return found
    finally:
        done.set()
        process.join(5)
        process.kill()


def start():
    import torch  # noqa: F401 - before the section begins

    with pool_of(1) as pool:
        pool.submit(nothing, 1).result()
    yield
    sizes = {64 * MIB: 5, (128 * MIB if DRY else 2**30): 2}
    peer = attempt(lambda: by_torch_multiprocessing(list(sizes), 2)) or {}
    with pool_of(1, isolation="task") as pool:
        pool.submit(first_kernel).result()
        ours = clock(lambda: pool.submit(first_kernel).result())
    tell(
        "fresh process to the end of its first kernel",
        ours,
        "s",
        torch_multiprocessing_spawn=peer.get("start"),
    )
    import gpu as module  # this file: its functions go by name, as the executor's do, those of a notebook by value

    several = 100 if DRY else 1000
    executor = attempt(lambda: by_process_pool(several)) or {}
    with pool_of(1) as pool:
        for _ in range(20):
            pool.submit(module.first_kernel).result()
        one = clock(lambda: pool.submit(module.nothing, 1).result(), several)
        beside("warm no-op on a GPU slot, one at a time", one, executor.get("one"))
        many = clock(
            lambda: [f.result() for f in [pool.submit(module.nothing, i) for i in range(several)]], 3
        )
        beside("warm no-op on a GPU slot, many", many / several, executor.get("many"))
        kernel = clock(lambda: pool.submit(module.first_kernel).result(), several // 5)
        beside("warm task with one kernel", kernel, executor.get("kernel"))
        value = clock(lambda: pool.submit(first_kernel).result(), several // 5)
        tell("the same, by a function of the notebook, sent by value", 1e6 * value, "us")
        for size, rounds in sizes.items():
            pool.submit(make, size).result()
            ours = clock(lambda size=size: pool.submit(make, size).result(), rounds)
            other = peer.get(size) and 1e3 * peer[size]
            tell(f"{size // MIB} MB tensor from the GPU back", 1e3 * ours, "ms", torch_queue_and_cpu=other)
    with pool_of(4, isolation="task") as pool:
        pool.submit(first_kernel).result()
        four = clock(lambda: [f.result() for f in [pool.submit(first_kernel) for _ in range(4)]], 3)
    tell("four fresh processes at once to their first kernel", four, "s")
    with pool_of(1, isolation="task", start_method="spawn") as pool:
        spawned = clock(lambda: pool.submit(first_kernel).result(), 2)
    name = "fresh process to its first kernel, start_method='spawn'"
    tell(name, spawned, "s", torch_multiprocessing_spawn=peer.get("start"))


def beside(name, ours, peer):
    """Print microseconds of a call beside those of a peer."""
    tell(name, 1e6 * ours, "us", process_pool_executor=peer and 1e6 * peer)


# The runtime's own ceiling.


def wake():
    first_kernel()


def works(seconds):
    """Emulate a task whose time is the device's: a kernel, then sleep."""
    first_kernel()
    time.sleep(seconds)


def ceiling():
    import torch  # noqa: F401 - before the section begins

    with pool_of(1) as pool:
        pool.submit(nothing, 1).result()
    yield
    tasks = [Task(works, 0.05 if DRY else 0.1, name=f"t{n}") for n in range(16 if DRY else 48)]
    counts = [1, 2, 4] if DRY else [1, 2, 4, 8]
    where = {} if DRY else {"gpu_ids": [0] * max(counts)}
    study = speedup(tasks, counts, repeats=1, setup=wake, **where)
    print(study, flush=True)
    wanted = {2: 1.95, 4: 3.9, 8: 7.7}
    missed = []
    for row in study.frame().itertuples():
        if row.slots in wanted:
            if row.speed_up < wanted[row.slots]:
                missed.append(f"{row.speed_up:.3f} of {row.slots} slots, {wanted[row.slots]} wanted")
            said = f"of {row.slots}, wanted {wanted[row.slots]}"
            tell(f"speed-up by {row.slots} slots, device time emulated", row.speed_up, said)
    if missed and not DRY:
        raise AssertionError("; ".join(missed))


# Influences.


def triples(train, test, entities, relations=46, pairs=1100):
    """Return triples with as many (head, relation) pairs as UMLS has, sorted by them, as an analysis works on them."""
    import numpy as np
    import torch

    rng = np.random.default_rng(0)
    keys = rng.choice(entities * relations, pairs, replace=False)
    drawn = keys[rng.integers(0, pairs, train + test)]
    all_triples = np.stack([drawn // relations, drawn % relations, rng.integers(0, entities, len(drawn))], 1)
    first = all_triples[:train]
    order = np.lexsort((first[:, 1], first[:, 0]))
    device = device_of_a_peer()
    return torch.from_numpy(first[order]).to(device), torch.from_numpy(all_triples[train:]).to(device)


def conve(entities):
    import torch

    from mgpu_nb.workloads import tracin

    torch.manual_seed(0)
    return tracin.ConvE(tracin.Shape(entities, 46)).to(device_of_a_peer()).eval()


def by_captum(model, train, test):
    import torch
    from captum.influence import TracInCP
    from torch.nn import functional

    class Scores(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conve = model

        def forward(self, batch):
            return self.conve.score(batch)

    attributor = TracInCP(
        Scores(),
        torch.utils.data.TensorDataset(train, torch.zeros(len(train), device=train.device)),
        ["here"],
        checkpoints_load_func=lambda module, path: 1.0,
        loss_fn=lambda scores, _: functional.softplus(-scores),
        batch_size=64,
    )
    return attributor.influence((test, torch.zeros(len(test), device=test.device))).T


def influences():
    import torch

    from mgpu_nb.workloads import tracin

    with contextlib.suppress(ImportError):
        import captum.influence
    yield
    loss, device = tracin.LOSSES["softplus"], device_of_a_peer()

    def seconds(action, rounds=1):
        def whole():
            action()
            synchronise(device)

        return clock(whole, rounds)

    rows, few = (64, 5) if DRY else (5216, 100)
    train, test = triples(rows, few, 135)
    model = conve(135)
    tracin.products(model, loss, train[:512], test)
    ours = seconds(lambda: tracin.products(model, loss, train, test), 5)

    def vmap():
        tracin.products(model, loss, train[:64], test, engine="vmap", batch_size=64)
        return seconds(lambda: tracin.products(model, loss, train, test, engine="vmap", batch_size=64))

    def captum():
        # It makes the gradients of all test triples again for each batch, so whole batches are counted.
        batches = 1 if DRY else 8
        some = train[torch.linspace(0, rows - 1, 64 * batches).long()]
        by_captum(model, some[:2], test[:2])
        return math.ceil(rows / 64) / batches * seconds(lambda: by_captum(model, some, test))

    peers = {"vmap": attempt(vmap)}
    try:
        import captum as _captum  # noqa: F401
    except ImportError:
        print("  captum is not installed: left out", flush=True)
    else:
        peers["captum"] = attempt(captum)
    tell(f"influences of {rows:,} x {few:,}", ours, "s", **peers)
    exact = tracin.products(conve(135).double(), loss, train[:50], test[:10], engine="loop")
    off = tracin.products(model, loss, train[:50], test[:10]).double() - exact
    tell("the same, away from autograd in float64", float(off.abs().max() / exact.abs().max()))
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    off = tracin.products(model, loss, train[:50], test[:10]).double() - exact
    torch.backends.cudnn.allow_tf32 = before
    tell("the same with cudnn.allow_tf32 off", float(off.abs().max() / exact.abs().max()))
    many_influences(seconds)


def many_influences(seconds):
    """Influences of 40,000 x 1,000; by vmap from two smaller numbers of training triples."""
    import torch

    from mgpu_nb.workloads import tracin

    loss = tracin.LOSSES["softplus"]
    many, more, entities = (256, 5, 150) if DRY else (40_000, 1_000, 1350)
    larger, tests = triples(many, more, entities, pairs=min(9_000, 10 * entities))
    big = conve(entities)
    tracin.products(big, loss, larger[:512], tests)
    if not DRY:
        torch.cuda.reset_peak_memory_stats()
    whole = seconds(lambda: tracin.products(big, loss, larger, tests))
    tell(f"influences of {many:,} x {more:,}", whole, "s")
    if not DRY:
        tell("its peak memory", torch.cuda.max_memory_allocated() / MIB, "MB")

    def vmap_of_many():
        # The gradients of the test triples are made once, whatever the number of training triples is.
        sizes = (16, 64) if DRY else (512, 1024)
        tracin.products(big, loss, larger[:64], tests[:64], engine="vmap", batch_size=64)
        short, long = (
            seconds(lambda n=n: tracin.products(big, loss, larger[:n], tests, engine="vmap", batch_size=64))
            for n in sizes
        )
        return short + (long - short) / (sizes[1] - sizes[0]) * (many - sizes[0])

    peer = attempt(vmap_of_many)
    tell(f"the same {many:,} x {more:,}", whole, "s", vmap_extrapolated=peer)


# Training.

PLAIN = """
# What people write by hand: the same model, data, optimizer and batches with DistributedDataParallel.
import os, sys, time
import numpy as np, torch, torch._dynamo, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from mgpu_nb.workloads import training
from mgpu_nb.workloads.training.columns import Columns
from mgpu_nb.workloads.training.emulator import Emulator, loss_of
path, device, backend = sys.argv[1:4]
columns, batch, epochs, width = map(int, sys.argv[4:])
sys.stdin.readline()
dist.init_process_group(backend)
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
train = np.arange(columns)
data = Columns(training.read_land(path), train, device)
model = DistributedDataParallel(Emulator(width, 2, 4).to(device), gradient_as_bucket_view=True, static_graph=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
best = 0.0
for epoch in range(epochs):
    order = np.random.default_rng(epoch).permutation(columns)
    began = time.perf_counter()
    for start in range(0, columns - batch + 1, batch):
        index = torch.from_numpy(order[start:start + batch][rank::world].copy()).to(device)
        inputs, wanted = data.of(index)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model(inputs), wanted).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    loss.item()
    best = max(best, columns // batch * batch / (time.perf_counter() - began))
if rank == 0:
    print("speed", best)
dist.destroy_process_group()
"""


def plain(ranks, arguments):
    """Start the ranks of a peer as torchrun does; they import, and wait for a line."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": ranks, "OMP_NUM_THREADS": 1}
    return [
        subprocess.Popen(
            [sys.executable, "-c", PLAIN, *map(str, arguments)],
            env={**os.environ, **{name: str(value) for name, value in (group | {"RANK": rank}).items()}},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip


def speed_of(processes):
    """Columns per second of a peer in its best epoch."""
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=30) for process in processes]
    for process, (_, errors) in zip(processes, said, strict=True):
        if process.returncode:
            raise RuntimeError((errors.strip().splitlines() or ["it printed no error"])[-1])
    return float(said[0][0].rpartition("speed ")[2])


def trainings():
    import numpy as np

    from mgpu_nb.workloads import training

    columns, batch, epochs, width = (64, 16, 3, 16) if DRY else (2048, 128, 16, 64)
    share = 0.2
    backends = {1: "gloo" if DRY else "nccl", 2: "gloo"}
    with (
        tempfile.TemporaryDirectory() as folder,
        pool_of(2, isolation="task", preload=["torch._dynamo"]) as pool,
    ):
        # A generated land takes 4 ms a column; a training is as fast with the same columns several times.
        some, copies = training.generate(columns // 8, 0), 10
        repeated = {name: np.concatenate([values] * copies) for name, values in some.arrays().items()}
        path = training.write_land(training.Land(**repeated), Path(folder, "land.npz"))
        sizes = (columns, batch, epochs, width)
        peers = {n: plain(n, (path, device_of_a_peer(), kind, *sizes)) for n, kind in backends.items()}
        yield
        for ranks, backend in backends.items():
            config = training.Config(
                data=str(path), validation_share=share, epochs=epochs, batch_size=batch, width=width,
                world_size=ranks, distributed_backend=backend, output_dir=str(Path(folder, f"ours-{ranks}")),
            )  # fmt: skip
            began = time.perf_counter()
            report = training.collect(training.start(config, pool).wait())
            whole = time.perf_counter() - began
            ours = report.frame()["columns_per_second"].max()
            peer = attempt(lambda ranks=ranks: speed_of(peers[ranks]))
            what = f"training, {ranks} rank{'s' * (ranks > 1)} on the GPU, best epoch"
            tell(what, float(ours), "columns/s", plain_ddp_script=peer)
            memory = max(rank["peak_memory"] for rank in report.results["ranks"])
            tell(f"the same, from the call to the report; {memory / MIB:.0f} MB", whole, "s")


# Proteins.


class Peak(threading.Thread):
    """The most memory in use on the GPU while it runs, by looking ten times a second."""

    def __init__(self):
        super().__init__(daemon=True)
        self.most, self.over = 0, threading.Event()
        self.start()

    def run(self):
        """Look until told otherwise."""
        while not self.over.wait(0.1):
            self.most = max(self.most, devices()[0].used or 0)

    def end(self):
        """Stop looking; return the most, bytes."""
        self.over.set()
        self.join()
        return self.most


LOOP = """
# What people write by hand: a loop over the experiments, in one process.
import json, sys, time
from mgpu_nb.workloads import protein
changes, names, seconds = json.loads(sys.stdin.readline())
changes = {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
tasks = {task.name: task for task in protein.tasks(protein.preset("comprehensive", **changes))}
tasks[names[0]].fn(*tasks[names[0]].args)  # the first loads model and libraries
end = time.perf_counter() + seconds
for name in names:
    began = time.perf_counter()
    if began < end:
        tasks[name].fn(*tasks[name].args)
        print(json.dumps([name, time.perf_counter() - began]), flush=True)
"""


def by_a_loop(changes, names, seconds):
    """Seconds of experiments by name, in a loop of one process; those that it comes to."""
    done = subprocess.run(
        [sys.executable, "-c", LOOP], input=json.dumps([changes, names, seconds]) + "\n", text=True,
        capture_output=True, timeout=3 * seconds + 30, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-300:])
    return dict(map(json.loads, done.stdout.splitlines()))


def proteins():
    from mgpu_nb.workloads import protein

    changes = {"num_samples": 2, "sample_length": 24, "branch_counts": (2, 4)} if DRY else {}
    preload = ["mgpu_nb.workloads.protein.worker"]
    with pool_of(1, preload=preload) as pool:
        pool.submit(nothing, 1).result()
    end = (yield) - 3 + time.monotonic()

    def run(what, slots, config, folder):
        """Run all experiments of a config; what is not done when the section ends is cancelled."""
        tasks = protein.tasks(config)
        with pool_of(slots, setup=first_kernel, preload=preload) as pool:
            peak = Peak()
            began = time.time()
            batch = pool.run(tasks, folder=folder)
            with contextlib.suppress(TimeoutError):
                batch.wait(max(1.0, end - time.monotonic()), progress=False)
            batch.cancel()
            records = batch.wait(progress=False).records
            most = peak.end()
        for record in records:
            if record.status not in ("ok", "cancelled"):
                raise RuntimeError(f"{record.name}: {record.error}")
        done = {record.name: record for record in records if record.ok}
        if not done:
            raise TimeoutError(f"{what}, {slots} slots: no experiment was done in time")
        wall = max(record.finished for record in done.values()) - began
        calls = sum(task.cost for task in tasks if task.name in done)
        count = "whole" if len(done) == len(tasks) else f"{len(done)} of {len(tasks)} experiments"
        name = f"protein, {what}, {slots} slot{'s' * (slots > 1)} ({count})"
        tell(name, wall, f"s, {most / MIB:.0f} MB of the GPU in use")
        tell("the same, network evaluations per second", calls / wall, "/s")
        return wall, {name: record.seconds for name, record in done.items()}

    with tempfile.TemporaryDirectory() as folder:
        # The preset has 50 steps. With 3 all its experiments fit into the time on one slot, too.
        few = {"steps": 3, **changes}
        short, full = (protein.preset("comprehensive", **options) for options in (few, changes))
        what = f"comprehensive of {short.steps} steps"
        found = {slots: run(what, slots, short, Path(folder, f"slots-{slots}")) for slots in (1, 4, 2)}
        _, ours = found[1]
        names = [name for name in ours if name.endswith(("-b2", "-b4"))]
        if names and end - time.monotonic() > 12:
            peer = attempt(lambda: by_a_loop(few, names, 6.0)) or {}
            both = [name for name in names if name in peer]
            alone = sum(peer[name] for name in both) if both else None
            told = f"protein, {len(both)} of these experiments on 1 slot"
            tell(told, sum(ours[name] for name in both), "s", plain_loop=alone)
        if end - time.monotonic() > 1.2 * found[4][0] * full.steps / short.steps:
            run("comprehensive", 4, full, Path(folder, "whole"))


WORK = {"start": start, "speedup": ceiling, "tracin": influences, "training": trainings, "protein": proteins}


# The process that runs the sections.


def ends(process):
    """End a section with all it started."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def begin(name):
    """Start the process of a section: it gets ready, and waits to be given its seconds."""
    return subprocess.Popen(
        [sys.executable, __file__, "--section", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def until_ready(processes, seconds):
    """Wait for all sections to be ready; return by section what one printed that has died before."""
    timers = [threading.Timer(seconds, ends, [process]) for process in processes.values()]
    for timer in timers:
        timer.start()
    died = {}
    for name, process in processes.items():
        words = []
        for line in process.stdout:
            if line.strip() == READY:
                break
            words.append(line)
        else:
            died[name] = words
    for timer in timers:
        timer.cancel()
    return died


def section(process, seconds):
    """Let a section run; return what it told, printed as it comes."""
    began = time.monotonic()
    timer = threading.Timer(seconds, ends, [process])
    timer.start()
    process.stdin.write(f"{seconds}\n")
    process.stdin.close()
    figures, words = [], []
    for line in process.stdout:
        if line.startswith(RESULT):
            figures.append(json.loads(line.removeprefix(RESULT)))
            print("  " + shown(figures[-1]), flush=True)
        else:
            words.append(line)
            print(line, end="", flush=True)
    process.stdout.close()
    process.wait()
    timer.cancel()
    spent = time.monotonic() - began
    error = ""
    if process.returncode:
        last = "".join(words[-1:]).strip() or f"exit code {process.returncode}"
        error = f"ended after its {seconds:.0f} s" if spent >= seconds - 0.5 else last
    ends(process)
    outcome = "failed" if error else "passed"
    return {"outcome": outcome, "seconds": spent, "error": error, "figures": figures, "said": words[-40:]}


def shown(figure):
    """Return a figure as a line."""
    value = figure["value"]
    line = f"{figure['name']:<62} {value:>10.4g} {figure['unit']}"
    for peer, other in figure["peers"].items():
        said = f"{other:.4g} (ours {value / other:.3g} of it)" if other else "failed"
        line += f"; {peer} {said}"
    return line


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, default=Path(os.environ.get("OUT", "."), "benchmark.json"))
    parser.add_argument("--seconds", type=float, default=165, help="for all sections")
    parser.add_argument("--sections", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.section:
        work = WORK[chosen.section]()
        next(work)
        print(READY, flush=True)
        with contextlib.suppress(StopIteration):
            work.send(float(sys.stdin.readline()))
        return
    table = devices()
    print(table)
    began = time.monotonic()
    end = began + chosen.seconds
    names = [name for name in SECTIONS if name in chosen.sections]
    processes = {name: begin(name) for name in names}
    died = until_ready(processes, min(PREPARATION, chosen.seconds))
    print(f"imports and servers of all sections: {time.monotonic() - began:.1f} s", flush=True)
    told = {"gpu": [d.name for d in table.gpus], "python": sys.version.split()[0], "dry": DRY, "sections": {}}
    for number, name in enumerate(names):
        share = SECTIONS[name] / sum(SECTIONS[later] for later in names[number:])
        seconds = share * (end - time.monotonic())
        print(f"{name}, {seconds:.0f} s at the most:", flush=True)
        if name in died:
            error = "".join(died[name][-1:]).strip() or "it was not ready in time"
            said = {
                "outcome": "failed",
                "seconds": 0.0,
                "error": error,
                "figures": [],
                "said": died[name][-40:],
            }
            print("".join(died[name]), end="")
        elif seconds < 3:
            said = {"outcome": "not run", "seconds": 0.0, "error": "no time was left", "figures": []}
        else:
            said = section(processes[name], seconds)
        ends(processes[name])
        told["sections"][name] = said
        print(f"  {said['outcome']} in {said['seconds']:.1f} s {said['error']}", flush=True)
        chosen.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    multiprocessing.freeze_support()
    main()
