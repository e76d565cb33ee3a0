"""What the tests of all workloads share."""

from collections.abc import Iterator

import pytest

from mgpu_nb.workloads import threads


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute as workers do: sums of several threads come in an order that depends on the processor."""
    with threads.one_thread("cpu"):
        yield
