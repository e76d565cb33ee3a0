"""Writes into shared memory."""

import fcntl
import os
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from mgpu_nb.engines import pages
from mgpu_nb.engines.memory import Memory
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
    advise = pages.libc.madvise

    def sparing(address, length, advice):
        if advice == pages._MADV_COLLAPSE:
            calls.append(address)
            if given == "none" or len(calls) % 2:
                return -1
        return advise(address, length, advice)

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


def test_what_a_thread_did_not_come_to_is_written_as_well(monkeypatch, data):
    move = pages.ctypes.memmove

    def fails_in_the_other_thread(target, source, size):
        if threading.current_thread() is not threading.main_thread():
            raise MemoryError
        return move(target, source, size)

    monkeypatch.setattr(pages.ctypes, "memmove", fails_in_the_other_thread)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    assert written(data, 64)[1] == data


def test_what_is_written_is_no_memory_of_the_writer(data):
    memory = Memory()
    array = np.frombuffer(data * 4, np.uint8)
    fd = os.memfd_create("test")
    try:
        memory.reset_peak()
        before = memory.peaks()[0]
        pages.write(fd, memoryview(array), 64)
        assert memory.peaks()[0] - before < array.nbytes / 4
    finally:
        os.close(fd)


def test_a_write_that_is_interrupted_comes_to_its_end_and_touches_nothing_else():
    code = """
        import threading
        import numpy as np
        from mgpu_nb.engines import pages, payload
        array = np.random.default_rng(0).integers(0, 255, 100 * 2**20, np.uint8)
        go, move, join = threading.Event(), pages.ctypes.memmove, threading.Thread.join

        def late(*args):
            if threading.current_thread() is not threading.main_thread():
                go.wait(30)
            move(*args)

        def interrupted(thread):
            raise KeyboardInterrupt

        pages.ctypes.memmove, threading.Thread.join = late, interrupted
        try:
            payload.dumps(array)
        except KeyboardInterrupt:
            (other,) = (t for t in threading.enumerate() if t.name == "mgpu_nb-pages")
            del array
            fresh = [np.ones(n * 2**20, np.uint8) for n in (60, 52, 50, 40)]  # where that was
            go.set()
            join(other, 30)
            assert not other.is_alive()
            print(all((one == 1).all() for one in fresh))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
