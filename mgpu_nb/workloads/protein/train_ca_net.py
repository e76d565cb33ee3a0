"""The worker that trained `ca_net`: from generated folds to a safetensors file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from ...options import AtLeast, Between, PositiveFloat, PositiveInt, Seed, check_options
from ..fit import described, output_file
from ..inputs import GpuIds, check_one_gpu, check_output

__all__ = ["TrainConfig", "train"]


@dataclass(frozen=True)
class TrainConfig:
    """Training of `ca_net` on generated folds; the defaults made the shipped weights."""

    steps: PositiveInt = 4000
    """Steps of the optimiser."""
    batch_size: PositiveInt = 12
    """Folds per step, all of one length."""
    learning_rate: PositiveFloat = 3e-3
    """Highest learning rate; it rises over the first twentieth of the steps and falls along a cosine."""
    hidden: PositiveInt = 80
    """Features per residue."""
    layers: PositiveInt = 4
    """Rounds of messages."""
    shortest: Annotated[int, AtLeast(4)] = 24
    """Residues of the shortest folds."""
    longest: Annotated[int, AtLeast(4)] = 64
    """Residues of the longest folds."""
    num_folds: PositiveInt = 8
    """Folds per length: those that also are the references of the score."""
    ema: Annotated[float, Between(0, 1, high_open=True)] = 0.998
    """Decay per step of the moving average of the weights, which is what is saved."""
    seed: Seed = 0
    """Seed of the network, of the noise and of the order of the folds."""
    gpu_ids: GpuIds = None
    """GPU to use, by its id, or cpu for none; the first by default."""
    output: str | None = None
    """File to write; by default ca_net.safetensors in the run's folder."""
    output_dir: str | None = None
    """Folder of the run; by default a new one below runs."""

    def __post_init__(self) -> None:
        check_options(self)
        check_output("output", self.output)
        check_one_gpu(self.gpu_ids)
        if self.shortest > self.longest:
            raise ValueError(f"shortest must be at most longest={self.longest}, got {self.shortest}")


def train(config: TrainConfig) -> dict[str, Any]:
    """Train `CANet` by flow matching; runs as a task or by hand.

    Minimises ``||v(x_t, t) - (x1 - e)||^2`` with ``x_t = (1-t) e + t x1``, t = 0 noise and t = 1 data,
    e ~ N(0, I) with zero centre of mass, in nm (Lipman et al., 2023; linear interpolant). It uses one thread
    on a CPU, so that the same seed gives the same weights.

    Returns
    -------
    dict
        ``path`` of the weights, ``loss`` (mean of the last tenth of the steps, nm^2 per coordinate),
        ``losses`` ([step, mean of the last 50 steps] every 50 steps), ``steps``, ``parameters`` and ``bytes`` of the
        file.

    Raises
    ------
    ValueError
        If neither `TrainConfig.output` nor a run's folder says where to write.
    """
    import torch
    from safetensors.torch import save_file

    from ...context import worker
    from .ca_net import CANet
    from .flow import NM_PER_ANGSTROM, centre
    from .folds import generate_folds

    here = worker()
    path = output_file(config.output, here, "ca_net.safetensors")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            net = CANet(config.hidden, config.layers).to(here.device)
        average = {name: value.clone() for name, value in net.state_dict().items()}
        draws = torch.Generator().manual_seed(config.seed)
        library = {
            length: torch.tensor(
                generate_folds(length, config.num_folds) * NM_PER_ANGSTROM, dtype=torch.float32
            )
            for length in range(config.shortest, config.longest + 1)
        }
        optimiser = torch.optim.AdamW(net.parameters(), lr=config.learning_rate, weight_decay=1e-4)
        losses: list[float] = []
        recorded: dict[int, float] = {}
        for step in range(config.steps):
            length = int(torch.randint(config.shortest, config.longest + 1, (), generator=draws))
            chosen = torch.randint(config.num_folds, (config.batch_size,), generator=draws)
            data = library[length][chosen].to(here.device)
            noise = centre(torch.randn(data.shape, generator=draws)).to(here.device)
            # Evenly spread times: each batch sees all of the path.
            t = (
                torch.arange(config.batch_size) + torch.rand(config.batch_size, generator=draws)
            ) / config.batch_size
            t = t.to(here.device)
            x = (1 - t)[:, None, None] * noise + t[:, None, None] * data
            loss = (net(x, t) - (data - noise)).square().mean()
            done = (step + 1) / config.steps
            rate = config.learning_rate * min(1.0, 20 * done) * (0.5 + 0.5 * math.cos(math.pi * done))
            optimiser.param_groups[0]["lr"] = rate
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            with torch.no_grad():
                for name, value in net.state_dict().items():
                    average[name].lerp_(value, 1 - min(config.ema, step / (step + 10)))
            losses.append(loss.item())
            if step % 50 == 0 or step + 1 == config.steps:
                recent = losses[-50:]
                recorded[step + 1] = sum(recent) / len(recent)
                here.report(step=step + 1, loss=recorded[step + 1], progress=done)
    finally:
        torch.set_num_threads(threads)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.cpu().contiguous() for name, value in average.items()}, path, metadata=described(config)
    )
    last = losses[-max(1, len(losses) // 10) :]
    return {
        "path": str(path),
        "loss": sum(last) / len(last),
        "losses": [[step, loss] for step, loss in recorded.items()],
        "steps": config.steps,
        "parameters": sum(value.numel() for value in net.parameters()),
        "bytes": path.stat().st_size,
    }
