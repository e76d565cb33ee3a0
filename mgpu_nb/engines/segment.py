"""Anonymous shared memory: a file without a name, handed from process to process as a descriptor.

It has no name, so there is nothing to unlink and nothing that a killed process can leave behind; it does
not count against ``/dev/shm`` (64 MB in a container); its pages live as long as a descriptor or a mapping does.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import resource
import tempfile
import weakref

from ..hardware.libc import MAP_FAILED, libc
from .pages import HUGE, make_huge, write

__all__ = ["SMALL", "Segment", "map_segment", "read_segment"]

ALIGNMENT = 64  # bytes; a cache line, and what vector instructions ask of an array
SMALL = HUGE  # bytes; who receives a segment of up to so much copies it, and it can be used again
MAX_FREE = 4
NO_DESCRIPTOR = "no file descriptor was left to receive it with"


class Segment:
    """A growing piece of shared memory; `fd` is its only handle, `close` gives it up."""

    def __init__(self) -> None:
        # Whoever is interrupted has the descriptor closed, at whatever line.
        self._finalizer = weakref.finalize(self, os.close, fd := _memory_file())
        self.fd = fd
        if self.fd > resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2:
            self.close()  # the rest is for workers, and for what else this process does
            raise OSError(errno.EMFILE, "half of the file descriptors hold values already")
        self.size = 0
        self._is_spare = False

    def append(self, data: memoryview | bytes, align: int = ALIGNMENT) -> tuple[int, int]:
        """Copy bytes to the end; return their offset (a multiple of `align`) and length."""
        view = memoryview(data).cast("B")
        offset = -(-self.size // align) * align
        write(self.fd, view, offset)
        self.size = offset + len(view)
        return offset, len(view)

    @property
    def small(self) -> bool:
        """Whether its receiver copies it."""
        return self.size <= SMALL

    @classmethod
    def of(cls, size: int) -> Segment:
        """Segment for `size` bytes: a used one if they are few, for new pages cost more than to fill them."""
        if size <= SMALL:
            with contextlib.suppress(IndexError):
                segment = _free_list.pop()
                segment.size = 0
                return segment
        return cls()

    def close(self) -> None:
        """Close the descriptor. Mappings stay."""
        self._finalizer()

    def release(self) -> None:
        """Keep a small one for the next value; its receiver must have copied it. Close any other."""
        if self.small and len(_free_list) < MAX_FREE:
            if not self._is_spare:
                self._is_spare = True
                make_huge(self.fd)  # to be written to and read from in half the time
            _free_list.append(self)
        else:
            self.close()


def _memory_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("mgpu_nb", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


_free_list: list[Segment] = []
os.register_at_fork(after_in_child=_free_list.clear)  # two processes must not write to one


def read_segment(fd: int, size: int) -> memoryview:
    """Copy the first bytes of a segment, and close the descriptor. They are aligned as in the segment.

    Raises
    ------
    OSError
        Where there is no descriptor.
    """
    if fd < 0:
        raise OSError(errno.EMFILE, NO_DESCRIPTOR)
    memory = bytearray(size + ALIGNMENT)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % ALIGNMENT
    view = memoryview(memory)[start : start + size]
    try:
        done = 0
        while done < size:
            read = os.preadv(fd, [view[done:]], done)
            if not read:
                raise OSError(errno.EIO, f"shared memory ends after {done} of {size} bytes")
            done += read
    finally:
        os.close(fd)
    return view


def map_segment(fd: int) -> memoryview:
    """Map a whole segment, private to this process, and close the descriptor.

    Written pages are copied, so a task that changes its argument changes it for nobody else. The mapping
    ends with the last object that looks into it. `mmap.mmap` would keep a descriptor open for every
    mapping, and a thousand large results would use up all that a process may have.
    """
    if fd < 0:
        raise OSError(errno.EMFILE, NO_DESCRIPTOR)
    try:
        size = os.fstat(fd).st_size
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        address = libc.mmap(None, size, protection, mmap.MAP_PRIVATE, fd, 0)
        if address == MAP_FAILED:
            code = ctypes.get_errno()
            raise OSError(code, f"cannot map {size} bytes of shared memory: {os.strerror(code)}")
    finally:
        os.close(fd)
    block = (ctypes.c_char * size).from_address(address)
    unmap = weakref.finalize(block, libc.munmap, address, size)
    unmap.atexit = False  # at exit arrays may still look into it; the end of the process frees it
    return memoryview(block).cast("B")
