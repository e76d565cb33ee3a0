"""tracin: which training examples made a model say what it says.

TracInCP influence (Pruthi et al., 2020) of every training example on every test example, exact, by products of
factors of gradients instead of gradients. Of a model of PyKEEN, as its pipeline leaves it::

    from mgpu_nb.workloads import tracin

    result = pykeen.pipeline.pipeline(dataset="nations", model="ConvE", ...)
    found = tracin.influence(result.model, result.training, [("brazil", "embassy", "uk")])
    found.proponents(), found.opponents(), found.most_self_influential(20)

of any other module, whose examples are tensors, tuples or dicts of them, or a data set::

    def loss(model, batch):  # [B], or of one example a number
        images, labels = batch
        return functional.cross_entropy(model(images), labels, reduction="none")

    with GPUPool() as pool:
        tracin.influence(model, (images, labels), test_set, loss=loss, checkpoints=files, pool=pool)

and of files of triples, as a run with a folder that is resumed::

    config = tracin.Config(model_path="model.pt", train="train.tsv", test="test.tsv",
                           entity_to_id="entities.tsv", relation_to_id="relations.tsv")
    report = tracin.collect(tracin.start(config).wait())
    report.proponents(test=0)

The files are lines of head, relation and tail with tabs, and maps of names; those of PyKEEN, OpenKE and LibKGE are
read, also by gzip. Without files the embedded graph is analysed, with errors planted among its training triples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

from .config import BatchConfig, Config, TrainConfig

if TYPE_CHECKING:
    from .attribution import influence
    from .batch import BatchReport, batch_tasks, collect_batch, summarise
    from .conve import ConvE, Shape
    from .dot_products import products, self_products
    from .graph import Graph, community_graph
    from .influences import Influences
    from .loss import LOSSES
    from .plan import sharding, sharding_of, tasks, training_task
    from .report import Report, collect
    from .training import evaluate, fit
    from .workload import WORKLOAD, start

# Loaded on first use: the options alone need no torch.
__getattr__, _, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "attribution": ["influence"],
        "batch": ["BatchReport", "batch_tasks", "collect_batch", "summarise"],
        "conve": ["ConvE", "Shape"],
        "graph": ["Graph", "community_graph"],
        "dot_products": ["products", "self_products"],
        "influences": ["Influences"],
        "loss": ["LOSSES"],
        "plan": ["sharding", "sharding_of", "tasks", "training_task"],
        "report": ["Report", "collect"],
        "training": ["evaluate", "fit"],
        "workload": ["WORKLOAD", "start"],
    },
)
__all__ = [
    "LOSSES",
    "WORKLOAD",
    "BatchConfig",
    "BatchReport",
    "Config",
    "ConvE",
    "Graph",
    "Influences",
    "Report",
    "Shape",
    "TrainConfig",
    "batch_tasks",
    "collect",
    "collect_batch",
    "community_graph",
    "evaluate",
    "fit",
    "influence",
    "products",
    "self_products",
    "sharding",
    "sharding_of",
    "start",
    "summarise",
    "tasks",
    "training_task",
]


def __dir__() -> list[str]:
    return sorted(__all__)
