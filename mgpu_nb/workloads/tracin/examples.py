"""Examples of any kind: tensors that share their first dimension, in tuples or dicts as they may be, or a data set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset, default_collate

__all__ = ["Examples", "at", "check_examples", "count", "filled", "on", "take"]

Examples = Any
"""A tensor [n, ...], a tuple, list or dict of them, or a map-style data set or list of single examples."""


class _Listed(Dataset[Any]):
    """Data set of a list of examples."""

    def __init__(self, examples: list[Any]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, number: int) -> Any:
        return self._examples[number]


def check_examples(name: str, examples: Examples) -> Examples:
    """Examples as tensors, arrays of numpy among them too; a data set as it is, and one of a list of examples.

    Raises
    ------
    TypeError, ValueError
        If they are something else, or tensors of different lengths.
    """
    if isinstance(examples, list) and examples and all(isinstance(each, (tuple, dict)) for each in examples):
        return _Listed(examples)
    if isinstance(examples, Dataset):
        if not hasattr(examples, "__len__"):
            raise TypeError(f"{name}: a {type(examples).__name__} has no length: give a map-style data set")
        return examples
    leaves = pytree.tree_leaves(examples)
    if not leaves or not all(hasattr(leaf, "__array__") for leaf in leaves):
        kinds = ", ".join(sorted({type(leaf).__name__ for leaf in leaves})) or "nothing"
        raise TypeError(
            f"{name}: give a tensor, a tuple or dict of tensors, or a map-style data set; found {kinds}"
        )
    examples = pytree.tree_map(torch.as_tensor, examples)
    lengths = sorted({len(leaf) if leaf.dim() else 0 for leaf in pytree.tree_leaves(examples)})
    if len(lengths) > 1:
        raise ValueError(f"{name}: its tensors are of different lengths, {' and '.join(map(str, lengths))}")
    return examples


def count(examples: Examples) -> int:
    """Number of examples."""
    return len(examples if isinstance(examples, Dataset) else pytree.tree_leaves(examples)[0])  # type: ignore[arg-type]


def take(examples: Examples, which: slice | Tensor) -> Any:
    """Batch of some of them: tensors [B, ...], nested as an example is."""
    if isinstance(examples, Tensor):
        return examples[which]
    if isinstance(examples, Dataset):
        numbers = range(count(examples))[which] if isinstance(which, slice) else which.tolist()
        return default_collate([examples[number] for number in numbers])
    return pytree.tree_map(lambda leaf: leaf[which], examples)


def at(batch: Any, which: int | slice | None) -> Any:
    """Example of a batch by its number, a part of the batch by a slice; by None an example as a batch of one."""
    return batch[which] if isinstance(batch, Tensor) else pytree.tree_map(lambda leaf: leaf[which], batch)


def filled(batch: Any, multiple: int) -> Any:
    """Batch whose number of examples is a multiple: the last is repeated."""
    number = count(batch)
    short = -number % multiple
    return take(batch, torch.arange(number + short).clamp_(max=number - 1)) if short else batch


def on(device: torch.device | str, batch: Any) -> Any:
    """Batch on a device."""
    return pytree.tree_map(lambda leaf: leaf.to(device), batch)
