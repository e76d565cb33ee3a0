"""The problem of a config: functions of one's own, or by default the emulator of a land."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ...tasks import path_of
from .config import OPTIMIZERS, Config
from .emulation import Emulation
from .problem import Measure, Problem, checked_kind, function_of

__all__ = ["Given", "problem_of"]


def problem_of(config: Config, device: str = "cpu") -> Problem:
    """Problem of a config: the emulator, or the functions that it names.

    Raises
    ------
    ValueError
        If a function cannot be imported, or is none.
    """
    return Emulation(config, device) if config.model is None else Given(config, device)


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
        return (
            {}
            if self._metrics is None
            else _mapping(self._metrics(outputs, targets), "metrics", self.config.metrics)
        )

    def predict(self, outputs: Any, targets: Any) -> Mapping[str, Any]:
        """Arrays of the function, if there is one."""
        return (
            {}
            if self._predict is None
            else _mapping(self._predict(outputs, targets), "predict", self.config.predict)
        )

    def forward(self, model: nn.Module, batch: Any) -> Any:
        """Outputs by the function, if there is one."""
        return super().forward(model, batch) if self._forward is None else self._forward(model, batch)

    def collate(self, samples: list[Any]) -> Any:
        """Batch by the function, if there is one."""
        return super().collate(samples) if self._collate is None else self._collate(samples)

    def metadata(self) -> dict[str, str]:
        """Import path of the function that makes the model."""
        return {"model": path_of(self.config.model or "")}


def _mapping(found: Any, name: str, given: Callable[..., Any] | str | None) -> Mapping[str, Any]:
    if not isinstance(found, Mapping):
        wanted = "a mapping, as {'accuracy': ...}"
        raise TypeError(f"{name}: {path_of(given or '')} must return {wanted}, not a {type(found).__name__}")
    return found
