"""A model, data and a loss of one's own: one curve for any world and strategy, and a resume that nothing shows."""

from __future__ import annotations

import dataclasses
import json
import logging
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import mgpu_nb
from mgpu_nb.workloads import training
from mgpu_nb.workloads.training import Config
from mgpu_nb.workloads.training.batches import Part, _moved, batches_of
from mgpu_nb.workloads.training.examples import images, land, language
from mgpu_nb.workloads.training.schedule import rate_factor
from mgpu_nb.workloads.training.trainer import Trainer

Curve = list[dict[str, float]]
Fitted = tuple[Tensor, Curve, int]
SPEED = ("samples_per_second", "columns_per_second")

pytestmark = pytest.mark.usefixtures("one_thread")


def line(count: int = 38) -> TensorDataset:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, generator=draw)
    return TensorDataset(x, x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.3)


class Blocks(nn.Module):
    """Two blocks, with a weight in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(2))
        self.first, self.last = nn.Linear(3, 3, bias=False), nn.Linear(3, 1)
        self.again = nn.Linear(3, 3, bias=False)
        self.again.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.last(self.again(x))
        return out


OWN = Config(
    model=Blocks, data=lambda: (line(), line(13)), loss=mse_loss, batch_size=12, epochs=2, learning_rate=1e-2
)


def example(module: ModuleType, **options: Any) -> Config:
    named = {name: getattr(module, name, None) for name in ("metrics", "predict")}
    given = {name: value for name, value in named.items() if value is not None}
    return Config(model=module.model, data=module.data, loss=module.loss, epochs=2, **given, **options)


def fitted(configs: Sequence[Config], folder: Path) -> list[Fitted]:
    """Weights, curve and bytes of a training by each config; what a rank does."""
    torch.set_num_threads(1)
    found = []
    for number, config in enumerate(configs):
        trainer = Trainer(config, folder / str(number))
        curve = [{name: v for name, v in row.items() if name not in SPEED} for row in trainer.fit()]
        weights = [
            getattr(w.detach(), "full_tensor", w.detach)().flatten() for w in trainer.model.parameters()
        ]
        found.append((torch.cat(weights), curve, trainer.held_bytes()))
    return found


def launched(work: Callable[..., Any], *args: Any, folder: Path, world: int = 2) -> list[Any]:
    run = mgpu_nb.launch(work, *args, nprocs=world, preload=["torch._dynamo"], folder=folder)
    return run.results(300, progress=False)


def alike(one: Fitted, other: Fitted, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=0, atol=tolerance)
    for mine, theirs in zip(one[1], other[1], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)


SHAPES = dataclasses.replace(
    example(images, batch_size=24, learning_rate=3e-3),
    data=lambda: (images.Shapes(80, 0), images.Shapes(31, 1)),
)
SUMS = dataclasses.replace(  # a bias of keys has no gradient but rounding, of which AdamW makes steps of any size
    example(language, batch_size=18, optimizer="sgd", learning_rate=0.1),
    data=lambda: (language.Sums(64, 100), language.Sums(25, 100)),
)
GRID = [
    OWN,
    dataclasses.replace(OWN, gradient_accumulation_steps=3, batch_size=4),
    dataclasses.replace(OWN, gradient_checkpointing=True, max_grad_norm=0.05),
    dataclasses.replace(OWN, ema_decay=0.8, schedule="cosine", warmup_steps=2, final_rate=0.1),
    dataclasses.replace(OWN, epochs=6, schedule="plateau", plateau_patience=0, min_delta=1.0),
    dataclasses.replace(OWN, optimizer=torch.optim.RAdam),
    SHAPES,
    example(
        language, batch_size=66, optimizer="sgd", learning_rate=0.1
    ),  # a last batch that ranks share unevenly
]


@pytest.mark.slow
def test_one_curve_for_any_world_and_strategy_in_shards_of_half_the_bytes(tmp_path: Path) -> None:
    alone = fitted(GRID, tmp_path / "alone")
    base = alone[0][0]
    assert all((one[0] - base).abs().max() > 1e-6 for one in alone[2:6])  # each option does something
    for strategy in ("ddp", "fsdp"):
        configs = [dataclasses.replace(config, strategy=strategy) for config in GRID]
        first, second = launched(fitted, configs, tmp_path / strategy, folder=tmp_path / f"{strategy}-run")
        for config, one, mine, theirs in zip(configs, alone, first, second, strict=True):
            assert torch.equal(mine[0], theirs[0]), config
            alike(one, mine)
            share = (mine[2] + theirs[2]) / (2 * one[2])
            assert share == 1 if strategy == "ddp" else 0.5 <= share < 0.65
    three = launched(fitted, GRID[-2:], tmp_path / "three", folder=tmp_path / "three-run", world=3)
    for one, mine in zip(alone[-2:], three[0], strict=True):
        alike(one, mine, 1e-4)


class Stopped(Exception):
    pass


class Breaks(Trainer):
    """Stops within the second epoch, as a process does whose time is over."""

    def _step(self, together: list[Part], whole: int) -> tuple[Tensor, Tensor]:
        if self.epoch == 1 and self._batch >= self.config.gradient_accumulation_steps:
            raise Stopped
        return super()._step(together, whole)


def broken_off(configs: Sequence[Config], folder: Path) -> None:
    torch.set_num_threads(1)
    for number, config in enumerate(configs):
        with pytest.raises(Stopped):
            Breaks(config, folder / str(number)).fit()


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


RESUMED = [
    dataclasses.replace(config, checkpoint_steps=1)
    for config in (
        dataclasses.replace(OWN, model=Dropping, optimizer=torch.optim.SGD, ema_decay=0.7),
        dataclasses.replace(OWN, gradient_accumulation_steps=2, batch_size=6, schedule="cosine"),
        SHAPES,
        SUMS,
    )
]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_training_broken_off_within_an_epoch_goes_on_to_the_bit(tmp_path: Path, strategy: str) -> None:
    configs = [dataclasses.replace(config, strategy=strategy) for config in RESUMED]  # type: ignore[arg-type]
    broken_off(configs, tmp_path / "here")
    for whole, parts in zip(
        fitted(configs, tmp_path / "whole"), fitted(configs, tmp_path / "here"), strict=True
    ):
        assert torch.equal(whole[0], parts[0])
        assert whole[1] == parts[1]
    launched(broken_off, configs, tmp_path / "ranks", folder=tmp_path / "run")
    parts2 = launched(fitted, configs, tmp_path / "ranks", folder=tmp_path / "run2")[0]
    whole2 = launched(fitted, configs, tmp_path / "whole2", folder=tmp_path / "run3")[0]
    for one, other in zip(whole2, parts2, strict=True):
        assert torch.equal(one[0], other[0])
        assert all(a == pytest.approx(b, rel=1e-12) for a, b in zip(one[1], other[1], strict=True))


@pytest.mark.slow
def test_a_checkpoint_is_that_of_any_world_and_strategy(tmp_path: Path) -> None:
    configs = [dataclasses.replace(c, strategy="fsdp") for c in RESUMED[1:]]
    launched(broken_off, configs, tmp_path / "ranks", folder=tmp_path / "run")
    other = [dataclasses.replace(config, strategy="ddp") for config in configs]
    found = fitted(other, tmp_path / "ranks")  # one process goes on
    for one, resumed in zip(fitted(other, tmp_path / "whole"), found, strict=True):
        alike(one, resumed, 1e-4)
    broken_off(other, tmp_path / "back")
    for one, resumed in zip(
        found, launched(fitted, configs, tmp_path / "back", folder=tmp_path / "run2")[0], strict=True
    ):
        alike(one, resumed, 1e-4)


@pytest.mark.slow
def test_the_land_as_a_problem_of_ones_own_is_the_default_to_the_bit(tmp_path: Path) -> None:
    options: dict[str, Any] = {"columns": 30, "width": 8, "layers": 1, "heads": 2, "batch_size": 8}
    default = Trainer(Config(epochs=2, **options), tmp_path / "default")
    own = Trainer(example(land, **options), tmp_path / "own")
    curves = [
        [{n: v for n, v in row.items() if n not in SPEED} for row in each.fit()] for each in (default, own)
    ]
    assert curves[0] == curves[1]
    state = own.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in default.model.state_dict().items())


@pytest.mark.parametrize(("module", "epochs"), [(images, 6), (language, 3)])
@pytest.mark.slow
def test_examples_learn(tmp_path: Path, module: ModuleType, epochs: int) -> None:
    config = dataclasses.replace(example(module, batch_size=32, learning_rate=3e-3), epochs=epochs)
    curve = Trainer(config, tmp_path).fit()
    assert curve[-1]["accuracy"] > (0.8 if module is images else 0.72)
    assert curve[-1]["validation"] < 0.85 * curve[0]["validation"]


def test_a_loss_as_mean_per_sample_or_sum_and_count_is_the_same(tmp_path: Path) -> None:
    def per_sample(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean(1)

    def counted(outputs: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        return (outputs - targets).square().sum(), len(targets)

    found = []
    losses: tuple[Callable[..., Any], ...] = (mse_loss, per_sample, counted)
    for number, loss in enumerate(losses):
        config = dataclasses.replace(OWN, loss=loss, gradient_accumulation_steps=2)
        found.append(fitted([config], tmp_path / str(number))[0])
    alike(found[0], found[1])
    alike(found[0], found[2])


def weighted(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Only samples with a positive target count."""
    there = targets > 0
    return ((outputs - targets).square() * there).sum(), there.sum()


