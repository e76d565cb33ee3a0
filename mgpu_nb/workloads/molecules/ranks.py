"""The training of the embedded model by several ranks, whether `launch`, torchrun or srun started them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...context import Worker, set_worker
from ...distributed.environment import RankEnvironment, group
from ...distributed.launch import launch
from ...pool import GPUPool
from ...store.files import atomic_write
from ...tasks import Task
from ..inputs import one_slot
from ..ranks import rank_device
from .train import TRAINING, TrainConfig, initial_weights, train

if TYPE_CHECKING:
    from ...runs.run import Run

__all__ = ["launch_training", "train_as_rank"]

_TIMEOUT = 1800.0  # seconds that ranks wait for one that makes conformers


def launch_training(config: TrainConfig, pool: GPUPool | None, folder: Path) -> Run:
    """Launch the ranks of a training; return at once. See `launch`.

    One rank is a plain task: a training that the folder holds already is taken over.

    Raises
    ------
    ValueError
        If a package that makes the molecules is not installed, or `TrainConfig.init` is no model of this size.
    """
    from .forces.base import check_extra

    for package in ("rdkit", "ase"):
        check_extra(package, "a training")
    initial_weights(config)
    if config.world_size == 1:
        devices = {"gpu_ids": config.gpu_ids, **one_slot(config)}
        executor = pool or GPUPool(**devices, isolation="task", rerun="keep", share=True)
        try:
            task = Task(train, replace(config, gpu_ids=None), name="train", seed=config.seed)
            return executor.run([task], name="molecules-train", folder=folder, seed=config.seed, whole=True)
        finally:
            if pool is None:
                executor.shutdown(wait=False)
    return launch(
        train,
        args=(replace(config, gpu_ids=None),),
        nprocs=config.world_size,
        gpu_ids=config.gpu_ids,
        pool=pool,
        timeout=_TIMEOUT,
        name="molecules-train",
        folder=folder,
        seed=config.seed,
    )


def train_as_rank(config: TrainConfig, ranks: RankEnvironment, folder: Path) -> None:
    """Train as a rank that torchrun or srun started; all files go to `folder`.

    Raises
    ------
    ValueError
        If ``world_size`` is not the number of ranks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = rank_device(ranks, config.gpu_ids)
    config.check_world(ranks.world, device.partition(":")[0])
    with group(ranks, "nccl" if device.startswith("cuda") else "gloo", folder, _TIMEOUT):
        set_worker(Worker(ranks.rank, device, (device,), None, "", folder=folder))
        try:
            value = train(config)
        finally:
            set_worker(None)
    if ranks.rank == 0:
        with atomic_write(folder / TRAINING) as part:
            part.write_text(json.dumps(value), encoding="utf-8")
