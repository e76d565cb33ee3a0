"""A training as a gang of ranks on this machine: everything is checked here, before any process starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...device import resolve_slots
from ...gang import launch
from .checkpoint import CHECKPOINT, read_checkpoint
from .config import Config
from .files import read_land
from .place import gpus_per_node
from .rank import train_here
from .results import RESULTS

if TYPE_CHECKING:
    from ...device import Slot
    from ...pool import GPUPool
    from ...run import Run

__all__ = ["check", "start"]


def start(config: Config, pool: GPUPool | None = None) -> Run:
    """Start a training; return at once. `collect` makes a report of the run when it has ended.

    Parameters
    ----------
    config
        What to train, and by how many ranks.
    pool
        Where to take slots; by default a pool of its own.

    Raises
    ------
    ValueError
        Where options, devices, data and checkpoint do not go together.
    OSError
        Where data are missing, or the folder cannot be written or holds another training.
    """
    if pool is not None and config.gpu_ids is not None:
        raise ValueError("gpu_ids and pool both choose devices: give one of the two")
    slots = pool.slots if pool is not None else resolve_slots(config.gpu_ids)
    world = _world(config, slots, pool is not None)
    if config.gpu_ids is not None and world > len(config.gpu_ids):
        raise ValueError(f"world_size={world}, and gpu_ids names {len(config.gpu_ids)}: one rank per id")
    check(config, world, slots[0].kind, Path(config.output_dir).expanduser() if config.output_dir else None)
    data = None if config.data is None else str(Path(config.data).expanduser().absolute())
    return launch(
        train_here,
        replace(config, data=data),
        nprocs=world,
        gpu_ids=None if config.gpu_ids is None else config.gpu_ids[:world],
        pool=pool,
        backend=config.distributed_backend,
        timeout=config.timeout,
        name="train",
        folder=None if config.output_dir is None else Path(config.output_dir).expanduser(),
        seed=config.seed,
    )


def _world(config: Config, slots: tuple[Slot, ...], of_pool: bool) -> int:
    """Return how many ranks: what is said, else one per id, per slot of a pool, per GPU of SLURM or of the machine."""
    if not config.use_multi_gpu:
        return 1
    if config.world_size is not None:
        return config.world_size
    if config.gpu_ids is not None or of_pool:
        return len(slots)
    return gpus_per_node() or (len(slots) if slots[0].kind == "cuda" else 1)


def check(config: Config, world: int, kind: str, folder: Path | None) -> None:
    """Raise what is wrong before a training starts; `kind` is of its devices, cuda or cpu."""
    config.check_device(kind)
    config.per_rank(world)
    if config.resume and folder is None:
        raise ValueError("resume: say in which output_dir the checkpoint is")
    if folder is not None and folder.exists():
        if not folder.is_dir():
            raise NotADirectoryError(f"output_dir={str(folder)!r} is a file; give a folder")
        if config.resume:
            read_checkpoint(folder, config)
        else:
            held = [name for name in (CHECKPOINT, RESULTS) if (folder / name).exists()]
            if held:
                raise FileExistsError(
                    f"{folder} holds a training ({', '.join(held)}): give --resume (resume=True) to go on with it, or "
                    "another output_dir"
                )
    if config.data is not None:
        read_land(
            config.data, trust=config.trust, static=config.static_columns, scalars=config.scalar_columns
        )
