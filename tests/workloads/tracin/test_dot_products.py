"""Four engines, one number."""

import copy
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from mgpu_nb.workloads import tracin
from mgpu_nb.workloads.tracin.checkpoints import conve_of
from mgpu_nb.workloads.tracin.conve import ConvE, Shape
from mgpu_nb.workloads.tracin.dot_products import products, self_products
from mgpu_nb.workloads.tracin.engines import ENGINES
from mgpu_nb.workloads.tracin.loss import LOSSES
from mgpu_nb.workloads.tracin.training import _queries

pytestmark = pytest.mark.slow  # seconds of work each


def model_of(shape: Shape, seed: int = 0, dtype: torch.dtype = torch.float64) -> ConvE:
    torch.manual_seed(seed)
    model = ConvE(shape).to(dtype)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 2.0)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.1)
        model.bias.weight.normal_()
    return model.eval()


def triples(shape: Shape, n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sizes = (shape.entities, shape.relations, shape.entities)
    return torch.stack([torch.randint(size, (n,), generator=generator) for size in sizes], 1)


SMALL = Shape(entities=6, relations=2, height=2, width=4, channels=3)


@pytest.mark.slow
@settings(max_examples=15)
@given(
    st.builds(
        Shape, entities=st.integers(1, 7), relations=st.integers(1, 3), height=st.integers(2, 3),
        width=st.integers(3, 5), channels=st.integers(1, 4), kernel=st.sampled_from([1, 2, 3]),
    ),
    st.sampled_from(sorted(LOSSES)), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3),
)  # fmt: skip
def test_all_engines_equal_the_loop(shape: Shape, loss: str, n: int, m: int, batch_size: int) -> None:
    model, train, test = model_of(shape), triples(shape, n, 1), triples(shape, m, 2)
    reference = products(model, LOSSES[loss], train, test, engine="loop")
    for engine in ENGINES:
        found = products(model, LOSSES[loss], train, test, engine=engine, batch_size=batch_size)
        torch.testing.assert_close(found, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("engine", ["factored", "vmap", "jvp"])
@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_float32_is_close(engine: str, loss: str) -> None:
    train, test = triples(SMALL, 20, 1), triples(SMALL, 5, 2)
    exact = products(model_of(SMALL), LOSSES[loss], train, test, engine="loop")
    found = products(model_of(SMALL).float(), LOSSES[loss], train, test, engine=engine)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()))


