"""Steps: gradients of micro-batches add up to that of the batch, and what a setting says happens."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from mgpu_nb.workloads.alignment import optimiser as module
from mgpu_nb.workloads.alignment.optimiser import Optimiser


def parts(model: nn.Linear, data: Tensor, size: int, scale: float = 1.0) -> Iterator[Tensor]:
    for rows in data.split(size):
        yield scale * model(rows).square().sum() / len(data)


def start() -> tuple[nn.Linear, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(3, 2), torch.randn(8, 3)


def test_a_step_is_that_of_the_whole_batch() -> None:
    after = []
    for size in (8, 3, 1):
        model, data = start()
        optimiser = Optimiser(model, 1e-2, 2)
        losses = [optimiser.step(parts(model, data, size)) for _ in range(2)]
        after.append((losses, [p.detach().clone() for p in model.parameters()]))
    for losses, parameters in after[1:]:
        assert losses == pytest.approx(after[0][0], rel=1e-6)
        for one, other in zip(parameters, after[0][1], strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_the_rate_falls_to_nothing() -> None:
    model, data = start()
    optimiser = Optimiser(model, 1e-2, 4)
    moves = []
    for _ in range(4):
        before = model.weight.detach().clone()
        optimiser.step(parts(model, data, 8))
        moves.append(float((model.weight - before).abs().max().detach()))
    assert moves[0] == pytest.approx(1e-2, rel=1e-3)  # Adam's first step is the rate itself
    assert moves == sorted(moves, reverse=True)
    assert moves[3] < 0.4 * moves[0]


def test_the_gradient_is_clipped() -> None:
    model, data = start()
    Optimiser(model, 1e-2, 1).step(parts(model, data, 8, scale=1e4))
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(1.0, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_changes_of_half_precision_weights_add_up(dtype: torch.dtype) -> None:
    model = nn.Linear(3, 2, dtype=dtype)
    nn.init.ones_(model.weight)
    optimiser = Optimiser(model, 1e-4, 200)  # of 1 rounding leaves less than 1/512
    for _ in range(200):
        optimiser.step(parts(model, torch.ones(8, 3, dtype=dtype), 8))
    assert model.weight.dtype == dtype
    moved = 1 - model.weight.detach().float()
    torch.testing.assert_close(moved, torch.full((2, 3), 1e-2), atol=5e-3, rtol=0)


def test_frozen_parameters_stay() -> None:
    model, data = start()
    model.bias.requires_grad_(False)
    before = model.bias.clone()
    Optimiser(model, 1e-2, 1).step(parts(model, data, 8))
    assert torch.equal(model.bias, before)


def test_a_loss_that_is_no_number_changes_nothing() -> None:
    model, data = start()
    before = model.weight.detach().clone()
    with pytest.raises(ValueError, match=r"the loss is nan at step 1; lower learning_rate, which was 0\.01"):
        Optimiser(model, 1e-2, 1).step(parts(model, data * torch.nan, 8))
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize(("interval", "cleared"), [(0, 0), (1, 7), (3, 2), (10, 0)])
def test_the_cache_is_cleared_at_its_interval(
    interval: int, cleared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[torch.device] = []
    monkeypatch.setattr(module, "clear_cache", calls.append)
    model, data = start()
    optimiser = Optimiser(model, 1e-2, 7, interval)
    for _ in range(7):
        optimiser.step(parts(model, data, 8))
    assert calls == [torch.device("cpu")] * cleared


def test_clearing_asks_the_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[None] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append(None))
    module.clear_cache(torch.device("cpu"))
    assert not calls
    module.clear_cache(torch.device("cuda", 1))
    assert calls == [None]
