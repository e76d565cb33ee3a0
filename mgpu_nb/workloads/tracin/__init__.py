"""tracin: which training triples made a link predictor say what it says.

TracInCP influence (Pruthi et al., 2020) of every training triple on every test triple, exact, by products of
factors of gradients instead of gradients. ::

    from mgpu_nb import GPUPool
    from mgpu_nb.workloads import tracin

    config = tracin.Config(model_path="model.pt", train="train.tsv", test="test.tsv",
                           entity_to_id="entities.tsv", relation_to_id="relations.tsv")
    with GPUPool(config.gpu_ids, slots=config.slots) as pool:
        run = pool.run(tracin.tasks(config), name="tracin", folder=config.output_dir)
        run.wait()
    report = tracin.collect(run, config)
    report.proponents(test=0)

Without files the embedded graph is analysed, with errors planted among its training triples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

from .config import BatchConfig, Config, TrainConfig

if TYPE_CHECKING:
    from .batch import batch_tasks, summarise
    from .conve import ConvE, Shape
    from .graph import Graph, community_graph
    from .influence import products, self_products
    from .loss import LOSSES
    from .plan import sharding, sharding_of, tasks, training_task
    from .report import Report, collect
    from .training import evaluate, fit

# Loaded on first use: the options alone need no torch.
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "batch": ["batch_tasks", "summarise"],
        "conve": ["ConvE", "Shape"],
        "graph": ["Graph", "community_graph"],
        "influence": ["products", "self_products"],
        "loss": ["LOSSES"],
        "plan": ["sharding", "sharding_of", "tasks", "training_task"],
        "report": ["Report", "collect"],
        "training": ["evaluate", "fit"],
    },
)
__all__ = [
    "LOSSES",
    "BatchConfig",
    "Config",
    "ConvE",
    "Graph",
    "Report",
    "Shape",
    "TrainConfig",
    "batch_tasks",
    "collect",
    "community_graph",
    "evaluate",
    "fit",
    "products",
    "self_products",
    "sharding",
    "sharding_of",
    "summarise",
    "tasks",
    "training_task",
]
