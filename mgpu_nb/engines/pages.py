"""Writes into shared memory, large ones in huge pages: to find the small pages takes as long as to fill them."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..hardware.libc import MAP_FAILED, libc

if TYPE_CHECKING:
    from io import FileIO

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["HUGE", "make_huge", "write"]

HUGE = 2 * 2**20  # bytes of a huge page
WORTH = 16 * 2**20  # bytes from which on they are asked for

_MADV_COLLAPSE = 25  # Linux 6.1; unlike the settings of the system it asks for these pages only
_MADV_DONTNEED = 4
_MAP_FIXED = 0x10


def write(fd: int, data: memoryview, offset: int) -> None:
    """Write bytes at an offset of a memory file.

    Raises
    ------
    OSError
        Where there is not memory enough.
    """
    if len(data) < WORTH or sys.platform != "linux":
        _write(fd, data, offset)
    else:
        end = offset + len(data)
        first, last = -(-offset // HUGE) * HUGE, end // HUGE * HUGE
        os.ftruncate(fd, max(end, os.fstat(fd).st_size))
        _write(fd, data[: first - offset], offset)
        for at in _write_huge(fd, data[first - offset : last - offset], first):
            _write(fd, data[at - offset : at - offset + HUGE], at)
        _write(fd, data[last - offset :], last)


def _write(fd: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):  # one call writes 2 GiB at the most
        done += os.pwrite(fd, data[done:], offset + done)


def _write_huge(fd: int, data: memoryview, offset: int) -> set[int]:
    """Write whole huge pages; return the offsets of those that the system does not give, which are left to be written.

    Two threads do it: a page is cleared before it is filled, and one core alone does not use all of the memory's speed.
    """
    import numpy as np

    left = set(range(offset, offset + len(data), HUGE))
    for at in left:
        os.pwrite(fd, b"\0", at)  # what is not there at all is not made huge
    half = len(left) // 2 * HUGE
    source = np.frombuffer(data, np.uint8)  # which may be of what nobody may write to
    # Each has a descriptor, a mapping and a view of its own, and comes to its end alone: an interrupt strikes neither.
    threads = []
    for part, at in ((source[:half], offset), (source[half:], offset + half)):
        file = os.fdopen(os.dup(fd), "r+b", buffering=0)
        thread = threading.Thread(target=_fill, args=(file, part, at, left), name="mgpu_nb-pages")
        try:
            thread.start()
        except RuntimeError:  # no thread more is allowed
            _fill(file, part, at, left)
        else:
            threads.append(thread)
    for thread in threads:
        thread.join()
    return left


def _fill(file: FileIO, source: NDArray[np.uint8], offset: int, left: set[int]) -> None:
    """Copy whole huge pages into a file, which is closed in the end; take those that are done from what is left."""
    with file, _mapped(file.fileno(), offset, source.nbytes) as target:
        if target is None:
            return
        for start in range(0, source.nbytes, HUGE):
            if _collapse(target + start):
                ctypes.memmove(target + start, source.ctypes.data + start, HUGE)
                # It stays in the file, and is no memory of this process.
                libc.madvise(target + start, HUGE, _MADV_DONTNEED)
                left.discard(offset + start)


def make_huge(fd: int, offset: int = 0) -> None:
    """Make one huge page of a piece of a memory file, which keeps what is there; nothing where that fails.

    The offset is a multiple of `HUGE`, and something was written there.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.ftruncate(fd, max(offset + HUGE, os.fstat(fd).st_size))
            with _mapped(fd, offset, HUGE) as address:
                if address is not None:
                    _collapse(address)


def _collapse(address: int) -> bool:
    return bool(libc.madvise(address, HUGE, _MADV_COLLAPSE) == 0)


@contextlib.contextmanager
def _mapped(fd: int, offset: int, size: int) -> Iterator[int | None]:
    """Map a part of a file where it can have huge pages: its address is a multiple of theirs, as its offset is."""
    room = libc.mmap(None, size + HUGE, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if room == MAP_FAILED:
        yield None
        return
    try:
        address = -(-room // HUGE) * HUGE
        access, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED
        yield None if libc.mmap(address, size, access, flags, fd, offset) == MAP_FAILED else address
    finally:
        libc.munmap(room, size + HUGE)
