"""Batches that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mgpu_nb.workloads.memory import in_memory


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no"), RuntimeError("CUDA out of memory"), MemoryError()]
)
def test_a_batch_that_does_not_fit_is_halved(error: Exception) -> None:
    tried = []

    def draw(size: int) -> Any:
        tried.append(size)
        if size > 3:
            raise error
        return size

    assert in_memory(draw, 50) == (2, 5)
    assert tried == [50, 25, 13, 7, 4, 2]


def test_what_does_not_fit_at_all_and_other_errors_are_raised() -> None:
    def never(size: int) -> Any:
        raise torch.OutOfMemoryError(f"no room for {size}")

    def wrong(size: int) -> Any:
        raise RuntimeError("shapes differ")

    with pytest.raises(torch.OutOfMemoryError, match="no room for 1"):
        in_memory(never, 5)
    with pytest.raises(RuntimeError, match="shapes differ"):
        in_memory(wrong, 5)
