"""Sampling of molecules beside the same equations written plainly, force calls in batches, slots, and two samplers.

    python benchmarks/molecules.py                     # everything, a few minutes
    python benchmarks/molecules.py --parts forces plain
    python benchmarks/molecules.py --json figures.json

A figure stands beside its peer's from the same run, as a share of it. Medians of several rounds, taken in turns. One
thread, whose seconds are those of the processor, but for the slots.
"""

import argparse
import json
import math
import multiprocessing
import statistics
import time
from pathlib import Path

import torch

from mgpu_nb import GPUPool, Task
from mgpu_nb.engines.memory import keep_freed
from mgpu_nb.workloads.molecules.checkpoint import load_model
from mgpu_nb.workloads.molecules.forces import load_field
from mgpu_nb.workloads.molecules.metrics import summarise
from mgpu_nb.workloads.molecules.rows import measure
from mgpu_nb.workloads.molecules.sampler import sample

MODEL = None  # a path; None: the shipped one
FIGURES = {}


def clock(*actions, rounds=3, by=time.process_time):
    """Seconds of each round of each action, which take turns, so that what else the machine does meets all of them.

    Of the processor, by default: what is timed has one thread.
    """
    seconds = [[] for _ in actions]
    for _ in range(rounds):
        for action, mine in zip(actions, seconds, strict=True):
            began = by()
            action()
            mine.append(by() - began)
    return seconds


def line(name, ours, unit, wanted=None, **peers):
    """Print a figure with those of its peers, and keep it."""
    shares = {peer: ours / value if value else math.inf for peer, value in peers.items()}
    parts = [f"ours {ours:.4g} {unit}"]
    parts += [f"{peer} {peers[peer]:.4g} {unit} (ours {share:.3g} of it)" for peer, share in shares.items()]
    parts += [f"wanted {wanted}"] if wanted else []
    print(f"{name:58s} {'; '.join(parts)}", flush=True)
    FIGURES[name] = {"ours": ours, "unit": unit, "wanted": wanted, **peers}


def spread(seconds):
    return f"{min(seconds):.3g} to {max(seconds):.3g}"


def sized(model, count, low, high):
    """Model with a histogram in which each number of atoms from `low` to `high` is as likely as any."""
    model.histogram = dict.fromkeys(range(low, high + 1), 1)
    return model, range(count)


# --- the peer: EGNN and ddpm over lists of edges, as the public EDM writes them ---


class Plain:
    """The equations of molecules.md, with no thought of speed or of equal bits: float32, all edges in one list.

    `rows` and `cols` name the ends of each edge, messages are gathered and scattered by them. A batch is padded to its
    largest molecule, as there; one molecule at a time needs no padding.
    """

    def __init__(self, model):
        self.model, self.net = model, model.dynamics["egnn"]
        schedule = model.schedule
        gamma = schedule.gamma(torch.arange(schedule.steps + 1))
        self.gamma = gamma.float()

    def eps(self, x, h, t, mask):
        batch, atoms, _ = x.shape
        first = torch.arange(batch)[:, None, None] * atoms
        rows = (first + torch.arange(atoms)[:, None]).expand(batch, atoms, atoms).reshape(-1)
        cols = (first + torch.arange(atoms)).expand(batch, atoms, atoms).reshape(-1)
        edges = mask[:, :, None] * mask[:, None, :] * ~torch.eye(atoms, dtype=torch.bool)
        edges, there = edges.reshape(-1, 1).float(), mask.reshape(-1, 1).float()
        h = torch.cat([h, t.view(-1, 1, 1).expand(batch, atoms, 1)], 2).reshape(batch * atoms, -1) * there
        x = x.reshape(batch * atoms, 3) * there
        start, before = x, self.apart(x, rows, cols)[0]
        h = self.net.embedding(h)
        for name in self.net.blocks:
            block = self.net.get_submodule(name)
            squared, direction = self.apart(x, rows, cols)
            between = torch.cat([squared, before], 1)
            for n in range(block.rounds):
                layer = block.get_submodule(f"gcl_{n}")
                messages = layer.edge_mlp(torch.cat([h[rows], h[cols], between], 1))
                if layer.att_mlp is not None:
                    messages = messages * layer.att_mlp(messages)
                received = self.received(messages * edges, rows, len(h)) / layer.factor
                h = (h + layer.node_mlp(torch.cat([h, received], 1))) * there
            move = block.gcl_equiv
            pulls = move.coord_mlp(torch.cat([h[rows], h[cols], between], 1))
            if move.reach is not None:
                pulls = torch.tanh(pulls) * move.reach
            x = (x + self.received(direction * pulls * edges, rows, len(x)) / move.factor) * there
        h = self.net.embedding_out(h) * there
        moved = (x - start).view(batch, atoms, 3)
        return self.centred(moved, mask), h.view(batch, atoms, -1)[..., :-1]

    def apart(self, x, rows, cols):
        difference = x[rows] - x[cols]
        squared = difference.square().sum(1, keepdim=True)
        return squared, difference / ((squared + 1e-8).sqrt() + self.net.norm_constant)

    @staticmethod
    def received(values, rows, count):
        return values.new_zeros(count, values.shape[1]).scatter_add_(
            0, rows[:, None].expand_as(values), values
        )

    @staticmethod
    def centred(x, mask):
        there = mask[..., None].float()
        return (x - (x * there).sum(1, keepdim=True) / there.sum(1, keepdim=True)) * there

    def sample(self, sizes, steps, draws):
        """Positions and features of a batch of molecules with these numbers of atoms."""
        mask = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
        there = mask[..., None].float()
        features = len(self.model.alphabet) + self.model.charges
        trained = self.model.schedule.steps

        def noise():
            drawn = torch.randn(*mask.shape, 3 + features, generator=draws) * there
            return torch.cat([self.centred(drawn[..., :3], mask), drawn[..., 3:]], 2)

        def predicted(z, step):
            time = torch.full((len(sizes),), step / trained)
            return torch.cat(self.eps(z[..., :3], z[..., 3:], time, mask), 2)

        z = noise()
        levels = [round(k * trained / steps) for k in range(steps + 1)]
        for t, s in zip(levels[:0:-1], levels[-2::-1], strict=True):
            gamma_t, gamma_s = self.gamma[t], self.gamma[s]
            alpha_t, alpha_s = torch.sigmoid(-gamma_t).sqrt(), torch.sigmoid(-gamma_s).sqrt()
            sigma_t, sigma_s = torch.sigmoid(gamma_t).sqrt(), torch.sigmoid(gamma_s).sqrt()
            ratio = alpha_t / alpha_s
            of_step = -torch.expm1(
                torch.nn.functional.softplus(gamma_s) - torch.nn.functional.softplus(gamma_t)
            )
            mean = z / ratio - of_step / (ratio * sigma_t) * predicted(z, t)
            z = mean + of_step.sqrt() * sigma_s / sigma_t * noise()
            z = torch.cat([self.centred(z[..., :3], mask), z[..., 3:]], 2)
        alpha, sigma = torch.sigmoid(-self.gamma[0]).sqrt(), torch.sigmoid(self.gamma[0]).sqrt()
        z = (z - sigma * predicted(z, 0)) / alpha + sigma / alpha * noise()
        return self.centred(z[..., :3], mask), z[..., 3:].argmax(2)


