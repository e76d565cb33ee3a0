"""Steps of AdamW whose gradient adds up over micro-batches, one way for all algorithms."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["Optimiser", "clear_cache"]

_NORM = 1.0  # largest norm of a gradient


class Optimiser:
    """AdamW without weight decay, for all parameters of a model that ask for a gradient.

    The gradient of a step is clipped to the norm 1. The learning rate falls linearly from its largest value to nothing.
    Of weights in bfloat16 or float16 there is a copy in float32 that is changed, and rounded back after each step: a
    change of less than 1/256 of a weight, which most are, would else be lost.

    Parameters
    ----------
    model
        On its device.
    learning_rate
        That of the first step.
    steps
        Number of all steps.
    clear_cache_interval
        Steps between two times that unused memory of a GPU is given back to the driver; 0 for never.

    Attributes
    ----------
    device
        That of the model.
    losses
        Loss of each step so far.
    """

    def __init__(
        self, model: nn.Module, learning_rate: float, steps: int, clear_cache_interval: int = 0
    ) -> None:
        self.parameters = [value for value in model.parameters() if value.requires_grad]
        self.learning_rate, self.steps, self.clear_cache_interval = learning_rate, steps, clear_cache_interval
        self.device = self.parameters[0].device
        self.losses: list[float] = []
        self._copies = [value if value.dtype.itemsize > 2 else _copy(value) for value in self.parameters]
        self._adamw = torch.optim.AdamW(self._copies, lr=learning_rate, weight_decay=0.0)

    def step(self, parts: Iterable[Tensor]) -> float:
        """Change the parameters once.

        Parameters
        ----------
        parts
            What each micro-batch adds to the loss of the step, scalars. Each is asked for when the gradient of the one
            before has been taken, so that one graph at a time is in memory.

        Returns
        -------
        float
            Their sum.

        Raises
        ------
        ValueError
            If it is no number; the parameters stay as they were.
        """
        done = len(self.losses)
        for value in self.parameters:
            value.grad = None
        total: Tensor | float = 0.0
        for part in parts:
            part.backward()
            total = total + part.detach()
        loss = float(total)
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss is {loss} at step {done + 1}; lower learning_rate, which was {self.learning_rate}"
            )
        rounded = [pair for pair in zip(self.parameters, self._copies, strict=True) if pair[0] is not pair[1]]
        for value, copy in rounded:
            copy.grad, value.grad = None if value.grad is None else value.grad.float(), None
        nn.utils.clip_grad_norm_(self._copies, _NORM)
        for group in self._adamw.param_groups:
            group["lr"] = self.learning_rate * (1 - done / self.steps)
        self._adamw.step()
        with torch.no_grad():
            for value, copy in rounded:
                value.copy_(copy)
        self.losses.append(loss)
        if self.clear_cache_interval and len(self.losses) % self.clear_cache_interval == 0:
            clear_cache(self.device)
        return loss


def _copy(value: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(value.detach().float())


def clear_cache(device: torch.device) -> None:
    """Give unused memory of a GPU back to the driver; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
