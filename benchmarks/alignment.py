"""Alignment beside its peers: transformers' own `generate`, the trainers of TRL, a barrier between rounds.

    python benchmarks/alignment.py                     # everything
    python benchmarks/alignment.py --parts tokens
    python benchmarks/alignment.py --json figures.json

A figure stands beside its peer's from the same run, as a share of it. Medians of several rounds, taken in turns. One
thread, whose seconds are those of the processor.
"""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from stages import models_of, rounds_of, scorer_of, stage_of
from tiny_language_models import tiny_model
from virtual import Behaviour, VirtualEngine

from mgpu_nb import GPUPool, Task
from mgpu_nb.workloads.alignment import sums
from mgpu_nb.workloads.alignment.algorithms.base import ALGORITHMS, load_algorithm
from mgpu_nb.workloads.alignment.algorithms.dpo import DPO
from mgpu_nb.workloads.alignment.algorithms.grpo import GRPO
from mgpu_nb.workloads.alignment.exact import sums_frontier, sums_point
from mgpu_nb.workloads.alignment.generate import Policy
from mgpu_nb.workloads.alignment.job import EMBEDDED
from mgpu_nb.workloads.alignment.laws import law_named
from mgpu_nb.workloads.alignment.models import load_model, load_tokenizer, model_folder
from mgpu_nb.workloads.alignment.schedule import bound
from mgpu_nb.workloads.alignment.value import Guided, ValueModel

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


def tokens_of(name, path, prompts, max_new_tokens, rounds=9):
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


def guided_of(name, reference_path, guide_path, prompts, max_new_tokens, law, rounds=9):
    """A line: seconds of guided tokens beside those of the reference and of the guide, each alone."""
    reference, guide = load_model(reference_path, device="cpu"), load_model(guide_path, device="cpu")
    value = ValueModel(load_model(guide_path, device="cpu").base_model, reference.config.vocab_size, law)
    with torch.no_grad():
        value.weight.normal_(generator=torch.Generator().manual_seed(0))
    guided = Guided(value.eval(), 1.0, 20)

    def written(model, guidance=None):
        Policy(model, end_id=-1, pad_id=0, guidance=guidance).generate(
            prompts, None, max_new_tokens=max_new_tokens, batch_size=8
        )

    seconds = clock(
        lambda: written(reference, guided), lambda: written(reference), lambda: written(guide), rounds=rounds
    )
    ours, plain, small = (1e3 * each / (len(prompts) * max_new_tokens) for each in seconds)
    line(f"{name}, a token", ours, "ms", "at most 1.3 of it", reference_and_guide=plain + small)


def part_tokens():
    draws = torch.Generator().manual_seed(0)
    lengths = [8 + 7 * n % 41 for n in range(16)]
    prompts = [torch.randint(0, 8000, (length,), generator=draws).tolist() for length in lengths]
    tokenizer = load_tokenizer(EMBEDDED)
    numbers = [tokenizer.encode(f"{number}=") for number in range(19)]
    with tempfile.TemporaryDirectory() as folder:
        paths = {family: mid_sized(family, Path(folder) / family) for family in ("gpt2", "llama")}
        small = mid_sized("llama", Path(folder) / "small", hidden=128, layers=2)
        for family, path in paths.items():
            tokens_of(f"{family} of 4 layers x 256", path, prompts, 32)
        tokens_of("embedded", EMBEDDED, numbers, 4)
        for name in ("bernoulli", "categorical"):
            law = law_named(name, 11)
            guided_of(f"llama guided by 2 layers x 128, {name}", paths["llama"], small, prompts, 32, law)
            guided_of(f"embedded, guided, {name}", EMBEDDED, EMBEDDED, numbers, 4, law)


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


# --- the policies of DPO and GRPO beside those of TRL's trainers ---

QUIET = {
    "report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True, "logging_strategy": "no",
    "save_strategy": "no", "lr_scheduler_type": "linear", "weight_decay": 0.0, "max_grad_norm": 1.0, "seed": 0,
}  # fmt: skip


def policy_of(model, tokenizer):
    return Policy(model.eval(), end_id=tokenizer.end_id, pad_id=tokenizer.pad_id)


def beside_trl(algo, data, ours, theirs):
    """Reward, divergence and seconds of two trainings from the embedded reference, which take turns."""
    tokenizer = load_tokenizer(EMBEDDED)
    (mine, others), points = ([], []), []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(3):
            for seconds, train in ((mine, ours), (others, theirs)):
                began = time.process_time()
                model = train(Path(folder) / f"{number}-{train.__name__}", number)
                seconds.append(time.process_time() - began)
                points.append(sums_point(policy_of(model, tokenizer)))
    one, other = points[::2], points[1::2]
    for name, unit, at in (("reward", "", 1), ("KL", "nats", 0)):
        mean = [statistics.mean(point[at] for point in some) for some in (one, other)]
        line(f"{algo} on {data}: {name}, exact, mean of 3", mean[0], unit, trl=mean[1])
    line(f"{algo} on {data}: seconds", statistics.median(mine), "s", trl=statistics.median(others))


