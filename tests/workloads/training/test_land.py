"""The generated land: carbon is moved, never made or lost."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from mgpu_nb.workloads.training import land
from mgpu_nb.workloads.training.columns import Columns
from mgpu_nb.workloads.training.emulator import Emulator, Inputs, Outputs, loss_of


@pytest.fixture(scope="module")
def some() -> land.Land:
    return land.generate(40)


def test_carbon_is_conserved(some: land.Land) -> None:
    assert np.abs(some.balance).max() < 1e-12
    produced, breathed, litter, plants, soil = some.scalar.T
    at_first = some.matrices.sum((1, 2, 3))
    np.testing.assert_allclose(at_first + produced, breathed + plants + soil, rtol=1e-12)
    assert (litter + plants < produced).all()  # the rest burnt
    without = some.static.copy()
    without[:, land.GENERATED.names("static").index("fire")] = 0
    scalar = land.simulate(some.series, without, some.lists, some.matrices)[0]
    np.testing.assert_allclose(scalar[:, 0], scalar[:, 2] + scalar[:, 3], rtol=1e-12)
    np.testing.assert_allclose(some.vector.sum(2), np.stack([plants, produced, litter], 1), rtol=1e-12)
    np.testing.assert_allclose(some.matrix.sum((1, 2, 3)), soil, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["series", "static", "lists", "matrices"])
def test_all_inputs_act_in_every_column(some: land.Land, part: str) -> None:
    given = {name: getattr(some, name) for name in ("series", "static", "lists", "matrices")}
    for n, column in enumerate(some.layout.of(part)):
        place = (..., n) if part in ("series", "static") else (slice(None), n)
        changed = given[part].copy()
        changed[place] += 0.1 * changed[place].std()
        outputs = land.simulate(**{**given, part: changed})
        moved = max(
            np.abs(found - true).max() / true.std()
            for found, true in zip(outputs, (some.scalar, some.vector, some.matrix), strict=False)
        )
        assert moved > 1e-3, column.name
        each = np.abs(outputs[0] / some.scalar - 1).max(1)
        assert (each > 1e-6).all(), column.name


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


@pytest.mark.slow
def test_what_is_known_of_land_holds(some: land.Land) -> None:
    def changed(name: str, by: float) -> npt.NDArray[np.float64]:
        part = "series" if name in land.GENERATED.names("series") else "static"
        given = {each: getattr(some, each) for each in ("series", "static", "lists", "matrices")}
        given[part] = given[part].copy()
        given[part][..., land.GENERATED.names(part).index(name)] += by
        return land.simulate(**given)[0] - some.scalar

    produced, breathed, soil = 0, 1, 4
    assert (changed("carbon_dioxide", 100)[:, produced] > 0).all()
    assert (changed("nitrogen", 1)[:, produced] > 0).all()
    assert (changed("PRECTmms", 3 / 86400)[:, produced] > 0).all()
    assert (changed("QBOT", -1e-3)[:, produced] < 0).all()  # stomata close in dry air
    assert (changed("clay", 0.1)[:, soil] > 0).mean() > 0.9
    assert (changed("tillage", 0.5)[:, soil] < 0).all()
    assert (changed("fire", 0.3)[:, soil] < 0).all()
    bare = land.simulate(some.series, some.static, some.lists * [[0], [1], [1]], some.matrices)[0]
    assert (bare[:, produced] == 0).all()
    warmer = land.simulate(
        some.series + np.array([0, 0, 0, 0, 0, 2.0]), some.static, some.lists * [[0], [1], [1]], some.matrices
    )
    assert (warmer[0][:, breathed] > bare[:, breathed]).mean() > 0.8


def test_a_column_depends_on_its_number_alone(some: land.Land) -> None:
    few = land.generate(3)
    for name, array in few.arrays().items():
        np.testing.assert_array_equal(array, getattr(some[:3], name))
    assert not np.array_equal(land.generate(3, seed=1).series, few.series)
    assert len(some[5:9]) == 4


def test_a_number_of_columns_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="columns=0"):
        land.generate(0)


def batch(some: land.Land, n: int = 6) -> tuple[Inputs, Outputs]:
    return Columns(some, np.arange(len(some)), "cpu").of(torch.arange(n))


@pytest.mark.slow
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


@pytest.mark.slow
def test_recomputed_activations_change_no_gradient(some: land.Land) -> None:
    gradients = []
    inputs, wanted = batch(some)
    for recompute in (False, True):
        torch.manual_seed(0)
        model = Emulator(recompute=recompute)
        loss_of(model(inputs), wanted).mean().backward()
        gradients.append(gradient_of(model))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_recomputed_activations_need_a_tenth_of_the_memory(some: land.Land) -> None:
    inputs, wanted = batch(some, 16)

    def kept(recompute: bool) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        model = Emulator(recompute=recompute)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss_of(model(inputs), wanted).mean()
        return sum(sizes.values()) - sum(p.numel() * p.element_size() for p in model.parameters())

    assert kept(True) < 0.1 * kept(False)


def test_the_loss_is_the_weighted_sum_of_three_errors(some: land.Land) -> None:
    _, wanted = batch(some)
    found = Outputs(wanted.scalar + 1, wanted.vector + 2, wanted.matrix + 3)
    torch.testing.assert_close(loss_of(found, wanted, (1.0, 10.0, 100.0)), torch.full((6,), 1 + 40 + 900.0))
