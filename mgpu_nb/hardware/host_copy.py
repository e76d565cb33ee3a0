"""Copies of a GPU's tensors in the memory of the host."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from .libc import libc

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["host_copy"]

WORTH = 2**20  # bytes from which on pages are found before they are copied to
_PAGE = os.sysconf("SC_PAGE_SIZE")
_MADV_HUGEPAGE = 14


def host_copy(tensor: Tensor) -> Tensor:
    """CPU tensor of the same numbers, detached; the tensor itself, detached, where it is on the CPU already.

    The driver copies into fresh pages, which it has to find one by one, at an eighth of the speed: on an H100
    ``tensor.cpu()`` of 64 MB takes 48 ms, to fill 64 MB with zeros 4 ms and the copy into them 6 ms.
    """
    tensor = tensor.detach()
    if tensor.device.type != "cuda" or tensor.nbytes < WORTH:
        return tensor.cpu()
    return filled(tensor).copy_(tensor)


def filled(like: Tensor) -> Tensor:
    """CPU tensor of another's dtype, shape and strides, zero, whose pages are all there, large ones where possible."""
    import torch

    made = torch.empty_like(like, device="cpu")
    data = torch.empty(0, dtype=torch.uint8).set_(made.untyped_storage())
    if sys.platform == "linux":
        first, end = -(-data.data_ptr() // _PAGE) * _PAGE, data.data_ptr() + len(data)
        libc.madvise(first, (end - first) // _PAGE * _PAGE, _MADV_HUGEPAGE)  # where refused, pages are small
    data.zero_()
    return made
