"""What tells the data of a training from others: a resume over data that have changed would be split anew."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

__all__ = ["Content", "Identity", "arrays_digest", "content_of", "differences", "identity_of"]

SAMPLES, NUMBERS = 16, 64  # that are kept of a tensor: samples, and numbers of each
TOLERANCE = 1e-3  # of the largest: what a function computes differs with device and threads

Content = list[str | Tensor]
"""Digests, and numbers of some samples [n, m]; empty where nothing is known."""
Identity = dict[str, dict[str, Any]]
"""``samples``, None where nobody knows how many, and ``content`` of the ``training`` and the ``validation`` data: of
plain values alone, as a checkpoint is read."""


def identity_of(training: tuple[int | None, Content], validation: tuple[int | None, Content]) -> Identity:
    """Identity of data, by the number of samples and the content of both parts."""
    parts = {"training": training, "validation": validation}
    return {what: {"samples": samples, "content": content} for what, (samples, content) in parts.items()}


def content_of(dataset: Any) -> Content:
    """What is known of the content of a dataset without making a sample.

    That could draw random numbers, and open files before processes that load samples have been forked.
    """
    if type(dataset) is Subset:
        numbers = hashlib.blake2b(",".join(map(str, dataset.indices)).encode(), digest_size=16)
        return [numbers.hexdigest(), *content_of(dataset.dataset)]
    if type(dataset) is TensorDataset:
        return [part for tensor in dataset.tensors for part in (f"shape {list(tensor.shape)}", _some(tensor))]
    digest = getattr(dataset, "content_digest", None)
    return [digest] if digest and isinstance(digest, str) else []


def arrays_digest(arrays: Iterable[npt.NDArray[Any]]) -> str:
    """Digest of shapes and contents of arrays."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(f"{array.dtype}:{array.shape}:".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _some(tensor: Tensor) -> Tensor:
    """Numbers of samples all over a tensor [n, ...], at most 16 x 64."""
    places = _spread(len(tensor), SAMPLES)
    rows = tensor.detach()[places.to(tensor.device)]
    rows = (torch.view_as_real(rows) if rows.is_complex() else rows).cpu().double()
    rows = rows.reshape(len(rows), math.prod(rows.shape[1:]))
    return rows[:, _spread(rows.shape[1], NUMBERS)]


def _spread(count: int, most: int) -> Tensor:
    """So many of the numbers below `count`, from the first to the last."""
    kept = min(count, most)
    return torch.arange(kept) * (count - 1) // max(1, kept - 1)


def differences(before: Identity, here: Identity, unit: str) -> list[str]:
    """In what data differ, as far as is known of both.

    Parameters
    ----------
    before, here
        Data of a checkpoint, and those that are there now.
    unit
        What samples are called, in the plural.
    """
    found = []
    for what, then in before.items():
        counts = then["samples"], here[what]["samples"]
        contents = then["content"], here[what]["content"]
        if None not in counts and counts[0] != counts[1]:
            found.append(f"{counts[0]} {what} {unit} there, {counts[1]} here")
        elif all(contents) and not _alike(*contents):
            found.append(f"the {what} {unit} have another content here")
    return found


def _alike(one: Content, other: Content) -> bool:
    return len(one) == len(other) and all(map(_same, one, other))


def _same(one: str | Tensor, other: str | Tensor) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return isinstance(one, str) and one == other
    if one.shape != other.shape:
        return False
    # By column: features may be of very different sizes.
    size = torch.maximum(one.abs(), other.abs()).nan_to_num(0.0, 0.0).amax(0)
    near = (one - other).abs() <= TOLERANCE * size
    return bool((near | (one == other) | (one.isnan() & other.isnan())).all())