def test_counts_of_a_loss_are_those_of_all_micro_batches(tmp_path: Path) -> None:
    every = Config(
        model=lambda: nn.Linear(3, 1), data=lambda: (line(12), line(12)), loss=weighted, batch_size=12, epochs=1,
        optimizer=torch.optim.SGD, learning_rate=0.1, max_grad_norm=None,
    )  # fmt: skip
    trainer = Trainer(dataclasses.replace(every, batch_size=3, gradient_accumulation_steps=4), tmp_path)
    trainer.fit()
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    x, y = line(12).tensors
    total, count = weighted(model(x), y)
    torch.autograd.backward(total / count)
    weight = model.weight
    assert weight.grad is not None
    expected = weight - 0.1 * weight.grad
    assert isinstance(trainer.model, nn.Linear)
    torch.testing.assert_close(trainer.model.weight.detach(), expected.detach(), rtol=1e-5, atol=1e-6)
    assert trainer.history[0]["loss"] == pytest.approx((total / count).item(), rel=1e-5)


def test_the_average_of_weights_is_torchs_and_is_what_is_validated_and_kept(tmp_path: Path) -> None:
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    averaged: list[AveragedModel] = []

    class Beside(Trainer):
        def _step(self, together: list[Part], whole: int) -> tuple[Tensor, Tensor]:
            if not averaged:
                averaged.append(AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9)))
                averaged[0].update_parameters(self.model)  # which begins with the weights of now
            found = super()._step(together, whole)
            averaged[0].update_parameters(self.model)
            return found

    trainer = Beside(dataclasses.replace(OWN, ema_decay=0.9), tmp_path)
    curve = trainer.fit()
    theirs = averaged[0].module.state_dict()
    assert curve[-1]["validation"] < curve[0]["validation"]  # so the best is the last
    for name, weight in trainer.best.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-5, atol=1e-6)
    assert (trainer.model.state_dict()["last.weight"] - trainer.best["last.weight"]).abs().max() > 1e-4
    x, y = line(13).tensors
    with torch.no_grad():
        assert mse_loss(averaged[0](x), y).item() == pytest.approx(curve[-1]["validation"], rel=1e-5)


