"""From noise to molecules: the samples of some indices, the same whatever is sampled beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from ...options import check_choice
from ..threads import one_thread
from .checkpoint import check_n_nodes
from .draws import generator, number_of_atoms
from .forces.base import ForceField
from .guidance import Guide
from .molecule import Molecule
from .process import Batch, Denoiser, Process, Start
from .solvers import SAMPLERS, Sampler, number_of_steps
from .trajectory import Trajectory

__all__ = ["Samples", "check_broken", "sample"]


@dataclass
class Samples:
    """Samples, in the order of the indices that were asked for.

    Attributes
    ----------
    molecules
        A molecule for each index; positions are finite, with zero centre of mass.
    force_calls, failed_calls
        Force calls of the guide, those that failed among them, and how many failed, int64 [n].
    broken
        Samples whose numbers became infinite, NaN or larger than `WIDEST`, bool [n]. Such a molecule is the last
        state that was finite; nothing moved it afterwards.
    steps
        Steps from noise to data, without the last, which decodes.
    first_error
        Index of the first sample of which a force call failed, and what its first failure said.
    trajectory
        Force RMS along the way, of guided samples or where a field was to watch.
    chain
        Frames of the path of the first sample, if they were asked for.
    """

    molecules: list[Molecule]
    force_calls: NDArray[np.int64]
    failed_calls: NDArray[np.int64]
    broken: NDArray[np.bool_]
    steps: int
    first_error: tuple[int, str] | None = None
    trajectory: Trajectory | None = None
    chain: list[Molecule] | None = None


def sample(
    model: Denoiser,
    indices: Sequence[int],
    *,
    seed: int,
    sampler: Sampler = "ddpm",
    steps: int | None = None,
    n_nodes: int | None = None,
    guide: Guide | None = None,
    batch_size: int = 50,
    frames: int = 0,
    watch: ForceField | None = None,
    device: str = "cpu",
    on_step: Callable[[int, int], None] | None = None,
) -> Samples:
    """Draw samples from a model.

    A sample depends on `seed` and its index, and on the options of the sampler and the guide; on a CPU to the last
    bit, whatever other indices are asked for and however they are batched. A pool's workers, and ranks of torchrun,
    run with ``MKL_CBWR=AUTO,STRICT``: a process that has not set this before it imported torch may find other last
    bits than they do. With another guide, or another sampler,
    the sample of an index begins with the same number of atoms and the same noise.

    Parameters
    ----------
    model
        The model, on `device`.
    indices
        Numbers of samples, >= 0, in any order.
    seed
        Seed of all samples.
    sampler
        ``"ddpm"`` or ``"dpm_solver++"``.
    steps
        Steps S from noise to data, at most the T of the training; None: T for ddpm, 20 for dpm_solver++.
    n_nodes
        Number of atoms; None: drawn from the training's histogram.
    guide
        What moves the atoms on their way, if anything.
    batch_size
        Most samples that go through the model at once. On a CPU those of a batch have the same number of atoms.
    frames
        Frames of the first sample's path, from noise to molecule, spread evenly over its states; where there are
        fewer states, each comes once and the last is repeated.
    watch
        A force field whose forces are recorded along the way and move nothing; None: those of the guide.
    device
        Where the model is.
    on_step
        Called after each step with the number of steps made and of all, over all batches. What it raises ends the
        sampling.

    Raises
    ------
    ValueError
        If an option is not what it must be; the message names it.
    torch.OutOfMemoryError
        If a batch does not fit: a smaller one may.
    """
    check_choice(sampler, SAMPLERS, "sampler")
    steps = number_of_steps(sampler, steps, model.schedule.steps)
    if n_nodes is not None:
        check_n_nodes(model, n_nodes)
    if batch_size < 1 or frames < 0:
        raise ValueError(f"batch_size must be >= 1 and frames >= 0, got {batch_size} and {frames}")
    if guide is not None and guide.scale == 0:
        guide = None
    starts = []
    for place, index in enumerate(indices):
        draws = generator(seed, index)
        starts.append(Start(place, index, draws, number_of_atoms(draws, model.histogram, n_nodes)))
    groups = list(_groups(starts, batch_size, padded=not device.startswith("cpu")))
    process = Process(model, sampler, steps, guide, watch, device, frames)
    done = 0

    def step_made() -> None:
        nonlocal done
        done += 1
        if on_step is not None:
            on_step(done, len(groups) * (steps + 1))

    with one_thread(device), torch.no_grad():
        batches = []
        for members in groups:
            batches.append(batch := Batch(process, members))
            batch.run(step_made)
    return _gather(process, batches, len(starts))


def check_broken(broken: NDArray[np.bool_] | Sequence[bool]) -> None:
    """Refuse a set without a guide in which each sample is broken: the model gives no numbers.

    Parameters
    ----------
    broken
        Of all samples of the set.

    Raises
    ------
    ValueError
        If there are samples, and all of them are broken.
    """
    if len(broken) and all(broken):
        raise ValueError(
            f"each of {len(broken)} samples has numbers that are not finite, or beyond all bounds: take more steps, of "
            "ddpm at least a tenth of the training's; if there are enough, the weights of the model are damaged, so "
            "choose another model_path"
        )


def _groups(starts: Sequence[Start], batch_size: int, padded: bool) -> Iterator[list[Start]]:
    """Samples that go through the model together: of one size, unless they are padded; each by index."""
    ordered = sorted(starts, key=lambda start: (start.atoms, start.index))
    for _, same in groupby(ordered, lambda start: None if padded else start.atoms):
        members = list(same)
        for first in range(0, len(members), batch_size):
            yield sorted(members[first : first + batch_size], key=lambda start: start.index)


def _gather(process: Process, batches: Sequence[Batch], count: int) -> Samples:
    """Samples of all batches, each in its place."""
    molecules: dict[int, Molecule] = {}
    calls, failed = np.zeros((2, count), dtype=np.int64)
    broken = np.zeros(count, dtype=np.bool_)
    force_rms = np.full((count, len(process.watched)), np.nan)
    for batch in batches:
        places = [start.place for start in batch.starts]
        molecules.update(zip(places, batch.molecules, strict=True))
        if batch.pusher is not None:
            calls[places], failed[places] = batch.pusher.calls.cpu(), batch.pusher.failed.cpu()
        broken[places], force_rms[places] = batch.broken, batch.force_rms
    errors = [error for batch in batches if (error := batch.first_error) is not None]
    return Samples(
        molecules=[molecules[place] for place in range(count)],
        force_calls=calls,
        failed_calls=failed,
        broken=broken,
        steps=process.steps,
        first_error=min(errors, default=None),
        trajectory=process.trajectory(force_rms) if process.watches else None,
        chain=next((batch.chain for batch in batches if batch.chain), None),
    )
