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

The same from a shell is ``mgpu-nb tracin --model_path model.pt --train train.tsv ...``; ``mgpu-nb tracin batch``
analyses test triple by test triple, each against the training triples near it in the graph, and ``mgpu-nb tracin
train`` makes a ConvE with checkpoints. Without files the embedded graph is analysed, with errors planted among its
training triples.

What goes in:

- Triples, ``train`` and ``test``: lines of head, relation and tail with tabs, ``brazil TAB embassy TAB uk``, or commas,
  ``brazil,embassy,uk``; by number, ``3 TAB 0 TAB 7``; below a heading in its order, ``head TAB tail TAB relation``. Of
  OpenKE a count and then head, tail and relation, ``3 7 0``.
- Maps of names, ``entity_to_id`` and ``relation_to_id``: ``brazil TAB 3`` or ``3 TAB brazil``, numbers from 0 on
  without a gap, with or without a heading (``id TAB label``) or a count. Labels for tables, ``entity_labels`` and
  ``relation_labels``: ``brazil TAB Brazil``.
- All of these are UTF-8, packed by gzip or not. Blank lines, comments (``# ...``, not as many columns) and with
  ``drop_unseen`` triples of names that the maps do not have are left out: reports tell how many, ``--log_level INFO``
  what was read. Triples that come twice stay, each with an influence.
- Weights, ``model_path`` or ``checkpoints``: .safetensors, or of torch.save a state dict, or a dict with it as
  ``model_state_dict`` or ``state_dict`` and perhaps ``config``, ``{"embedding_height": 10}``. They are of a ConvE,
  under our names, PyKEEN's or those of the authors' code. With ``trust`` PyKEEN's trained_model.pkl, of any link
  predictor.
- A model of your own: ``model="package.module:factory"`` and ``loss="package.module:function"``, which returns the
  losses [B] of ``(model, triples [B, 3])``. `influence` takes models and examples as they are.

Options that matter: several ``checkpoints``, with a ``learning_rate`` each; ``loss``, softplus of the score, or bce,
what a ConvE is trained with; ``top_k``, None for all; ``use_last_layers_only``, cheaper and approximate;
``batch_size``, which bounds memory and changes no answer; ``gpu_ids``, GPUs or cpu, and ``slots``, which change none
either; of `BatchConfig` ``n_hops`` and ``min_degree``, how near is near.

What comes out, in the folder of the run:

- ``results/results.json``: num_test_triples, num_training_triples, top_k, learning_rate, num_gpus_used, results. Of
  each test triple ``results`` has test_head, test_relation, test_tail and top_influences, of which each is train_head,
  train_relation, train_tail and influence; in mode self train_head, train_relation, train_tail and self_influence. With
  ``drop_unseen`` also unseen, the triples left out; with ``use_mixed_precision`` rank_agreement, Spearman's with fp32.
- ``csv_output``: TestHead, TestHead_label, TestRel, TestRel_label, TestTail, TestTail_label, TrainHead,
  TrainHead_label, TrainRel, TrainRel_label, TrainTail, TrainTail_label, TracInScore, SelfInfluence. A row per test and
  training triple; in mode self a row per training triple, from TrainHead on without TracInScore.
- ``parquet_output``: test, train, test_head, test_relation, test_tail, train_head, train_relation, train_tail,
  influence, self_influence. ``test`` and ``train`` are numbers of triples from 0, in the order of their file and
  without those left out; in mode self train, head, relation, tail, self_influence.
- ``influences/SIDE-START-STOP.npy``: with ``top_k=None`` all influences of a shard, [its test, its training triples].
- Of ``batch``, in ``output_dir``, ``triple_NUMBER_HEAD_TAIL_tracin.json`` and ``.csv`` as above, and
- ``batch_tracin_summary.json``: total_triples, successful, failed_filtering, failed_tracin, skipped, results. Of each
  test triple index, head, relation, tail, status, num_filtered (training triples near it), files, error.
- Of ``train`` ``checkpoints/checkpoint_0.pt`` and so on, the graph as ``train.tsv``, ``test.tsv``, ``entity_to_id.tsv``
  and ``relation_to_id.tsv``, and ``training.json``: the options, loss (of each epoch), seconds, and of test triples mrr
  and hits_at_10, filtered, of tails.

How to read them: an influence is ``sum over checkpoints of learning_rate * gradient of the loss of the training triple
. gradient of the loss of the test triple``, in units of the loss (nats): about what a step of SGD on the training
triple alone takes off the loss of the test triple. Above 0 it is a proponent, below an opponent. Config's learning_rate
is 0.001 and that of `influence` 1: one for all checkpoints scales all numbers and changes no rank. A self-influence is
never negative; those of wrong triples are among the largest. Of a `Report`:

- ``influence(test)``, ``proponents(test, k)``, ``opponents(test, k)``: head, relation, tail, influence, self_influence,
  by number of the training triple; of either sign ``top_k`` are kept.
- ``most_self_influential(k)``: head, relation, tail, self_influence; ``self_influence`` [n] has all, in order.
- ``frame()``: a row per test and training triple, with the columns of ``parquet_output``.

Of all triples [n, 3] and [m, 3] `products` gives the products of gradients [n, m], `self_products` [n]; losses are
those of `LOSSES`. `ConvE` scores heads [B] and relations [B] against all entities [B, entities], its ``score`` triples
[B, 3] to [B]. `fit` trains one, `evaluate` ranks triples, `community_graph` makes a `Graph`.
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
