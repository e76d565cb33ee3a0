"""The problem of a config: functions of one's own, or by default the emulator of a land."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import Dataset

from ...tasks import derive_seed, path_of
from .batches import Batches, batches_of, is_stream, split
from .config import OPTIMIZERS, Config
from .emulation import Emulation
from .identity import content_of
from .problem import Measure, Problem, checked_kind, function_of

__all__ = ["Given", "data_of", "problem_of"]


def problem_of(config: Config, device: str = "cpu") -> Problem:
    """Problem of a config: the emulator, or the functions that it names.

    Raises
    ------
    ValueError
        If a function cannot be imported, or is none.
    """
    return Emulation(config, device) if config.model is None else Given(config, device)


def data_of(problem: Problem, size: int, rank: int, world: int) -> tuple[Batches, Batches]:
    """Batches of a rank of the training and of the held-out data of a problem, `size` samples each.

    Raises
    ------
    ValueError, TypeError
        If what the problem gives are no datasets that can be trained with its config.
    """
    config, data = problem.config, problem.data()
    if isinstance(data, list) and len(data) == 2 and all(isinstance(each, Dataset) for each in data):
        data = tuple(data)  # a list may be a dataset itself, of samples
    indices: tuple[np.ndarray | None, np.ndarray | None] = (None, None)
    if not isinstance(data, tuple):
        if is_stream(data) or not hasattr(data, "__len__"):
            raise TypeError(
                f"the data are a {type(data).__name__}: give (train, validation), or one map-style dataset, of which "
                "validation_share is held out"
            )
        indices = split(len(data), config.validation_share, config.seed, problem.unit)
        data = (data, data)
    if len(data) != 2:
        raise TypeError(f"the data are a tuple of {len(data)}: give (train, validation)")
    options: dict[str, Any] = {
        "collate": None if config.collate is None else problem.collate,
        "size": size,
        "device": problem.device,
        "workers": config.loader_workers,
    }
    mine: dict[str, Any] = (
        {"rank": rank, "world": world} if config.distributed_sampler else {"rank": 0, "world": 1}
    )
    own = derive_seed(config.seed, 0)  # a stream that draws its samples gives others than to the training
    train = batches_of(
        data[0], indices[0], seed=config.seed, shuffle=True, what="training", **mine, **options
    )
    held_out = batches_of(
        data[1], indices[1], seed=own, shuffle=False, what="validation", rank=rank, world=world, **options
    )
    train.content, held_out.content = map(content_of, data)
    if config.schedule == "cosine" and train.length is None:
        raise ValueError("schedule='cosine': the training data must tell their length, by __len__")
    return train, held_out


class Given(Problem):
    """Problem of the functions of a config."""

    def __init__(self, config: Config, device: str = "cpu") -> None:
        super().__init__(config, device)
        self._model, self._data, self._loss, self._metrics, self._forward, self._collate, self._predict = (
            function_of(name, getattr(config, name), config, device)
            for name in ("model", "data", "loss", "metrics", "forward", "collate", "predict")
        )
        if config.optimizer not in OPTIMIZERS:
            function_of("optimizer", config.optimizer, config, device)

    def model(self) -> nn.Module:
        """Model that the function makes."""
        return checked_kind(nn.Module, self._model(), "model", self.config.model)

    def data(self) -> Any:
        """Datasets that the function makes."""
        return self._data()

    def loss(self, outputs: Any, targets: Any) -> Measure:
        """Loss of the function."""
        return self._loss(outputs, targets)

    def metrics(self, outputs: Any, targets: Any) -> Mapping[str, Measure]:
        """Metrics of the function, if there is one."""
        return self._mapping("metrics", self._metrics, outputs, targets)

    def predict(self, outputs: Any, targets: Any) -> Mapping[str, Any]:
        """Arrays of the function, if there is one."""
        return self._mapping("predict", self._predict, outputs, targets)

    def _mapping(self, name: str, function: Any, outputs: Any, targets: Any) -> Mapping[str, Any]:
        """What the function of an option returns; nothing if there is none."""
        if function is None:
            return {}
        found = function(outputs, targets)
        if not isinstance(found, Mapping):
            path, wanted = path_of(getattr(self.config, name)), "a mapping, as {'accuracy': ...}"
            raise TypeError(f"{name}: {path} must return {wanted}, not a {type(found).__name__}")
        return {str(each): value for each, value in found.items()}  # numbers of classes, say

    def forward(self, model: nn.Module, batch: Any) -> Any:
        """Outputs by the function, if there is one."""
        return super().forward(model, batch) if self._forward is None else self._forward(model, batch)

    def collate(self, samples: list[Any]) -> Any:
        """Batch by the function, if there is one."""
        return super().collate(samples) if self._collate is None else self._collate(samples)

    def metadata(self) -> dict[str, str]:
        """Import path of the function that makes the model."""
        return {"model": path_of(self.config.model or "")}
