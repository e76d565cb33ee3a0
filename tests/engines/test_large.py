"""Values of 2 GB, to a worker and back."""

from pathlib import Path
from typing import Any

import jobs
import numpy as np
import psutil
import pytest

from mgpu_nb import GPUPool
from mgpu_nb.engines.payload import LARGE


def arrays(n: int, size: int) -> np.ndarray[Any, Any]:
    return np.full(size, float(n))


@pytest.mark.slow
def test_results_of_one_worker_do_not_touch_each_other(pool: GPUPool) -> None:
    sizes = [40_000, 130_000, 600_000]  # of one segment after the other, some too large to be used again
    futures = [pool.submit(arrays, n, sizes[n % 3]) for n in range(60)]
    values = [future.result() for future in futures]
    for n, value in enumerate(values):
        assert value.shape == (sizes[n % 3],)
        assert (value == n).all()


@pytest.mark.slow
def test_arguments_that_are_kept_by_a_worker_stay_as_they_were() -> None:
    with GPUPool(slots=1, setup=dict) as pool:
        for n in range(8):
            pool.submit(jobs.keeps, str(n), np.full(LARGE, float(n))).result()
        assert pool.submit(jobs.kept_sums).result() == [float(n * LARGE) for n in range(8)]


@pytest.mark.slow
@pytest.mark.skipif(psutil.virtual_memory().available < 12 * 2**30, reason="under 12 GB of memory are free")
def test_two_gigabytes_there_and_back() -> None:
    others = mappings()  # of tests before, that nobody has collected
    array = np.zeros(2**31, np.uint8)
    array[[0, 2**30, -1]] = 1, 2, 3
    with GPUPool(slots=1) as pool:
        pool.submit(jobs.add, 1).result(60)
        before = psutil.Process().num_fds()
        back = pool.submit(jobs.says_nothing, array).result(120)
        assert back.shape == array.shape
        assert back[[0, 2**30, -1]].tolist() == [1, 2, 3]
        assert psutil.Process().num_fds() == before
    assert mappings() - others
    del back
    assert not mappings() - others


def mappings() -> set[str]:
    """Pieces of shared memory that this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[0] for line in lines if "memfd:mgpu_nb" in line}
