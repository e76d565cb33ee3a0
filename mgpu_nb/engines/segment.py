"""Anonymous shared memory: a file without a name, handed from process to process as a descriptor.

It has no name, so there is nothing to unlink and nothing that a killed process can leave behind; it does
not count against ``/dev/shm`` (64 MB in a container); its pages live as long as a descriptor or a mapping does.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import tempfile
import weakref

__all__ = ["Segment", "map_segment"]

ALIGNMENT = 64  # bytes; a cache line, and what vector instructions ask of an array

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_longlong,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class Segment:
    """A growing piece of shared memory; `fd` is its only handle, `close` gives it up."""

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self.fd = os.memfd_create("mgpu_nb", os.MFD_CLOEXEC)
        else:
            with tempfile.TemporaryFile() as file:
                self.fd = os.dup(file.fileno())
        if self.fd > resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2:
            os.close(self.fd)  # the rest is for workers, and for what else this process does
            raise OSError(errno.EMFILE, "half of the file descriptors hold values already")
        self.size = 0
        self._finalizer = weakref.finalize(self, os.close, self.fd)

    def append(self, data: memoryview | bytes, align: int = ALIGNMENT) -> tuple[int, int]:
        """Copy bytes to the end; return their offset (a multiple of `align`) and length."""
        view = memoryview(data).cast("B")
        offset = -(-self.size // align) * align
        written = 0
        while written < len(view):  # one call writes 2 GiB at the most
            written += os.pwrite(self.fd, view[written:], offset + written)
        self.size = offset + written
        return offset, written

    def close(self) -> None:
        """Close the descriptor. Mappings stay."""
        self._finalizer()


def map_segment(fd: int) -> memoryview:
    """Map a whole segment, private to this process, and close the descriptor.

    Written pages are copied, so a task that changes its argument changes it for nobody else. The mapping
    ends with the last object that looks into it. `mmap.mmap` would keep a descriptor open for every
    mapping, and a thousand large results would use up all that a process may have.
    """
    if fd < 0:
        raise OSError(errno.EMFILE, "no file descriptor was left to receive it with")
    try:
        size = os.fstat(fd).st_size
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        address = _libc.mmap(None, size, protection, mmap.MAP_PRIVATE, fd, 0)
        if address == ctypes.c_void_p(-1).value:
            code = ctypes.get_errno()
            raise OSError(code, f"cannot map {size} bytes of shared memory: {os.strerror(code)}")
    finally:
        os.close(fd)
    block = (ctypes.c_char * size).from_address(address)
    unmap = weakref.finalize(block, _libc.munmap, address, size)
    unmap.atexit = False  # at exit arrays may still look into it; the end of the process frees it
    return memoryview(block).cast("B")