def test_learning_rates_are_torchs() -> None:
    losses = [3.0, 2.0, 2.5, 2.4, 1.9, 1.95, 1.95, 1.93, 1.2]
    config = Config(schedule="plateau", plateau_patience=1, plateau_factor=0.5, min_delta=0.05)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=1, threshold=0.05, threshold_mode="abs"
    )
    for number, loss in enumerate(losses):
        theirs.step(loss)
        assert rate_factor(config, 5, None, losses[: number + 1]) == optimizer.param_groups[0]["lr"]
    config = Config(schedule="cosine", final_rate=0.2)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10, eta_min=0.2)
    for step in range(11):
        assert rate_factor(config, step, 10, []) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    warm = dataclasses.replace(config, warmup_steps=4)
    assert [rate_factor(warm, step, 10, []) for step in (0, 3, 4)] == [0.25, 1.0, 1.0]
    assert rate_factor(warm, 7, 10, []) == pytest.approx(0.6)


class Drawing(Dataset[tuple[Tensor, Tensor]]):
    """Samples with random numbers of all three kinds."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        drawn = [torch.rand(()).item(), random.random(), np.random.rand()]
        return torch.tensor(drawn), torch.tensor(float(number))


class DrawingSeldom(Dataset[tuple[Tensor, Tensor]]):
    """Samples with random numbers of torch, and one with others: numpy keeps a second number of its normal ones."""

    def __init__(self, drawing: int) -> None:
        self.drawing = drawing

    def __len__(self) -> int:
        return 10

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        drawn = [random.gauss(0, 1), np.random.randn()] if number == self.drawing else [0.0, 0.0]
        return torch.tensor([*drawn, torch.rand(()).item()]), torch.tensor(float(number))


class Reading(Dataset[tuple[Tensor, Tensor]]):
    """Samples that ask for torch's seed, or draw and put its state back, and so leave no trace of it."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        with torch.random.fork_rng(devices=()):
            drawn = torch.rand(()).item()
        return torch.tensor([drawn, float(torch.initial_seed() % 1000)]), torch.tensor(float(number))


