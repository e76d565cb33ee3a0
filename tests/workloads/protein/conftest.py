"""What the protein tests share: one torch thread, random rotations, a worker with a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import pytest
import torch
from torch import Tensor

from mgpu_nb import context
from mgpu_nb.workloads.protein.folds import generate_folds

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Every test of the folder."""


@pytest.fixture
def draws() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.fixture
def folds() -> Tensor:
    """The eight references of 50 residues, [8, 50, 3] in angstrom."""
    return torch.from_numpy(generate_folds(50))


@pytest.fixture
def rotation(draws: torch.Generator) -> Callable[[], Tensor]:
    """Make random rotations [3, 3], determinant 1, float64."""

    def make() -> Tensor:
        q = torch.linalg.qr(torch.randn(3, 3, generator=draws, dtype=torch.float64)).Q
        turn: Tensor = q * torch.linalg.det(q)
        return turn

    return make


@pytest.fixture
def in_folder(tmp_path: Path) -> Iterator[Path]:
    """Make `worker()` a CPU worker of a run with a folder; its reports are in `reports`."""
    context.set_worker(context.Worker(0, "cpu", ("cpu",), None, "cpu:0", folder=tmp_path))
    yield tmp_path
    context.set_worker(None)
