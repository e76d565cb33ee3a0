"""A tiny diffusion model in a file, force fields by import path, and evaluations that run in this process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mgpu_nb import context
from mgpu_nb.tasks import Record, Task
from mgpu_nb.workloads.molecules.checkpoint import save_model
from mgpu_nb.workloads.molecules.config import Config
from mgpu_nb.workloads.molecules.diffusion import Diffusion
from mgpu_nb.workloads.molecules.egnn import EGNN
from mgpu_nb.workloads.molecules.noise import Schedule
from mgpu_nb.workloads.molecules.plan import tasks

SIZES = {3: 2, 5: 5, 7: 3, 9: 1}


def tiny_model(path: Path, steps: int = 20, seed: int = 0) -> str:
    """Path of the file of a random model of 3 to 9 atoms; little is left of its noise to be scaled up."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Diffusion(EGNN(6, 32, 1), histogram=SIZES, schedule=Schedule(steps, 0.1))
    save_model(model, path, {})
    return str(path)


def options(path: str, **changes: Any) -> dict[str, Any]:
    """Options of an evaluation of a few steps with `Springs`."""
    few: dict[str, Any] = {
        "sampler": "dpm_solver++",
        "steps": 2,
        "guidance_scales": (0.0, 0.01),
        "chunk_size": 3,
    }
    fields = {"mlff_model": "tiny_molecules:Springs", "judge": "tiny_molecules:Springs"}
    return {
        "model_path": path,
        "n_samples": 7,
        "skip_chain": True,
        "gpu_ids": "cpu",
        **few,
        **fields,
        **changes,
    }


class Springs:
    """Every atom is drawn to the middle by a spring."""

    name = "springs"

    def forces(
        self, numbers: NDArray[np.int64], positions: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64]]:
        return float((positions**2).sum()), -2 * positions


class Broken(Springs):
    """It converges never."""

    name = "broken"

    def forces(
        self, numbers: NDArray[np.int64], positions: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64]]:
        raise RuntimeError("no convergence in 250 cycles")


class Moody(Springs):
    """It fails on molecules of five atoms."""

    name = "moody"

    def forces(
        self, numbers: NDArray[np.int64], positions: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64]]:
        if len(numbers) == 5:
            raise RuntimeError("five atoms")
        return super().forces(numbers, positions)


class Slow(Springs):
    """It takes its time."""

    name = "slow"

    def forces(
        self, numbers: NDArray[np.int64], positions: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64]]:
        time.sleep(0.01)
        return super().forces(numbers, positions)


def needs_more(key: str) -> Springs:
    """Stand-in for a field that cannot be made without more."""
    return Springs()


def cannot_be_made() -> Springs:
    """Stand-in for a field whose weights are not there."""
    raise OSError("no weights")


class KillsOnce(Springs):
    """It ends the first process that asks, and leaves a file of the name that TINY_KILLS is."""

    name = "kills once"

    def forces(
        self, numbers: NDArray[np.int64], positions: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64]]:
        try:
            os.close(os.open(os.environ["TINY_KILLS"], os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return super().forces(numbers, positions)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@dataclass
class Ended:
    """A run that has ended, as `collect` reads it."""

    tasks: Sequence[str]
    records: list[Record]
    folder: Path | None = None
    reports: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def record_of(task: Task, index: int, reports: list[dict[str, Any]], device: str = "cpu") -> Record:
    """What becomes of a task, run in this process."""
    name = str(task.name)
    context.set_worker(context.Worker(0, device, (device,), None, "cpu:0", task=name, _send=reports.append))
    known: dict[str, Any] = {"name": name, "index": index, "kind": task.kind}
    try:
        assert callable(task.fn)
        return Record(**known, status="ok", value=task.fn(*task.args, **task.kwargs))
    except Exception as error:
        return Record(**known, status="error", error=f"{type(error).__name__}: {error}")
    finally:
        context.set_worker(None)


def run_here(config: Config, folder: Path | None = None) -> Ended:
    """The tasks of an evaluation, run in this process one after the other."""
    ended = Ended([], [], folder)
    for index, task in enumerate(tasks(config)):
        ended.records.append(record_of(task, index, ended.reports.setdefault(str(task.name), [])))
    ended.tasks = [record.name for record in ended.records]
    return ended
