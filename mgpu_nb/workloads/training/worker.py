"""Work of a rank of a training, whether `launch`, torchrun or srun started it."""

from __future__ import annotations

import logging
import math
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ...context import worker
from ...errors import add_note
from .config import Config
from .files import write_results
from .sharding import gathered
from .trainer import Trainer

__all__ = ["train", "train_here"]


def train_here(config: Config, folder: Path) -> dict[str, Any]:
    """Train as a rank that `launch` started: on the worker's device."""
    here = worker()
    if here.folder_note:  # all ranks read checkpoints there, and the first writes them
        here.need_folder()
    try:
        return train(config, folder, here.device, here.report)
    except FileNotFoundError as error:
        if here.members is not None and here.members.meeting_point is not None:
            add_note(error, "It is one of several nodes: each must have the data, under the same path.")
        raise


def train(
    config: Config,
    folder: Path,
    device: str,
    report: Callable[..., None] = lambda **values: None,
) -> dict[str, Any]:
    """Train, and have rank 0 write all files; return what training_results.json holds.

    Raises
    ------
    ValueError, FileNotFoundError
        If config, world, device, data and checkpoint do not go together.
    """
    _configure_logging(config.log_level)
    log = logging.getLogger("mgpu_nb.training")
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    trainer = Trainer(config, folder, device, report)
    problem, world = trainer.problem, trainer.world
    count = sum(p.numel() for p in trainer.model.parameters())
    size = config.per_rank(world)
    if trainer.rank == 0:
        log.info(
            "%d ranks x %d %s, %d per optimizer step; learning rate %g; %d weights",
            world, size, problem.unit, config.effective(world), config.rate(world), count,
        )  # fmt: skip
        if described := problem.describe_data():
            log.info("data:\n%s", described)
    history = trainer.fit()
    ranks = _gathered(trainer)
    own = ("epoch", "loss", "validation", "learning_rate", f"{problem.unit}_per_second")
    best = min(history, key=lambda values: values["validation"])
    results: dict[str, Any] = {
        "config": config.stated(),
        "unit": problem.unit,
        "world_size": world,
        "backend": dist.get_backend() if dist.is_initialized() else None,
        "batch_per_rank": size,
        "batch_global": config.global_batch(world),
        "batch_effective": config.effective(world),
        "learning_rate": config.rate(world),
        "weights": count,
        "epochs": trainer.epoch,
        "steps": trainer.steps,
        "best_epoch": best["epoch"],
        "best_validation": best["validation"],
        "baseline": problem.baseline(),
        "metrics": {name: best[name] for name in best if name not in own},
        "seconds": trainer.elapsed,
        "ranks": ranks,
        "history": history,
    }
    weights = gathered(trainer.best, trainer.rank == 0)
    predictions = trainer.predictions()
    if trainer.rank == 0:
        if predictions:
            predictions = {problem.unit.removesuffix("s"): predictions.pop("index"), **predictions}
        figures = problem.figures(predictions)
        results["metrics"] |= figures.pop("metrics", {})
        results |= figures
        problem.write(folder, predictions)
        write_results(folder, results, weights, problem.metadata(), predictions)
        against = "" if results["baseline"] is None else f", mean predictor {results['baseline']:.4f}"
        log.info(
            "validation %.4f in epoch %d%s, %.1f s",
            best["validation"], best["epoch"] + 1, against, trainer.elapsed,
        )  # fmt: skip
    return results


def _gathered(trainer: Trainer) -> list[dict[str, Any]]:
    """Samples per second while it trained, peak memory and what weights, gradients and optimizer take, by rank."""
    speed = trainer.trained / trainer.seconds if trainer.seconds else math.nan
    mine = [speed, float(_peak_memory(trainer.device)), float(trainer.held_bytes())]
    here = torch.tensor(mine, dtype=torch.float64, device=trainer.device)
    every = [torch.empty_like(here) for _ in range(trainer.world)]
    if dist.is_initialized():
        dist.all_gather(every, here)
    else:
        every = [here]
    per_second = f"{trainer.problem.unit}_per_second"
    return [
        {
            "rank": rank,
            per_second: None if row[0].isnan() else row[0].item(),  # it had nothing left to train
            "peak_memory": int(row[1]),
            "model_memory": int(row[2]),
        }
        for rank, row in enumerate(every)
    ]


def _peak_memory(device: str) -> int:
    """Bytes: on a GPU the most that torch allocated on it, else the peak resident size of this process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _configure_logging(level: str) -> None:
    """Write log records to the standard output, each with its time."""
    logger = logging.getLogger("mgpu_nb.training")
    logger.setLevel(level)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False
