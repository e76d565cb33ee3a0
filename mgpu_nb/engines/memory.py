"""Memory of this process, as a worker measures it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from typing import Any

__all__ = ["Memory"]

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Memory:
    """Memory of this process: torch's on a GPU once CUDA is in use, else what of its own is resident."""

    def __init__(self) -> None:
        try:
            self._statm: int | None = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._statm = None

    def _cuda(self) -> Any:
        torch = sys.modules.get("torch")
        return torch.cuda if torch is not None and torch.cuda.is_initialized() else None

    def now(self) -> int:
        """Bytes in use now."""
        if (cuda := self._cuda()) is not None:
            return sum(cuda.memory_allocated(i) for i in range(cuda.device_count()))
        if self._statm is None:
            return 0
        fields = os.pread(self._statm, 256, 0).split()
        return (int(fields[1]) - int(fields[2])) * _PAGE  # without what is shared with others

    def trim(self) -> None:
        """Give back what the allocators keep for later."""
        if (cuda := self._cuda()) is not None:
            cuda.empty_cache()
        with contextlib.suppress(AttributeError):  # glibc only
            ctypes.CDLL(None).malloc_trim(0)

    def reset_peak(self) -> None:
        """Begin a new peak."""
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        if (cuda := self._cuda()) is not None:
            for i in range(cuda.device_count()):
                cuda.reset_peak_memory_stats(i)

    def peaks(self) -> tuple[int | None, int | None, int | None]:
        """Peak bytes since the last reset: resident, allocated by torch on GPUs, reserved by it there."""
        resident = None
        with contextlib.suppress(OSError), open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"VmHWM:"):
                    resident = int(line.split()[1]) * 1024
                    break
        if (cuda := self._cuda()) is None:
            return resident, None, None
        devices = range(cuda.device_count())
        allocated = sum(cuda.max_memory_allocated(i) for i in devices)
        return resident, allocated, sum(cuda.max_memory_reserved(i) for i in devices)
