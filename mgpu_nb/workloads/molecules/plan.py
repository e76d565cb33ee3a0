"""What an evaluation will do: what is checked before it starts, and its tasks."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from ...tasks import Task
from .config import Config, SampleSet, canonical

if TYPE_CHECKING:
    from .diffusion import Diffusion

__all__ = ["check_inputs", "tasks"]

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
    from .forces.base import check_extra
    from .forces.load import check_field
    from .source import checked_model

    check_extra("rdkit", "validity of molecules")
    if config.relax or config.relaxation_calls:
        check_extra("ase", "relax" if config.relax else "relaxation_calls")
    if config.relax or config.strongest:
        check_field(config.mlff_model)
    if config.judge is not None:
        check_field(config.judge, "judge")
    if config.use_wandb and importlib.util.find_spec("wandb") is None:
        raise ValueError('use_wandb needs wandb, which is not installed: pip install "mgpu-nb[wandb]"')
    return checked_model(config)


def tasks(config: Config, slots: int | None = None) -> list[Task]:
    """Chunks of the samples of each set, and the chains, as tasks.

    A task is named after its set and its first sample, and its arguments hold only what decides its result: the same
    chunk is the same task in any run, for any number of slots, samples and scales.

    Its cost is the number of passes through the model and of force calls, so that the longest start first: guided
    sets, and at the end the chunks of the baseline, which are the shortest.

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
    from .source import model_digest
    from .worker import guided_calls, run_chain, run_chunk

    model = check_inputs(config)
    inputs = model_digest(config.model_path)
    calls = guided_calls(config, model.schedule)
    steps = config.steps or (model.schedule.steps if config.sampler == "ddpm" else 20)
    price = 1.0 if config.mlff_model == "potential" else ONE_BY_ONE

    def cost(of: SampleSet) -> float:
        return steps + price * calls * (bool(of.scale) + ONE_BY_ONE * of.relaxed)

    chunks = [
        Task(
            run_chunk,
            canonical(config, of.scale, of.relaxed),
            inputs,
            of,
            start,
            min(start + config.chunk_size, config.n_samples),
            name=f"{of.name}-{start}",
            cost=cost(of) * min(config.chunk_size, config.n_samples - start),
            seed=config.seed,
            retries=RETRIES,
        )
        for of in config.sets()
        for start in range(0, config.n_samples, config.chunk_size)
    ]
    chains = [
        Task(
            run_chain,
            canonical(config, scale),
            inputs,
            scale,
            name=name,
            cost=cost(SampleSet(name, scale)),
            seed=config.seed,
            retries=RETRIES,
        )
        for name, scale in config.chains().items()
    ]
    return chunks + chains