def test_a_head_that_is_its_own_tail_and_shared_rows() -> None:
    same = torch.tensor([[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 1, 1]])
    model = model_of(SMALL)
    for loss in LOSSES.values():
        reference = products(model, loss, same, same, engine="loop")
        torch.testing.assert_close(products(model, loss, same, same), reference, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(reference, reference.T)
        torch.testing.assert_close(self_products(model, loss, same, batch_size=3), reference.diag())


def test_bce_is_the_loss_that_a_conve_is_trained_with() -> None:
    model, train = model_of(SMALL), triples(SMALL, 30, 1)
    loss = LOSSES["bce"].of(train)
    pairs, tails, starts = _queries(train.numpy(), "cpu")
    labels = torch.full((len(pairs), SMALL.entities), 0.1 / SMALL.entities, dtype=torch.float64)
    for n in range(len(pairs)):
        labels[n, tails[starts[n] : starts[n + 1]]] += 0.9
    trained = functional.binary_cross_entropy_with_logits(model(*pairs.T), labels)
    first = torch.stack([(train[:, :2] == pair).all(1).nonzero()[0, 0] for pair in pairs])
    each = loss(model, loss.rows(train[first], model))
    torch.testing.assert_close(each.mean(), trained, rtol=1e-12, atol=0)
    # A test triple has its own tail beside those that are known, also of a relation that none of these has.
    few = LOSSES["bce"].of(train[train[:, 1] == 0])
    assert few.rows(torch.tensor([[0, 1, 5]]), model)[0].unique().tolist() == [0, 1, 5]
    known = sorted({*train[(train[:, 0] == 2) & (train[:, 1] == 0), 2].tolist(), 5})
    assert few.rows(torch.tensor([[2, 0, 5]]), model)[0, 2:].unique().tolist() == known
    with pytest.raises(ValueError, match=r"say by LOSSES\['bce'\]\.of\(train\) which there are"):
        LOSSES["bce"].rows(train, model)


def test_layers_choose_parameters() -> None:
    model, train, test = model_of(SMALL), triples(SMALL, 6, 1), triples(SMALL, 3, 2)
    loss = LOSSES["softplus"]
    names = ("linear", "norm_hidden", "entities.weight")
    parts = [products(model, loss, train, test, layers=[name]) for name in names]
    for engine in ENGINES:
        whole = products(model, loss, train, test, layers=names, engine=engine)
        torch.testing.assert_close(whole, sum(parts))
    with pytest.raises(ValueError, match="has no 'linaer'; it has entities"):
        products(model, loss, train, test, layers=["linaer"])


def test_bad_input_is_refused() -> None:
    model, one = model_of(SMALL), triples(SMALL, 1)
    loss = LOSSES["softplus"]
    with pytest.raises(ValueError, match="there is factored, vmap"):
        products(model, loss, one, one, engine="fast")
    with pytest.raises(ValueError, match="batch_size=0"):
        products(model, loss, one, one, batch_size=0)
    with pytest.raises(ValueError, match=r"call model\.eval"):
        products(model.train(), loss, one, one)


class Own(nn.Module):
    """A model of a user: a layer that the factored engine does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 4)
        self.norm = nn.LayerNorm(4)
        self.inner = nn.Linear(4, 4)
        self.bilinear = nn.Bilinear(4, 4, 1)

    def forward(self, triples: Tensor) -> Tensor:
        rows = self.inner(self.norm(self.table(triples)))
        scores: Tensor = self.bilinear(rows[:, 0], rows[:, 2])[:, 0]
        return scores


def own_loss(model: nn.Module, triples: Tensor) -> Tensor:
    losses: Tensor = model(triples) ** 2
    return losses


def test_a_users_model_goes_through_the_other_engines_and_the_unknown_layer_is_named() -> None:
    torch.manual_seed(0)
    model, train, test = Own().double().eval(), triples(SMALL, 6, 1), triples(SMALL, 3, 2)
    reference = products(model, own_loss, train, test, engine="loop")
    for engine in ("vmap", "jvp"):
        torch.testing.assert_close(products(model, own_loss, train, test, engine=engine), reference)
    with pytest.raises(ValueError, match=r"does not know the layer 'bilinear' \(Bilinear\)"):
        products(model, own_loss, train, test)
    known = ["table", "norm", "inner"]
    reference = products(model, own_loss, train, test, engine="loop", layers=known)
    torch.testing.assert_close(products(model, own_loss, train, test, layers=known), reference)


def test_shapes_are_read_from_weights() -> None:
    for shape in (SMALL, Shape(5, 2, 10, 20, 4), Shape(5, 2, 8, 8, 2)):
        assert Shape.of(ConvE(shape).state_dict(), shape.height) == shape
    assert Shape.of(ConvE(Shape(5, 2, 10, 20, 4)).state_dict()).height == 10
    with pytest.raises(ValueError, match="fit images of height 5 and 10"):
        Shape.of(ConvE(Shape(5, 2, 10, 10, 4)).state_dict())
    state = ConvE(SMALL).state_dict()
    with pytest.raises(ValueError, match="no weights of a ConvE"):
        Shape.of({})
    with pytest.raises(ValueError, match="height 8"):
        Shape.of(state, height=8)
    with pytest.raises(ValueError, match="kernel=9 is larger"):
        Shape(2, 2, 2, 4, 2, 9)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("engine", ["factored", "vmap"])
def test_compiled_gradients_are_the_same(engine: str) -> None:
    model, train, test = model_of(SMALL), triples(SMALL, 8, 1), triples(SMALL, 8, 2)
    loss = LOSSES["softplus"]
    found = products(model, loss, train, test, engine=engine, batch_size=8, compiled=True)
    torch.testing.assert_close(found, products(model, loss, train, test), rtol=1e-9, atol=1e-9)


def test_what_cannot_be_compiled_is_refused() -> None:
    model, one = model_of(SMALL), triples(SMALL, 1)
    for engine in ("jvp", "loop"):
        with pytest.raises(ValueError, match=f"the engine {engine} cannot be compiled"):
            products(model, LOSSES["softplus"], one, one, engine=engine, compiled=True)
    with pytest.raises(ValueError, match="for ConvE only"):
        products(Own().eval(), own_loss, one, one, compiled=True)


class Tied(nn.Module):
    """Uses the weights of a layer without calling it as well."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 4)

    def forward(self, triples: Tensor) -> Tensor:
        scores: Tensor = (self.table(triples[:, 0]) * self.table.weight[triples[:, 2]]).sum(-1)
        return scores


def test_a_gradient_that_factors_would_miss_is_noticed() -> None:
    torch.manual_seed(0)
    model, some = Tied().eval(), triples(SMALL, 4)
    with pytest.raises(ValueError, match=r"misses a part of the gradient of 'table\.weight'"):
        products(model, own_loss, some, some)
    reference = products(model, own_loss, some, some, engine="loop")
    torch.testing.assert_close(products(model, own_loss, some, some, engine="vmap"), reference)


class Hinge(Tied):
    """With a margin that triples of the first relation satisfy."""

    def forward(self, triples: Tensor) -> Tensor:
        return torch.relu(5.0 * triples[:, 1] - super().forward(triples)) * (triples[:, 1] > 0)


def test_an_example_without_a_gradient_tells_nothing() -> None:
    torch.manual_seed(0)
    model = Hinge().eval()
    some = torch.tensor([[0, 0, 0], [1, 1, 0], [2, 1, 3], [3, 1, 1]])
    assert not own_loss(model, some)[0]
    with pytest.raises(ValueError, match=r"misses a part of the gradient of 'table\.weight'"):
        products(model, own_loss, some, some)
    found, wanted = (
        tracin.influence(model, some, some, loss=own_loss, k=None, engine=name) for name in ("auto", "loop")
    )
    assert found.engine == "vmap"
    np.testing.assert_allclose(found.values, wanted.values, rtol=1e-5)
    np.testing.assert_allclose(found.self_influence, wanted.self_influence, rtol=1e-5)


class Layered(nn.Module):
    """One layer of a kind that is known, with an option that is not."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, triples: Tensor) -> Tensor:
        image = triples.repeat(1, 12).double().view(-1, 1, 6, 6)
        out: Tensor = self.layer(triples if isinstance(self.layer, nn.Embedding) else image)
        return out.square().flatten(1).sum(1)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Embedding(6, 4, padding_idx=3),
        nn.Embedding(6, 4, scale_grad_by_freq=True),
        nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(1, 2, 3, padding="same"),
        nn.BatchNorm2d(1, track_running_stats=False),
    ],
    ids=["padding_idx", "by frequency", "circular", "same", "no statistics"],
)
def test_options_of_layers_that_change_the_gradient_are_refused(layer: nn.Module) -> None:
    model = Layered(layer).double().eval()
    with pytest.raises(ValueError, match="does not know the layer 'layer'"):
        products(model, own_loss, triples(SMALL, 4), triples(SMALL, 2))


class Frozen(nn.Module):
    """A frozen table, a layer in place, and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 4)
        self.table.weight.requires_grad_(False)
        self.one, self.two, self.unused = nn.Linear(12, 5), nn.Linear(5, 1), nn.Linear(2, 2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, triples: Tensor) -> Tensor:
        scores: Tensor = self.two(self.relu(self.one(self.table(triples).flatten(1))))[:, 0]
        return scores


