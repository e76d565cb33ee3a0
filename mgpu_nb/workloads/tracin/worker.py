"""The work of a shard: influences of some triples on others, in batches, with bounded memory."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...context import Worker, cached, worker
from .config import Config, TrainConfig, tile_of
from .dot_products import blocks, make_engine
from .engines import Engine, Loss
from .graph import Triples
from .ranking import Top
from .source import chosen_tests, load_graph, load_models, loss_of

__all__ = [
    "LAST_LAYERS",
    "agreement_of",
    "check_finite",
    "influences_of",
    "run_shard",
    "run_training",
    "training_order",
]

log = logging.getLogger("mgpu_nb.tracin")
LAST_LAYERS = ("linear", "norm_hidden", "bias")
REPORT_EVERY = 0.25  # seconds
AGREEMENT_TRAIN, AGREEMENT_TEST = 256, 16  # triples on which bfloat16 is compared with fp32


def training_order(train: Triples) -> npt.NDArray[np.int64]:
    """Order in which training triples are worked on: those of one head and relation together."""
    return np.lexsort((train[:, 1], train[:, 0]))


def run_shard(options: Config, inputs: str, side: str, start: int, stop: int) -> dict[str, Any]:
    """Compute a shard; runs in a worker.

    Parameters
    ----------
    options
        As `canonical` leaves them.
    inputs
        Digest of the files they name.
    side
        Which triples are split: ``train`` or ``test``.
    start, stop
        The shard's part, in batches of training triples in `training_order` or in tiles of test triples. Both are the
        same for any number of shards, so the numbers are, too.

    Returns
    -------
    dict
        ``rows``, ``tests``: numbers of the shard's training and test triples; ``self_influence`` [rows]; with
        ``top_k`` ``values`` and ``index`` [tests, 2 k]; without, ``file``: a .npy [tests, rows] in the run's folder.
    """
    here, began = worker(), time.perf_counter()
    graph = load_graph(options, inputs)
    rows = training_order(graph.train)
    tests = chosen_tests(options, len(graph.test))
    if side == "train":
        rows = rows[start * options.batch_size : stop * options.batch_size]
    else:
        unit = tile_of(options)
        tests = tests[start * unit : stop * unit]
    if options.top_k is None and len(tests):
        here.need_folder()  # now, not when the work is done
    engines = _engines(options, inputs, here.folder, here.device)
    loaded = time.perf_counter()
    log.debug(
        "%d training triples, %d at a time, and %d test triples on %s: %d checkpoints, engine %s, ready in %.2f s",
        len(rows), options.batch_size, len(tests), here.device, len(engines), options.engine, loaded - began,
    )  # fmt: skip
    report = _Progress(here, len(rows))
    top = Top(len(tests), options.top_k or 0, engines[0][0].dtype_name)
    file, whole = None, None
    if options.top_k is None and len(tests):
        file = f"influences/{side}-{start:06d}-{stop:06d}.npy"
        path = here.need_folder() / file
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (len(tests), len(rows))
        whole = np.lib.format.open_memmap(path, "w+", engines[0][0].dtype_name, shape)
    selves = np.zeros(len(rows), engines[0][0].dtype_name)
    train, test = _on(here.device, graph.train[rows]), _on(here.device, graph.test[tests])
    cache, own = options.cache_test_gradients, side == "train" or start == 0
    for part, of_self, values in blocks(engines, train, test, options.batch_size, cache=cache, own=own):
        selves[part] = of_self.cpu().numpy()
        found = values.cpu().numpy().T
        check_finite(found, selves[part], rows[part], tests)
        if whole is not None:
            whole[:, part] = found
        elif len(tests):
            top.add(found, rows[part])
        report(part.stop)
    if whole is not None:
        whole.flush()
    log.debug("influences of %d training triples in %.2f s", len(rows), time.perf_counter() - loaded)
    result: dict[str, Any] = {"rows": rows, "tests": tests, "self_influence": selves if own else None}
    result |= {"file": file} if file else {"values": top.values, "index": top.index}
    if options.use_mixed_precision and start == 0:
        some = graph.train[training_order(graph.train)][:AGREEMENT_TRAIN]
        numbers = chosen_tests(options, len(graph.test))[:AGREEMENT_TEST]
        others = graph.test[numbers] if len(numbers) else some[:AGREEMENT_TEST]
        result["rank_agreement"] = _agreement(
            options, engines, _on(here.device, some), _on(here.device, others)
        )
    return result


def influences_of(
    options: Config, inputs: str, rows: npt.NDArray[np.int64], test: Triples, folder: Path | None, device: str
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Influences [m, n] on test triples [m, 3] of training triples by number [n], and self-influences [n]."""
    graph = load_graph(options, inputs)
    engines = _engines(options, inputs, folder, device)
    place = training_order(graph.train[rows])
    values = np.zeros((len(test), len(rows)), engines[0][0].dtype_name)
    selves = np.zeros(len(rows), values.dtype)
    train = _on(device, graph.train[rows[place]])
    cache = options.cache_test_gradients
    for part, own, found in blocks(engines, train, _on(device, test), options.batch_size, cache=cache):
        values[:, place[part]] = found.cpu().numpy().T
        selves[place[part]] = own.cpu().numpy()
        check_finite(values[:, place[part]], selves[place[part]], rows[place[part]], np.arange(len(test)))
    return values, selves


