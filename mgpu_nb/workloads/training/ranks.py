"""Ranks that torchrun or srun started, of a training or of a check."""

from __future__ import annotations

from pathlib import Path

from ...distributed.check import check_rank, summary
from ...distributed.environment import RankEnvironment, group
from ..ranks import rank_device
from .config import CheckConfig, Config
from .plan import check_folder
from .reader import read_land
from .reading import reading_of
from .worker import train

__all__ = ["check_as_rank", "train_as_rank"]


def train_as_rank(config: Config, ranks: RankEnvironment, folder: Path) -> None:
    """Train as a rank; all files go to `folder`.

    Raises
    ------
    ValueError, OSError
        If options, devices, data and checkpoint do not go together.
    """
    check_folder(config, folder)
    folder.mkdir(parents=True, exist_ok=True)
    device, backend = _device(ranks, config)
    with group(ranks, backend, folder, config.timeout):
        train(config, folder, device)


def check_as_rank(config: CheckConfig, ranks: RankEnvironment, folder: Path) -> None:
    """Check the set-up as a rank, and print what was found; ranks of srun meet through a file in `folder`.

    Rank 0 reads data, and prints what was done to them.

    Raises
    ------
    ValueError, OSError
        If options, devices and data do not go together.
    """
    device, backend = _device(ranks, config)
    if config.data and ranks.rank == 0:
        print(read_land(config.data, trust=config.trust, reading=reading_of(config)).layout.table(whole=True))
    with group(ranks, backend, folder, config.timeout):
        found = check_rank(device)
    print(f"Process {ranks.rank}/{ranks.world} initialized on {found['device']}")
    if ranks.rank == 0:
        print(summary(found, ranks.world))
    print(f"Rank {ranks.rank}: Test completed successfully", flush=True)


def _device(ranks: RankEnvironment, config: Config | CheckConfig) -> tuple[str, str]:
    """Device and backend of a rank."""
    device = rank_device(ranks, config.gpu_ids)
    kind = device.partition(":")[0]
    config.check_world(ranks.world, kind)
    return device, config.distributed_backend or ("nccl" if kind == "cuda" else "gloo")