class OfTypes(Frozen):
    """Frozen in place of its table, first of all, and layers that count of another type."""

    def __init__(self, frozen: torch.dtype, counted: torch.dtype) -> None:
        super().__init__()
        self.table.to(frozen)
        for layer in (self.one, self.two, self.unused):
            layer.to(counted)

    def forward(self, triples: Tensor) -> Tensor:
        rows = self.table(triples).flatten(1).to(self.one.weight.dtype)
        scores: Tensor = self.two(self.relu(self.one(rows)))[:, 0]
        return scores


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_products_have_the_precision_of_the_parameters_that_count(engine: str) -> None:
    torch.manual_seed(0)
    model = OfTypes(torch.bfloat16, torch.float32).eval()
    train, test = triples(SMALL, 40, 1), triples(SMALL, 5, 2)
    exact = products(copy.deepcopy(model).double(), own_loss, train, test, engine="loop")
    found = products(model, own_loss, train, test, engine=engine)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6 * float(exact.abs().max()))
    exact = self_products(copy.deepcopy(model).double(), own_loss, train, engine="loop")
    torch.testing.assert_close(
        self_products(model, own_loss, train, engine=engine).double(), exact, rtol=1e-5, atol=0
    )
    model = OfTypes(torch.float32, torch.float64).eval()
    assert products(model, own_loss, train, test, engine=engine).dtype == torch.float64


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_gradients_of_16_bits_are_multiplied_in_32(half: torch.dtype) -> None:
    torch.manual_seed(0)
    model, train, test = OfTypes(half, half).eval(), triples(SMALL, 40, 1), triples(SMALL, 5, 2)

    def gradient(triple: Tensor) -> Tensor:
        weights = [*model.one.parameters(), *model.two.parameters()]
        parts = torch.autograd.grad(own_loss(model, triple[None])[0], weights)
        return torch.cat([part.flatten().double() for part in parts])

    ours, theirs = (torch.stack([gradient(triple) for triple in some]) for some in (train, test))
    exact = ours @ theirs.T
    found = products(model, own_loss, train, test, engine="loop")
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6 * float(exact.abs().max()))
    for engine in sorted(ENGINES):  # none refuses the model, whose gradients are rounded
        found = products(model, own_loss, train, test, engine=engine)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=0.02 * float(exact.abs().max()))


