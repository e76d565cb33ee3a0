"""Values of 2 GB, to a worker and back."""

import os

import jobs
import numpy as np
import psutil
import pytest

from mgpu_nb import GPUPool


@pytest.mark.skipif(psutil.virtual_memory().available < 12 * 2**30, reason="under 12 GB of memory are free")
def test_two_gigabytes_there_and_back():
    array = np.zeros(2**31, np.uint8)
    array[[0, 2**30, -1]] = 1, 2, 3
    with GPUPool(slots=1) as pool:
        pool.submit(jobs.add, 1).result(60)
        before = len(os.listdir("/proc/self/fd"))
        back = pool.submit(jobs.says_nothing, array).result(120)
        assert back.shape == array.shape
        assert back[[0, 2**30, -1]].tolist() == [1, 2, 3]
        assert len(os.listdir("/proc/self/fd")) == before
    mapped = open("/proc/self/maps").read().count("memfd:mgpu_nb")  # noqa: SIM115
    assert mapped
    del back
    assert "memfd:mgpu_nb" not in open("/proc/self/maps").read()  # noqa: SIM115
