"""Influences for any model: of PyKEEN, of images, of one example or of many."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

from mgpu_nb import GPUPool
from mgpu_nb.workloads import tracin

Examples = tuple[Tensor, Tensor]


def classifier(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    body = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout(0.5)]
    return nn.Sequential(*body, nn.Linear(4 * 36, 3))


def images(n: int, seed: int = 0) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 8, 8, generator=generator), torch.randint(3, (n,), generator=generator)


def of_batch(model: nn.Module, batch: Examples) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def of_one(model: nn.Module, example: Examples) -> Tensor:
    image, label = example
    return functional.cross_entropy(model(image[None]), label[None])


@pytest.mark.parametrize(("loss", "engine"), [(of_batch, "factored"), (of_one, "vmap")])
@pytest.mark.reference
@pytest.mark.slow
def test_images_give_what_captum_computes(tmp_path: Path, loss: Callable[..., Tensor], engine: str) -> None:
    from captum.influence import TracInCP, TracInCPFast

    train, test = images(30, 1), images(5, 2)
    files = [str(tmp_path / f"{n}.pt") for n in range(2)]
    for n, file in enumerate(files):
        torch.save(classifier(n).state_dict(), file)

    def load(module: nn.Module, path: str) -> float:
        module.load_state_dict(torch.load(path, weights_only=True))
        return {files[0]: 0.5, files[1]: 0.25}[path]

    net = classifier().eval()
    found = tracin.influence(
        net, train, test, loss=loss, k=None, checkpoints=files, learning_rate=(0.5, 0.25)
    )
    assert found.engine == engine
    theirs = TracInCP(
        classifier().eval(), TensorDataset(*train), files, checkpoints_load_func=load,
        loss_fn=nn.CrossEntropyLoss(reduction="none"), batch_size=30,
    )  # fmt: skip
    values = torch.from_numpy(found.values)
    torch.testing.assert_close(values, theirs.influence(test), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        torch.from_numpy(found.self_influence), theirs.self_influence(), rtol=1e-6, atol=1e-6
    )
    last = tracin.influence(
        net, train, test, loss=loss, k=None, checkpoints=files, learning_rate=(0.5, 0.25), layers="5.weight"
    )
    fast = TracInCPFast(
        classifier().eval(), "5", TensorDataset(*train), files, checkpoints_load_func=load,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"), batch_size=30,
    )  # fmt: skip
    torch.testing.assert_close(torch.from_numpy(last.values), fast.influence(test), rtol=1e-6, atol=1e-6)
    # Three proponents and three opponents are those of captum.
    few = tracin.influence(net, train, test, loss=loss, k=3, checkpoints=files, learning_rate=(0.5, 0.25))
    with pytest.raises(ValueError, match="only 3 proponents and opponents were kept"):
        few.values.sum()
    index, scores = theirs.influence(test, k=3, proponents=False)
    for n in range(5):
        opponents = few.opponents(n)
        assert opponents.index.tolist() == index[n].tolist()
        np.testing.assert_allclose(opponents["influence"], scores[n], rtol=1e-5)


class Pairs(Dataset[dict[str, Any]]):
    """Images as a data set of dicts."""

    def __init__(self, examples: Examples) -> None:
        self.images, self.labels = examples

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {"image": self.images[number], "label": int(self.labels[number])}


def of_dict(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return of_batch(model, (batch["image"], batch["label"]))


@pytest.mark.slow
def test_shards_give_equal_bits_on_any_number_of_devices() -> None:
    train, test = images(50, 1), images(4, 2)
    named = {"image": train[0], "label": train[1]}, {"image": test[0], "label": test[1]}
    net = classifier()
    before = copy.deepcopy(net.state_dict())
    kinds: list[tuple[Any, Any]] = [("factored", named), ("vmap", (Pairs(train), Pairs(test)))]
    found = []
    for slots in (1, 3):
        with GPUPool(slots=slots) as pool:
            found += [
                tracin.influence(net, *examples, loss=of_dict, batch_size=8, engine=engine, pool=pool)
                for engine, examples in kinds
            ]
    for n, (engine, examples) in enumerate(kinds):
        one, three = found[n], found[n + 2]
        pd.testing.assert_frame_equal(three.frame(), one.frame(), check_exact=True)
        assert np.array_equal(three.self_influence, one.self_influence)
        here = tracin.influence(net, *examples, loss=of_dict, batch_size=7, engine=engine)
        pd.testing.assert_frame_equal(here.frame(), one.frame(), rtol=1e-4)
    assert net.training  # the module is as it was
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_loss_is_known_by_what_it_returns() -> None:
    train, net = images(6, 1), classifier()

    def summed(
        model: nn.Module, batch: Examples
    ) -> Tensor:  # a number of a batch as well: of one example then
        return functional.cross_entropy(
            model(batch[0].reshape(-1, 1, 8, 8)), batch[1].reshape(-1), reduction="sum"
        )

    values = [tracin.influence(net, train, loss=loss).self_influence for loss in (of_batch, of_one, summed)]
    np.testing.assert_allclose(values[1], values[0], rtol=1e-5)
    np.testing.assert_allclose(values[2], values[0], rtol=1e-5)

    def branching(model: nn.Module, example: Examples) -> Tensor:
        loss = of_one(model, example)
        return loss if loss.item() > 0.5 else 2 * loss

    found = tracin.influence(net, train, loss=branching)
    assert found.engine == "loop"
    factors = [1 if of_one(net.eval(), (train[0][n], train[1][n])) > 0.5 else 4 for n in range(6)]
    np.testing.assert_allclose(found.self_influence, values[0] * factors, rtol=1e-5)
    with pytest.raises(ValueError, match="engine='factored' takes a loss of a batch"):
        tracin.influence(net, train, loss=of_one, engine="factored")


def test_a_list_of_examples_is_a_data_set() -> None:
    pictures, labels = images(6)
    listed = [(picture, int(label)) for picture, label in zip(pictures, labels, strict=True)]
    net = classifier()
    found, wanted = (tracin.influence(net, train, loss=of_batch) for train in (listed, (pictures, labels)))
    np.testing.assert_array_equal(found.self_influence, wanted.self_influence)


def diverged() -> nn.Module:
    model = classifier()
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = float("nan")
    return model


def holed() -> tuple[Tensor, Tensor]:
    pictures, labels = images(4)
    pictures[2, 0, 3, 3] = float("nan")
    return pictures, labels


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"loss": None}, "a Sequential is neither a ConvE nor a model of PyKEEN"),
        ({"loss": "softpls"}, "did you mean 'softplus'"),
        ({"loss": lambda model, example: model(example[0][None])}, r"one number, got \[1, 3\]"),
        ({"loss": lambda model, of: functional.cross_entropy(model(of[0]), of[1])}, "one number for 2 examples.*redu"),
        ({"loss": nn.CrossEntropyLoss()}, "loss: a CrossEntropyLoss takes outputs and targets; give a function of"),
        ({"train": holed()}, "influences of training example 2 are not finite: it holds NaN or infinity, or its loss"),
        ({"test": holed()}, "influences on test example 2 are not finite: it holds NaN"),
        ({"k": 0}, "k must be an integer >= 1 or None"),
        ({"layers": ["fc"]}, "has no 'fc'; it has 0, 1, 5"),
        ({"learning_rate": (1, 2)}, "2 for 1 checkpoints"),
        ({"learning_rate": -1.0}, r"learning_rate\[0\] must be"),
        ({"train": (torch.zeros(3, 1, 8, 8), torch.zeros(2))}, "train: its tensors are of different lengths, 2 and 3"),
        ({"train": ["a", "b"]}, "train: give a tensor, a tuple or dict of tensors, or a map-style data set; found str"),
        ({"train": images(0)}, "train: there are no examples"),
        ({"checkpoints": [{"0.weight": torch.zeros(1)}]}, r"checkpoints\[0\]: 0\.weight has shape \(1,\)"),
        ({"checkpoints": [classifier(), diverged()]}, r"checkpoints\[1\]: 0\.weight holds NaN or infinity \(1 of "),
        ({"checkpoints": "model.pt"}, "checkpoints: give a list of them, not one str"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(change: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"train": images(4), "loss": of_batch, **change}
    with pytest.raises((ValueError, TypeError), match=words):
        tracin.influence(classifier(), given.pop("train"), **given)


def nations(inverse: bool = False) -> Any:
    from pykeen.datasets import Nations

    return Nations(create_inverse_triples=inverse)  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def data() -> Any:
    return nations()


KINDS = ("TransE", "DistMult", "ComplEx", "RotatE", "ConvE", "TuckER")


def pykeen_model(kind: str, triples: Any, **options: Any) -> Any:
    from pykeen import models

    if kind == "ConvE":  # not the image that PyKEEN takes by itself
        options |= {"embedding_dim": 24, "embedding_height": 3, "embedding_width": 8, "output_channels": 4}
    model = getattr(models, kind)(triples_factory=triples, random_seed=0, **{"embedding_dim": 6, **options})
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.running_var is not None:
                module.running_var.uniform_(0.5, 1.5)
    return model.double().eval()


def by_autograd(model: Any, rows: Tensor, tests: Tensor, loss: Callable[[Any, Tensor], Tensor]) -> np.ndarray:
    """Products of gradients with nothing of ours."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = []
    for part in (rows, tests):
        each = [
            torch.autograd.grad(loss(model, row[None]), parameters, materialize_grads=True) for row in part
        ]
        gradients.append(torch.stack([torch.cat([g.flatten() for g in some]) for some in each]))
    return (gradients[0] @ gradients[1].T).numpy()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.reference
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_pykeens_models_with_its_own_triples(data: Any, kind: str) -> None:
    model, train, test = pykeen_model(kind, data.training), data.training, data.testing
    rows, some = [0, 700, 1591], test.mapped_triples[:2]
    known = train.mapped_triples

    def softplus(model: Any, triple: Tensor) -> Tensor:
        return functional.softplus(-model.score_hrt(triple)).sum()

    def trained(model: Any, triple: Tensor) -> Tensor:
        scores = model.score_t(triple[:, :2])
        labels = torch.full_like(scores, 0.1 / scores.shape[1])
        tails = known[(known[:, :2] == triple[0, :2]).all(1), 2].tolist()
        labels[0, [*tails, int(triple[0, 2])]] += 0.9
        return functional.binary_cross_entropy_with_logits(scores, labels)

    for name, loss in (("softplus", softplus), ("bce", trained)):
        found = tracin.influence(model, train, some, loss=name, k=None)
        wanted = by_autograd(model, known[rows], some, loss)
        np.testing.assert_allclose(found.values[:, rows].T, wanted, rtol=1e-9, atol=1e-11)
        own = np.diag(by_autograd(model, known[rows], known[rows], loss))
        np.testing.assert_allclose(found.self_influence[rows], own, rtol=1e-9)
    fast = {"TuckER": "vmap"}.get(kind, "factored")
    whole = tracin.influence(model, train, [("brazil", "embassy", "uk")], k=4)
    assert whole.engine == fast
    assert len(whole.proponents(0)) == len(whole.opponents(0)) == 4
    assert "test triple 0: brazil embassy uk" in str(whole)
    assert whole.frame()["test_head"].tolist() == ["brazil"] * 8


