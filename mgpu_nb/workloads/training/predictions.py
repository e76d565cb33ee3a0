"""What a training predicts of its held-out samples, as arrays in their order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .batches import Part

__all__ = ["arrays_of", "in_order"]


def arrays_of(found: Mapping[str, Any], part: Part, unit: str) -> dict[str, np.ndarray]:
    """What `Problem.predict` gave of a batch, as arrays [b, ...].

    Parameters
    ----------
    found
        Tensors, arrays or lists by name.
    part
        What they are of.
    unit
        What samples are called, in the plural.

    Raises
    ------
    ValueError
        If something has not a row for each sample, or a name of the trainer's own.
    """
    arrays = {name: _array(value) for name, value in found.items()}
    if odd := sorted({"index", unit.removesuffix("s")} & set(arrays)):
        raise ValueError(
            f"predict: {odd[0]} is the number of each sample, which is kept anyway: give it another name"
        )
    if odd := sorted({"file", "allow_pickle"} & set(arrays)):
        raise ValueError(f"predict: numpy.savez cannot write an array named {odd[0]}: give it another name")
    for name, array in arrays.items():
        if array.shape[:1] != part.numbers.shape or array.dtype == object:
            what = f"{array.dtype} of shape {list(array.shape)}"
            raise ValueError(
                f"predict: {name} of a batch of {len(part.numbers)} samples is an array of {what}: return one of "
                "numbers or texts with a row for each sample"
            )
    return arrays


def in_order(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays of all samples by name, sorted by ``index``; of no parts none.

    Raises
    ------
    ValueError
        If names or shapes differ between parts.
    """
    names = dict.fromkeys(name for part in parts for name in part)
    joined = {name: _joined(name, parts) for name in names}
    if not joined:
        return {}
    order = np.argsort(joined["index"], kind="stable")
    return {name: array[order] for name, array in joined.items()}


def _joined(name: str, parts: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Array of all held-out samples."""
    if any(name not in part for part in parts):
        raise ValueError(f"predict: {name} is there of some batches only: return the same names for each")
    shapes = sorted({part[name].shape[1:] for part in parts})
    if len(shapes) > 1:
        raise ValueError(
            f"predict: a sample of {name} has shape {list(shapes[0])} in one batch and {list(shapes[1])} in another: "
            "pad or cut it to one shape"
        )
    return np.concatenate([part[name] for part in parts])


def _array(value: Any) -> np.ndarray:
    array: np.ndarray = (
        value.detach().float().cpu().numpy() if _is_half(value) else np.asarray(_on_cpu(value))
    )
    return array


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype is torch.bfloat16  # which numpy has not


def _on_cpu(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value