def dpo_beside_trl(overrides=("data_collection.bradley_terry_sampling=false",)):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    stage = stage_of("DPO", *overrides, "training.gradient_checkpointing=false")
    stage = replace(stage, training=replace(stage.training, micro_batch_size=stage.algo.batch_size))
    models = models_of(stage)
    samples = DPO().collect(stage, models, sums.examples("train", 128), scorer_of(stage))
    rows = [
        {
            "prompt": sample.prompt,
            "chosen": (sample.y_a, sample.y_b)[sample.preferred],
            "rejected": (sample.y_b, sample.y_a)[sample.preferred],
        }
        for sample in samples
        if sample.y_a != sample.y_b
    ]

    def ours(folder, seed):
        folder.mkdir()
        some = replace(stage, seed=seed)
        DPO().train(some, models, samples, [], scorer_of(stage), folder, lambda **figures: None)
        return DPO().policy(some, models, folder, None).model

    def theirs(folder, seed):
        algo = stage.algo
        options = DPOConfig(
            str(folder), beta=algo.beta, loss_type=["sigmoid", "sft"], loss_weights=[1.0, algo.sft_weight],
            per_device_train_batch_size=algo.batch_size, learning_rate=algo.learning_rate,
            num_train_epochs=algo.epochs, precompute_ref_log_probs=True, activation_checkpointing=False,
            **QUIET | {"seed": seed},
        )  # fmt: skip
        model = load_model(EMBEDDED, device="cpu", train=True)
        trainer = DPOTrainer(
            model, None, options, train_dataset=Dataset.from_list(rows), processing_class=their_tokenizer()
        )
        return trained_by(trainer)

    beside_trl("DPO", f"{len(rows)} pairs", ours, theirs)


def grpo_beside_trl():
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    stage = stage_of("GRPO", "training.gradient_checkpointing=false", "generation.batch_size=64")
    stage = replace(stage, training=replace(stage.training, micro_batch_size=stage.algo.batch_size))
    models, examples, algo = models_of(stage), sums.examples("train", 128), stage.algo

    def ours(folder, seed):
        folder.mkdir()
        some = replace(stage, seed=seed)
        GRPO().train(some, models, [], examples, scorer_of(stage), folder, lambda **figures: None)
        return GRPO().policy(some, models, folder, None).model

    def rewards(prompts, completions, **others):
        return [
            sums.reward(prompt.rstrip("="), text) for prompt, text in zip(prompts, completions, strict=True)
        ]

    def theirs(folder, seed):
        options = GRPOConfig(
            str(folder), beta=algo.beta, epsilon=algo.clip, loss_type="grpo", use_bias_correction_kl=False,
            num_generations=algo.group_size, per_device_train_batch_size=algo.batch_size,
            generation_batch_size=algo.prompts_per_step * algo.group_size, num_iterations=algo.iterations,
            max_completion_length=sums.MAX_NEW_TOKENS, max_steps=algo.epochs * algo.steps * algo.iterations,
            learning_rate=algo.learning_rate, activation_checkpointing=False, **QUIET | {"seed": seed},
        )  # fmt: skip
        model = load_model(EMBEDDED, device="cpu", train=True)
        data = Dataset.from_list([{"prompt": example.prompt} for example in examples])
        trainer = GRPOTrainer(model, rewards, options, train_dataset=data, processing_class=their_tokenizer())
        return trained_by(trainer)

    drawn = algo.epochs * algo.steps * algo.prompts_per_step * algo.group_size
    beside_trl("GRPO", f"{drawn} completions", ours, theirs)


def trained_by(trainer):
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.model


def their_tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder(EMBEDDED), local_files_only=True)


def part_trl():
    os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)
    dpo_beside_trl()
    grpo_beside_trl()


WANTED = {  # by algorithm, round and eta, by shared/workloads/alignment.md
    ("PITA", 1, 8.0): ".91",
    ("PITA", 2, 8.0): ".97",
    ("QSharp", 2, 3.0): ".85",
    ("QSharp", 2, 12.0): ".93",
    ("DPO", 2, None): ".97 at .95 nats",
    ("GRPO", 2, None): ".97 at 1.1 nats",
}
ETAS = (3.0, 8.0, 12.0)


def part_rounds():
    """Two rounds of each algorithm at full size, beside the exact optimum at its eta, and at its divergence.

    DPO and GRPO-HF learn from the better completion preferred always, as in the part `trl`.
    """
    frontier = sums_frontier()
    print(f"reference: reward {frontier.at(0).reward:.3f}")
    for algo in ALGORITHMS:
        drawn = "false" if algo in ("DPO", "GRPO-HF") else "true"
        whole = stage_of(algo, f"data_collection.bradley_terry_sampling={drawn}", profile=("embedded",))
        stage = replace(whole, training=replace(whole.training, micro_batch_size=whole.algo.batch_size))
        guided = algo in ("PITA", "QSharp")
        with tempfile.TemporaryDirectory() as folder:
            began = time.process_time()
            examples = sums.examples("train", stage.dataset.train_examples)
            folders = rounds_of(algo, stage, examples, Path(folder))
            seconds = time.process_time() - began
            models, algorithm = models_of(stage), load_algorithm(algo)
            for number, written in enumerate(folders, 1):
                for eta in ETAS if guided else (None,):
                    kl, reward = sums_point(algorithm.policy(stage, models, written, eta))
                    at = "" if eta is None else f", eta {eta:g}"
                    best = {} if eta is None else {"optimum_of_eta": frontier.at(eta).reward}
                    best["optimum_of_kl"] = frontier.reward(kl)
                    wanted = WANTED.get((algo, number, eta))
                    line(f"{algo}, round {number}{at}: reward (KL {kl:.2f} nats)", reward, "", wanted, **best)
        line(f"{algo}: seconds of two rounds", seconds, "s")


PARTS = {"makespan": makespan, "rounds": part_rounds, "tokens": part_tokens, "trl": part_trl}


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
