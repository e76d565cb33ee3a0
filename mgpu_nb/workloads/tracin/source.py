"""What an analysis works on: graph and models, as its options name them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...context import cached, worker
from ...signature import refusal
from ...tasks import import_path
from ..inputs import check_file, files_digest
from .checkpoints import check_weights, load_link_predictor, read_state
from .config import EMBEDDED_CHECKPOINTS, FILES, Config
from .conve import Shape
from .graph import Graph, Triples, community_graph, read_graph
from .loss import LOSSES
from .reader import read_labels
from .rows import FileRead

__all__ = [
    "EMBEDDED_SHAPE",
    "chosen_tests",
    "files_read",
    "inputs_digest",
    "load_graph",
    "load_models",
    "loss_of",
]

EMBEDDED_SHAPE = Shape(entities=120, relations=4, height=8, width=8, channels=8)
CHECKPOINTS = "checkpoints"


@cached(2)
def load_graph(options: Config, inputs: str) -> Graph:
    """Graph that the options name; `inputs` is `inputs_digest`, and tells one from a changed one.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is missing or malformed; the message names file and line.
    """
    if options.embedded:
        return community_graph(seed=options.seed)
    if inputs and inputs_digest(options) != inputs:
        raise ValueError("the files of the analysis have changed since the run was started: start it again")
    return read_graph(
        str(options.train), options.test, str(options.entity_to_id), str(options.relation_to_id),
        drop_unseen=options.drop_unseen,
    )  # fmt: skip


def files_read(options: Config, graph: Graph) -> list[FileRead]:
    """What was read of each file of text that the options name, and what was left out.

    Raises
    ------
    OSError, ValueError
        If a file of labels is missing or malformed; the message names file and line.
    """
    labels = ((options.entity_labels, graph.entities), (options.relation_labels, graph.relations))
    return [*graph.files, *(read_labels(path, names)[1] for path, names in labels if path is not None)]


def chosen_tests(options: Config, count: int) -> Triples:
    """Numbers of the test triples that the options choose of `count`.

    Raises
    ------
    ValueError
        For a number that is not there.
    """
    if options.mode == "self":
        return np.zeros(0, np.int64)
    return np.array(test_numbers(options, count)[: options.max_test_triples], np.int64)


def test_numbers(options: Config, count: int) -> tuple[int, ...]:
    """Test triples that the options name, without their limit; errors as `chosen_tests`."""
    indices = options.test_indices
    if indices is None:
        indices = (0,) if options.mode == "single" else tuple(range(count))
    for index in indices:
        if index >= count:
            raise ValueError(f"test_indices: there is no test triple {index}, they go from 0 to {count - 1}")
    return indices


def load_models(options: Config, graph: Graph, folder: Path | None, device: str) -> list[nn.Module]:
    """Model at each checkpoint, in eval mode, on a device.

    Raises
    ------
    FileNotFoundError, ValueError
        If weights are missing or do not fit; the message has both shapes.
    """
    paths: list[str | Path] = list(options.weights)
    if options.embedded:
        if folder is None:
            if (here := worker()).folder_note:
                here.need_folder()
            raise ValueError("the embedded graph is analysed in a run, whose first task trains the model")
        paths = [folder / CHECKPOINTS / f"checkpoint_{n}.pt" for n in range(EMBEDDED_CHECKPOINTS)]
    dtype = torch.float64 if options.precision == "fp64" else torch.float32
    models: list[nn.Module] = []
    for path in paths:
        if options.model == "conve":
            sizes = len(graph.entities), len(graph.relations)
            model = load_link_predictor(path, *sizes, options.height, trust=options.trust)
        else:
            model = _own(options.model, path, options.trust)
        models.append(model.to(device=device, dtype=dtype).eval())
    return models


def _own(factory: str, path: str | Path, trust: bool) -> nn.Module:
    model = import_path(factory)()
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={factory!r} returned a {type(model).__name__}, not an nn.Module")
    state, _ = read_state(path, trust=trust)
    try:
        check_weights(state, model)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if unknown := sorted(state.keys() - model.state_dict().keys()):
        raise ValueError(f"{path} has {unknown[0]}, which the model that {factory!r} returns has not")
    model.load_state_dict(state, strict=False)
    return model


def loss_of(options: Config, graph: Graph) -> Callable[[Any, Tensor], Tensor]:
    """Loss that the options name, in a graph.

    Raises
    ------
    ValueError
        If a path does not import.
    """
    if options.loss in LOSSES:
        return LOSSES[options.loss].of(torch.from_numpy(graph.train))
    function: Callable[[Any, Tensor], Tensor] = import_path(options.loss)
    return function


def inputs_digest(options: Config) -> str:
    """Digest of the files that the options name; empty if they name none.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        If one does not exist, or is a folder.
    """
    named = {name: getattr(options, name) for name in FILES if name != "model_path"}
    weights = [
        ("model_path" if options.model_path else f"checkpoints[{n}]", path)
        for n, path in enumerate(options.weights)
    ]
    files = []
    for name, path in (*named.items(), *weights):
        if path is not None:
            check_file(name, path)
            files.append(Path(path).expanduser())
    own: tuple[tuple[str, str, tuple[str, ...]], ...] = (
        ("model", options.model, ()),
        ("loss", options.loss, ("model", "triples")),
    )
    for name, path, call in own:
        if files and ":" in path:  # a model of the user's: its code counts as well
            try:
                found = import_path(path)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            if not callable(found) or (reason := refusal(found, *call)):
                why = reason if callable(found) else f"it is a {type(found).__name__}"
                raise ValueError(f"{name}: {path} cannot be called as {name}({', '.join(call)}): {why}")
            source = getattr(sys.modules[path.partition(":")[0]], "__file__", None)
            files += [Path(source)] if source else []
    return files_digest(files)
