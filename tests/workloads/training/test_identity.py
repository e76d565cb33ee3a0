"""A training goes on over the data that it began with, or says in what others differ."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset, random_split

from mgpu_nb.workloads import training
from mgpu_nb.workloads.training.config import Config
from mgpu_nb.workloads.training.identity import content_of, differences, identity_of
from mgpu_nb.workloads.training.trainer import Trainer
from mgpu_nb.workloads.training.worker import train

pytestmark = pytest.mark.usefixtures("one_thread")

LAND = Config(width=8, layers=1, heads=2, batch_size=12, epochs=1)
OWN = Config(model=lambda: nn.Linear(3, 1), data=lambda: line(), loss=mse_loss, batch_size=12, epochs=1)


def line(count: int = 40, seed: int = 0) -> TensorDataset:
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, x.sum(1, keepdim=True))


class Rows(Dataset[tuple[Tensor, ...]]):
    """Samples of a dataset that tells its number of samples alone, with noise that nobody seeds."""

    def __init__(self, count: int) -> None:
        self.samples = line(count)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> tuple[Tensor, ...]:
        x, y = self.samples[number]
        return x + 0.1 * torch.randn(3, generator=fresh()), y


class Digested(Rows):
    def __init__(self, count: int, content_digest: str) -> None:
        super().__init__(count)
        self.content_digest = content_digest


class Stream(IterableDataset[tuple[Tensor, ...]]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return iter(line(self.count))


def fresh() -> torch.Generator:
    generator = torch.Generator()
    generator.seed()
    return generator


def resume(folder: Path, data: Callable[[], Any], again: Callable[[], Any]) -> None:
    """Train for an epoch, and for another over other data."""
    Trainer(dataclasses.replace(OWN, data=same_name(data)), folder).fit()
    assert len(Trainer(dataclasses.replace(OWN, data=same_name(again), epochs=2), folder).fit()) == 2


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.randn(40, 3),
        lambda: torch.tensor(np.random.randn(40, 3), dtype=torch.float32),
        lambda: torch.tensor([[random.gauss() for _ in range(3)] for _ in range(40)]),
    ],
    ids=["torch", "numpy", "random"],
)
def test_what_data_draw_at_their_beginning_is_the_same_each_time(
    draw: Callable[[], Tensor], tmp_path: Path
) -> None:
    resume(
        tmp_path,
        lambda: TensorDataset(x := draw(), x.sum(1, keepdim=True)),
        lambda: TensorDataset(x := draw(), x.sum(1, keepdim=True)),
    )


def same_name(data: Callable[[], Any]) -> Callable[[], Any]:
    """Function for data by the one name that a checkpoint knows."""
    return lambda: data()


@pytest.mark.parametrize(
    ("data", "changed", "words"),
    [
        (
            lambda: line(40),
            lambda: line(50),
            "32 training samples there, 40 here; 8 validation samples there, 10 here. Give the data that",
        ),
        (lambda: Rows(40), lambda: Rows(45), "32 training samples there, 36 here; 8 val.* there, 9 here"),
        (
            lambda: (Stream(20), line(10)),
            lambda: (Stream(30), line(11)),
            "10 validation samples there, 11 here",
        ),
        (
            lambda: (line(40), line(10)),
            lambda: (line(40), line(10, seed=1)),
            "the validation samples have another content here",
        ),
        (
            lambda: line(40),
            lambda: TensorDataset(*(tensor.flip(0) for tensor in line(40).tensors)),
            "the training samples have another content here; the validation samples have another content here",
        ),
        (
            lambda: random_split(Rows(40), [0.8, 0.2], torch.Generator().manual_seed(0)),
            lambda: random_split(Rows(40), [0.8, 0.2], torch.Generator().manual_seed(1)),
            "the training samples have another content here",
        ),
        (
            lambda: Digested(40, "one"),
            lambda: Digested(40, "other"),
            "the training samples have another content here",
        ),
    ],
    ids=["count", "length alone", "stream", "tensors", "order", "split", "digest"],
)
def test_a_resume_over_other_data_of_ones_own_is_refused(
    tmp_path: Path, data: Callable[[], Any], changed: Callable[[], Any], words: str
) -> None:
    with pytest.raises(
        ValueError, match=rf"checkpoint\.pt is of a training on other data: .*{words}"
    ) as caught:
        resume(tmp_path, data, changed)
    assert "data() must return in each process: seed what it draws; or give resume=False" in str(caught.value)


def nearly(rows: TensorDataset) -> TensorDataset:
    """As another device, or other threads, compute the same."""
    return TensorDataset(*(tensor.double() * (1 + 1e-6) for tensor in rows.tensors))


def with_gaps() -> TensorDataset:
    x, y = line().tensors
    x = torch.cat([x, torch.tensor([float("nan"), float("inf"), 1e12]).expand(40, 3)], 1)
    return TensorDataset(x, torch.arange(40), y.to(torch.complex64), torch.zeros(40, 0), y)


@pytest.mark.parametrize(
    ("data", "again"),
    [
        (lambda: Rows(40), lambda: Rows(40)),
        (lambda: (Stream(20), line(10)), lambda: (Stream(30), line(10))),
        (line, lambda: TensorDataset(*(tensor.float() for tensor in nearly(line()).tensors))),
        (lambda: Digested(40, "one"), lambda: Rows(40)),
        (lambda: Subset(Rows(60), range(40)), lambda: Subset(Rows(60), list(range(40)))),
    ],
    ids=["augmented", "streams", "rounded", "untold", "subset"],
)
def test_data_that_are_the_same_go_on(
    tmp_path: Path, data: Callable[[], Any], again: Callable[[], Any]
) -> None:
    resume(tmp_path, data, again)


def test_tensors_of_any_kind_are_compared() -> None:
    def differ(one: Any, other: Any) -> bool:
        parts = [identity_of((40, content_of(each)), (None, [])) for each in (one, other)]
        return bool(differences(parts[0], parts[1], "samples"))

    other = with_gaps()
    assert not differ(with_gaps(), other)
    other.tensors[1][39] = 7
    assert differ(with_gaps(), other)
    assert differ(line(), TensorDataset(line().tensors[0]))
    assert differ(line(), TensorDataset(*(tensor[:, :1] for tensor in line().tensors)))
    assert differ(TensorDataset(torch.zeros(40)), TensorDataset(torch.full((40,), float("nan"))))


def test_a_checkpoint_of_a_former_version_goes_on_and_learns_its_data(tmp_path: Path) -> None:
    Trainer(OWN, tmp_path).fit()
    file = tmp_path / "checkpoint.pt"
    state = torch.load(file, weights_only=True)
    assert state.pop("data")["training"]["samples"] == 32
    torch.save(state, file)
    longer = dataclasses.replace(OWN, data=same_name(lambda: line(50)), epochs=2)
    state["config"]["data"] = longer.stated()["data"]
    torch.save(state, file)
    assert len(Trainer(longer, tmp_path).fit()) == 2
    assert torch.load(file, weights_only=True)["data"]["training"]["samples"] == 40


@pytest.mark.slow
def test_a_land_that_has_changed_is_refused_before_any_process_starts(tmp_path: Path) -> None:
    file = tmp_path / "land.npz"
    config = dataclasses.replace(LAND, data=str(file), output_dir=str(tmp_path / "run"), gpu_ids="cpu")
    training.write_land(training.generate(30), file)
    training.start(config).wait(60)
    results = (tmp_path / "run" / "training_results.json").read_bytes()
    again = dataclasses.replace(config, epochs=2)
    children = set(psutil.Process().children(recursive=True))
    training.write_land(training.generate(40), file)
    where = str(tmp_path / "run" / "checkpoint.pt")
    counts = "24 training columns there, 32 here; 6 validation columns there, 8 here"
    with pytest.raises(
        ValueError, match=rf"{where} is of a training on other data: {counts}\. Give the data"
    ):
        training.start(again)
    training.write_land(training.generate(30, seed=1), file)
    with pytest.raises(
        ValueError, match="the training columns have another content here; the validation col"
    ):
        training.start(again)
    assert set(psutil.Process().children(recursive=True)) <= children
    with pytest.raises(ValueError, match="the training columns have another content here"):  # by torchrun
        train(again, tmp_path / "run", "cpu")
    assert (tmp_path / "run" / "training_results.json").read_bytes() == results  # they are still true
    file.unlink()
    training.write_land(training.generate(30), file)
    assert training.start(again).results(60)[0]["epochs"] == 2
