"""Alignment beside its peers: tokens a second beside transformers' own `generate`; the graph beside a barrier.

    python benchmarks/alignment.py                     # everything
    python benchmarks/alignment.py --parts tokens
    python benchmarks/alignment.py --json figures.json

A figure stands beside its peer's from the same run, as a share of it. Medians of several rounds, taken in turns. One
thread, whose seconds are those of the processor.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from tiny_language_models import tiny_model
from virtual import Behaviour, VirtualEngine

from mgpu_nb import GPUPool, Task
from mgpu_nb.workloads.alignment.generate import Policy
from mgpu_nb.workloads.alignment.models import load_model, load_tokenizer
from mgpu_nb.workloads.alignment.schedule import bound

FIGURES = {}


def clock(*actions, rounds=5, by=time.process_time):
    """Seconds of each action, the median of rounds in which they take turns, so that noise meets all of them."""
    seconds = [[] for _ in actions]
    for _ in range(rounds):
        for action, mine in zip(actions, seconds, strict=True):
            began = by()
            action()
            mine.append(by() - began)
    return [statistics.median(mine) for mine in seconds]


def line(name, ours, unit, wanted=None, **peers):
    """Print a figure with those of its peers, and keep it."""
    shares = {peer: ours / value if value else math.inf for peer, value in peers.items()}
    parts = [f"ours {ours:.4g} {unit}"]
    parts += [f"{peer} {peers[peer]:.4g} {unit} (ours {share:.3g} of it)" for peer, share in shares.items()]
    parts += [f"wanted {wanted}"] if wanted else []
    print(f"{name:58s} {'; '.join(parts)}", flush=True)
    FIGURES[name] = {"ours": ours, "unit": unit, "wanted": wanted, **peers}


# --- tokens a second, beside transformers' generate ---


def mid_sized(family, folder, vocabulary=8192, hidden=256, layers=4):
    """Folder of a random model of a few million weights, whose tokenizer has a token a character."""
    characters = [chr(0x4E00 + n) for n in range(vocabulary - 2)]
    return tiny_model(
        family, folder, hidden=hidden, layers=layers, context=512, characters=characters, spread=0.05
    )


def written_by_transformers(model, prompts, batch_size, pad_id, **options):
    """Completions by `generate`, its prompts padded on the left, in batches in the order given."""
    found = []
    for start in range(0, len(prompts), batch_size):
        rows = prompts[start : start + batch_size]
        width = max(map(len, rows))
        ids = torch.tensor([[pad_id] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        written = model.generate(ids, attention_mask=mask, pad_token_id=pad_id, **options)
        found += written[:, width:].tolist()
    return found


def count(completions, end_id):
    """Number of tokens as far as the end token of each."""
    lengths = [list(row).index(end_id) + 1 if end_id in row else len(row) for row in completions]
    return sum(lengths)


def tokens_of(name, path, prompts, max_new_tokens, rounds=5):
    """Four lines: one by one and batched, greedy and sampled."""
    model, tokenizer = load_model(path, device="cpu"), load_tokenizer(path)
    policy = Policy(model, end_id=tokenizer.end_id, pad_id=tokenizer.pad_id)
    seeds = [(0, n) for n in range(len(prompts))]
    for batch_size in (1, 8):
        some = prompts[: 4 if batch_size == 1 else len(prompts)]
        for how in ("greedy", "sampled"):
            drawn = {"do_sample": False}
            if how == "sampled":
                drawn = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 0}
            found = {}

            def ours(some=some, how=how, batch_size=batch_size, found=found):
                found["ours"] = policy.generate(
                    some,
                    seeds[: len(some)] if how == "sampled" else None,
                    max_new_tokens=max_new_tokens,
                    temperature=0.8,
                    top_p=0.9,
                    batch_size=batch_size,
                )

            def theirs(some=some, drawn=drawn, batch_size=batch_size, found=found):
                found["theirs"] = written_by_transformers(
                    model, some, batch_size, tokenizer.pad_id, max_new_tokens=max_new_tokens, **drawn
                )

            ours()
            theirs()
            mine, others = clock(ours, theirs, rounds=rounds)
            line(
                f"{name}, {'one by one' if batch_size == 1 else f'batches of {batch_size}'}, {how}",
                count(found["ours"], tokenizer.end_id) / mine,
                "tokens/s",
                "at least 1 of it",
                transformers=count(found["theirs"], tokenizer.end_id) / others,
            )


def part_tokens():
    draws = torch.Generator().manual_seed(0)
    lengths = [8 + 7 * n % 41 for n in range(16)]
    prompts = [torch.randint(0, 8000, (length,), generator=draws).tolist() for length in lengths]
    with tempfile.TemporaryDirectory() as folder:
        for family in ("gpt2", "llama"):
            path = mid_sized(family, Path(folder) / family)
            tokens_of(f"{family} of 4 layers x 256", path, prompts, 32)


# --- seconds of chains of jobs, with a barrier between rounds and without ---

CHAINS, ROUNDS, SLOTS = 10, 3, 4


def lasts(seconds):
    """What a task on a virtual device does."""
    return Behaviour(seconds=seconds)


def chains(work, seconds):
    """Chains of tasks of these seconds [chain, round], each after the one before it."""
    tasks, after = [], {}
    for chain, row in enumerate(seconds):
        for number, length in enumerate(row):
            name = f"{chain}-{number}"
            after[name] = (f"{chain}-{number - 1}",) if number else ()
            tasks.append(Task(work, float(length), name=name, after=after[name]))
    least = bound({t.name: t.args[0] for t in tasks}, after, SLOTS)
    return tasks, {t.name: int(t.name.partition("-")[2]) for t in tasks}, least


def spans(pool, clock_of, work, seconds, folder):
    """Seconds of a run that knows no durations, of one that does, and of one with a barrier; and the least there is."""
    tasks, rounds, least = chains(work, seconds)
    found = []
    for number, by_round in enumerate((False, False, rounds)):
        began = clock_of()
        pool.run(tasks, folder=Path(folder) / str(number), by_round=by_round).results(600)
        found.append(clock_of() - began)
    return *found, least


def makespan():
    """10 chains x 3 rounds of lognormal jobs on 4 slots: shares of the critical-path bound."""
    draws = [np.random.default_rng(seed).lognormal(0.0, 1.0, (CHAINS, ROUNDS)) for seed in range(20)]
    shares = []
    for seconds in draws:
        engine = VirtualEngine(SLOTS, blocks=True)
        with tempfile.TemporaryDirectory() as folder, GPUPool(engine=engine) as pool:
            *taken, least = spans(pool, lambda engine=engine: engine.clock.now, lasts, seconds, folder)
        shares.append([each / least for each in taken])
    first, graph, barrier = zip(*shares, strict=True)
    what = f"of the bound, virtual, {len(draws)} draws"
    line(f"makespan, {what}, mean", float(np.mean(graph)), "", barrier=float(np.mean(barrier)))
    line(f"makespan, {what}, worst", max(graph), "", wanted="<= 1.08", barrier=max(barrier))
    line(f"makespan before durations are known, {what}, mean", float(np.mean(first)), "")
    with tempfile.TemporaryDirectory() as folder, GPUPool("cpu", slots=SLOTS) as pool:
        pool.run([Task(time.sleep, 0.5) for _ in range(SLOTS)], folder=Path(folder) / "warm").results(120)
        seconds = 0.5 * draws[0]
        _, graph, barrier, least = spans(pool, time.perf_counter, time.sleep, seconds, folder)
    line(
        "makespan, of the bound, processes that sleep", graph / least, "", "<= 1.08", barrier=barrier / least
    )
    line("makespan, processes that sleep", graph, "s", barrier=barrier, bound=least)


PARTS = {"makespan": makespan, "tokens": part_tokens}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path, help="where to write the figures")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for part in chosen.parts:
        PARTS[part]()
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(FIGURES, indent=1))


if __name__ == "__main__":
    main()
