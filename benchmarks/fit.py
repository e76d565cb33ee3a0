"""Training of a model of one's own, beside accelerate and lightning Fabric: the same model, data, optimizer and loss.

    python benchmarks/fit.py                        # everything
    python benchmarks/fit.py --parts memory speeds

Each library runs the script that its user writes, under torchrun; for speeds all in one process, an epoch of each in
turns. Seconds of the processor hold beside other programs as well, those of the clock on an idle machine only.
Needs `pip install '.[benchmark]'`.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROUNDS, EPOCHS, RANKS, DEVICE = 3, 80, (1, 2), "cpu"
SIZES = {"images": 1024, "batch": 64, "epochs": 3}

SHARED = """
import os, psutil, sys, time, torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import TensorDataset
from mgpu_nb.workloads.training.examples.images import Shapes
torch.set_num_threads(1)
KIND, COUNT, BATCH, EPOCHS, FOLDER, DEVICE = sys.argv[1], *map(int, sys.argv[2:5]), *sys.argv[5:7]

def shapes():
    if KIND == "dataset":
        return Shapes(COUNT, 0), Shapes(256, 1)
    return tuple(TensorDataset(each.images, each.kinds) for each in (Shapes(COUNT, 0), Shapes(256, 1)))

def net():
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 3))

def clocks():
    return torch.tensor([time.process_time(), time.time()], dtype=torch.float64)

to_first = []
def count(*_, taken=[0]):
    taken[0] += 1
    if taken[0] == 1:
        to_first.extend([time.process_time(), time.time() - psutil.Process().create_time()])
    if taken[0] == STOP:
        os._exit(0)
register_optimizer_step_post_hook(count)
"""

# What a user writes to train over epochs with clipping, a held-out loss and accuracy of all samples, a checkpoint each
# epoch and a resume within one. A line that starts with "T " is of the measurement and does not count.
OURS = """
from mgpu_nb.workloads import training
def metrics(outputs, targets):
    return {"accuracy": outputs.argmax(1) == targets}
