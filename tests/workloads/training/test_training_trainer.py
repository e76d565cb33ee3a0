"""Every setting does what it says, and none changes what many ranks compute."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from mgpu_nb import launch
from mgpu_nb.workloads.training.columns import Deal
from mgpu_nb.workloads.training.config import CONFIGS, Config, named
from mgpu_nb.workloads.training.trainer import Trainer

SMALL = Config(columns=53, width=8, layers=1, heads=2, batch_size=12, epochs=2, learning_rate=3e-3)
GRID = [
    dataclasses.replace(
        SMALL, gradient_as_bucket_view=view, static_graph=static, gradient_accumulation_steps=steps,
        find_unused_parameters=unused, gradient_checkpointing=recompute,
    )
    for view, static, steps, unused, recompute in itertools.product([0, 1], [0, 1], [1, 3], [0, 1], [0, 1])
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


def trained(configs, folder):
    """Weights and losses after a training by each config; what a rank does."""
    torch.set_num_threads(1)
    found = []
    for number, config in enumerate(configs):
        trainer = Trainer(config, folder / str(number))
        history = trainer.fit()
        # The bias of an attention's keys has no gradient but rounding, of which AdamW makes steps of any size.
        named_weights = trainer.model.named_parameters()
        weights = torch.cat(
            [p.detach().flatten() for n, p in named_weights if not n.endswith("in_proj_bias")]
        )
        found.append((weights, [values["loss"] for values in history], [v["validation"] for v in history]))
    return found


def alike(one, other, tolerance=1e-5, of_losses=1e-4):
    torch.testing.assert_close(one[0], other[0], rtol=0, atol=tolerance)
    np.testing.assert_allclose(one[1], other[1], rtol=of_losses)
    np.testing.assert_allclose(one[2], other[2], rtol=of_losses)


@pytest.fixture
def here():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_two_ranks_compute_what_one_does_in_every_combination(tmp_path, here):
    configs = [*GRID, *OTHERS.values()]
    alone = trained(configs, tmp_path / "alone")
    ranks = launch(trained, configs, tmp_path / "ranks", nprocs=2, folder=tmp_path / "run").results(300)
    for config, one, first, second in zip(configs, alone, *ranks, strict=True):
        assert torch.equal(first[0], second[0]), config
        alike(one, first, *((2e-2, 1e-2) if config.use_amp else ()))
    # Settings that change the answer do.
    base = alone[len(GRID)][0]
    for name, one in zip(list(OTHERS)[1:], alone[len(GRID) + 1 :], strict=True):
        assert (one[0] - base).abs().max() > 1e-6, name


def test_three_ranks_and_odd_remainders(tmp_path, here):
    configs = [dataclasses.replace(SMALL, columns=columns) for columns in (16, 17, 31)]
    alone = trained(configs, tmp_path / "alone")
    ranks = launch(trained, configs, tmp_path / "ranks", nprocs=3, folder=tmp_path / "run").results(120)
    for one, first in zip(alone, ranks[0], strict=True):
        alike(one, first)


def test_settings_that_change_the_batch(tmp_path, here):
    configs = [
        dataclasses.replace(SMALL, batch_mode="per_rank", batch_size=6, lr_scaling="none"),
        dataclasses.replace(SMALL, fp16_allreduce=True),
        dataclasses.replace(SMALL, distributed_sampler=False, batch_size=24),
    ]
    alone = trained([SMALL, SMALL, dataclasses.replace(SMALL, batch_size=12)], tmp_path / "alone")
    ranks = launch(trained, configs, tmp_path / "ranks", nprocs=2, folder=tmp_path / "run").results(120)
    alike(alone[0], ranks[0][0])
    alike(alone[1], ranks[0][1], 1e-2, 1e-2)
    assert (alone[1][0] - ranks[0][1][0]).abs().max() > 0  # it did travel as fp16
    alike(alone[2], ranks[0][2])  # every rank went over all columns, in batches of 12


def test_a_resumed_training_is_as_if_nothing_had_been(tmp_path, here):
    config = dataclasses.replace(SMALL, epochs=4, warmup_steps=5)
    (whole,) = trained([config], tmp_path / "whole")
    trained([dataclasses.replace(config, epochs=2)], tmp_path / "parts")
    (parts,) = trained([dataclasses.replace(config, resume=True)], tmp_path / "parts")
    assert torch.equal(whole[0], parts[0])
    assert whole[1:] == parts[1:]
    ranks = launch(
        trained,
        [dataclasses.replace(config, resume=True)],
        tmp_path / "parts",
        nprocs=2,
        folder=tmp_path / "run",
    )
    assert torch.equal(ranks.results(60)[1][0][0], whole[0])  # it was at its end already
    with pytest.raises(ValueError, match=r"of another training: width=8 there, 16 here"):
        trained([dataclasses.replace(config, resume=True, width=16)], tmp_path / "parts")


class Stopped(Exception):
    pass


class Breaks(Trainer):
    """Stops after so many changes of the weights, as a process does whose time is over."""

    after = 0

    def _step(self, together, count):
        if self.steps == self.after:
            raise Stopped
        return super()._step(together, count)


def broken_off_and_resumed(config, folder, after):
    torch.set_num_threads(1)
    trainer = Breaks(config, folder)
    trainer.after = after
    with pytest.raises(Stopped):
        trainer.fit()
    return trained_one(dataclasses.replace(config, resume=True), folder)


def trained_one(config, folder):
    torch.set_num_threads(1)
    trainer = Trainer(config, folder)
    history = trainer.fit()
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    return weights, [(values["loss"], values["validation"]) for values in history]


@pytest.mark.parametrize("steps", [1, 2])
def test_a_training_broken_off_within_an_epoch_goes_on_there(tmp_path, here, steps):
    config = dataclasses.replace(
        SMALL, checkpoint_steps=2, gradient_accumulation_steps=steps, batch_size=6, epochs=3, warmup_steps=4
    )
    whole = trained_one(config, tmp_path / "whole")
    parts = broken_off_and_resumed(config, tmp_path / "parts", after=7 // steps)
    assert torch.equal(whole[0], parts[0])
    assert whole[1] == parts[1]
    first = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)
    assert first["epoch"] == 3
    ranks = launch(
        broken_off_and_resumed, config, tmp_path / "ranks", 7 // steps, nprocs=2, folder=tmp_path / "run"
    ).results(120)
    wanted = launch(trained_one, config, tmp_path / "ranks2", nprocs=2, folder=tmp_path / "run2").results(120)
    assert torch.equal(ranks[0][0], wanted[0][0])
    np.testing.assert_allclose(ranks[0][1], wanted[0][1], rtol=1e-12)


def test_a_checkpoint_within_an_epoch_fits_its_batches_alone(tmp_path, here):
    config = dataclasses.replace(SMALL, checkpoint_steps=1, batch_size=6)
    trainer = Breaks(config, tmp_path)
    trainer.after = 3
    with pytest.raises(Stopped):
        trainer.fit()
    with pytest.raises(ValueError, match="after 18 columns of an epoch, no multiple of a batch of 12"):
        Trainer(dataclasses.replace(config, batch_size=12, resume=True), tmp_path).fit()
    assert len(Trainer(dataclasses.replace(config, batch_size=9, resume=True), tmp_path).fit()) == 2


def test_a_loss_that_is_no_number_is_an_error(tmp_path, here):
    config = dataclasses.replace(SMALL, learning_rate=1e30, max_grad_norm=None, optimizer="sgd", epochs=5)
    with pytest.raises(ValueError, match="give a smaller learning_rate"):
        Trainer(config, tmp_path).fit()


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [7, 12, 13])
def test_every_column_counts_once_in_the_same_batch_for_any_world(world, count):
    size = 6 // world
    columns = np.arange(100, 100 + count)
    deals = [Deal(columns, size, rank, world, seed=3) for rank in range(world)]
    ones = list(Deal(columns, 6, 0, 1, seed=3).batches(5))
    for number, parts in enumerate(zip(*(deal.batches(5) for deal in deals), strict=True)):
        found = [int(i) for part in parts for i, w in zip(part.index, part.weight, strict=True) if w]
        assert sorted(found) == sorted(ones[number].index.tolist())
        assert deals[0].counts()[number] == len(found)
    assert [b.index.tolist() for b in deals[0].batches(5)] != [b.index.tolist() for b in deals[0].batches(6)]


def test_it_stops_when_nothing_gets_better(tmp_path, here):
    config = dataclasses.replace(SMALL, epochs=9, patience=2, min_delta=100.0)
    assert len(Trainer(config, tmp_path).fit()) == 3


def test_numbers_of_a_batch_and_rates():
    config = Config(batch_size=32, gradient_accumulation_steps=2)
    assert (config.per_rank(4), config.effective(4), config.rate(4)) == (8, 64, 1e-3)
    config = Config(batch_size=32, batch_mode="per_rank", lr_scaling="linear")
    assert (config.per_rank(4), config.effective(4), config.rate(4)) == (32, 128, 4e-3)
    assert dataclasses.replace(config, lr_scaling="sqrt").rate(4) == 2e-3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"lr_scaling": "cubic"}, "unknown lr_scaling"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"validation_share": 1.0}, "validation_share"),
        ({"width": 10, "heads": 4}, "multiple of heads"),
        ({"sync_batch_norm": True}, "no batch norm"),
        ({"distributed_backend": "mpi"}, "unknown distributed_backend"),
        ({"loss_weights": (1.0, 2.0)}, "three numbers"),
        ({"patience": 0}, "patience=0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm=0.0"),
        ({"optimizer": "adamwe"}, "did you mean 'adamw'"),
        ({"log_level": "LOUD"}, "unknown log_level"),
        ({"timeout": 0}, "timeout=0"),
        ({"use_multi_gpu": False, "world_size": 2}, "use_multi_gpu=False is one rank"),
        ({"fp16_allreduce": True, "bf16_allreduce": True}, "one of the two"),
        ({"checkpoint_steps": 0}, "checkpoint_steps=0"),
    ],
)
def test_options_that_cannot_be_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Config(**changes)


def test_what_a_world_or_a_device_cannot_do_is_said(tmp_path):
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
