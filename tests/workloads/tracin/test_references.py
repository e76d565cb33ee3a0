"""The same numbers as libraries that others trust."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mgpu_nb.workloads import tracin
from mgpu_nb.workloads.tracin.checkpoints import load_conve

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]


class Scores(nn.Module):
    """A ConvE as captum wants it: scores of triples."""

    def __init__(self, model: tracin.ConvE) -> None:
        super().__init__()
        self.model = model

    def forward(self, triples: Tensor) -> Tensor:
        return self.model.score(triples)


def test_captum_computes_the_same_influences(tmp_path: Path) -> None:
    from captum import influence

    shape = tracin.Shape(entities=9, relations=3, height=3, width=4, channels=4)
    torch.manual_seed(0)
    model = tracin.ConvE(shape).eval()
    generator = torch.Generator().manual_seed(1)
    triples = torch.stack([torch.randint(n, (26,), generator=generator) for n in (9, 3, 9)], 1)
    train, test = triples[:20], triples[20:]
    torch.save(model.state_dict(), tmp_path / "model.pt")
    labels = torch.zeros(20)

    def load(module: Scores, path: str) -> float:
        module.model.load_state_dict(torch.load(path, weights_only=True))
        return 0.5

    reference = influence.TracInCP(
        Scores(tracin.ConvE(shape)).eval(),
        torch.utils.data.TensorDataset(train, labels),
        [str(tmp_path / "model.pt")],
        checkpoints_load_func=load,
        loss_fn=lambda scores, _: functional.softplus(-scores),
        batch_size=20,
    )
    wanted = reference.influence((test, torch.zeros(6)))  # [test, train]
    found = 0.5 * tracin.products(model, tracin.LOSSES["softplus"], train, test)
    torch.testing.assert_close(found.T, wanted, rtol=1e-5, atol=1e-5)
    own = 0.5 * tracin.self_products(model, tracin.LOSSES["softplus"], train)
    torch.testing.assert_close(own, reference.self_influence(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inverse", [False, True])
def test_pykeen_weights_load_and_its_evaluator_agrees(tmp_path: Path, inverse: bool) -> None:
    from pykeen import models as pykeen_models
    from pykeen.evaluation import RankBasedEvaluator
    from pykeen.triples import TriplesFactory

    graph = tracin.community_graph(communities=4, size=6, relations=3, tails=3, test=30, duplicates=0)
    train, test = torch.from_numpy(graph.train), torch.from_numpy(graph.test)
    factory = TriplesFactory(
        mapped_triples=train,
        entity_to_id={name: n for n, name in enumerate(graph.entities)},
        relation_to_id={name: n for n, name in enumerate(graph.relations)},
        create_inverse_triples=inverse,
    )
    theirs = pykeen_models.ConvE(
        triples_factory=factory,
        embedding_dim=24,
        embedding_height=4,
        embedding_width=6,
        output_channels=5,
        random_seed=0,
    )
    with torch.no_grad():
        for module in theirs.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
        biases = theirs.entity_representations[1]._embeddings
        assert isinstance(biases, nn.Embedding)
        biases.weight.normal_(std=0.1)
    theirs.eval()
    torch.save(theirs.state_dict(), tmp_path / "pykeen.pt")
    with pytest.raises(ValueError, match="fit images of height 3 and 4, and no"):
        load_conve(tmp_path / "pykeen.pt", 24, 3)
    ours = load_conve(tmp_path / "pykeen.pt", 24, 3, height=4)
    wanted = theirs.predict_t(test[:, :2])
    torch.testing.assert_close(ours(test[:, 0], test[:, 1]), wanted, rtol=1e-5, atol=1e-5)
    result = RankBasedEvaluator(filtered=True).evaluate(
        theirs, test, additional_filter_triples=[train], targets=["tail"], batch_size=30, use_tqdm=False
    )
    metrics = tracin.evaluate(ours, graph.test, graph.train)
    assert metrics["mrr"] == pytest.approx(
        result.get_metric("tail.realistic.inverse_harmonic_mean_rank"), rel=1e-6
    )
    assert metrics["hits_at_10"] == pytest.approx(result.get_metric("tail.realistic.hits_at_10"), rel=1e-6)
    assert np.isfinite(metrics["mrr"])
