"""A training as a gang of ranks on this machine: everything is checked here, before any process starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...distributed.environment import gpus_per_node
from ...distributed.launch import launch
from ...hardware.slots import resolve_slots
from ...runs.plan import run_folder
from .checkpoint import CHECKPOINT, read_checkpoint
from .config import Config
from .rank import train_here
from .results import RANKS, RESULTS
from .trainer import whole_land

if TYPE_CHECKING:
    from ...hardware.slots import Slot
    from ...pool import GPUPool
    from ...runs.run import Run

__all__ = ["check_folder", "start"]

PRELOAD = ("torch._dynamo",)  # the first step of an optimizer imports it


def start(config: Config, pool: GPUPool | None = None) -> Run:
    """Start a training; return at once. `collect` makes a report of the run when it has ended.

    Its files go to ``output_dir``, by default a new folder below ``runs``; the run of its ranks is in ``ranks`` there.

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
    ids = config.gpu_ids
    if pool is not None and world > len(slots):
        raise ValueError(f"world_size={world}: the pool has {len(slots)} slots; give it more, or fewer ranks")
    if isinstance(ids, tuple):
        if world > len(ids):
            raise ValueError(f"world_size={world}, and gpu_ids names {len(ids)}: one rank per id")
        ids = ids[:world]
    config.check_world(world, slots[0].kind)
    if config.resume and config.output_dir is None:
        raise ValueError("resume: say in which output_dir the checkpoint is")
    folder = run_folder(config.output_dir, "train")
    check_folder(config, folder)
    if config.data is not None:
        whole_land(config)
    return launch(
        train_here,
        config,
        folder,
        nprocs=world,
        gpu_ids=ids,
        pool=pool,
        backend=config.distributed_backend,
        timeout=config.timeout,
        preload=PRELOAD if pool is None else (),
        name="train",
        folder=folder / RANKS,
        seed=config.seed,
    )


def _world(config: Config, slots: Sequence[Slot], of_pool: bool) -> int:
    """Return how many ranks: what is said, else one per id, per slot of a pool, per GPU of SLURM or of the machine."""
    if not config.use_multi_gpu:
        return 1
    if config.world_size is not None:
        return config.world_size
    if of_pool or isinstance(config.gpu_ids, tuple):
        return len(slots)
    if config.gpu_ids == "cpu":
        return 1
    return min(gpus_per_node() or (len(slots) if slots[0].kind == "cuda" else 1), len(slots))


def check_folder(config: Config, folder: Path) -> None:
    """Raise what is wrong with a folder for a training.

    Raises
    ------
    NotADirectoryError, FileExistsError
        Where it is a file, or holds a training and `config` does not resume it.
    ValueError
        Where it holds a checkpoint of another training.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"output_dir={str(folder)!r} is a file; give a folder")
    if config.resume:
        read_checkpoint(folder, config)
        return
    held = [name for name in (CHECKPOINT, RESULTS) if (folder / name).exists()]
    if held:
        raise FileExistsError(
            f"{folder} holds a training ({', '.join(held)}): give --resume (resume=True) to go on with it, or another "
            "output_dir"
        )