config = training.Config(
    model=net, data=shapes, loss=cross_entropy, metrics=metrics, batch_size=BATCH, epochs=EPOCHS,
    checkpoint_steps=STEPS, output_dir=FOLDER,
)
T from pathlib import Path
T from mgpu_nb.distributed.environment import RankEnvironment, group
T from mgpu_nb.workloads.ranks import rank_device
T from mgpu_nb.workloads.training.trainer import Trainer
T from mgpu_nb.workloads.training.worker import train
T speeds, train_epoch = [], Trainer.train_epoch
T def timed(trainer):
T     began = clocks()
T     found = train_epoch(trainer)
T     speeds.append((COUNT / (clocks() - began)).tolist())
T     return found
T Trainer.train_epoch = timed
T ranks = RankEnvironment.from_env()
T device = rank_device(ranks, "cpu" if DEVICE == "cpu" else None)
T with group(ranks, "gloo" if DEVICE == "cpu" else "nccl", Path(FOLDER), 60):
T     found = train(config, Path(FOLDER), device)
T losses = [row["loss"] for row in found["history"]]
"""
ACCELERATE = """
from accelerate import Accelerator
from accelerate.utils import set_seed
set_seed(0)
accelerator = Accelerator(cpu=DEVICE == "cpu")
train, held_out = shapes()
loader = torch.utils.data.DataLoader(train, BATCH // accelerator.num_processes, shuffle=True)
validation = torch.utils.data.DataLoader(held_out, BATCH // accelerator.num_processes)
model = net()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
model, optimizer, loader, validation = accelerator.prepare(model, optimizer, loader, validation)
first, done = 0, 0
if os.path.isdir(FOLDER + "/state"):
    accelerator.load_state(FOLDER + "/state")
    first, done = torch.load(FOLDER + "/place.pt")
T speeds, losses = [], []
for epoch in range(first, EPOCHS):
    model.train()
    loader.set_epoch(epoch)
    batches = accelerator.skip_first_batches(loader, done) if done else loader
T     began = clocks()
    total = torch.zeros(2, device=accelerator.device)
    for inputs, targets in batches:
        loss = cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total[0] += loss.detach() * len(targets)
        total[1] += len(targets)
        done += 1
        if STEPS and done % STEPS == 0:
            accelerator.save_state(FOLDER + "/state")
            if accelerator.is_main_process:
                torch.save((epoch, done), FOLDER + "/place.pt")
    total = accelerator.reduce(total)
T     speeds.append((float(total[1]) / (clocks() - began)).tolist())
T     losses.append(float(total[0] / total[1]))
    model.eval()
    outputs, wanted = [], []
    with torch.no_grad():
        for inputs, targets in validation:
            found = accelerator.gather_for_metrics((model(inputs), targets))
            outputs.append(found[0])
            wanted.append(found[1])
    outputs, wanted = torch.cat(outputs), torch.cat(wanted)
    accuracy, validation_loss = (outputs.argmax(1) == wanted).float().mean(), cross_entropy(outputs, wanted)
    done = 0
    accelerator.print(epoch, total[0] / total[1], validation_loss, accuracy)
    accelerator.save_state(FOLDER + "/state")
    if accelerator.is_main_process:
        torch.save((epoch + 1, 0), FOLDER + "/place.pt")
"""
FABRIC = """
from FABRIC import Fabric, seed_everything
seed_everything(0, verbose=False)
fabric = Fabric(accelerator=DEVICE, devices=int(os.environ["LOCAL_WORLD_SIZE"]), strategy="ddp")
fabric.launch()
train, held_out = shapes()
loader = torch.utils.data.DataLoader(train, BATCH // fabric.world_size, shuffle=True)
validation = torch.utils.data.DataLoader(held_out, BATCH // fabric.world_size)
model = net()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
model, optimizer = fabric.setup(model, optimizer)
loader, validation = fabric.setup_dataloaders(loader, validation)
state = {"model": model, "optimizer": optimizer, "epoch": 0, "done": 0}
if os.path.exists(FOLDER + "/state.ckpt"):
    fabric.load(FOLDER + "/state.ckpt", state)
T speeds, losses = [], []
for epoch in range(state["epoch"], EPOCHS):
    model.train()
    getattr(loader.sampler, "set_epoch", lambda epoch: None)(epoch)
T     began = clocks()
    total = torch.zeros(2, device=fabric.device)
    for number, (inputs, targets) in enumerate(loader):
        if number < state["done"]:
            continue
        loss = cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        total[0] += loss.detach() * len(targets)
        total[1] += len(targets)
        state["done"] += 1
        if STEPS and state["done"] % STEPS == 0:
            fabric.save(FOLDER + "/state.ckpt", state)
    total = fabric.all_reduce(total, reduce_op="sum")
T     speeds.append((float(total[1]) / (clocks() - began)).tolist())
T     losses.append(float(total[0] / total[1]))
    model.eval()
    sums = torch.zeros(3, device=fabric.device)
    with torch.no_grad():
        for inputs, targets in validation:
            outputs = model(inputs)
            right = (outputs.argmax(1) == targets).sum()
            each = cross_entropy(outputs, targets, reduction="sum")
            sums += torch.stack([each, right, torch.full_like(right, len(targets))])
    sums = fabric.all_reduce(sums, reduce_op="sum")
    fabric.print(epoch, total[0] / total[1], sums[0] / sums[2], sums[1] / sums[2])
    state |= {"epoch": epoch + 1, "done": 0}
    fabric.save(FOLDER + "/state.ckpt", state)
"""
END = """
if os.environ["RANK"] == "0":
    import json
    print("figures " + json.dumps([speeds, losses, to_first]), flush=True)
"""
# Fabric is a distribution of its own, or a part of lightning.
OWN = "lightning_fabric" if importlib.util.find_spec("lightning_fabric") else "lightning.fabric"
LIBRARIES = {"ours": OURS, "accelerate": ACCELERATE, "Fabric": FABRIC.replace("FABRIC", OWN)}


def lines(text):
    """Lines of a user: without blank ones and those of the measurement."""
    return sum(bool(line.strip()) and not line.startswith("T ") for line in text.splitlines())


def run(name, kind, ranks, folder, epochs, steps=None, stop=None):
    """Figures of rank 0; with `stop` it ends after so many optimizer steps, without any.

    They are samples of all ranks per second of the processor and of the clock by epoch, losses by epoch, and seconds
    of both from the start of the process to the end of its first optimizer step.
    """
    text = "\n".join(line.removeprefix("T ") for line in LIBRARIES[name].splitlines())
    return _figures(
        f"STEPS, STOP = {steps}, {stop}\n{SHARED}{text}", kind, ranks, folder, epochs, stop is not None
    )


def _figures(text, kind, ranks, folder, epochs, stops=False):
    """What a script under torchrun prints; nothing if it `stops`."""
    script = Path(folder, "fit.py")
    script.write_text(f"{text}{END}")
    sizes = [str(SIZES["images"]), str(SIZES["batch"]), str(epochs)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*command, str(script), kind, *sizes, str(folder), DEVICE],
        capture_output=True,
        text=True,
        env=environ,
        check=False,
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("figures ")]
    if not found and not stops:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(found[0].removeprefix("figures ")) if found else ([], [], [])


def best(name, kind, ranks, steps=None):
    """Samples per second of the best epoch, of the processor and of the clock."""
    with tempfile.TemporaryDirectory() as folder:
        each = run(name, kind, ranks, folder, SIZES["epochs"], steps=steps)[0]
    return [max(speeds) for speeds in zip(*each, strict=True)]


def _generator(name):
    """Script of a peer as a generator, which yields the speeds of each epoch."""
    lines = [line.removeprefix("T ") for line in LIBRARIES[name].splitlines()]
    body = [f"    {line.replace('speeds.append(', 'yield (')}" for line in lines]
    return "\n".join([f"def {name}(FOLDER):", *body, ""])


def _together():
    """Script that trains by each library, an epoch of each in turns, and prints the speeds of ours and of theirs."""
    peers = [name for name in LIBRARIES if name != "ours"]
    trains = ", ".join(f"'{name}': {name}(FOLDER + '/{name}')" for name in peers)
    ours = "\n".join(line.removeprefix("T ") for line in OURS.splitlines())
    each = "speeds.append((COUNT / (clocks() - began)).tolist())"
    turns = (
        f"    {each}\n    for name, training in peers.items():\n        theirs[name].append(next(training))\n"
    )
    return (
        f"STEPS, STOP = None, None\n{SHARED}{''.join(map(_generator, peers))}\n"
        f"peers = {{{trains}}}\ntheirs = {{name: [] for name in peers}}\n{ours.replace(f'    {each}', turns)}"
        "\nspeeds, losses = {'ours': speeds, **theirs}, []\n"
    )


def speeds():
    """Samples of all ranks per second of each library in one process, an epoch of each in turns.

    The machine gives a third more or less from minute to minute, a process of its own for each would measure that.
    """
    for kind, ranks in ((kind, ranks) for kind in ("dataset", "tensors") for ranks in RANKS):
        with tempfile.TemporaryDirectory() as folder:
            for name in LIBRARIES:
                Path(folder, name).mkdir()
            found = _figures(_together(), kind, ranks, folder, EPOCHS)[0]
        for clock, what in enumerate(("of rank 0's processor", "of the clock")):
            each = {name: [pair[clock] for pair in pairs[2:]] for name, pairs in found.items()}
            ours = each.pop("ours")
            peers = ", ".join(
                f"{name} {statistics.median(speeds):.0f} (ours {_share(ours, speeds)})"
                for name, speeds in each.items()
            )
            what = f"samples/s {what}; {peers}"
            print(
                f"{kind}, {ranks} rank{'s' * (ranks > 1)}: ours {statistics.median(ours):.0f} {what}",
                flush=True,
            )


def _share(ours, theirs):
    """Median of ours by theirs over the epochs, and the middle half of them."""
    low, middle, high = statistics.quantiles((a / b for a, b in zip(ours, theirs, strict=True)), n=4)
    return f"{middle:.2f} of it, half of the epochs {low:.2f} to {high:.2f}"


def resumes():
    """Seconds to the first step after a stop within the second epoch, and whether losses are those without a stop."""
    each = SIZES["images"] // SIZES["batch"]
    for name in LIBRARIES:
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
            _, whole, _ = run(name, "dataset", 1, one, 3)
            run(name, "dataset", 1, two, 3, steps=each // 4, stop=each + each // 2 + 3)
            _, resumed, (processor, clock) = run(name, "dataset", 1, two, 3, steps=each // 4)
        apart = [abs(now / then - 1) for now, then in zip(resumed[-2:], whole[-2:], strict=True)]
        print(
            f"resume within an epoch, {name}: {processor:.1f} s of the processor ({clock:.1f} s of the clock) to the "
            f"first step; losses {apart[0]:.0e} (that epoch) and {apart[1]:.0e} (the next) from those without a stop",
            flush=True,
        )


def costs():
    """Speed by the processor with a checkpoint every 16 steps, as a share of that without."""
    for name in LIBRARIES:
        found = {None: [], 16: []}
        for _ in range(ROUNDS):
            for steps, speeds in found.items():
                speeds.append(best(name, "dataset", 2, steps)[0])
        share = statistics.median(found[16]) / statistics.median(found[None])
        print(f"a checkpoint every 16 steps, {name}: {share:.2f} of the speed without", flush=True)


def memory():
    """Bytes of weights, gradients and optimizer that a rank holds under both strategies."""
    from mgpu_nb.workloads import training
    from mgpu_nb.workloads.training.examples import language

    for ranks in (1, 2, 4):
        parts = []
        for strategy in ("ddp", "fsdp"):
            with tempfile.TemporaryDirectory() as folder:
                config = training.Config(
                    model=lambda: language.LanguageModel(128, 4), loss=language.loss,
                    data=lambda: (language.Sums(256, 10), language.Sums(64, 10)),
                    strategy=strategy, epochs=1, batch_size=64, world_size=ranks, gpu_ids="cpu",
                    output_dir=folder + "/run", log_level="WARNING",
                )  # fmt: skip
                report = training.collect(training.start(config).wait(progress=False))
            held = report.ranks()["model_memory"].max() / 2**20
            parts.append(
                f"{strategy} {held:.1f} MiB a rank, {report.frame()['samples_per_second'].max():.0f} samples/s"
            )
        print(
            f"language model of {report.results['weights']:,} weights, {ranks} ranks: {'; '.join(parts)}",
            flush=True,
        )


PARTS = {"memory": memory, "resumes": resumes, "speeds": speeds, "costs": costs}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of the part costs")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of the part speeds")
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS, help="of the part speeds")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=DEVICE, help="cuda: a GPU for each rank")
    options = parser.parse_args()
    ROUNDS, EPOCHS, RANKS, DEVICE = options.rounds, options.epochs, options.ranks, options.device
    print("; ".join(f"{name} {lines(text)} lines" for name, text in LIBRARIES.items()), flush=True)
    for part in options.parts:
        PARTS[part]()
