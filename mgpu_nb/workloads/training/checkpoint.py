"""The checkpoint of a training: all that it needs to go on as if nothing had been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...store.files import atomic_write
from .config import Config
from .files import CHECKPOINT
from .identity import Identity, differences
from .reading import READING

__all__ = ["check_data", "read_checkpoint", "write_checkpoint"]

# What a training cannot change on its way: the land, its split, the model, the optimizer, what a loss is.
MADE_FOR = (
    "data", *READING, "columns", "validation_share", "seed", "width", "layers", "heads",
    "batch_norm", "optimizer", "loss_weights", "model", "loss", "forward", "collate",
)  # fmt: skip


def write_checkpoint(folder: Path, config: Config, state: dict[str, Any]) -> None:
    """Write a state into a folder; the one before stays whole until the new one is."""
    with atomic_write(folder / CHECKPOINT) as part:
        torch.save({**state, "config": _made_for(config)}, part)


def read_checkpoint(folder: Path, config: Config) -> dict[str, Any] | None:
    """Read the state of a folder, its tensors on the CPU; None where there is none.

    Raises
    ------
    ValueError
        If it is of another model or other data: says in what they differ; or where it is damaged.
    """
    file = folder / CHECKPOINT
    if not file.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        made_for = dict(state["config"])
    except Exception as error:
        reason = f"{type(error).__name__} {error}".splitlines()[0].strip()
        raise ValueError(
            f"{file} is no checkpoint of a training, or damaged ({reason}): delete it to train anew, or give another "
            "output_dir"
        ) from error
    differ = [
        f"{name}={made_for.get(name)!r} there, {value!r} here"
        for name, value in _made_for(config).items()
        if made_for.get(name) != value
    ]
    if differ:
        raise ValueError(f"{file} is of another training: {'; '.join(differ)}. Give another output_dir")
    return state


def check_data(folder: Path, config: Config, before: Identity, here: Identity, unit: str) -> None:
    """Check that a training goes on over the data that it began with.

    Parameters
    ----------
    folder
        Folder of the checkpoint.
    config
        Options of the training.
    before, here
        Data of the checkpoint, and those that are there now.
    unit
        What samples are called, in the plural.

    Raises
    ------
    ValueError
        If they differ: with another split, samples that were trained on would be held out. The message says in what.
    """
    if differ := differences(before, here, unit):
        own = ", which data() must return in each process: seed what it draws" if config.model else ""
        raise ValueError(
            f"{folder / CHECKPOINT} is of a training on other data: {'; '.join(differ)}. Give the data that it was "
            f"made with{own}; or give resume=False (--no_resume) to train in a new folder below it, or another "
            "output_dir"
        )


def _made_for(config: Config) -> dict[str, Any]:
    stated = config.stated()
    return {name: stated[name] for name in MADE_FOR}