def agree(model, plain):
    """Largest difference of the noise that the two predict, as a share of the largest noise."""
    mask = torch.arange(14) < torch.tensor([9, 12, 14])[:, None]
    draws = torch.Generator().manual_seed(0)
    z = torch.randn(3, 14, 3 + len(model.alphabet), generator=draws) * mask[..., None]
    x, h = plain.centred(z[..., :3], mask), z[..., 3:]
    t = torch.tensor([0.1, 0.5, 0.9])
    pairs = zip(model.eps(x, h, t, mask), plain.eps(x, h, t, mask), strict=True)
    return max(float((one - other).abs().max() / one.abs().max()) for one, other in pairs)


def ours_and_plain(path, steps, count=50):
    """Three functions that sample `count` molecules of 9 to 20 atoms: ours, plainly one by one, plainly padded."""
    model, indices = sized(load_model(path), count, 9, 20)
    plain, draws = Plain(model), torch.Generator().manual_seed(0)
    sizes = [9 + n % 12 for n in range(count)]
    return (
        lambda: sample(model, indices, seed=0, steps=steps),
        lambda: [plain.sample([size], steps, draws) for size in sizes],
        lambda: plain.sample(sizes, steps, draws),
    )


def peak(path, which, steps, answer):
    """Put what the peak memory of this process grows by, when it runs one of the three, on a queue, MB."""
    torch.set_num_threads(1)
    with torch.no_grad():
        ours_and_plain(path, 1, 1)[which]()  # libraries are loaded
        action = ours_and_plain(path, steps)[which]
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is in use
        before = in_memory("VmHWM")
        action()
    answer.put(in_memory("VmHWM") - before)


