"""Influence of 5,216 training triples on 100 test triples (the size of UMLS), beside what else computes that number.

    python benchmarks/tracin.py                # the table; peers on a tenth of the training triples, times ten
    python benchmarks/tracin.py --rows 5216    # peers in full: a quarter of an hour
    python benchmarks/tracin.py --stream       # all pairs of 40,000 x 1,000, JSON and parquet: time and memory

Two threads, ConvE of 2.1 M parameters, one checkpoint, random weights: what is computed does not depend on them.
"""

import argparse
import os
import resource
import statistics
import tempfile
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import nn
from torch.nn import functional

from mgpu_nb import GPUPool
from mgpu_nb.workloads import tracin
from mgpu_nb.workloads.tracin.dot_products import products, self_products
from mgpu_nb.workloads.tracin.graph import write_graph

LOSS = tracin.LOSSES["softplus"]
warnings.filterwarnings("ignore")


def graph(entities=135, relations=46, train=5216, test=100, pairs=1100, seed=0):
    """Triples with as many (head, relation) pairs as UMLS has, drawn at random."""
    rng = np.random.default_rng(seed)
    keys = rng.choice(entities * relations, pairs, replace=False)
    drawn = keys[rng.integers(0, pairs, train + test)]
    triples = np.stack([drawn // relations, drawn % relations, rng.integers(0, entities, len(drawn))], 1)
    none = np.zeros(0, np.int64)
    names = [tuple(f"{kind}{n}" for n in range(count)) for kind, count in (("e", entities), ("r", relations))]
    return tracin.Graph(triples[:train], triples[train:], *names, none, none.reshape(0, 2))


def model(entities=135, relations=46):
    torch.manual_seed(0)
    return tracin.ConvE(tracin.Shape(entities, relations)).eval()


def timed(action, times=1):
    """Return seconds, of several times the median, and the last result."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        result = action()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), result


class Scores(nn.Module):
    """Scores of triples, as captum and dattri want a model."""

    def __init__(self, conve):
        super().__init__()
        self.conve = conve

    def forward(self, triples):
        return self.conve.score(triples)


class LastLayer(nn.Module):
    """The same model with the product with all tails as its last linear layer, for captum's Fast variant."""

    def __init__(self, conve):
        super().__init__()
        self.conve = conve
        self.last = nn.Linear(conve.shape.dimension, conve.shape.entities)
        self.last.weight = nn.Parameter(conve.entities.weight.detach().clone())

    def forward(self, triples):
        return self.last(self.conve.hidden(triples[:, 0], triples[:, 1]))


def captum(conve, train, test, layers=None):
    from captum.influence import TracInCP

    labels = torch.zeros(len(train))
    attributor = TracInCP(
        Scores(conve),
        torch.utils.data.TensorDataset(train, labels),
        ["here"],
        checkpoints_load_func=lambda module, path: 1.0,
        loss_fn=lambda scores, _: functional.softplus(-scores),
        batch_size=64,
        layers=layers,
    )
    return attributor.influence((test, torch.zeros(len(test)))).T


def captum_fast(conve, train, test):
    from captum.influence import TracInCPFast

    attributor = TracInCPFast(
        LastLayer(conve),
        "last",
        torch.utils.data.TensorDataset(train, train[:, 2]),
        ["here"],
        checkpoints_load_func=lambda module, path: 1.0,
        loss_fn=lambda scores, tails: functional.softplus(-scores.gather(1, tails[:, None])).sum(),
        batch_size=256,
    )
    return attributor.influence((test, test[:, 2])).T


def dattri(conve, train, test):
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.task import AttributionTask

    scores = Scores(conve)

    def loss(params, data):
        triple = data[0]
        return functional.softplus(-torch.func.functional_call(scores, params, (triple[None],))[0])

    task = AttributionTask(loss_func=loss, model=scores, checkpoints=scores.state_dict())
    loaders = [
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(part), batch_size=50)
        for part in (train, test)
    ]
    attributor = TracInAttributor(task, weight_list=torch.ones(1), normalized_grad=False)
    return attributor.attribute(*loaders)


def table(rows):
    torch.set_num_threads(2)
    data, conve = graph(), model()
    order = np.lexsort((data.train[:, 1], data.train[:, 0]))
    train, test = torch.from_numpy(data.train[order]), torch.from_numpy(data.test)
    pairs = len(train) * len(test)
    print(f"{pairs:,} pairs, {sum(p.numel() for p in conve.parameters()) / 1e6:.1f} M parameters, 2 threads")
    products(conve, LOSS, train[:512], test)
    ours, whole = timed(lambda: products(conve, LOSS, train, test), 7)
    best = min(timed(lambda: products(conve, LOSS, train, test))[0] for _ in range(7))
    exact = products(conve.double(), LOSS, train[:50], test, engine="loop")
    error = float((whole[:50].double() - exact).abs().max() / exact.abs().max())
    conve = model()
    print(f"{'factored':34}{ours:9.3f} s (at best {best:.3f}), {error:.1e} from autograd in float64")
    some = train[np.linspace(0, len(train) - 1, rows).astype(int)]
    scale = len(train) / rows
    print(f"below: {rows} training triples, times {scale:.3g}")
    peers = {
        "vmap": lambda: products(conve, LOSS, some, test, engine="vmap", batch_size=64),
        "jvp": lambda: products(conve, LOSS, some, test[:10], engine="jvp"),
        "captum TracInCP": lambda: captum(conve, some, test),
        "captum, linear and convolution": lambda: captum(
            conve, some, test, ["conve.linear", "conve.convolution"]
        ),
        "dattri TracIn": lambda: dattri(conve, some[:50], test),
        "loop per training triple": lambda: products(conve, LOSS, some, test, engine="loop"),
    }
    for name, action in peers.items():
        factor = scale
        if name == "jvp":
            factor *= 10  # of its 100 test triples ten
        if name == "dattri TracIn":
            factor = len(train) / min(
                rows, 50
            )  # makes the gradients of the test triples again for every batch
        try:
            seconds, found = timed(action)
        except Exception as error:
            print(f"{name:34}  failed: {type(error).__name__}: {str(error)[:80]}")
            continue
        said = f"{factor * seconds:9.1f} s = {factor * seconds / ours:7.0f} times ours"
        if found.shape == (rows, len(test)) and "linear" not in name:
            away = float((found.detach() - products(conve, LOSS, some, test)).abs().max() / found.abs().max())
            said += f", {away:.0e} away"
        print(f"{name:34}{said}")
    fast, _ = timed(lambda: captum_fast(conve, train, test), 3)
    print(
        f"{'captum Fast, last layer only':34}{fast:9.3f} s; ours, all layers, takes {ours / fast:.2f} of it"
    )
    pair = float(
        np.median(
            [timed(lambda: products(conve, LOSS, train[:1], test[:1], engine="loop"))[0] for _ in range(20)]
        )
    )
    print(f"{'pair by pair':34}{pair * pairs:9.0f} s = {pair * pairs / ours:7.0f} times ours")
    own, _ = timed(lambda: self_products(conve, LOSS, train), 5)

    def passes():
        for start in range(0, len(train), 256):
            torch.autograd.grad(LOSS(conve, train[start : start + 256]).sum(), list(conve.parameters()))

    once, _ = timed(passes, 5)
    print(
        f"self-influence of all {len(train):,}: {own:.3f} s = {own / once:.2f} of a forward and backward pass"
    )
    larger = graph(1350, 46, 52_160, 100, 11_000)
    big, more = (
        model(1350),
        torch.from_numpy(larger.train[np.lexsort((larger.train[:, 1], larger.train[:, 0]))]),
    )
    ten, _ = timed(lambda: products(big, LOSS, more, test), 3)
    print(f"a graph ten times larger: {ten:.2f} s = {ten / ours:.1f} times as long")


def pool():
    """Shards on one and on two slots of one thread, splitting either side."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_graph(graph(), place)
        torch.save(model().state_dict(), place / "model.pt")
        names = ("train", "test", "entity_to_id", "relation_to_id")
        files = {name: str(place / f"{name}.tsv") for name in names}
        walls = {}
        for slots, side in ((1, "train"), (2, "train"), (2, "test")):
            config = tracin.Config(model_path=str(place / "model.pt"), **files, slots=slots, shard_by=side)
            with GPUPool(slots=slots, threads=1) as executor:
                runs = [
                    executor.run(tracin.tasks(config), folder=place / f"{side}-{slots}-{n}") for n in range(1)
                ]
                for n in range(1, 6):
                    runs[-1].wait()
                    runs.append(executor.run(tracin.tasks(config), folder=place / f"{side}-{slots}-{n}"))
                runs[-1].wait()
            spans = [
                max(r.finished for r in run.records) - min(r.started for r in run.records) for run in runs[1:]
            ]
            walls[slots, side] = statistics.median(spans)
        one = walls.pop((1, "train"))
        print(f"one slot of one thread {one:.3f} s; ", end="")
        print(
            "; ".join(
                f"two, {side} triples split: {one / wall:.2f} times as fast"
                for (_, side), wall in walls.items()
            )
        )


def stream(train=40_000, test=1_000):
    """All pairs into JSON and parquet: the memory of the kernel and of the workers."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_graph(graph(1350, 46, train, test, 9_000), place)
        torch.save(model(1350).state_dict(), place / "model.pt")
        files = {n: str(place / f"{n}.tsv") for n in ("train", "test", "entity_to_id", "relation_to_id")}
        config = tracin.Config(
            model_path=str(place / "model.pt"), **files, top_k=None, slots=2,
            output=str(place / "r.json"), parquet_output=str(place / "r.parquet"),
        )  # fmt: skip
        peak = Peak()
        began = time.perf_counter()
        with GPUPool(slots=2) as executor:
            run = executor.run(tracin.tasks(config), folder=place / "run").wait()
        computed = time.perf_counter() - began
        report = tracin.collect(run, config)
        paths = report.save()
        written = time.perf_counter() - began - computed
        peak.stop()
        sizes = ", ".join(f"{path.suffix[1:]} {path.stat().st_size / 1e9:.2f} GB" for path in paths)
        kernel = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(
            f"{train:,} x {test:,}, all pairs: computed in {computed:.1f} s, written in {written:.1f} s ({sizes})"
        )
        print(
            f"peak memory: kernel {kernel / 1e9:.2f} GB (of it not mapped from files {peak.own / 1e9:.2f} GB), largest "
            f"worker {max(record.peak_memory for record in run.records) / 1e9:.2f} GB"
        )


class Peak(threading.Thread):
    """The largest memory of this process that is not mapped from files, by looking."""

    def __init__(self):
        super().__init__(daemon=True)
        self.own, self.over = 0, threading.Event()
        self.start()

    def run(self):
        process = psutil.Process(os.getpid())
        while not self.over.wait(0.05):
            info = process.memory_info()
            self.own = max(self.own, info.rss - info.shared)

    def stop(self):
        self.over.set()
        self.join()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=522, help="training triples that the peers get")
    parser.add_argument("--stream", action="store_true", help="all pairs of 40,000 x 1,000 instead")
    chosen = parser.parse_args()
    if chosen.stream:
        stream()
    else:
        table(chosen.rows)
        pool()


if __name__ == "__main__":
    main()
