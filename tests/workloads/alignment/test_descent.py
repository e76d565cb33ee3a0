"""Epochs: every row once each, the same whoever loads it and however it is split, and no process left."""

from collections.abc import Mapping
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn

from mgpu_nb import GPUPool, Task
from mgpu_nb.workloads.alignment.descent import Rows, descend, loaded
from mgpu_nb.workloads.alignment.settings import DPO, System, Training

pytestmark = pytest.mark.slow


class Collate:
    def __call__(self, rows: list[float]) -> Mapping[str, Tensor]:
        return {"x": torch.tensor(rows)[:, None]}


def descended(
    micro: int = 3, num_workers: int = 0, epochs: int = 2, seed: int = 0, rows: int = 10
) -> tuple[list[float], int, float, list[dict[str, Any]]]:
    """Weight and bias after a training, its steps, its loss, and what it reported."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    data = Rows([n / 10 for n in range(rows)], Collate())
    weights = [1.0 + n % 2 for n in range(rows)]
    reports: list[dict[str, Any]] = []

    def loss(batch: Mapping[str, Tensor]) -> Tensor:
        x = batch["x"]
        weight = 1.0 + (x * 10).round() % 2
        losses: Tensor = weight * (model(x) - 2 * x).square()
        return losses.sum()

    done = descend(
        model, data, loss, weights,
        algo=DPO(batch_size=6, num_workers=num_workers, learning_rate=1e-2, epochs=epochs, beta=1.0, sft_weight=0.0),
        training=Training(micro_batch_size=micro, gradient_checkpointing=False),
        system=System(), seed=seed, report=lambda **figures: reports.append(figures),
    )  # fmt: skip
    return torch.cat([p.detach().flatten() for p in model.parameters()]).tolist(), *done, reports


def test_micro_batches_change_nothing() -> None:
    whole = descended(micro=6)
    for micro in (1, 2, 3):
        part = descended(micro=micro)
        assert part[0] == pytest.approx(whole[0], abs=1e-6)
        assert part[2] == pytest.approx(whole[2], rel=1e-6)


def test_steps_epochs_and_reports() -> None:
    _, steps, loss, reports = descended(epochs=3)
    assert steps == 6  # 6 and 4 rows, three times
    assert [report["step"] for report in reports] == [1, 2, 3, 4, 5, 6]
    assert reports[-1]["progress"] == 1.0
    assert loss == pytest.approx((reports[4]["loss"] + reports[5]["loss"]) / 2)
    long = descended(epochs=70, rows=12)[3]
    assert len(long) <= 100
    assert long[-1]["step"] == 140


def test_the_order_is_that_of_the_seed() -> None:
    assert descended(seed=0)[0] == descended(seed=0)[0]
    assert descended(seed=0)[0] != descended(seed=1)[0]


def test_random_numbers_of_the_process_are_left_alone() -> None:
    before = torch.get_rng_state()
    list(loaded(Rows([1.0, 2.0], Collate()), [[0], [1]], 0))
    assert torch.equal(torch.get_rng_state(), before)


def test_no_rows() -> None:
    with pytest.raises(ValueError, match="no data to train on"):
        descended(rows=0)


def children_after(num_workers: int) -> tuple[list[float], int]:
    """What a training in a task comes to, and how many processes it leaves."""
    before = len(psutil.Process().children())
    return descended(num_workers=num_workers)[0], len(psutil.Process().children()) - before


@pytest.mark.slow
def test_processes_that_load_change_nothing_and_end(pool: GPUPool) -> None:
    run = pool.run([Task(children_after, n, name=str(n)) for n in (0, 2)]).wait()
    (alone, _), (helped, left) = run.results()
    assert helped == alone == descended()[0]
    assert left == 0


@pytest.mark.slow
def test_processes_that_load_end_with_a_failure() -> None:
    before = set(psutil.Process().children())
    batches = loaded(Rows([1.0] * 50, Collate()), [[n] for n in range(50)], 2)
    next(batches)
    processes = set(psutil.Process().children()) - before
    assert len(processes) == 2
    batches.close()
    _, running = psutil.wait_procs(processes, timeout=30)
    assert not running
