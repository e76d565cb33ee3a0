"""The same numbers as libraries that others trust."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mgpu_nb.workloads import tracin
from mgpu_nb.workloads.tracin.checkpoints import load_conve, load_link_predictor

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
    torch.save(theirs, tmp_path / "trained_model.pkl")
    with pytest.raises(ValueError, match=r"trained_model\.pkl, is read with trust=True \(--trust\)"):
        load_link_predictor(tmp_path / "trained_model.pkl", 24, 3)
    whole = load_link_predictor(tmp_path / "trained_model.pkl", 24, 3, trust=True)
    assert isinstance(whole, tracin.ConvE)
    assert (whole.shape.height, whole.shape.width, whole.use_inverse_triples) == (4, 6, inverse)
    with pytest.raises(ValueError, match="24 entities and 3 relations, the maps of names have 24 and 4"):
        load_link_predictor(tmp_path / "trained_model.pkl", 24, 4, trust=True)
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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["ConvE", "TransE"])
def test_the_folder_that_pykeens_pipeline_saves_is_analysed(tmp_path: Path, kind: str) -> None:
    from pykeen import models as pykeen_models
    from pykeen.datasets import Nations

    data = Nations(create_inverse_triples=kind == "ConvE")  # type: ignore[no-untyped-call]
    model = getattr(pykeen_models, kind)(
        triples_factory=data.training, embedding_dim=16, random_seed=0
    ).eval()
    for part, triples in (("training", data.training), ("testing", data.testing)):
        triples.to_path_binary(tmp_path / part)
    torch.save(model, tmp_path / "trained_model.pkl")
    options: dict[str, Any] = {
        "model_path": str(tmp_path / "trained_model.pkl"),
        "train": str(tmp_path / "training" / "numeric_triples.tsv.gz"),
        "test": str(tmp_path / "testing" / "numeric_triples.tsv.gz"),
        "entity_to_id": str(tmp_path / "training" / "entity_to_id.tsv.gz"),
        "relation_to_id": str(tmp_path / "training" / "relation_to_id.tsv.gz"),
        "output_dir": str(tmp_path / "run"),
    }
    options |= {"max_test_triples": 2, "learning_rate": (1.0,), "gpu_ids": "cpu", "slots": 1, "top_k": 3}
    with pytest.raises(ValueError, match="is read with trust=True"):
        tracin.tasks(tracin.Config(**options))
    report = tracin.collect(tracin.start(tracin.Config(**options, trust=True)).wait(120, progress=False))
    wanted = tracin.influence(model, data.training, data.testing.mapped_triples[:2], k=3)
    for test in range(2):
        found, other = report.proponents(test, 3), wanted.proponents(test, 3)
        assert found.index.tolist() == other.index.tolist()
        np.testing.assert_allclose(found["influence"], other["influence"], rtol=1e-4)
        assert found["head"].tolist() == other["head"].tolist()
