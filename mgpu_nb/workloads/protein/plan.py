"""What a run will do: what is checked before it starts, and its tasks."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from ...tasks import Task
from ..inputs import check_imports
from .budget import evaluations, experiments
from .config import Config, canonical
from .train_ca_net import TrainConfig, train

__all__ = ["check_inputs", "tasks", "training_tasks"]

log = logging.getLogger("mgpu_nb.protein")


def check_inputs(config: Config) -> None:
    """Check what a config names outside of itself: folders, files and imports.

    Raises
    ------
    TypeError, ValueError
        If a run could not succeed; the message says what to do.
    """
    from .designability import check_designability
    from .models import check_model
    from .scores import check_score
    from .structures import reference_folds

    if config.output_dir is not None:
        output = Path(config.output_dir).expanduser()
        occupied = [part for part in (output, *output.parents) if part.exists() and not part.is_dir()]
        if occupied:
            raise ValueError(
                f"output_dir={config.output_dir!r}: {occupied[0]} is a file; name a folder, new or not"
            )
    if config.references is not None:
        folds = reference_folds(config)
        if folds.left_out:
            log.warning("references=%r: %s", config.references, folds.left_out)
    check_model(config.model, config.checkpoint, config.python)
    if config.python is None:
        check_score(config)
        check_designability(config)
        return
    functions = (config.scoring_function, config.design_sequences, config.fold_sequences)
    modules = [fn.partition(":")[0] for fn in functions if isinstance(fn, str) and ":" in fn]
    if modules:  # they need not import here
        check_imports(config.python, modules, "a function of yours", "Install there what is missing")


def tasks(config: Config, slots: int | None = None) -> list[Task]:
    """Experiments of a run as tasks, one per method and branch count, the baseline once.

    A task is named ``method-bN``, with a longer interval than the config's ``method-bN.everyM``; its cost
    is network evaluations times samples, so that the longest start
    first. Its arguments hold only what decides its results, the contents of the files it reads among them: the
    same experiment is the same task in any run, and another one if a file has changed.

    Parameters
    ----------
    config
        The options.
    slots
        Number of slots; experiments are the same for any number.

    Raises
    ------
    TypeError, ValueError
        As `check_inputs`.
    """
    from .structures import inputs_digest
    from .worker import run_experiment

    planned = experiments(config)
    check_inputs(config)
    options = canonical(config)
    inputs = inputs_digest(options)
    return [
        Task(
            run_experiment,
            experiment.method,
            experiment.num_branches,
            experiment.options(options),
            inputs,
            name=experiment.name,
            cost=float(
                evaluations(experiment.method, experiment.num_branches, experiment.options(config))
                * config.num_samples
            ),
            seed=config.seed,
        )
        for experiment in planned
    ]


def training_tasks(config: TrainConfig, slots: int | None = None) -> list[Task]:
    """Training of `ca_net` as the one task of a run."""
    return [Task(train, replace(config, gpu_ids=None), name="train", seed=config.seed)]
