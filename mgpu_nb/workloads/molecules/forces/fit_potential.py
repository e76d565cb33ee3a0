"""The worker that fitted the potential: from displaced molecules and GFN1-xTB to a safetensors file."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from ....options import AtLeast, Between, PositiveFloat, PositiveInt, Seed, check_options

if TYPE_CHECKING:
    from ..molecule import Molecule
    from .frames import Frame
    from .moments import MomentNet
from ...fit import described, output_file
from ...inputs import GpuIds, check_one_gpu, check_output

__all__ = ["FitConfig", "fit"]

log = logging.getLogger("mgpu_nb.molecules")


@dataclass(frozen=True)
class FitConfig:
    """Fit of the potential to forces of GFN1-xTB; the defaults made the shipped parameters."""

    molecules: PositiveInt = 900
    """Number of molecules."""
    frames: PositiveInt = 10
    """Displaced copies of each molecule."""
    steps: PositiveInt = 8000
    """Steps of the optimiser; halfway, frames are added that lie where the potential leads."""
    batch_size: PositiveInt = 48
    """Frames per step."""
    learning_rate: PositiveFloat = 3e-3
    """Highest learning rate; it rises over the first 100 steps and falls along a cosine."""
    bumps: Annotated[int, AtLeast(2)] = 10
    """Radial functions."""
    weights: PositiveInt = 3
    """Numbers that stand for a neighbour's element."""
    channels: PositiveInt = 20
    """Combinations of radial functions and weights, for each order of moments."""
    hidden: PositiveInt = 40
    """Width of the layers."""
    ema: Annotated[float, Between(0, 1, high_open=True)] = 0.998
    """Decay per step of the moving average of the parameters, which is what is saved."""
    seed: Seed = 0
    """Seed of the molecules, of their displacements, of the first parameters and of the batches."""
    gpu_ids: GpuIds = None
    """GPU to use, by its id, or cpu for none; the first by default."""
    output: str | None = None
    """File to write; by default potential.safetensors in the run's folder."""
    output_dir: str | None = None
    """Folder of the run; by default a new one below runs."""

    def __post_init__(self) -> None:
        check_options(self)
        check_output("output", self.output)
        check_one_gpu(self.gpu_ids)


def fit(config: FitConfig) -> dict[str, Any]:
    """Fit the potential; runs as a task or by hand.

    The loss of an atom grows as ``sqrt(1 + |dF|^2 / q^2)`` with ``q = 0.5 eV/A + |F| / 5``: near a minimum a tenth
    of an eV/A counts, where atoms overlap a share of the force does. Forces above 25 eV/A, which reach tens of
    thousands, are shortened to that. Energies count a tenth as much. It uses one thread on a CPU.

    Returns
    -------
    dict
        ``path`` of the parameters, ``loss`` (mean of the last tenth of the steps), ``losses`` ([step, mean of the last
        100 steps] every 100 steps and after the last), ``steps``, ``frames``, ``left_out`` (frames on which
        GFN1-xTB did not converge), ``parameters`` and ``bytes`` of the file.

    Raises
    ------
    ValueError
        If neither `FitConfig.output` nor a run's folder says where to write, or tblite, ASE or RDKit is not installed.
    """
    from ....context import worker
    from .base import check_extra

    here = worker()
    for package in ("ase", "rdkit", "tblite"):
        check_extra(package, "the fit")
    path = output_file(config.output, here, "potential.safetensors", "parameters")

    import torch
    from safetensors.torch import save_file

    from ...threads import one_thread
    from .moments import MomentNet

    with one_thread(here.device):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            net = MomentNet(config.bumps, config.weights, config.channels, config.hidden).to(here.device)
        losses, frames, left_out = _optimise(net, config)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.cpu().contiguous() for name, value in net.state_dict().items()},
        path,
        metadata=described(config),
    )
    last = losses[-max(1, len(losses) // 10) :]
    recorded = sorted({*range(100, len(losses) + 1, 100), len(losses)})
    return {
        "path": str(path),
        "loss": sum(last) / len(last),
        "losses": [[n, sum(losses[max(0, n - 100) : n]) / min(n, 100)] for n in recorded],
        "steps": config.steps,
        "frames": frames,
        "left_out": left_out,
        "parameters": sum(value.numel() for value in net.parameters()),
        "bytes": path.stat().st_size,
    }


def _optimise(net: MomentNet, config: FitConfig) -> tuple[list[float], int, int]:
    """Losses by step, and the numbers of frames that there are and that were left out.

    The average of the parameters is left in the network.
    """
    import numpy as np
    import torch

    from ....context import worker
    from .frame_set import FrameSet
    from .frames import displaced, labelled, random_molecules
    from .tblite_field import TBLiteField

    here, teacher = worker(), TBLiteField("gfn1")
    draws = np.random.default_rng(config.seed)
    molecules = random_molecules(config.molecules, config.seed)
    copies = [copy for molecule in molecules for copy in displaced(molecule, config.frames, draws)]

    left_out = 0

    def label(some: list[Molecule]) -> list[Frame]:
        nonlocal left_out
        found = list(labelled(teacher, some, lambda share: here.report(labelled=share)))
        left_out += len(some) - len(found)
        log.info(
            "%d frames of %d to %d atoms; left out: %d on which GFN1-xTB did not converge",
            len(found),
            min(len(molecule.numbers) for molecule in some),
            max(len(molecule.numbers) for molecule in some),
            len(some) - len(found),
        )
        return found

    frames = FrameSet(label(copies), here.device)
    optimiser = torch.optim.Adam(net.parameters(), lr=config.learning_rate, betas=(0.9, 0.99))
    average = {name: value.clone() for name, value in net.state_dict().items()}
    order = torch.Generator().manual_seed(config.seed)
    losses: list[float] = []
    for step in range(config.steps):
        if step == config.steps // 2:
            followed = list(frames.followed(net, config.molecules, order))
            frames = FrameSet([*frames.frames, *label(followed)], here.device)
        loss = frames.loss(net, frames.draw(config.batch_size, order))
        done = (step + 1) / config.steps
        rate = config.learning_rate * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * done))
        optimiser.param_groups[0]["lr"] = rate
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            for name, value in net.state_dict().items():
                average[name].lerp_(value, 1 - min(config.ema, step / (step + 10)))
        losses.append(loss.item())
        if step % 100 == 99 or step + 1 == config.steps:
            recent = losses[-100:]
            here.report(step=step + 1, loss=sum(recent) / len(recent), progress=done)
    net.load_state_dict(average)
    return losses, len(frames), left_out
