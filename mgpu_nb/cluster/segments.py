"""Segments of a link's frames, the large parts of values: where they are sent from, and where they are received."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os

from ..engines.pages import HUGE, WORTH, make_huge, write
from ..engines.segment import ALIGNMENT, SMALL, map_segment
from .neighbours import open_file

__all__ = ["LENT", "LentPlace", "MemoryFile", "MemoryFilePlace", "MemoryPlace", "copy_segment"]

LENT = 2**63
"""Set in the length of a segment that stays where it is: the number of its descriptor stands for it."""


_NUMBER = 8  # bytes
_DROPPED = 2**20  # bytes at a time of what there is no memory for


class MemoryFile:
    """A memory file that is to be sent or lent; closed at the latest when nobody refers to it."""

    _fd = -1

    def __init__(self, fd: int, size: int) -> None:
        self._fd = os.dup(fd)
        self._at, self._size = 0, size

    def __len__(self) -> int:
        return self._size - self._at

    @property
    def number(self) -> memoryview:
        """What is sent where it is lent: the number of its descriptor."""
        return memoryview(self._fd.to_bytes(_NUMBER, "big"))

    def read(self, buffer: memoryview) -> memoryview:
        """The next piece of it, in the buffer."""
        piece = buffer[: min(len(buffer), len(self))]
        _read(self._fd, piece, self._at)
        self._at += len(piece)
        return piece

    def close(self) -> None:
        """Close it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def _read(fd: int, into: memoryview, at: int) -> None:
    """Read from a memory file; what it has no more becomes zeros: its length was told already."""
    done = 0
    while done < len(into):
        size = os.preadv(fd, [into[done:]], at + done)
        if not size:
            into[done:] = bytes(len(into) - done)
            return
        done += size


def copy_segment(segment: tuple[int, int] | memoryview) -> memoryview:
    """Copy of a segment: a descriptor of a memory file with its size, or memory."""
    if isinstance(segment, memoryview):
        return memoryview(segment.tobytes())
    fd, size = segment
    copy = memoryview(bytearray(size))
    _read(fd, copy, 0)
    return copy


class MemoryPlace:
    """Place of a segment in memory; where the system gives none, what comes is dropped and `view` is empty."""

    def __init__(self, size: int) -> None:
        self._left = size
        try:
            self.view = self._place = _aligned(size)
        except (OSError, MemoryError):  # this value is lost, and not the link
            self.view = memoryview(b"")
            self._place = memoryview(bytearray(min(size, _DROPPED)))
        self.room = self._place

    def advance(self, size: int) -> None:
        """Note that so many bytes are in `room`."""
        self._left -= size
        self.room = self.room[size:] if self.view else self._place[: self._left]

    def close(self) -> None:
        """Nothing is to be closed."""


class LentPlace:
    """Place of a segment that a neighbour lends: room for the number of its descriptor, then the segment itself.

    It is a file, or mapped into memory, private to this process.
    """

    def __init__(self, owner: int, *, file: bool) -> None:
        self.fd = -1
        self.view = memoryview(b"")
        self._owner, self._file = owner, file
        self._number = bytearray(_NUMBER)
        self.room = memoryview(self._number)

    def advance(self, size: int) -> None:
        """Note that so many bytes are in `room`."""
        self.room = self.room[size:]

    def open(self) -> None:
        """Open it, once `room` is full; where no descriptor or memory is left there is none, and `view` is empty.

        Raises
        ------
        OSError
            If the neighbour has it no more.
        """
        try:
            fd = open_file(self._owner, int.from_bytes(self._number, "big"))
            if self._file:
                self.fd = fd
            else:
                self.view = map_segment(fd)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise

    def close(self) -> None:
        """Close it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class MemoryFilePlace:
    """Place of a segment in a memory file, by way of a buffer: to map its pages one by one takes twice as long."""

    def __init__(self, size: int, buffer: memoryview) -> None:
        self.fd = -1
        self._buffer = buffer
        self._left, self._at, self._in_buffer = size, 0, 0
        self._huge = size >= WORTH
        with contextlib.suppress(OSError):  # there is no descriptor left: the value is lost, and not the link
            self.fd = os.memfd_create("mgpu_nb", os.MFD_CLOEXEC)

    @property
    def room(self) -> memoryview:
        """Where the next bytes belong; empty once all are there."""
        return self._buffer[self._in_buffer : self._in_buffer + self._left]

    def advance(self, size: int) -> None:
        """Note that so many bytes are in `room`."""
        self._left -= size
        self._in_buffer += size
        if not self._left or self._in_buffer == len(self._buffer):
            with contextlib.suppress(OSError):
                self._write(self._buffer[: self._in_buffer])
            self._at += self._in_buffer
            self._in_buffer = 0

    def _write(self, piece: memoryview) -> None:
        try:
            if self._huge and self._at % HUGE == 0 and self._left + len(piece) >= HUGE:
                os.pwrite(self.fd, piece[:1], self._at)
                make_huge(self.fd, self._at)
            write(self.fd, piece, self._at)
        except OSError:  # no memory is left for it
            self.close()
            raise

    def close(self) -> None:
        """Close it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _aligned(size: int) -> memoryview:
    """Aligned memory; of a large one huge pages are asked for."""
    if size > SMALL:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError, AttributeError):  # not Linux, or without large pages
            pages.madvise(mmap.MADV_HUGEPAGE)
        return memoryview(pages)
    memory = bytearray(size + ALIGNMENT)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % ALIGNMENT
    return memoryview(memory)[start : start + size]
