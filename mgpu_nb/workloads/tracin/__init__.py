"""tracin: which training triples made a link predictor say what it says.

TracInCP influence (Pruthi et al., 2020) of every training triple on every test triple, exact, by products of
factors of gradients instead of gradients. ::

    from mgpu_nb.workloads import tracin

    config = tracin.Config(model_path="model.pt", train="train.tsv", test="test.tsv",
                           entity_to_id="entities.tsv", relation_to_id="relations.tsv")
    report = tracin.collect(tracin.start(config).wait())
    report.proponents(test=0)

Without files the embedded graph is analysed, with errors planted among its training triples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

from .config import BatchConfig, Config, TrainConfig

if TYPE_CHECKING:
    from .batch import BatchReport, batch_tasks, collect_batch, summarise
    from .conve import ConvE, Shape
    from .dot_products import products, self_products
    from .graph import Graph, community_graph
    from .loss import LOSSES
    from .plan import sharding, sharding_of, tasks, training_task
    from .report import Report, collect
    from .training import evaluate, fit
    from .workload import WORKLOAD, start

# Loaded on first use: the options alone need no torch.
__getattr__, _, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "batch": ["BatchReport", "batch_tasks", "collect_batch", "summarise"],
        "conve": ["ConvE", "Shape"],
        "graph": ["Graph", "community_graph"],
        "dot_products": ["products", "self_products"],
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
    "Report",
    "Shape",
    "TrainConfig",
    "batch_tasks",
    "collect",
    "collect_batch",
    "community_graph",
    "evaluate",
    "fit",
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
