"""The optimiser of matrices."""

import pytest
import torch
from torch import nn

from mgpu_nb.workloads.molecules.muon import Muon


def parameters(*shapes: tuple[int, int]) -> list[nn.Parameter]:
    draws = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=draws)) for shape in shapes]


@pytest.mark.parametrize("shape", [(32, 32), (32, 66), (66, 32)])
def test_a_step_moves_all_directions_about_equally(shape: tuple[int, int]) -> None:
    (matrix,) = parameters(shape)
    before = matrix.detach().clone()
    matrix.grad = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    Muon([matrix], weight_decay=0.0).step(0.1)
    moved = torch.linalg.svdvals(before - matrix.detach()) / (0.1 * max(1.0, shape[0] / shape[1]) ** 0.5)
    assert moved.max() < 1.3
    assert moved.median() > 0.6


@pytest.mark.slow
def test_matrices_of_several_shapes_go_downhill() -> None:
    weights = parameters((32, 32), (40, 32), (32, 32))
    goals = [torch.zeros_like(weight) for weight in weights]
    muon = Muon(weights)
    losses = []
    for _ in range(100):
        loss = torch.stack(
            [(weight - goal).square().sum() for weight, goal in zip(weights, goals, strict=True)]
        ).sum()
        for weight in weights:
            weight.grad = None
        loss.backward()
        muon.step(0.1)
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_nothing_to_move() -> None:
    Muon([]).step(0.1)


def test_no_gradient_decays_the_weights() -> None:
    (matrix,) = parameters((32, 32))
    before = matrix.detach().clone()
    matrix.grad = torch.zeros_like(matrix)
    Muon([matrix], weight_decay=0.5).step(0.1)
    assert torch.allclose(matrix.detach(), 0.95 * before)
