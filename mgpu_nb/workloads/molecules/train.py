"""The worker that trained the embedded model: from enumerated molecules to a safetensors file."""

from __future__ import annotations

import importlib.metadata
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ...options import AtLeast, Between, NonNegativeInt, PositiveFloat, PositiveInt, Seed, check_options

if TYPE_CHECKING:
    import torch

    from ...context import Worker
    from .diffusion import Diffusion
    from .egnn import EGNN
    from .molecule import Molecule
from ..fit import described, output_file
from ..inputs import GpuIds, check_output

__all__ = ["TRAINING", "TrainConfig", "initial_weights", "train"]

TRAINING = "training.json"
"""What a training that torchrun or srun started has returned; one of a pool is a record of its run."""


@dataclass(frozen=True)
class TrainConfig:
    """Training of the embedded model on small molecules; the defaults made the shipped weights."""

    steps: PositiveInt = 40000
    """Steps of the optimiser."""
    batch_size: PositiveInt = 64
    """Molecules per step, all of one size, over all ranks."""
    learning_rate: PositiveFloat = 2e-3
    """Highest learning rate of AdamW; it rises over the first fiftieth of the steps and falls along a cosine."""
    matrix_rate: PositiveFloat = 1e-2
    """The same of Muon, which moves the matrices that have 32 rows and columns or more."""
    hidden: Annotated[int, AtLeast(1)] = 64
    """Features per atom; a multiple of 32 makes samples independent of the batch bit for bit."""
    layers: PositiveInt = 6
    """Blocks of the network."""
    heavy_atoms: PositiveInt = 4
    """Most atoms beside hydrogen of the enumerated molecules."""
    conformers: PositiveInt = 1
    """Conformers tried per molecule; equal ones are kept once."""
    diffusion_steps: PositiveInt = 1000
    """T, steps of the noise schedule."""
    noise_precision: Annotated[float, Between(0, 0.5, low_open=True, high_open=True)] = 1e-5
    """s of the noise schedule: what is left of the noise at step 0."""
    focus: Annotated[float, Between(0, 1, low_open=True, high_open=True)] = 0.8
    """Share of each batch at the first 0.4 T steps, where bonds form; 0.4 draws all steps equally often."""
    bf16: bool = False
    """Matrix products in bfloat16; distances, sums and positions are in float32."""
    ema: Annotated[float, Between(0, 1, high_open=True)] = 0.9995
    """Decay per step of the moving average of the weights, which is what is saved."""
    save_every: NonNegativeInt = 2000
    """Steps between files on the way; 0 writes the last one alone."""
    init: str | None = None
    """Weights to start from, a file of an earlier training of this size; by default random ones."""
    world_size: PositiveInt = 1
    """Ranks that share each batch."""
    gpu_ids: GpuIds = None
    """GPUs to use, one for each rank, or cpu for none; the first by default."""
    seed: Seed = 0
    """Seed of the conformers, of the network, of the noise and of the order of the molecules."""
    output: str | None = None
    """File to write; by default edm_small.safetensors in the run's folder."""
    output_dir: str | None = None
    """Folder of the run; by default a new one below runs."""

    def __post_init__(self) -> None:
        check_options(self)
        check_output("output", self.output)
        if self.world_size > self.batch_size:
            raise ValueError(
                f"world_size must be at most batch_size={self.batch_size}, got {self.world_size}; "
                "take fewer ranks or a larger batch"
            )
        if isinstance(self.gpu_ids, tuple) and len(self.gpu_ids) != self.world_size:
            raise ValueError(
                f"gpu_ids={self.gpu_ids!r} and world_size={self.world_size}: give an id for each rank"
            )
        if self.output is not None and not self.output.endswith(".safetensors"):
            raise ValueError(f"output must be a path that ends in .safetensors, got {self.output!r}")
        if self.init is not None and not Path(self.init).expanduser().is_file():
            raise ValueError(f"init={self.init!r} is no file; give one that a training has written")

    def check_world(self, world: int, kind: str) -> None:
        """Check that so many ranks can train on devices of a kind.

        Raises
        ------
        ValueError
            If ``world_size`` is another number.
        """
        if world != self.world_size:
            raise ValueError(
                f"world_size={self.world_size}, and there are {world} ranks; give the same number"
            )