def agreement_of(
    options: Config, inputs: str, rows: npt.NDArray[np.int64], test: Triples, folder: Path | None, device: str
) -> float:
    """Mean rank correlation (Spearman) of bfloat16 with fp32; parameters as `influences_of`."""
    graph = load_graph(options, inputs)
    engines = _engines(options, inputs, folder, device)
    return _agreement(options, engines, _on(device, graph.train[rows]), _on(device, test))


def check_finite(
    influences: npt.NDArray[Any],
    selves: npt.NDArray[Any],
    train: npt.NDArray[np.int64],
    test: npt.NDArray[np.int64],
) -> None:
    """Raise a ValueError for influences [m, n] or self-influences [n] that are no numbers.

    Parameters
    ----------
    influences, selves
        Those of some training examples.
    train, test
        Which examples these are of, [n] and [m], for the message.
    """
    odd, on = ~np.isfinite(selves), ~np.isfinite(influences).all(1)
    if not odd.any() and not on.any():
        return
    where, what = "", "a checkpoint"
    if odd.any() and not odd.all():
        where, what = f" of training example {train[odd.argmax()]}", "it"
    elif on.any() and not on.all():
        where, what = f" on test example {test[on.argmax()]}", "it"
    raise ValueError(
        f"influences{where} are not finite: {what} holds NaN or infinity, or its loss overflows; correct it or leave "
        "it out"
    )


def run_training(options: Config | TrainConfig) -> dict[str, Any]:
    """Train a ConvE and keep its checkpoints in the run's folder; runs in a worker. See `training.fit`."""
    from .training import fit

    here = worker()
    config = options if isinstance(options, TrainConfig) else TrainConfig(seed=options.seed)
    folder = here.need_folder() if here.folder_note else here.folder or Path()
    return fit(config, folder, here.device, here.report)


def _engines(options: Config, inputs: str, folder: Path | None, device: str) -> list[tuple[Engine, float]]:
    made = _made(options, inputs, folder, device)
    return list(zip(made, options.rates, strict=True))


@cached(1)
def _made(options: Config, inputs: str, folder: Path | None, device: str) -> list[Engine]:
    """Load the models once in a warm worker; their test sides belong to one call."""
    graph = load_graph(options, inputs)
    loss = loss_of(options, graph)
    return [_engine(options, model, loss) for model in load_models(options, graph, folder, device)]


def _engine(options: Config, model: Any, loss: Loss, mixed: bool | None = None) -> Engine:
    layers = LAST_LAYERS if options.use_last_layers_only else options.layers
    return make_engine(
        model,
        loss,
        engine=options.engine,
        layers=layers or None,
        mixed_precision=options.use_mixed_precision if mixed is None else mixed,
        compiled=options.use_torch_compile and mixed is None,
    )


def _agreement(
    options: Config, engines: list[tuple[Engine, float]], train: torch.Tensor, test: torch.Tensor
) -> float:
    if len(train) < 2:
        return 1.0
    train, test = train[:AGREEMENT_TRAIN], test[:AGREEMENT_TEST]
    exact = [(_engine(options, engine.model, engine.loss, mixed=False), rate) for engine, rate in engines]
    pairs = [
        next(blocks(some, train, test, AGREEMENT_TRAIN, own=False))[2].cpu().numpy()
        for some in (engines, exact)
    ]
    ranks = [found.argsort(0).argsort(0) for found in pairs]
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(ranks[0].T, ranks[1].T, strict=True)]))


def _on(device: str, triples: Triples) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(triples)).to(device)


class _Progress:
    """Reports the progress of a shard, a few times a second."""

    def __init__(self, here: Worker, total: int) -> None:
        self.here, self.total, self.sent = here, total, 0.0

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self.sent >= REPORT_EVERY or done == self.total:
            self.sent = now
            self.here.report(progress=done / self.total)