@pytest.mark.reference
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["ConvE", "DistMult"])
@pytest.mark.parametrize("side", ["tail", "head"])
def test_both_sides_of_a_model_with_inverse_triples(kind: str, side: Literal["tail", "head"]) -> None:
    triples = nations(inverse=True).training
    model = pykeen_model(kind, triples)
    tests = nations().testing.mapped_triples[:2]
    rows = triples.mapped_triples[[0, 900]]

    known = triples.mapped_triples

    def query(triple: Tensor) -> Tensor:
        head, relation, tail = triple.unbind(-1)
        ends = (head, 2 * relation, tail) if side == "tail" else (tail, 2 * relation + 1, head)
        return torch.stack(ends, -1)

    def softplus(model: Any, triple: Tensor) -> Tensor:
        return functional.softplus(-model.score_hrt(query(triple))).sum()

    def trained(model: Any, triple: Tensor) -> Tensor:
        asked, answers = query(triple), query(known)
        scores = model.score_t(asked[:, :2])
        labels = torch.full_like(scores, 0.1 / scores.shape[1])
        right = answers[(answers[:, :2] == asked[0, :2]).all(1), 2].tolist()
        labels[0, [*right, int(asked[0, 2])]] += 0.9
        return functional.binary_cross_entropy_with_logits(scores, labels)

    for name, loss in (("softplus", softplus), ("bce", trained)):
        found = tracin.influence(model, triples, tests, loss=name, side=side, k=None)
        wanted = by_autograd(model, rows, tests, loss)
        np.testing.assert_allclose(found.values[:, [0, 900]].T, wanted, rtol=1e-9, atol=1e-11)


