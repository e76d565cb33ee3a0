"""A training, or a check, as a gang of ranks: checked here, before any process starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...distributed.check import check_here
from ...distributed.environment import gpus_per_node
from ...distributed.launch import expected_ranks, launch
from ...hardware.slots import resolve_slots
from .checkpoint import check_data, read_checkpoint
from .config import CheckConfig, Config
from .files import CHECKPOINT, RESULTS
from .own import problem_of
from .reader import read_land
from .reading import reading_of
from .sharding import check_fsdp
from .worker import train_here

if TYPE_CHECKING:
    from ...hardware.slots import Slot
    from ...pool import GPUPool
    from ...runs.run import Run
    from .identity import Identity

__all__ = ["PRELOAD", "check_folder", "launch_check", "launch_training"]

PRELOAD = ("torch._dynamo",)  # the first step of an optimizer imports it


def launch_training(config: Config, pool: GPUPool | None, folder: Path) -> Run:
    """Launch the ranks of a training; return at once.

    Parameters
    ----------
    config
        What to train, and by how many ranks.
    pool
        Where to take slots; by default a pool of its own.
    folder
        Folder of the run and of the files of the training.

    Raises
    ------
    ValueError
        If options, devices, data and checkpoint do not go together.
    OSError
        If data are missing, or the folder holds results without their checkpoint.
    """
    slots = pool.slots if pool is not None else resolve_slots(config.gpu_ids)
    world, ids = _world(config, slots, pool), config.gpu_ids
    most = None if pool is None else pool.expected_slots
    if most is not None and world > most:
        raise ValueError(f"world_size={world}: the pool has {most} slots; give it more, or fewer ranks")
    if isinstance(ids, tuple):
        if world > len(ids):
            raise ValueError(f"world_size={world}, and gpu_ids names {len(ids)}: one rank per id")
        ids = ids[:world]
    _check_world(config, world, slots)
    if config.strategy == "fsdp":
        check_fsdp()
    before = check_folder(config, folder)
    problem = problem_of(config)
    here = problem.check(identify=before is not None)
    if before is not None and here is not None:
        check_data(folder, config, before, here, problem.unit)
    return launch(
        train_here,
        args=(config, folder),
        nprocs=world,
        gpu_ids=ids,
        pool=pool,
        backend=config.distributed_backend,
        timeout=config.timeout,
        preload=PRELOAD if pool is None else (),
        name="training",
        folder=folder,
        seed=config.seed,
    )


def launch_check(config: CheckConfig, pool: GPUPool | None, folder: Path) -> Run:
    """Launch the ranks of a check of the set-up; return at once. Parameters as `launch_training`.

    Data are read here, before.

    Raises
    ------
    ValueError
        If options and devices do not go together, or data hold what the options do not allow.
    FileNotFoundError
        If data are missing.
    """
    slots = pool.slots if pool is not None else resolve_slots(config.gpu_ids)
    every = len(slots) if pool is None else expected_ranks(pool)
    world = config.world_size or (every if config.every_device else 1)
    _check_world(config, world, slots)
    ids = config.gpu_ids[:world] if isinstance(config.gpu_ids, tuple) else config.gpu_ids
    data = (
        read_land(config.data, trust=config.trust, reading=reading_of(config)).layout if config.data else None
    )
    return launch(
        _check_beside,
        args=(None if data is None else data.plain(),),
        nprocs=world,
        gpu_ids=ids,
        pool=pool,
        backend=config.distributed_backend,
        timeout=config.timeout,
        name="training-check",
        folder=folder,
    )


def _check_beside(data: dict[str, Any] | None) -> dict[str, Any]:
    """Check a rank; what is known of the data goes with what it measured."""
    return check_here() | ({} if data is None else {"data": data})


def _check_world(config: Config | CheckConfig, world: int, slots: Sequence[Slot]) -> None:
    """Check what depends on the ranks and the kind of their devices; before a node is there, either kind may do."""
    if slots:
        config.check_world(world, slots[0].kind)
        return
    try:
        config.check_world(world, "cuda")
    except ValueError:
        config.check_world(world, "cpu")


def _world(config: Config, slots: Sequence[Slot], pool: GPUPool | None) -> int:
    """Number of ranks: world_size, else one per id, per slot of a pool, per GPU of SLURM or of the machine."""
    if not config.use_multi_gpu:
        return 1
    if config.world_size is not None:
        return config.world_size
    if pool is not None:
        return expected_ranks(pool)
    if isinstance(config.gpu_ids, tuple):
        return len(slots)
    if config.gpu_ids == "cpu":
        return 1
    return min(gpus_per_node() or (len(slots) if slots[0].kind == "cuda" else 1), len(slots))


def check_folder(config: Config, folder: Path) -> Identity | None:
    """Check that a training can go on in a folder, or begin there.

    Returns
    -------
    Identity or None
        Data of its checkpoint; None if there is none, or it is of a former version, which did not write them.

    Raises
    ------
    FileExistsError
        If it holds results without the checkpoint to go on from.
    ValueError
        If it holds a checkpoint of another training.
    """
    state = read_checkpoint(folder, config)
    if state is None and (folder / RESULTS).exists():
        raise FileExistsError(
            f"{folder} holds the results of a training without its {CHECKPOINT}: give resume=False (--no_resume) to "
            "train in a new folder below it, or another output_dir"
        )
    return None if state is None else state.get("data")
