"""What a loss or a metric of a batch may be, as a sum and a number of what it counts."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .batches import Part

__all__ = ["check_loss", "check_outputs", "in_full", "sum_of"]


def sum_of(measure: Any, part: Part, name: str) -> tuple[Tensor, Tensor | int]:
    """Sum of a loss or metric over the samples of a batch, as a tensor of summands, and how many it counts.

    The number is a tensor where the measure counts for itself. Both are 0 of a part whose samples do not count.

    Parameters
    ----------
    measure
        The mean over the samples (0-d), one value per sample [b], or (sum, count): tensors, or numbers of Python or
        numpy.
    part
        What it was measured on.
    name
        What it is called, in messages.

    Raises
    ------
    ValueError
        If it is none of these.
    """
    if isinstance(measure, (Real, np.ndarray)):  # a number of numpy is a Real
        measure = torch.as_tensor(measure)
    if isinstance(measure, (tuple, list)) and len(measure) == 2:
        total, count = (torch.as_tensor(each) for each in measure)
        real = int(part.real > 0)
        return total * real, count.detach().double() * real
    if isinstance(measure, Tensor) and measure.dim() == 0:
        return measure * part.real, part.real
    if isinstance(measure, Tensor) and measure.shape == part.numbers.shape:
        return measure if part.real else measure * 0, part.real
    what = f"a tensor {list(measure.shape)}" if isinstance(measure, Tensor) else f"a {type(measure).__name__}"
    raise ValueError(
        f"{name} of a batch of {len(part.numbers)} samples is {what}: return the mean over its samples, one value for "
        "each, or (sum, count)"
    )


def in_full(measure: Any) -> Any:
    """A loss or metric in single precision where it has half: the sum over a batch may be out of its range."""
    if isinstance(measure, (tuple, list)):
        return tuple(map(in_full, measure))
    if isinstance(measure, Tensor) and measure.dtype in (torch.float16, torch.bfloat16):
        return measure.float()
    return measure


def check_loss(loss: Tensor) -> None:
    """Check that a loss can be minimised.

    Raises
    ------
    ValueError
        If it does not depend on the weights as torch sees it, or is a complex number.
    """
    if not loss.requires_grad:
        raise ValueError(
            "the loss has no gradient: compute it of the outputs of the model by functions of torch, without item(), "
            "detach(), numpy or torch.no_grad()"
        )
    if loss.is_complex():
        raise ValueError("the loss is a complex number: return a real one, its abs() say")


def check_outputs(outputs: Any) -> None:
    """Check that DistributedDataParallel finds a tensor in outputs: without one it would reduce no gradient.

    Raises
    ------
    TypeError
        If they are of a type that it does not look into.
    """
    if not isinstance(outputs, (Tensor, tuple, list, Mapping)):
        raise TypeError(
            f"the model returns a {type(outputs).__name__}, in which DistributedDataParallel finds no tensor: return a "
            "tensor, a tuple, a list or a dict, or give static_graph=False"
        )
