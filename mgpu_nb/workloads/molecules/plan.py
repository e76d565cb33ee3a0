"""What an evaluation will do: what is checked before it starts, and its tasks."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ...output import clean
from ...tasks import Task
from .config import Config, SampleSet, canonical
from .diffusion import Diffusion
from .draws import generator, number_of_atoms
from .forces.base import check_extra
from .forces.fit_potential import FitConfig, fit
from .forces.load import check_field, weights_digest
from .solvers import Levels, grid, number_of_steps
from .source import checked_model, model_digest
from .worker import guided_calls, run_chain, run_chunk, used_fields

__all__ = ["check_inputs", "chunks", "fit_tasks", "tasks"]

log = logging.getLogger("mgpu_nb.molecules")

FIXED = 750.0  # of a pass through the model, in units of samples times atoms squared, measured on a CPU
RETRIES = 1  # of a chunk whose worker is killed: a neighbour on the machine may have taken the memory
ONE_BY_ONE = (
    10.0  # passes through the model that a force call costs, if the field takes one molecule at a time
)


def check_inputs(config: Config) -> Diffusion:
    """Check what a config names outside of itself: the model, force fields, packages; return the model.

    Raises
    ------
    TypeError, ValueError
        If a run could not succeed; the message says what to do.
    """
    check_extra("rdkit", "validity of molecules")
    if config.relax or config.relaxation_calls:
        check_extra("ase", "relax" if config.relax else "relaxation_calls")
    if config.relax or config.strongest:
        check_field(config.mlff_model)
    if config.judge is not None:
        check_field(config.judge, "judge")
    if config.use_wandb and importlib.util.find_spec("wandb") is None:
        raise ValueError('use_wandb needs wandb, which is not installed: pip install "mgpu-nb[wandb]"')
    model = checked_model(config)
    log.info(
        "model %s: %d weights, %d steps, trained on %d molecules of %d to %d atoms of %s",
        clean(config.model_path or "of this package"),
        sum(weight.numel() for weight in model.parameters()),
        model.schedule.steps,
        sum(model.histogram.values()),
        min(model.histogram),
        max(model.histogram),
        ", ".join(model.alphabet),
    )
    if config.strongest and not guided_calls(config, model.schedule):
        steps = number_of_steps(config.sampler, config.steps, model.schedule.steps)
        least = min(Levels(model.schedule, grid(config.sampler, steps, model.schedule)).sigma)
        raise ValueError(
            f"noise_threshold={config.noise_threshold:g} is below the noise of every step, so nothing would be guided: "
            f"take at least {least:.2g}, or no scale but 0"
        )
    return model


def tasks(config: Config, slots: int | None = None) -> list[Task]:
    """Chunks of the samples of each set, and the chains, as tasks.

    A task is named after its set and its first sample, and its arguments hold only what decides its result: the same
    chunk is the same task in any run, for any number of slots and scales, and for another number of samples unless it
    is the last one of its size. The costliest begin first: guided sets, large molecules; at the end there are short
    ones.

    Parameters
    ----------
    config
        The options.
    slots
        Number of slots; chunks are the same for any.

    Raises
    ------
    TypeError, ValueError
        As `check_inputs`.
    """
    model = check_inputs(config)
    inputs = model_digest(config.model_path)
    calls = guided_calls(config, model.schedule)
    steps = number_of_steps(config.sampler, config.steps, model.schedule.steps)
    price = 1.0 if config.mlff_model == "potential" else ONE_BY_ONE

    def cost(of: SampleSet, atoms: int, samples: int) -> float:
        passes = steps + price * calls * (bool(of.scale) + ONE_BY_ONE * of.relaxed)
        return passes * (FIXED + samples * atoms**2)

    def weights(names: Iterable[str]) -> dict[str, str]:
        """Digests of the force fields that have files, by name: with other weights it is another task."""
        return {name: digest for name in sorted(set(names)) if (digest := weights_digest(name))}

    found = []
    for of in config.sets():
        options = canonical(config, of.scale, of.relaxed)
        fields = weights(used_fields(options, of))
        for atoms, chunk in chunks(config, model.histogram):
            price_of = cost(of, atoms, len(chunk))
            named: dict[str, Any] = {"name": f"{of.name}-{chunk[0]}", "cost": price_of}
            found.append(
                Task(
                    run_chunk, options, inputs, of, chunk, fields, **named, seed=config.seed, retries=RETRIES
                )
            )
    for name, scale in config.chains().items():
        options, named = canonical(config, scale), {"name": name, "cost": cost(SampleSet(name, scale), 0, 1)}
        fields = weights([options.mlff_model] if scale else [])
        found.append(
            Task(run_chain, options, inputs, scale, fields, **named, seed=config.seed, retries=RETRIES)
        )
    return found


def chunks(config: Config, histogram: Mapping[int, int]) -> list[tuple[int, tuple[int, ...]]]:
    """Numbers of atoms and indices of the samples of each chunk, in the order of their first samples.

    Samples of a chunk have one size, because only those go through the model together on a CPU: ten of 8 atoms take
    1.6 times as long as one.
    """
    by_size: dict[int, list[int]] = {}
    for index in range(config.n_samples):
        atoms = number_of_atoms(generator(config.seed, index), histogram, config.n_nodes)
        by_size.setdefault(atoms, []).append(index)
    size = config.chunk_size
    found = [
        (atoms, tuple(indices[at : at + size]))
        for atoms, indices in by_size.items()
        for at in range(0, len(indices), size)
    ]
    return sorted(found, key=lambda chunk: chunk[1])


def fit_tasks(config: FitConfig, slots: int | None = None) -> list[Task]:
    """Fit of the potential as the one task of a run.

    Raises
    ------
    ValueError
        If a package that it needs is not installed.
    """
    for package in ("ase", "rdkit", "tblite"):
        check_extra(package, "the fit")
    return [Task(fit, replace(config, gpu_ids=None), name="fit", seed=config.seed)]