def train(config: TrainConfig) -> dict[str, Any]:
    """Train a `Diffusion`; runs as a task, as one rank of a gang, or by hand.

    Minimises the squared error of the predicted noise (EDM, Hoogeboom et al., 2022). All random numbers of a step are
    drawn for the whole batch on the CPU and each rank takes its part, so that the losses depend on the number of
    ranks only by rounding. It uses one thread on a CPU: the same seed gives the same weights there.

    Returns
    -------
    dict
        ``path`` of the weights (written by rank 0), ``loss`` (mean of the last tenth of the steps), ``losses``
        ([step, mean of the last 100 steps] every 100 steps), ``steps``, ``parameters``, ``molecules`` (of the
        data), ``left_out`` (of the data, numbers by reason) and ``bytes`` of the file.

    Raises
    ------
    ImportError
        If RDKit or ASE is not installed.
    ValueError
        If neither `TrainConfig.output` nor a run's folder says where to write, the process group has another number
        of ranks than `TrainConfig.world_size`, `TrainConfig.init` has other sizes, or the loss is no number any more.
    """
    import torch

    from ...context import worker
    from .dataset import training_molecules
    from .muon import Muon
    from .rows import canonical_smiles

    here = worker()
    path = output_file(config.output, here, "edm_small.safetensors")
    rank = _rank(config.world_size)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        left_out: Counter[str] = Counter()
        molecules = training_molecules(config.heavy_atoms, config.conformers, config.seed, left_out)
        known = {smiles for molecule in molecules if (smiles := canonical_smiles(molecule)) is not None}
        model = _network(config, molecules).to(here.device)
        average = [value.detach().clone() for value in model.parameters()]
        batches = _Batches(molecules, config, model)
        matrices = [value for value in model.parameters() if value.ndim == 2 and min(value.shape) >= 32]
        others = [value for value in model.parameters() if all(value is not matrix for matrix in matrices)]
        muon, adam = Muon(matrices), torch.optim.AdamW(others, weight_decay=1e-4)
        losses: list[float] = []
        recorded: list[list[float]] = []
        for step in range(config.steps):
            done = (step + 1) / config.steps
            rate = min(1.0, 50 * done) * (0.5 + 0.5 * math.cos(math.pi * done))
            adam.param_groups[0]["lr"] = config.learning_rate * rate
            model.zero_grad()
            with torch.autocast(torch.device(here.device).type, torch.bfloat16, enabled=config.bf16):
                loss = model.loss_at(*batches.draw(rank, here.device)).sum() / config.batch_size
            loss.backward()
            losses.append(_shared(loss, model, config.world_size))
            if not math.isfinite(losses[-1]):
                raise ValueError(
                    f"the loss is {losses[-1]} after {step} steps; lower learning_rate={config.learning_rate} and "
                    f"matrix_rate={config.matrix_rate}"
                )
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            muon.step(config.matrix_rate * rate)
            with torch.no_grad():
                torch._foreach_lerp_(
                    average, list(model.parameters()), 1 - min(config.ema, step / (step + 10))
                )
            last = step + 1 == config.steps
            if (step + 1) % 100 == 0 or last:
                recorded.append([step + 1, _tell(here, losses[-100:], step + 1, config.steps, rank)])
            if rank == 0 and (last or (config.save_every and (step + 1) % config.save_every == 0)):
                _save(config, model, average, path, step + 1, known)
    finally:
        torch.set_num_threads(threads)
    tail = losses[-max(1, len(losses) // 10) :]
    return {
        "path": str(path),
        "loss": sum(tail) / len(tail),
        "losses": recorded,
        "steps": config.steps,
        "parameters": sum(value.numel() for value in average),
        "molecules": len(molecules),
        "left_out": dict(left_out),
        "bytes": path.stat().st_size if rank == 0 else 0,
    }


def _tell(here: Worker, recent: list[float], step: int, steps: int, rank: int) -> float:
    """Mean of recent losses, which is reported, and printed by rank 0."""
    loss = sum(recent) / len(recent)
    here.report(step=step, loss=loss, progress=step / steps)
    if rank == 0:
        print(f"step {step:,} of {steps:,}: loss {loss:.4f}", flush=True)
    return loss


class _Batches:
    """Batches of molecules of one size, which are drawn as often as there are molecules of it."""

    def __init__(self, molecules: list[Molecule], config: TrainConfig, model: Diffusion) -> None:
        import torch

        self.config, self.model = config, model
        self.generator = torch.Generator().manual_seed(config.seed)
        self.groups = []
        for size in model.histogram:
            group = [molecule for molecule in molecules if len(molecule.numbers) == size]
            positions = torch.stack([torch.from_numpy(molecule.positions).float() for molecule in group])
            numbers = torch.stack([torch.from_numpy(molecule.numbers) for molecule in group])
            self.groups.append((positions - positions.mean(dim=1, keepdim=True), numbers))
        self.shares = torch.tensor([float(len(numbers)) for _, numbers in self.groups])

    def draw(self, rank: int, device: str) -> list[torch.Tensor]:
        """What `Diffusion.loss_at` takes, of this rank's part of the next batch."""
        import torch

        from .diffusion import draw_noise

        model, batch, world = self.model, self.config.batch_size, self.config.world_size
        positions, numbers = self.groups[int(torch.multinomial(self.shares, 1, generator=self.generator))]
        chosen = torch.randint(len(numbers), (batch,), generator=self.generator)
        sizes = (batch, numbers.shape[1], model.features)
        noise = draw_noise(*sizes, model.schedule, self.generator, self.config.focus)
        mine = slice(rank * batch // world, (rank + 1) * batch // world)
        numbers = numbers[chosen[mine]]
        part = [positions[chosen[mine]], numbers, numbers != 0, *(drawn[mine] for drawn in noise)]
        return [tensor.to(device) for tensor in part]


def _network(config: TrainConfig, molecules: list[Molecule]) -> Diffusion:
    """Network to begin with: the same on every rank, and nobody else's random numbers."""
    import torch

    from .dataset import histogram
    from .diffusion import Diffusion
    from .noise import Schedule

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        egnn = _egnn(config)
    schedule = Schedule(config.diffusion_steps, config.noise_precision)
    model = Diffusion(egnn, histogram=histogram(molecules), schedule=schedule)
    if (weights := initial_weights(config)) is not None:
        model.load_state_dict(weights)
    return model


def _egnn(config: TrainConfig) -> EGNN:
    from .egnn import EGNN
    from .molecule import ALPHABET

    return EGNN(len(ALPHABET) + 1, config.hidden, config.layers)


def initial_weights(config: TrainConfig) -> dict[str, torch.Tensor] | None:
    """Weights that a training starts from; None for random ones.

    Raises
    ------
    ValueError
        If `TrainConfig.init` cannot be read, or is of a network of another size or of other elements.
    """
    if config.init is None:
        return None
    from .checkpoint import load_model
    from .molecule import ALPHABET

    earlier = load_model(config.init)
    wanted, found = _egnn(config).options, earlier.egnn.options
    other = [f"{name}={value}" for name, value in found.items() if value != wanted[name]]
    if earlier.alphabet != ALPHABET:
        other.append(f"elements {', '.join(earlier.alphabet)}")
    if other:
        raise ValueError(
            f"init={config.init!r} does not fit hidden={config.hidden}, layers={config.layers} and elements "
            f"{', '.join(ALPHABET)}: it has {'; '.join(other)}. Give its sizes, or another file"
        )
    return earlier.state_dict()


def _rank(world_size: int) -> int:
    """Rank of this process.

    Raises
    ------
    ValueError
        If the group has another number of ranks than asked for.
    """
    from torch import distributed

    there = distributed.is_available() and distributed.is_initialized()
    world = distributed.get_world_size() if there else 1
    if world != world_size:
        raise ValueError(
            f"world_size={world_size}, and this process is one of {world}; "
            "start `train` with mgpu_nb.launch(train, config, nprocs=world_size)"
        )
    return distributed.get_rank() if there else 0


def _shared(loss: torch.Tensor, model: Diffusion, world_size: int) -> float:
    """Loss of all ranks, whose gradients are summed in place: one message for all."""
    import torch
    from torch import distributed

    if world_size > 1:
        gradients = [value.grad for value in model.parameters() if value.grad is not None]
        message = torch.cat([gradient.flatten() for gradient in gradients] + [loss.detach()[None]])
        distributed.all_reduce(message)
        for gradient, summed in zip(
            gradients, message.split([g.numel() for g in gradients] + [1]), strict=False
        ):
            gradient.copy_(summed.view_as(gradient))
        loss = message[-1]
    return loss.item()


def _save(
    config: TrainConfig, model: Diffusion, average: list[torch.Tensor], path: Path, step: int, known: set[str]
) -> None:
    """Write the averaged weights, with what made them."""
    import copy
    import platform

    import torch

    from .checkpoint import SMILES, save_model

    averaged = copy.deepcopy(model)
    with torch.no_grad():
        for value, mean in zip(averaged.parameters(), average, strict=True):
            value.copy_(mean)
    others = {package: importlib.metadata.version(package) for package in ("rdkit", "ase", "numpy")}
    about = {
        "command": "mgpu-nb molecules train",
        **described(config, python=platform.python_version(), **others),
        "step": str(step),
        SMILES: json.dumps(sorted(known)),
    }
    save_model(averaged, path, about)
