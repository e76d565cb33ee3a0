"""Writes into shared memory."""

import os
import threading

import numpy as np
import pytest

from mgpu_nb.engines import pages
from mgpu_nb.engines.pages import HUGE, WORTH


def written(data, offset):
    fd = os.memfd_create("test")
    try:
        pages.write(fd, memoryview(data).cast("B"), offset)
        size = os.fstat(fd).st_size
        assert not size or os.pread(fd, offset, 0) == bytes(offset)
        return size, b"".join(os.pread(fd, HUGE, at) for at in range(offset, size, HUGE))
    finally:
        os.close(fd)


SIZES = [0, 1, WORTH - 1, WORTH, WORTH + 1, WORTH + HUGE - 1, WORTH + HUGE, WORTH + 3 * HUGE + 77]


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(0).bytes(WORTH + 4 * HUGE)


@pytest.mark.parametrize("offset", [0, 1, 64, HUGE - 1, HUGE, HUGE + 64])
@pytest.mark.parametrize("size", SIZES)
def test_what_is_written_is_there(data, size, offset):
    assert written(data[:size], offset) == (offset + size if size else 0, data[:size])


def test_writable_and_read_only_arrays(data):
    array = np.frombuffer(data, np.float64).copy()
    for writeable in (True, False):
        array.flags.writeable = writeable
        assert written(array, 64) == (64 + len(data), data)


@pytest.mark.parametrize("given", ["none", "some"])
def test_pages_that_the_system_does_not_give_are_written_as_others(monkeypatch, data, given):
    calls = []
    collapse = pages.libc.madvise

    def sparing(address, length, advice):
        calls.append(address)
        return -1 if given == "none" or len(calls) % 2 else collapse(address, length, advice)

    monkeypatch.setattr(pages.libc, "madvise", sparing)
    assert written(data, 64) == (64 + len(data), data)
    assert len(calls) == len(data) // HUGE - 1


def test_without_room_or_threads_it_is_written_as_well(monkeypatch, data):
    def no_thread(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        assert written(data, 64)[1] == data
    monkeypatch.setattr(pages.libc, "mmap", lambda *args: pages.ctypes.c_void_p(-1).value)
    assert written(data, 64)[1] == data


def test_a_full_system_is_an_error():
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    try:
        import fcntl

        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)  # refuses as a full memory does
        with pytest.raises(OSError, match="not permitted"):
            pages.write(fd, memoryview(bytes(WORTH)), 0)
    finally:
        os.close(fd)


def test_a_huge_page_keeps_what_is_there(monkeypatch):
    for given in (True, False):
        if not given:
            monkeypatch.setattr(pages.libc, "mmap", lambda *args: pages.ctypes.c_void_p(-1).value)
        fd = os.memfd_create("test")
        try:
            os.pwrite(fd, b"x" * 5000, 0)
            pages.make_huge(fd)
            assert os.pread(fd, HUGE + 1, 0) == b"x" * 5000 + bytes(HUGE - 5000)
        finally:
            os.close(fd)