def test_a_frozen_parameter_that_is_elsewhere_says_nothing_of_where_products_are() -> None:
    torch.manual_seed(0)
    model, train, test = Own().double().eval(), triples(SMALL, 6, 1), triples(SMALL, 3, 2)
    reference = tracin.influence(model, train, test, loss=own_loss, k=None)
    model.register_parameter("placeholder", nn.Parameter(torch.zeros(3, device="meta"), requires_grad=False))
    assert next(model.parameters()).is_meta
    found = products(model, own_loss, train, test, engine="vmap")
    assert found.device.type == "cpu"
    np.testing.assert_allclose(found.T, reference.values, rtol=1e-10)


def test_checkpoints_of_two_types_are_added_up_in_the_larger() -> None:
    torch.manual_seed(0)
    models = [Own().eval(), Own().double().eval()]
    train, test = triples(SMALL, 6, 1), triples(SMALL, 3, 2)
    found = tracin.influence(models[0], train, test, loss=own_loss, checkpoints=models, k=None, engine="vmap")
    parts = [products(model, own_loss, train, test, engine="vmap").double() for model in models]
    assert found.values.dtype == np.float64
    np.testing.assert_allclose(found.values, sum(parts).T, rtol=1e-12)  # type: ignore[union-attr]


def test_a_conve_whose_weights_are_of_two_types_is_rounded_to_neither() -> None:
    state = model_of(SMALL, dtype=torch.float32).state_dict()
    state["entities.weight"] = state["entities.weight"].bfloat16()
    model = conve_of(state, SMALL)
    assert all(torch.equal(value, state[name].float()) for name, value in model.named_parameters())


def test_frozen_unused_and_in_place_layers() -> None:
    torch.manual_seed(0)
    model, train, test = Frozen().double().eval(), triples(SMALL, 6, 1), triples(SMALL, 3, 2)
    reference = products(model, own_loss, train, test, engine="loop")
    torch.testing.assert_close(products(model, own_loss, train, test), reference)
    none = products(model, own_loss, train, test, layers=["unused"])
    assert torch.equal(none, torch.zeros(6, 3, dtype=torch.float64))
    assert torch.equal(self_products(model, own_loss, train, layers=["unused"]), none[:, 0])
    model.one.train()
    with pytest.raises(ValueError, match=r"call model\.eval"):
        products(model, own_loss, train, test)
