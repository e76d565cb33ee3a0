"""Every setting does what it says, and none changes what many ranks compute."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import mgpu_nb
from mgpu_nb.workloads.training.batches import Part
from mgpu_nb.workloads.training.columns import Shard
from mgpu_nb.workloads.training.config import CONFIGS, Config, named
from mgpu_nb.workloads.training.emulation import Emulation
from mgpu_nb.workloads.training.emulator import Emulator
from mgpu_nb.workloads.training.trainer import Trainer

pytestmark = pytest.mark.slow
SMALL = Config(columns=53, width=8, layers=1, heads=2, batch_size=12, epochs=2, learning_rate=3e-3)
GRID = [
    dataclasses.replace(
        SMALL, gradient_as_bucket_view=view, static_graph=static, gradient_accumulation_steps=steps,
        find_unused_parameters=unused, gradient_checkpointing=recompute,
    )
    for steps in (1, 3) for view, static, unused, recompute in itertools.product([False, True], repeat=4)
    if not (static and unused)
]  # fmt: skip
OTHERS = {
    "small buckets": dataclasses.replace(SMALL, bucket_cap_mb=1, broadcast_buffers=False),
    "weights of losses": dataclasses.replace(SMALL, loss_weights=(0.0, 1.0, 3.0)),
    "no clipping": dataclasses.replace(SMALL, max_grad_norm=None),
    "hard clipping": dataclasses.replace(SMALL, max_grad_norm=0.01),
    "bf16": dataclasses.replace(SMALL, use_amp=True),
    "warm-up": dataclasses.replace(SMALL, warmup_steps=6),
    "adam": dataclasses.replace(SMALL, optimizer="adam", weight_decay=0.3),
    "sgd": dataclasses.replace(SMALL, optimizer="sgd"),
}

Trained = tuple[Tensor, list[float], list[float]]


def launch(*args: Any, **kwargs: Any) -> mgpu_nb.Run:
    return mgpu_nb.launch(*args, preload=["torch._dynamo"], **kwargs)


def trained(configs: Sequence[Config], folder: Path) -> list[Trained]:
    """Weights and losses after a training by each config; what a rank does."""
    torch.set_num_threads(1)
    found = []
    for number, config in enumerate(configs):
        trainer = Trainer(config, folder / str(number))
        history = trainer.fit()
        # The bias of an attention's keys has no gradient but rounding, of which AdamW makes steps of any size.
        parts: dict[str, Tensor] = dict(trainer.model.named_parameters())
        for name in [name for name in parts if name.endswith("in_proj_bias")]:
            query, _, value = parts.pop(name).chunk(3)
            parts |= {f"{name}.q": query, f"{name}.v": value}
        weights = torch.cat([part.detach().flatten() for part in parts.values()])
        found.append((weights, [values["loss"] for values in history], [v["validation"] for v in history]))
    return found


def alike(one: Trained, other: Trained, tolerance: float = 1e-5, of_losses: float = 1e-4) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=0, atol=tolerance)
    np.testing.assert_allclose(one[1], other[1], rtol=of_losses)
    np.testing.assert_allclose(one[2], other[2], rtol=of_losses)


@pytest.fixture
def here() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_two_ranks_have_the_curve_of_one(tmp_path: Path, here: None) -> None:
    some = GRID[::5]
    configs = [*some, *OTHERS.values()]
    alone = trained(configs, tmp_path / "alone")
    ranks = launch(trained, configs, tmp_path / "ranks", nprocs=2, folder=tmp_path / "run").results(300)
    for config, one, first, second in zip(configs, alone, *ranks, strict=True):
        assert torch.equal(first[0], second[0]), config
        alike(one, first, *((2e-2, 1e-2) if config.use_amp else ()))
    # Settings that change the answer do.
    base = alone[len(some)][0]
    for name, one in zip(list(OTHERS)[1:], alone[len(some) + 1 :], strict=True):
        assert (one[0] - base).abs().max() > 1e-6, name


def gradients(configs: Sequence[Config], folder: Path) -> list[Tensor]:
    """Of the one step that an epoch of each config has."""
    torch.set_num_threads(1)
    found = []
    for number, config in enumerate(configs):
        trainer = Trainer(config, folder / str(number))
        assert len(trainer.fit()) == trainer.steps == 1
        parts = []
        for parameter in trainer.model.parameters():
            assert parameter.grad is not None
            parts.append(parameter.grad.flatten())
        found.append(torch.cat(parts))
    return found


def test_gradients_of_two_ranks_are_those_of_one_process_in_every_combination(
    tmp_path: Path, here: None
) -> None:
    configs = [
        dataclasses.replace(
            config, epochs=1, batch_size=42 // config.gradient_accumulation_steps, max_grad_norm=None
        )
        for config in GRID
    ]
    alone = gradients(configs, tmp_path / "alone")
    ranks = launch(gradients, configs, tmp_path / "ranks", nprocs=2, folder=tmp_path / "run").results(120)
    for config, one, first, second in zip(configs, alone, *ranks, strict=True):
        assert torch.equal(first, second), config
        assert one.abs().max() > 0.1
        torch.testing.assert_close(one, first, rtol=0, atol=1e-6)


def test_three_ranks_and_odd_remainders(tmp_path: Path, here: None) -> None:
    configs = [dataclasses.replace(SMALL, columns=columns) for columns in (16, 17, 31)]
    alone = trained(configs, tmp_path / "alone")
    ranks = launch(trained, configs, tmp_path / "ranks", nprocs=3, folder=tmp_path / "run").results(120)
    for one, first in zip(alone, ranks[0], strict=True):
        alike(one, first)


def test_settings_that_change_the_batch(tmp_path: Path, here: None) -> None:
    configs = [
        dataclasses.replace(SMALL, batch_mode="per_rank", batch_size=6, lr_scaling="none"),
        dataclasses.replace(SMALL, fp16_allreduce=True),
        dataclasses.replace(SMALL, distributed_sampler=False),
    ]
    alone = trained([SMALL, SMALL, dataclasses.replace(SMALL, batch_size=12)], tmp_path / "alone")
    ranks = launch(trained, configs, tmp_path / "ranks", nprocs=2, folder=tmp_path / "run").results(120)
    alike(alone[0], ranks[0][0])
    alike(alone[1], ranks[0][1], 1e-2, 1e-2)
    assert (alone[1][0] - ranks[0][1][0]).abs().max() > 0  # it did travel as fp16
    alike(alone[2], ranks[0][2])  # every rank went over all columns, in batches of 12


def test_a_resumed_training_is_as_if_nothing_had_been(tmp_path: Path, here: None) -> None:
    config = dataclasses.replace(SMALL, epochs=4, warmup_steps=5)
    (whole,) = trained([config], tmp_path / "whole")
    trained([dataclasses.replace(config, epochs=2)], tmp_path / "parts")
    (parts,) = trained([config], tmp_path / "parts")
    assert torch.equal(whole[0], parts[0])
    assert whole[1:] == parts[1:]
    ranks = launch(
        trained,
        [config],
        tmp_path / "parts",
        nprocs=2,
        folder=tmp_path / "run",
    )
    assert torch.equal(ranks.results(60)[1][0][0], whole[0])  # it was at its end already
    with pytest.raises(ValueError, match=r"of another training: width=8 there, 16 here"):
        trained([dataclasses.replace(config, width=16)], tmp_path / "parts")


def settings_of(config: Config, folder: Path) -> dict[str, object]:
    """What DistributedDataParallel was told."""
    wrapped = Trainer(config, folder).wrapped
    assert isinstance(wrapped, DistributedDataParallel)
    told: dict[str, object] = wrapped._get_ddp_logging_data()
    names = ("find_unused_parameters", "gradient_as_bucket_view", "broadcast_buffers", "bucket_cap_bytes")
    return {name: told[name] for name in names} | {"static_graph": wrapped.static_graph}


def test_every_setting_reaches_ddp(tmp_path: Path, here: None) -> None:
    def told(**changes: Any) -> dict[str, object]:
        config = dataclasses.replace(SMALL, **changes)
        found: dict[str, object] = launch(settings_of, config, tmp_path, nprocs=2).results(60)[0]
        return found

    base = told()
    assert base == {
        "find_unused_parameters": False, "gradient_as_bucket_view": True, "broadcast_buffers": True,
        "bucket_cap_bytes": 25 * 2**20, "static_graph": True,
    }  # fmt: skip
    other = told(
        find_unused_parameters=True, gradient_as_bucket_view=False, broadcast_buffers=False, bucket_cap_mb=3,
        static_graph=False,
    )  # fmt: skip
    assert other == {
        "find_unused_parameters": True, "gradient_as_bucket_view": False, "broadcast_buffers": False,
        "bucket_cap_bytes": 3 * 2**20, "static_graph": False,
    }  # fmt: skip


def wrappers(folder: Path) -> list[type[nn.Module]]:
    """Kinds of what gradients flow through: without options, and where they are rounded on their way."""
    return [
        type(Trainer(config, folder).wrapped)
        for config in (SMALL, dataclasses.replace(SMALL, fp16_allreduce=True))
    ]


def test_one_rank_reduces_gradients_only_to_round_them(tmp_path: Path, here: None) -> None:
    assert launch(wrappers, tmp_path, nprocs=1).results(60)[0] == [Emulator, DistributedDataParallel]


def normalised(config: Config, folder: Path) -> tuple[float, float, Tensor]:
    """Validation that was told, that of the weights that are kept, and a running mean of this rank."""
    torch.set_num_threads(1)
    trainer = Trainer(config, folder)
    history = trainer.fit()
    assert isinstance(trainer.model, Emulator)
    norm = trainer.model.matrices[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    mean = norm.running_mean.clone()
    assert isinstance(trainer.problem, Emulation)
    found, std = trainer.predictions(), trainer.problem.columns.stds
    error = math.nan  # rank 0 has all predictions
    if found:
        names = ("scalar", "vector", "matrix")
        error = sum(np.square((found[n] - found[f"true_{n}"]) / std[n]).mean() for n in names)
    return min(values["validation"] for values in history), error, mean


@pytest.mark.parametrize("broadcast", [True, False])
def test_validation_with_batch_norm_is_of_the_model_that_is_kept(
    tmp_path: Path, here: None, broadcast: bool
) -> None:
    config = dataclasses.replace(SMALL, batch_norm=True, broadcast_buffers=broadcast, epochs=3)
    first, second = launch(normalised, config, tmp_path, nprocs=2).results(60)
    assert first[0] == second[0] == pytest.approx(first[1], rel=1e-5)
    assert not torch.equal(first[2], second[2])  # ranks keep statistics of their own


def test_a_rank_without_columns_takes_part_with_none() -> None:
    parts = [Shard(np.arange(1), 2, rank, 2).batches(0)[0] for rank in range(2)]
    assert [part.weight.tolist() for part in parts] == [[1.0], [0.0]]
    odd = [Shard(np.arange(3), 2, rank, 2).batches(0)[0] for rank in range(2)]
    assert [part.weight.tolist() for part in odd] == [[1.0, 1.0], [1.0]]


class Flat(Trainer):
    def validate(self) -> dict[str, float]:
        return {**super().validate(), "validation": 1.0}


def test_a_plateau_is_nothing_better_and_its_first_epoch_is_the_best(tmp_path: Path, here: None) -> None:
    trainer = Flat(dataclasses.replace(SMALL, epochs=9, patience=2), tmp_path)
    assert len(trainer.fit()) == 3
    again = Trainer(dataclasses.replace(SMALL, epochs=1), tmp_path / "one")
    again.fit()
    assert all(torch.equal(weight, trainer.best[name]) for name, weight in again.best.items())


def test_options_of_today_hold_after_a_resume(tmp_path: Path, here: None) -> None:
    Trainer(dataclasses.replace(SMALL, epochs=1), tmp_path).fit()
    trainer = Trainer(dataclasses.replace(SMALL, weight_decay=0.9, learning_rate=1e-4), tmp_path)
    history = trainer.fit()
    assert trainer.optimiser.param_groups[0]["weight_decay"] == 0.9
    assert [values["learning_rate"] for values in history] == [3e-3, 1e-4]
    with pytest.raises(ValueError, match="loss_weights="):
        Trainer(dataclasses.replace(SMALL, loss_weights=(1, 2, 3)), tmp_path).fit()


def test_the_learning_rate_that_is_told_is_the_one_of_the_last_step(tmp_path: Path, here: None) -> None:
    config = dataclasses.replace(SMALL, warmup_steps=8, epochs=3)  # four steps each
    assert [v["learning_rate"] for v in Trainer(config, tmp_path).fit()] == [1.5e-3, 3e-3, 3e-3]


class Stopped(Exception):
    pass


class Breaks(Trainer):
    """Stops after so many changes of the weights, as a process does whose time is over."""

    after = 0

    def _step(self, together: list[Part], whole: int) -> tuple[Tensor, Tensor]:
        if self.steps == self.after:
            raise Stopped
        return super()._step(together, whole)


def broken_off_and_resumed(
    config: Config, folder: Path, after: int
) -> tuple[Tensor, list[tuple[float, float]]]:
    torch.set_num_threads(1)
    trainer = Breaks(config, folder)
    trainer.after = after
    with pytest.raises(Stopped):
        trainer.fit()
    return trained_one(config, folder)


def trained_one(config: Config, folder: Path) -> tuple[Tensor, list[tuple[float, float]]]:
    torch.set_num_threads(1)
    trainer = Trainer(config, folder)
    history = trainer.fit()
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    return weights, [(values["loss"], values["validation"]) for values in history]


@pytest.mark.parametrize("steps", [1, 2])
def test_a_training_broken_off_within_an_epoch_goes_on_there(tmp_path: Path, here: None, steps: int) -> None:
    config = dataclasses.replace(
        SMALL, checkpoint_steps=2, gradient_accumulation_steps=steps, batch_size=6, epochs=3, warmup_steps=4
    )
    whole = trained_one(config, tmp_path / "whole")
    parts = broken_off_and_resumed(config, tmp_path / "parts", after=7 // steps)
    assert torch.equal(whole[0], parts[0])
    assert whole[1] == parts[1]
    first = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)
    assert first["epoch"] == 3
    if steps == 1:
        return
    ranks = launch(
        broken_off_and_resumed, config, tmp_path / "ranks", 7 // steps, nprocs=2, folder=tmp_path / "run"
    ).results(120)
    wanted = launch(trained_one, config, tmp_path / "ranks2", nprocs=2, folder=tmp_path / "run2").results(120)
    assert torch.equal(ranks[0][0], wanted[0][0])
    np.testing.assert_allclose(ranks[0][1], wanted[0][1], rtol=1e-12)


def test_a_checkpoint_within_an_epoch_fits_its_batches_alone(tmp_path: Path, here: None) -> None:
    config = dataclasses.replace(SMALL, checkpoint_steps=1, batch_size=6)
    trainer = Breaks(config, tmp_path)
    trainer.after = 3
    with pytest.raises(Stopped):
        trainer.fit()
    with pytest.raises(ValueError, match="after 18 columns of an epoch, no multiple of a batch of 12"):
        Trainer(dataclasses.replace(config, batch_size=12), tmp_path).fit()
    assert len(Trainer(dataclasses.replace(config, batch_size=9), tmp_path).fit()) == 2


def test_a_loss_that_is_no_number_is_an_error(tmp_path: Path, here: None) -> None:
    config = dataclasses.replace(SMALL, learning_rate=1e30, max_grad_norm=None, optimizer="sgd", epochs=5)
    with pytest.raises(ValueError, match="give a smaller learning_rate"):
        Trainer(config, tmp_path).fit()


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [7, 12, 13])
def test_every_column_counts_once_in_the_same_batch_for_any_world(world: int, count: int) -> None:
    size = 6 // world
    columns = np.arange(100, 100 + count)
    shards = [Shard(columns, size, rank, world, seed=3) for rank in range(world)]
    ones = Shard(columns, 6, 0, 1, seed=3).batches(5)
    for number, parts in enumerate(zip(*(shard.batches(5) for shard in shards), strict=True)):
        found = [int(i) for part in parts for i, w in zip(part.index, part.weight, strict=True) if w]
        assert sorted(found) == sorted(ones[number].index.tolist())
        assert shards[0].counts()[number] == len(found)
    assert [b.index.tolist() for b in shards[0].batches(5)] != [
        b.index.tolist() for b in shards[0].batches(6)
    ]


def test_it_stops_when_nothing_gets_better(tmp_path: Path, here: None) -> None:
    config = dataclasses.replace(SMALL, epochs=9, patience=2, min_delta=100.0)
    assert len(Trainer(config, tmp_path).fit()) == 3


def test_numbers_of_a_batch_and_rates() -> None:
    config = Config(batch_size=32, gradient_accumulation_steps=2)
    assert (config.per_rank(4), config.effective(4), config.rate(4)) == (8, 64, 1e-3)
    config = Config(batch_size=32, batch_mode="per_rank", lr_scaling="linear")
    assert (config.per_rank(4), config.effective(4), config.rate(4)) == (32, 128, 4e-3)
    assert dataclasses.replace(config, lr_scaling="sqrt").rate(4) == 2e-3
    alike = dataclasses.replace(config, distributed_sampler=False)  # four times the same batch
    assert (alike.per_rank(4), alike.effective(4), alike.rate(4)) == (32, 32, 1e-3)
    plain = Config(
        epochs=np.int64(2),  # type: ignore[arg-type]
        learning_rate=np.float64(0.1),
        loss_weights=np.ones(3),  # type: ignore[arg-type]
        gpu_ids=np.arange(2),  # type: ignore[arg-type]
    )
    assert type(plain.epochs) is int
    assert {type(x) for x in (plain.learning_rate, *plain.loss_weights)} == {float}
    assert plain.gpu_ids == (0, 1)
    assert type(plain.gpu_ids[0]) is int
    with pytest.raises(TypeError, match="use_amp must be True or False, got 'no'"):
        Config(use_amp="no")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 0}, r"batch_size must be an integer >= 1, got 0"),
        ({"lr_scaling": "cubic"}, "lr_scaling must be one of"),
        ({"learning_rate": 0.0}, r"learning_rate must be a finite number > 0, got 0.0"),
        ({"validation_share": 1.0}, "validation_share"),
        ({"width": 10, "heads": 4}, "multiple of heads"),
        ({"sync_batch_norm": True}, "no batch norm"),
        ({"distributed_backend": "mpi"}, "distributed_backend must be one of"),
        ({"loss_weights": (1.0, 2.0)}, "a sequence of 3 items"),
        ({"loss_weights": (float("nan"), 1, 1)}, r"loss_weights\[0\] must be"),
        ({"loss_weights": (0, 0, 0)}, "nothing to learn"),
        ({"timeout": 1e300}, r"<= 31536000\.0, got 1e\+300"),
        ({"patience": 0}, r"patience must be an integer >= 1 or None, got 0"),
        ({"max_grad_norm": 0.0}, r"max_grad_norm must be a finite number > 0 or None, got 0.0"),
        ({"optimizer": "adamwe"}, "did you mean 'adamw'"),
        ({"log_level": "LOUD"}, "log_level must be one of"),
        ({"timeout": 0}, r"timeout must be a number > 0 and <= .*, got 0"),
        ({"use_multi_gpu": False, "world_size": 2}, "use_multi_gpu=False is one rank"),
        ({"fp16_allreduce": True, "bf16_allreduce": True}, "one of the two"),
        ({"checkpoint_steps": 0}, r"checkpoint_steps must be an integer >= 1 or None, got 0"),
    ],
)
def test_options_that_cannot_be_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Config(**changes)


def test_what_a_world_or_a_device_cannot_do_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size=2 over 3 ranks"):
        Config(batch_size=2).per_rank(3)
    with pytest.raises(ValueError, match="cannot be dealt over 3 ranks: 15 can"):
        Config(batch_size=16).per_rank(3)
    with pytest.raises(ValueError, match="did you mean 'minimal'"):
        named("minimla")
    with pytest.raises(ValueError, match="needs GPUs"):
        Trainer(dataclasses.replace(SMALL, batch_norm=True, sync_batch_norm=True), tmp_path)
    with pytest.raises(ValueError, match="bf16_allreduce needs GPUs: use fp16_allreduce"):
        Trainer(dataclasses.replace(SMALL, bf16_allreduce=True), tmp_path)
    with pytest.raises(ValueError, match="1 columns cannot be split"):
        Trainer(dataclasses.replace(SMALL, columns=1), tmp_path)
    assert all(isinstance(named(name), Config) for name in CONFIGS)