def test_triples_that_cannot_be_are_refused(data: Any) -> None:
    model, train = pykeen_model("DistMult", data.training), data.training
    refused: list[tuple[Any, str]] = [
        ([("brazil", "embassy", "france")], r"test\[0\]: entity 'france' is not one of"),
        (
            torch.tensor([[0, 0, 14]]),
            r"test\[0\]: there is no entity 14 in the model, whose numbers go from 0 to 13: correct it",
        ),
        (torch.tensor([[0, 0, 1], [0, 55, 1]]), r"test\[1\]: there is no relation 55"),
        ([(0, 0, 1), (0, 1)], r"test\[1\]: a triple is head, relation and tail, got '\(0, 1\)'"),
        (
            "test.tsv",
            "test='test.tsv': give triples, not a file: TriplesFactory.from_path of PyKEEN reads it",
        ),
        (torch.zeros(2, 3), "test: give whole numbers or names, not float32"),
        (torch.zeros(2, 2, dtype=torch.long), r"test: triples have the shape \[n, 3\], got \[2, 2\]"),
    ]
    for test, words in refused:
        with pytest.raises((ValueError, TypeError), match=words):
            tracin.influence(model, train, test)
    with pytest.raises(ValueError, match="test: the training triples have no names: give numbers, or"):
        tracin.influence(model, data.training.mapped_triples, [("brazil", "embassy", "uk")])
    with pytest.raises(ValueError, match="goes with a model that was trained with inverse triples"):
        tracin.influence(model, train, side="head")
    from pykeen.triples import TriplesFactory

    other = TriplesFactory.from_labeled_triples(np.array([["uk", "embassy", "brazil"]]))
    with pytest.raises(ValueError, match="test: its entities have other numbers"):
        tracin.influence(model, train, other)
