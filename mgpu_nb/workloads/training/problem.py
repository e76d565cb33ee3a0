"""What is trained: a model, its data, its loss, and how it is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from ...options import OptionTypeError
from ...signature import parameters, refusal
from ...tasks import import_path, path_of
from .config import OPTIMIZERS, Config
from .identity import Identity

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Measure", "Problem", "checked_kind", "function_of", "targets_of"]

T = TypeVar("T")
Measure = Any
"""Loss or metric of a batch: its mean over the samples (0-d), one per sample [b], or (sum, count)."""


class Problem:
    """A model, its data, its loss and metrics: all that the trainer knows of them.

    Parameters
    ----------
    config
        Options of the training.
    device
        Device of the rank, as torch names it.

    Attributes
    ----------
    unit
        What samples are called, in the plural.
    """

    unit = "samples"

    def __init__(self, config: Config, device: str = "cpu") -> None:
        self.config, self.device = config, device

    def check(self, identify: bool = False) -> Identity | None:
        """Check, before ranks start, what takes no long time.

        Parameters
        ----------
        identify
            Whether the identity of the data is wanted, too.

        Returns
        -------
        Identity or None
            None if it is not wanted, or ranks alone can tell: a function for data may need their device and group.
        """
        return None

    def model(self) -> nn.Module:
        """Model, on any device; called after `data`, with torch, numpy and random seeded."""
        raise NotImplementedError

    def data(self) -> Any:
        """Datasets for training and validation, or one to split."""
        raise NotImplementedError

    def loss(self, outputs: Any, targets: Any) -> Measure:
        """Loss of a batch."""
        raise NotImplementedError

    def metrics(self, outputs: Any, targets: Any) -> Mapping[str, Measure]:
        """Metrics of a batch of held-out samples. Of one that ends in ``_mse`` the root is told as well, ``_rmse``."""
        return {}

    def predict(self, outputs: Any, targets: Any) -> Mapping[str, Any]:
        """Arrays [b, ...] of a batch of held-out samples that are kept."""
        return {}

    def forward(self, model: nn.Module, batch: Any) -> Any:
        """Outputs of a model for a batch."""
        if isinstance(batch, Mapping):
            return model(**batch)
        if isinstance(batch, Sequence) and len(batch) > 1:
            return model(*batch[:-1])
        return model(targets_of(batch))

    def collate(self, samples: list[Any]) -> Any:
        """Batch of a list of samples."""
        return torch.utils.data.default_collate(samples)

    def optimizer(self, model: nn.Module, rate: float) -> torch.optim.Optimizer:
        """Optimizer of the weights that require a gradient."""
        config, name = self.config, self.config.optimizer
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        if name == "sgd":
            return torch.optim.SGD(weights, lr=rate, momentum=0.9, weight_decay=config.weight_decay)
        if name in OPTIMIZERS:
            kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
            return kind(weights, lr=rate, weight_decay=config.weight_decay)
        make = function_of("optimizer", name, config, self.device)
        of_model = parameters(make).positional[:1] == ("model",)
        found = make(model if of_model else weights, lr=rate)
        return checked_kind(torch.optim.Optimizer, found, "optimizer", name)

    def baseline(self) -> float | None:
        """Validation loss of a predictor without inputs; None where none is known."""
        return None

    def describe_data(self) -> str:
        """Text about the data for the log; called after `data`, empty for none."""
        return ""

    def figures(self, predictions: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Further results for training_results.json, from what `predict` gave of all held-out samples; on rank 0.

        Those of ``metrics`` are put beside the metrics of the best epoch.
        """
        return {}

    def metadata(self) -> dict[str, str]:
        """Texts of the file of weights, beside it the way to build the model."""
        return {}

    def write(self, folder: Path, predictions: Mapping[str, np.ndarray]) -> None:
        """Write further files."""


def targets_of(batch: Any) -> Any:
    """What loss and metrics are given beside the outputs: the last of a tuple or list, any other batch itself."""
    return batch[-1] if isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)) else batch


def function_of(name: str, given: Any, config: Config, device: str) -> Any:
    """Function of an option, with its parameters ``config`` and ``device`` filled in; None for none.

    Raises
    ------
    ValueError
        If it cannot be imported, is no function, or does not take its arguments.
    """
    if given is None:
        return None
    try:
        found = import_path(given) if isinstance(given, str) else given
    except ValueError as error:
        where = " (a function of a notebook: give it again)" if str(given).startswith("__main__:") else ""
        raise ValueError(f"{name}: {error}{where}") from error
    if not callable(found):
        raise OptionTypeError(f"{name}={given!r} is no function but a {type(found).__name__}")
    taken = parameters(found).keywords
    filled = {key: value for key, value in (("config", config), ("device", device)) if key in taken}
    function = partial(found, **filled) if filled else found
    _check_call(name, function, given)
    return function


_ARGUMENTS = {
    "model": (),
    "data": (),
    "forward": ("model", "batch"),
    "collate": ("samples",),
    **dict.fromkeys(("loss", "metrics", "predict"), ("outputs", "targets")),
    "optimizer": ("parameters",),
}
"""What the function of an option is called with."""


def _check_call(name: str, function: Any, given: Any) -> None:
    """Raise if a function does not take what it will be called with, as far as its signature tells."""
    arguments, rate = _ARGUMENTS[name], {"lr": 1e-3} if name == "optimizer" else {}
    if reason := refusal(function, *arguments, **rate):
        call = ", ".join([*arguments, *(f"{each}=" for each in rate)])
        raise OptionTypeError(f"{name}: {path_of(given)} cannot be called as {name}({call}): {reason}")


def checked_kind(kind: type[T], found: Any, name: str, given: Callable[..., Any] | str | None) -> T:
    """What the function of an option returned.

    Raises
    ------
    TypeError
        If it is of another kind.
    """
    if not isinstance(found, kind):
        wanted = f"{kind.__module__}.{kind.__qualname__}"
        raise TypeError(
            f"{name}: {path_of(given or '')} must return a {wanted}, not a {type(found).__name__}"
        )
    return found
