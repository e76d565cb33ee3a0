"""Writes into shared memory."""

import ctypes
import fcntl
import os
import subprocess
import sys
import textwrap
import threading
from typing import Any

import numpy as np
import pytest

from mgpu_nb.engines import pages
from mgpu_nb.engines.memory import Memory
from mgpu_nb.engines.pages import HUGE, WORTH
from mgpu_nb.hardware.libc import libc


def written(data: Any, offset: int) -> tuple[int, bytes]:
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
def data() -> bytes:
    return np.random.default_rng(0).bytes(WORTH + 4 * HUGE)


@pytest.mark.parametrize("offset", [0, 1, 64, HUGE - 1, HUGE, HUGE + 64])
@pytest.mark.parametrize("size", SIZES)
def test_what_is_written_is_there(data: bytes, size: int, offset: int) -> None:
    assert written(data[:size], offset) == (offset + size if size else 0, data[:size])


def test_writable_and_read_only_arrays(data: bytes) -> None:
    array = np.frombuffer(data, np.float64).copy()
    for writeable in (True, False):
        array.flags.writeable = writeable
        assert written(array, 64) == (64 + len(data), data)


@pytest.mark.parametrize("given", ["none", "some"])
def test_pages_that_the_system_does_not_give_are_written_as_others(
    monkeypatch: pytest.MonkeyPatch, data: bytes, given: str
) -> None:
    calls = []
    advise = libc.madvise

    def sparing(address: int, length: int, advice: int) -> int:
        if advice == pages._MADV_COLLAPSE:
            calls.append(address)
            if given == "none" or len(calls) % 2:
                return -1
        return int(advise(address, length, advice))

    monkeypatch.setattr(libc, "madvise", sparing)
    assert written(data, 64) == (64 + len(data), data)
    assert len(calls) == len(data) // HUGE - 1


def test_without_room_or_threads_it_is_written_as_well(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    def no_thread(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        assert written(data, 64)[1] == data
    monkeypatch.setattr(libc, "mmap", lambda *args: ctypes.c_void_p(-1).value)
    assert written(data, 64)[1] == data


def test_a_full_system_is_an_error() -> None:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)  # refuses as a full memory does
        with pytest.raises(OSError, match="not permitted"):
            pages.write(fd, memoryview(bytes(WORTH)), 0)
    finally:
        os.close(fd)


def test_a_huge_page_keeps_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in (True, False):
        if not given:
            monkeypatch.setattr(libc, "mmap", lambda *args: ctypes.c_void_p(-1).value)
        fd = os.memfd_create("test")
        try:
            os.pwrite(fd, b"x" * 5000, 0)
            pages.make_huge(fd)
            assert os.pread(fd, HUGE + 1, 0) == b"x" * 5000 + bytes(HUGE - 5000)
        finally:
            os.close(fd)


def test_what_a_thread_did_not_come_to_is_written_as_well(
    monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    move = ctypes.memmove

    def fails_in_the_other_thread(target: int, source: int, size: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise MemoryError
        move(target, source, size)

    monkeypatch.setattr(ctypes, "memmove", fails_in_the_other_thread)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    assert written(data, 64)[1] == data


def peak(memory: Memory) -> int:
    peak = memory.peaks()[0]
    assert peak is not None
    return peak


def test_what_is_written_is_no_memory_of_the_writer(data: bytes) -> None:
    memory = Memory()
    array = np.frombuffer(data * 4, np.uint8)
    fd = os.memfd_create("test")
    try:
        memory.reset_peak()
        before = peak(memory)
        pages.write(fd, array.data, 64)
        assert peak(memory) - before < array.nbytes / 4
    finally:
        os.close(fd)


@pytest.mark.slow
def test_a_write_that_is_interrupted_comes_to_its_end_and_touches_nothing_else() -> None:
    code = """
        import ctypes, threading
        import numpy as np
        from mgpu_nb.engines import pages, payload
        array = np.random.default_rng(0).integers(0, 255, 100 * 2**20, np.uint8)
        go, move, join = threading.Event(), ctypes.memmove, threading.Thread.join

        def late(*args):
            if threading.current_thread() is not threading.main_thread():
                go.wait(30)
            move(*args)

        def interrupted(thread):
            raise KeyboardInterrupt

        ctypes.memmove, threading.Thread.join = late, interrupted
        try:
            payload.dumps(array)
        except KeyboardInterrupt:
            others = [t for t in threading.enumerate() if t.name == "mgpu_nb-pages"]
            del array
            fresh = [np.ones(n * 2**20, np.uint8) for n in (60, 52, 50, 40)]  # where that was
            go.set()
            for other in others:
                join(other, 30)
            assert not any(other.is_alive() for other in others)
            print(all((one == 1).all() for one in fresh))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
