"""The generated land: carbon is moved, never made or lost."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from mgpu_nb.workloads.training import land
from mgpu_nb.workloads.training.emulator import Emulator, Inputs, Outputs, loss_of


@pytest.fixture(scope="module")
def some() -> land.Land:
    return land.generate(40)


def test_carbon_is_conserved(some: land.Land) -> None:
    assert np.abs(some.balance).max() < 1e-12
    produced, breathed, litter, plants, soil = some.scalar.T
    at_first = some.matrices.sum((1, 2, 3))
    np.testing.assert_allclose(at_first + produced, breathed + plants + soil, rtol=1e-12)
    np.testing.assert_allclose(produced, litter + plants, rtol=1e-12)
    np.testing.assert_allclose(some.vector.sum(2), np.stack([plants, produced, litter], 1), rtol=1e-12)
    np.testing.assert_allclose(some.matrix.sum((1, 2, 3)), soil, rtol=1e-12)


def test_what_comes_out_is_what_it_should_be(some: land.Land) -> None:
    shapes = {"series": (240, 6), "static": (20,), "lists": (3, 16), "matrices": (3, 18, 10), "scalar": (5,)}
    shapes |= {"vector": (3, 16), "matrix": (3, 18, 10), "balance": ()}
    for name, shape in shapes.items():
        assert getattr(some, name).shape == (40, *shape)
        assert np.isfinite(getattr(some, name)).all()
    assert min(part.min() for part in (some.scalar, some.vector, some.matrix, some.lists, some.matrices)) >= 0
    assert (some.matrix[:, 0, 16:] < some.matrices[:, 0, 16:]).all()  # bare patches get no litter
    absent = some.lists[:, 0] == 0
    assert (some.vector[:, 1][absent] == 0).all()


def test_warmth_and_water_speed_decay_up(some: land.Land) -> None:
    rows = slice(0, 10)
    given = (some.static[rows], some.lists[rows] * [[0], [1], [1]], some.matrices[rows])  # no leaves
    base = land.simulate(some.series[rows], *given)
    warmer = some.series[rows] + [0, 0, 0, 0, 0, 5.0]
    wetter = some.series[rows] + [0, 0, 0, 0, 3.0, 0]
    assert (base[0][:, 0] == 0).all()
    assert (land.simulate(warmer, *given)[0][:, 1] > 0).all()
    assert (land.simulate(wetter, *given)[0][:, 1] > base[0][:, 1]).all()


def test_a_column_depends_on_its_number_alone(some: land.Land) -> None:
    few = land.generate(3)
    for field in dataclasses.fields(few):
        np.testing.assert_array_equal(getattr(few, field.name), getattr(some[:3], field.name))
    assert not np.array_equal(land.generate(3, seed=1).series, few.series)
    assert len(some[5:9]) == 4


def test_a_number_of_columns_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="columns=0"):
        land.generate(0)


def batch(some: land.Land, n: int = 6) -> tuple[Inputs, Outputs]:
    def tensor(array: npt.NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(array[:n]).float()

    inputs = Inputs(*(tensor(getattr(some, name)) for name in ("series", "static", "lists", "matrices")))
    return inputs, Outputs(*(tensor(getattr(some, name)) for name in ("scalar", "vector", "matrix")))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_every_parameter_of_the_emulator_learns(some: land.Land, batch_norm: bool) -> None:
    torch.manual_seed(0)
    model = Emulator(batch_norm=batch_norm)
    inputs, wanted = batch(some)
    found = model(inputs)
    assert (found.scalar.shape, found.vector.shape, found.matrix.shape) == (
        (6, 5),
        (6, 3, 16),
        (6, 3, 18, 10),
    )
    assert min(found.vector.min(), found.matrix.min()) >= 0
    loss = loss_of(found, wanted)
    assert loss.shape == (6,)
    loss.mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def gradient_of(model: Emulator) -> Tensor:
    """Gradients of all parameters, in a row."""
    parts = []
    for parameter in model.parameters():
        assert parameter.grad is not None
        parts.append(parameter.grad.flatten())
    return torch.cat(parts)


def test_recomputed_activations_change_no_gradient(some: land.Land) -> None:
    gradients = []
    inputs, wanted = batch(some)
    for recompute in (False, True):
        torch.manual_seed(0)
        model = Emulator(recompute=recompute)
        loss_of(model(inputs), wanted).mean().backward()
        gradients.append(gradient_of(model))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-6)


def test_the_loss_is_the_weighted_sum_of_three_errors(some: land.Land) -> None:
    _, wanted = batch(some)
    found = Outputs(wanted.scalar + 1, wanted.vector + 2, wanted.matrix + 3)
    torch.testing.assert_close(loss_of(found, wanted, (1.0, 10.0, 100.0)), torch.full((6,), 1 + 40 + 900.0))