class AtOnce(Drawing):
    """Samples that are fetched together."""

    def __getitems__(self, numbers: list[int]) -> list[tuple[Tensor, Tensor]]:
        return [self[number] for number in numbers]


class Streaming(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        for number in range(10):
            yield torch.tensor([number, torch.rand(()).item(), random.random(), np.random.rand()])


@pytest.mark.parametrize(
    "dataset",
    [
        Drawing(),
        DrawingSeldom(2),
        DrawingSeldom(7),
        Reading(),
        AtOnce(),
        Streaming(),
        Subset(Drawing(), range(10)),
        Subset(Subset(Reading(), range(10)), range(10)),
        Subset(AtOnce(), range(10)),
    ],
    ids=[
        "items",
        "seldom",
        "later",
        "reading",
        "at once",
        "stream",
        "part",
        "part of a part",
        "part at once",
    ],
)
def test_random_numbers_follow_the_sample(dataset: Any) -> None:
    def samples(
        rank: int, world: int, epoch: int, start: int = 0, workers: int = 0
    ) -> dict[int, list[float]]:
        options: dict[str, Any] = {
            "collate": None,
            "seed": 3,
            "shuffle": True,
            "device": "cpu",
            "what": "training",
        }
        batches = batches_of(
            dataset, None, size=4 // world, rank=rank, world=world, workers=workers, **options
        )
        found: dict[int, list[float]] = {}
        for part in batches.parts(epoch, start):
            batch = batches.load(part)
            rows = batch[0] if isinstance(batch, list) else batch
            found |= dict(zip(part.numbers.tolist(), rows.tolist(), strict=True)) if part.real else {}
            torch.rand(3)  # as a training does
            np.random.rand()
        return found

    whole = samples(0, 1, epoch=2)
    assert len(whole) == 10
    assert len({row[-1] for row in whole.values()}) == 10
    assert samples(0, 2, epoch=2) | samples(1, 2, epoch=2) == whole
    assert samples(0, 1, epoch=2, workers=1) == whole
    rest = samples(0, 1, epoch=2, start=1)
    assert len(rest) == 6
    assert rest.items() <= whole.items()
    assert samples(0, 1, epoch=3) != whole


def test_numpy_and_random_are_seeded_for_each_sample_once_one_has_drawn_from_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seeding them takes longer than many a sample."""
    seeds: list[int] = []
    monkeypatch.setattr(random, "seed", seeds.append)

    def seeded(dataset: Any, epochs: int = 1) -> int:
        options: dict[str, Any] = {
            "collate": None,
            "seed": 3,
            "shuffle": False,
            "device": "cpu",
            "what": "training",
        }
        seeds.clear()
        found = batches_of(dataset, None, size=5, rank=0, world=1, workers=0, **options)
        for epoch in range(epochs):
            list(found.parts(epoch))
        return len(seeds)

    assert seeded(DrawingSeldom(-1)) == 2
    assert seeded(DrawingSeldom(7)) == 1 + 1 + 5
    assert seeded(DrawingSeldom(2)) == 1 + 5 + 5
    assert seeded(DrawingSeldom(2), epochs=2) == 1 + 5 + 5 + 5 + 5


class Indexed(Dataset[Any]):
    """As people write them: what it calls index, batch and device is its own."""

    index, batch, device = ("a", "b"), 8, "cpu"

    def __len__(self) -> int:
        return 38

    def __getitem__(self, number: int) -> Any:
        return line()[number]


def test_lists_of_samples_and_datasets_with_names_of_their_own_are_trained(tmp_path: Path) -> None:
    data: list[Callable[[], Any]] = [
        lambda: (line(), line(13)),
        lambda: [line(), line(13)],
        lambda: tuple([each[n] for n in range(len(each))] for each in (line(), line(13))),
        lambda: (Indexed(), line(13)),
    ]
    found = fitted([dataclasses.replace(OWN, data=each, epochs=1) for each in data], tmp_path)
    assert all(curve == found[0][1] for _, curve, _ in found)


def test_a_stream_of_another_length_than_it_says_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Said(Streaming):
        def __len__(self) -> int:
            return 5

    config = dataclasses.replace(
        OWN, data=lambda: (Said(), Streaming()), model=lambda: nn.Linear(4, 1), batch_size=4, epochs=1,
        forward=lambda model, batch: model(batch), loss=lambda outputs, batch: outputs.mean(), schedule="cosine",
    )  # fmt: skip
    with caplog.at_level("WARNING", "mgpu_nb.training"):
        logging.getLogger("mgpu_nb.training").addHandler(caplog.handler)
        Trainer(config, tmp_path).fit()
        logging.getLogger("mgpu_nb.training").removeHandler(caplog.handler)
    assert "the length of Said says 2 batches and it gave 3: mend its __len__" in caplog.text


def test_what_draws_nothing_is_fetched_at_once() -> None:
    class Stored(Dataset[Any]):
        asked: ClassVar[list[list[int]]] = []

        def __len__(self) -> int:
            return 4

        def __getitem__(self, number: int) -> Tensor:
            raise AssertionError

        def __getitems__(self, numbers: list[int]) -> list[Tensor]:
            self.asked.append(numbers)
            return [torch.tensor(number) for number in numbers]

    options: dict[str, Any] = {
        "collate": None,
        "seed": 3,
        "shuffle": False,
        "device": "cpu",
        "what": "training",
    }
    list(
        batches_of(Subset(Stored(), [2, 1, 0]), None, size=2, rank=0, world=1, workers=0, **options).parts(0)
    )
    assert Stored.asked == [[2, 1], [0]]


def test_streams_without_a_length_are_trained(tmp_path: Path) -> None:
    class Pairs(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(line(20))

    config = dataclasses.replace(OWN, data=lambda: (Pairs() + Pairs(), line(13)), epochs=1)
    (found,) = fitted([config], tmp_path)
    assert len(found[1]) == 1


@pytest.mark.parametrize("weight", [1 / 64, 1e-3])
def test_a_count_of_less_than_one_divides_gradients_as_any(weight: float, tmp_path: Path) -> None:
    def weighted(weight: float) -> Config:
        def loss(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            weights = torch.full_like(targets, weight)
            return (weights * (outputs - targets) ** 2).sum(), weights.sum()

        return dataclasses.replace(OWN, loss=loss, epochs=2)

    (one, _, _), (found, _, _) = fitted([weighted(1.0), weighted(weight)], tmp_path)
    torch.testing.assert_close(found, one, rtol=1e-4, atol=1e-6)


def test_half_a_precision_does_not_overflow_in_the_sum_of_a_batch(tmp_path: Path) -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        learns = torch.is_grad_enabled()
        return mse_loss(outputs, targets) if learns else torch.full((len(outputs),), 1600.0).half()

    data = TensorDataset(torch.randn(64, 3), torch.zeros(64, 1))
    config = dataclasses.replace(OWN, data=lambda: (line(), data), loss=loss, epochs=1, batch_size=64)
    assert Trainer(config, tmp_path).fit()[0]["validation"] == 1600


def test_an_array_that_savez_cannot_name_is_refused_in_the_first_epoch(tmp_path: Path) -> None:
    config = dataclasses.replace(OWN, predict=lambda outputs, targets: {"file": outputs}, epochs=1)
    with pytest.raises(ValueError, match="savez cannot write an array named file: give it another name"):
        Trainer(config, tmp_path).fit()


def test_a_metric_is_no_formula_in_the_table_of_losses(tmp_path: Path) -> None:
    config = dataclasses.replace(
        OWN, metrics=lambda outputs, targets: {"=1+1": outputs[:, 0].abs()}, epochs=1
    )
    Trainer(config, tmp_path).fit()
    assert ",'=1+1" in (tmp_path / "training_validation_losses.csv").read_text().splitlines()[0]


def test_a_packed_sequence_is_moved_by_itself() -> None:
    packed = pack_sequence([torch.ones(3), torch.ones(2)])
    moved = _moved({"x": packed}, "meta")["x"]
    assert (moved.data.device.type, moved.batch_sizes.device.type) == ("meta", "cpu")


def test_batches_that_are_mappings_and_functions_with_a_config(tmp_path: Path) -> None:
    class Pairs(Dataset[dict[str, Tensor]]):
        def __len__(self) -> int:
            return 20

        def __getitem__(self, number: int) -> dict[str, Tensor]:
            x, y = line(20)[number]
            return {"x": x, "wanted": y}

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 1)

        def forward(self, x: Tensor, wanted: Tensor) -> dict[str, Tensor]:
            return {"loss": mse_loss(self.linear(x), wanted)}

    def optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
        groups = [{"params": [weight], "lr": lr * n} for n, weight in enumerate(model.parameters(), 1)]
        return torch.optim.SGD(groups, lr=lr)

    def data(config: Config, device: str) -> Pairs:
        assert (config.seed, device) == (7, "cpu")
        return Pairs()

    config = Config(
        model=Own, data=data, loss=lambda outputs, batch: outputs["loss"], optimizer=optimizer, seed=7, epochs=2,
        batch_size=4, learning_rate=0.05, schedule="cosine", validation_share=0.25,
    )  # fmt: skip
    trainer = Trainer(config, tmp_path)
    curve = trainer.fit()
    assert curve[1]["validation"] < curve[0]["validation"]
    assert trainer.steps == 8  # 15 samples in batches of 4, twice
    one, two = (group["lr"] for group in trainer.optimiser.param_groups)
    assert two == 2 * one


@pytest.mark.slow
@pytest.mark.parametrize("part", [0, 1])
def test_data_that_differ_between_ranks_are_refused(tmp_path: Path, part: int) -> None:
    def data() -> Any:
        own = line(20 if torch.distributed.get_rank() else 30)
        return (own, line(13)) if part == 0 else (line(), own)

    config = dataclasses.replace(OWN, data=data, world_size=2, output_dir=str(tmp_path), gpu_ids="cpu")
    run = training.start(config).wait(progress=False)
    with pytest.raises(
        ValueError, match=r"data have 30 samples on rank 0 and 20 on rank 1: data\(\) must give"
    ):
        training.collect(run)


@pytest.mark.slow
def test_a_metric_is_a_number_of_any_kind_and_of_any_batches(tmp_path: Path) -> None:
    def metrics(outputs: Tensor, targets: Tensor) -> dict[Any, Any]:
        first = line(13).tensors[1][0] in targets
        seldom = {"of_the_first": 3.0} if first else {}  # of the first batch alone, and of one rank of two
        return {
            "number": 0.5, "numpy": np.float32(0.25), "each": np.ones(len(outputs)), "nothing": (0.0, 0),
            **seldom, 7: 7,
        }  # fmt: skip

    config = dataclasses.replace(
        OWN, metrics=metrics, batch_size=2, world_size=2, output_dir=str(tmp_path), gpu_ids="cpu"
    )
    run = training.start(config).wait()
    report = training.collect(run)
    found = report.metrics
    assert np.isnan(found.pop("nothing"))
    assert found == {"number": 0.5, "numpy": 0.25, "each": 1.0, "7": 7.0, "of_the_first": 3.0}
    assert np.isnan(report.frame()["nothing"]).all()
    assert "nothing nan" in str(report)


def test_predictions_come_in_order_from_all_ranks(tmp_path: Path) -> None:
    trainer = Trainer(
        dataclasses.replace(OWN, predict=lambda found, wanted: {"found": found, "wanted": wanted}), tmp_path
    )
    trainer.fit()
    found = trainer.predictions()
    assert found["index"].tolist() == list(range(13))
    np.testing.assert_array_equal(found["wanted"], line(13).tensors[1].numpy())
    error = np.square(found["found"] - found["wanted"]).mean()
    assert error == pytest.approx(min(row["validation"] for row in trainer.history), rel=1e-5)


@pytest.mark.parametrize(
    ("predict", "words"),
    [
        (
            lambda n: {"m": torch.zeros(n, n)},
            r"a sample of m has shape \[1\] in one batch and \[12\] in another",
        ),
        (
            lambda n: {"m": torch.zeros(n), **({"k": torch.zeros(n)} if n > 1 else {})},
            "k is there of some batches",
        ),
    ],
)
def test_predictions_that_do_not_fit_together_are_told(
    tmp_path: Path, predict: Callable[[int], Any], words: str
) -> None:
    config = dataclasses.replace(OWN, epochs=1, predict=lambda found, wanted: predict(len(found)))
    trainer = Trainer(config, tmp_path)
    trainer.fit()
    with pytest.raises(ValueError, match=words):
        trainer.predictions()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": None}, "data missing: a model of your own needs model, data and loss"),
        ({"model": None}, "loss, data: of a model of your own; give model, data and loss together"),
        ({"model": nn.Linear(1, 1)}, "give the function that makes it"),
        ({"loss": "cross_entropy"}, "loss must be 'package.module:name' of a function, got 'cross"),
        ({"data": "land.npz"}, "data must be 'package.module:name' of a function, got 'land.npz'"),
        ({"strategy": "fsdp", "bucket_cap_mb": 3}, "bucket_cap_mb: of DistributedDataParallel; leave it out"),
        ({"strategy": "deepspeed"}, "strategy must be one of ddp, fsdp"),
        ({"ema_decay": 1.0}, "ema_decay must be a number > 0 and < 1 or None"),
    ],
)
def test_a_config_that_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(OWN, **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": lambda: 3}, "must return a torch.nn.modules.module.Module, not a int"),
        ({"model": "torch.nn:Linaer"}, "model: 'torch.nn:Linaer' does not import"),
        ({"loss": "math:pi"}, "loss='math:pi' is no function but a float"),
        ({"optimizer": "__main__:mine"}, "a function of a notebook: give it again"),
        (
            {"optimizer": lambda params, lr: params},
            "must return a torch.optim.optimizer.Optimizer, not a list",
        ),
        ({"data": lambda: 3}, r"the data are a int: give \(train, validation\)"),
        ({"data": lambda: (line(), iter([1]))}, "validation data are an iterator, which can be read once"),
        ({"data": lambda: (line(), line(0))}, "validation dataset is empty"),
        (
            {"data": lambda: (DataLoader(line(), 4), line())},
            "the training data are a DataLoader, which makes batches itself: give its dataset; batch_size",
        ),
        (
            {"data": lambda: {"train": line(), "test": line()}},
            r"a mapping, of 'train', 'test': give the datasets, as \(data\['train'\], data\['validation'\]\)",
        ),
        (
            {"data": lambda: (pd.DataFrame({"x": [1.0]}), line())},
            "a DataFrame of pandas, which is no dataset",
        ),
        ({"data": lambda: line(1)}, "1 samples cannot be split"),
        ({"data": lambda: (Streaming(), line()), "loader_workers": 2}, "each would read the whole"),
        ({"data": lambda: (Streaming(), line()), "schedule": "cosine"}, "must tell their length, by __len__"),
        ({"loss": lambda outputs, targets: outputs.flatten(0)[:5]}, r"a tensor \[5\]: return the mean"),
        ({"loss": lambda outputs, targets: None}, "loss of a batch of 12 samples is a NoneType"),
        ({"loss": lambda outputs, targets: mse_loss(outputs, targets).item()}, "the loss has no gradient"),
        ({"loss": lambda outputs, targets: mse_loss(outputs, targets) + 0j}, "the loss is a complex number"),
        (
            {"loss": lambda outputs: outputs.mean()},
            r"cannot be called as loss\(outputs, targets\): too many positional",
        ),
        (
            {"model": nn.Linear},
            r"model: .*:Linear cannot be called as model\(\): missing a required arg.* 'in_features'",
        ),
        (
            {"optimizer": lambda weights: None},
            r"cannot be called as optimizer\(parameters, lr=\): got an unexpected",
        ),
        ({"metrics": lambda outputs, targets: outputs.mean()}, "must return a mapping"),
        (
            {"metrics": lambda outputs, targets: {"loss": outputs.mean(), "kept": outputs.mean()}},
            "metrics: loss is a column of the trainer's own: give it another name",
        ),
        (
            {"predict": lambda found, wanted: {"m": found.mean()}},
            r"m of a batch of 12 samples is .* shape \[\]",
        ),
        (
            {"predict": lambda found, wanted: {"m": found[:2]}},
            r"shape \[2, 1\]: return one of numbers or texts",
        ),
        ({"predict": lambda found, wanted: {"m": [{}] * len(found)}}, "is an array of object"),
        (
            {"predict": lambda found, wanted: {"sample": found}},
            "predict: sample is the number of each sample",
        ),
        ({"model": nn.Identity}, "the model has no weights that require a gradient"),
        ({"model": lambda: nn.Linear(3, 1), "gradient_checkpointing": True}, "the model has no blocks"),
    ],
)
def test_what_functions_give_is_checked(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        Trainer(dataclasses.replace(OWN, **changes), tmp_path).fit()


def test_a_torch_without_fully_shard_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("torch.distributed.fsdp.fully_shard")
    with pytest.raises(ValueError, match=r"needs torch.distributed.fsdp.fully_shard of torch 2.6 or later"):
        training.start(dataclasses.replace(OWN, strategy="fsdp", gpu_ids="cpu"))


@pytest.mark.slow
def test_functions_of_a_cell_are_trained_by_two_ranks_and_reported(tmp_path: Path) -> None:
    scale = 2.0

    class Cell(nn.Module):  # travels by value, as what a notebook cell defines
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = scale * self.linear(x)
            return out

    config = Config(
        model=Cell, data=lambda: line(40), loss=mse_loss, predict=lambda found, wanted: {"found": found},
        metrics=lambda found, wanted: {"error_mse": (found - wanted).square()[:, 0]}, batch_size=8, epochs=3,
        learning_rate=0.05, strategy="fsdp", world_size=2, gpu_ids="cpu", output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    run = training.start(config)
    report = training.collect(run.wait(120, progress=False))
    assert report.metrics["error_rmse"] == pytest.approx(report.metrics["error_mse"] ** 0.5)
    assert "2 ranks (gloo) x 4 samples: batch of 8" in str(report)
    assert "metrics of that epoch: error_mse" in str(report)
    assert report.plot().get_ylabel() == "loss"
    for table in (report.outputs, report.carbon, report.data, report.plot_predictions):
        with pytest.raises(ValueError, match=r"has no table of .*: that is of the emulator of a land"):
            table()
    found = report.predictions()
    assert len(found["sample"]) == 8
    with pytest.raises(ValueError, match=r"Give the function that makes the model: report.model\(make\)"):
        report.model()
    model = report.model(Cell)
    with torch.no_grad():
        again = model(line(40).tensors[0][torch.from_numpy(found["sample"])])
    torch.testing.assert_close(again, torch.from_numpy(found["found"]), rtol=1e-5, atol=1e-6)
    assert training.collect(mgpu_nb.Run.open(run.folder)).results == report.results
    assert training.speedup_table([report])["samples_per_second"].iloc[0] > 0
    longer = training.start(dataclasses.replace(config, epochs=4, strategy="ddp", world_size=1))
    history = training.collect(longer.wait(120, progress=False)).frame()
    np.testing.assert_array_equal(history["loss"][:3], report.frame()["loss"])
    with pytest.raises(ValueError, match="is of another training: loss="):
        training.start(dataclasses.replace(config, loss=l1_loss))
    with pytest.raises(ValueError, match=r"'torch.nn:Linaer' does not import"):  # before a process starts
        training.start(dataclasses.replace(config, model="torch.nn:Linaer", output_dir=None))


@pytest.mark.slow
def test_a_module_beside_the_user_is_trained_by_command_and_by_torchrun(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "beside.py").write_text(
        "import torch\n"
        "from torch.utils.data import TensorDataset\n"
        "def make(): return torch.nn.Linear(2, 1)\n"
        "def data():\n"
        "    x = torch.arange(40.0).view(20, 2) / 40\n"
        "    return TensorDataset(x, x.sum(1, keepdim=True))\n"
    )
    functions = "--model beside:make --data beside:data --loss torch.nn.functional:mse_loss"
    sizes = "--optimizer torch.optim:RAdam --batch_size 4 --epochs 2 --gpu_ids cpu"
    options = ["--preset", "plain", *functions.split(), *sizes.split()]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    curves = []
    for folder, command in (
        ("one", ["-m", "mgpu_nb", "training", "--world_size", "2"]),
        ("two", [*torchrun, "mgpu_nb.workloads.training", "--strategy", "fsdp"]),
    ):
        done = subprocess.run(
            [sys.executable, *command, *options, "--output_dir", folder],
            cwd=tmp_path, capture_output=True, text=True, timeout=180,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "2 ranks (gloo) x 2 samples: batch of 4" in done.stdout
        results = json.loads((tmp_path / folder / "training_results.json").read_text())
        curves.append([row["loss"] for row in results["history"]])
        assert results["config"]["optimizer"] == "torch.optim:RAdam"
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-5)
    (tmp_path / "job").mkdir()
    command = [
        "slurm",
        "training",
        *options[:-2],
        "--nodes",
        "2",
        "--script",
        "job/s.sbatch",
        "--strategy",
        "fsdp",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "mgpu_nb", *command], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "--model beside:make" in (tmp_path / "job" / "s.sbatch").read_text()