def in_memory(name):
    """A figure of this process's memory, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(text.split()[1]) for text in lines if text.startswith(name)) / 1024


def part_plain(steps=10):
    model = load_model(MODEL)
    print(f"noise predicted by the two: {agree(model, Plain(model)):.1e} of it apart")
    ours, one_by_one, padded = (
        statistics.median(seconds) / 50 for seconds in clock(*ours_and_plain(MODEL, steps), rounds=3)
    )
    name = f"50 molecules of 9 to 20 atoms, {steps} steps of ddpm, each"
    line(name, ours, "s", "at most 1 of one by one", one_by_one=one_by_one, padded_batch=padded)
    context, memory = multiprocessing.get_context("spawn"), []
    for which in range(3):
        answer = context.Queue()
        process = context.Process(target=peak, args=(MODEL, which, 2, answer))
        process.start()
        memory.append(answer.get(timeout=300))
        process.join()
    line(
        "the same, growth of peak memory",
        memory[0],
        "MB",
        one_by_one=memory[1],
        padded_batch=memory[2],
    )


# --- force calls ---


def part_forces(count=50):
    keep_freed()  # as a worker does: else each call has fresh pages to fill
    field, model = load_field("potential"), load_model(MODEL)
    histogram = model.histogram
    own = f"{min(histogram)} to {max(histogram)} atoms, as the model draws them"
    for sizes, among in ((own, histogram), ("9 to 20 atoms", dict.fromkeys(range(9, 21), 1))):
        model.histogram = among
        molecules = sample(model, range(count), seed=0, sampler="dpm_solver++", steps=10).molecules
        largest = max(len(molecule.numbers) for molecule in molecules)
        numbers = torch.zeros(count, largest, dtype=torch.int64)
        positions = torch.zeros(count, largest, 3, dtype=torch.float64)
        for n, molecule in enumerate(molecules):
            numbers[n, : len(molecule.numbers)] = torch.from_numpy(molecule.numbers)
            positions[n, : len(molecule.numbers)] = torch.from_numpy(molecule.positions)
        for dtype in (torch.float64, torch.float32):
            padded, singly = rounds_of_forces(field, numbers, positions.to(dtype), molecules)
            name = f"forces of {count} molecules of {sizes}, {str(dtype).removeprefix('torch.')}"
            line(name, padded, "s", "at most 0.1 of it", one_at_a_time=singly)


def rounds_of_forces(field, numbers, positions, molecules):
    """Median seconds of a batch, and of as many calls."""
    seconds = clock(
        lambda: field.batch(numbers, positions),
        lambda: [field.forces(molecule.numbers, molecule.positions) for molecule in molecules],
        rounds=15,
    )
    return map(statistics.median, seconds)


# --- slots ---


def draw(path, first, count, steps):
    """Task: samples of some indices."""
    model = load_model(path)
    return [
        len(molecule.numbers)
        for molecule in sample(model, range(first, first + count), seed=0, steps=steps).molecules
    ]


def part_slots(count=80, chunk=10, steps=20):
    tasks = [Task(draw, MODEL, first, chunk, steps, name=f"{first}") for first in range(0, count, chunk)]
    with (
        GPUPool("cpu", slots=1, threads=1, share=True) as one,
        GPUPool("cpu", slots=2, threads=1, share=True) as two,
    ):
        for pool in (one, two):
            pool.run(tasks[:4]).wait()  # workers start, libraries load
        singly, doubly = clock(
            lambda: one.run(tasks).wait(), lambda: two.run(tasks).wait(), by=time.perf_counter
        )
    seconds = {1: singly, 2: doubly}
    rates = {slots: count / statistics.median(times) for slots, times in seconds.items()}
    gains = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
    line(
        f"molecules a second on 2 slots, {steps} steps of ddpm",
        rates[2],
        "1/s",
        "1.8 times",
        one_slot=rates[1],
    )
    print(f"  rounds: 1 slot {spread(seconds[1])} s, 2 slots {spread(seconds[2])} s; gain {spread(gains)}")


# --- two samplers ---


def part_samplers(count=100):
    model, judge = load_model(MODEL), load_field("gfn2")
    found = {}
    for sampler in ("dpm_solver++", "ddpm"):
        steps = 20 if sampler == "dpm_solver++" else min(200, model.schedule.steps)
        began = time.process_time()
        made = sample(model, range(count), seed=0, sampler=sampler, steps=steps)
        seconds = time.process_time() - began
        metrics = summarise(measure(made.molecules, range(count), judge=judge))
        found[f"{sampler} {steps}"] = seconds / count, metrics
    (fast, (ours, quality)), (slow, (theirs, reference)) = found.items()
    line(f"{fast} steps, a molecule", ours, "s", **{slow.replace(" ", "_"): theirs})
    for name in ("molecule_stability", "atom_stability", "validity", "force_rms"):
        one, other = quality[name], reference[name]
        print(
            f"  {name:20s} {one.value:.3f} ({one.low:.3f} to {one.high:.3f}); "
            f"{slow} {other.value:.3f} ({other.low:.3f} to {other.high:.3f})"
        )
        FIGURES[f"{name} of {fast}"] = {"ours": one.value, slow: other.value, "interval": [one.low, one.high]}


PARTS = {"forces": part_forces, "plain": part_plain, "slots": part_slots, "samplers": part_samplers}


def main():
    global MODEL
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--model_path", help="another model than the shipped one")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    chosen = parser.parse_args()
    MODEL = chosen.model_path
    torch.set_num_threads(1)
    with torch.no_grad():
        for part in chosen.parts:
            PARTS[part]()
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(FIGURES, indent=1))


if __name__ == "__main__":
    main()
