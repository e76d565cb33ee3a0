"""Memory of this process, as a worker measures it."""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..hardware.libc import libc

__all__ = ["Memory", "MemoryReports", "be_killed_first", "keep_freed"]

REPORT_EVERY = 0.5  # seconds
WORTH_RELEASING = 32 * 2**20  # bytes; to free and allocate them again takes a millisecond
KILLED_FIRST = 500  # of 1000: as if it held half of the machine's memory more than it does

_PAGE = os.sysconf("SC_PAGE_SIZE")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed() -> None:
    """Have malloc keep some of what is freed: a fresh page costs more than all that a small task does with it.

    glibc comes to these thresholds by itself in a process that frees large arrays, and until then every array of every
    task is made of fresh pages. `Memory.trim` gives back what is kept.
    """
    chosen = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if not chosen and not any(name.startswith("MALLOC_") for name in os.environ):
        with contextlib.suppress(AttributeError):  # glibc only
            libc.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
            libc.mallopt(_M_TRIM_THRESHOLD, 64 * 2**20)


def be_killed_first() -> None:
    """Have the system, when memory runs out, end this worker and not its parent: a task is lost, not a notebook."""
    with contextlib.suppress(OSError, ValueError):  # Linux only
        place = Path("/proc/self/oom_score_adj")
        if int(place.read_text()) < KILLED_FIRST:
            place.write_text(str(KILLED_FIRST))


class Memory:
    """Memory of this process: torch's on a GPU once CUDA is in use, else what of its own is resident."""

    def __init__(self) -> None:
        self._marked = (False, 0)
        self._statm = _open("statm", os.O_RDONLY)
        self._status = _open("status", os.O_RDONLY)
        self._clear = _open("clear_refs", os.O_WRONLY)
        self._at_start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def _cuda(self) -> Any:
        torch = sys.modules.get("torch")
        return torch.cuda if torch is not None and torch.cuda.is_initialized() else None

    @property
    def uses_gpu(self) -> bool:
        """Whether CUDA is in use."""
        return self._cuda() is not None

    def now(self) -> int:
        """Bytes in use now."""
        if (cuda := self._cuda()) is not None:
            return _held(cuda, "current")[0]
        if self._statm is None:
            return 0
        fields = os.pread(self._statm, 256, 0).split()
        return (int(fields[1]) - int(fields[2])) * _PAGE  # without what is shared with others

    def mark(self) -> None:
        """Remember what is in use now."""
        self._marked = (self._cuda() is not None, self.now())

    def growth(self) -> int:
        """Bytes more in use than when it was marked; all of them on a GPU that was not in use then."""
        on_gpu, before = self._marked
        return self.now() - (before if on_gpu == (self._cuda() is not None) else 0)

    def on_gpu(self) -> tuple[int, int] | None:
        """Bytes allocated and bytes reserved by torch on the GPUs; None where CUDA is not in use."""
        return None if (cuda := self._cuda()) is None else _held(cuda, "current")

    def release_cached(self) -> None:
        """Give back what torch keeps cached on GPUs, if that is much: other workers have the same GPU."""
        if (cuda := self._cuda()) is not None:
            allocated, reserved = self.on_gpu() or (0, 0)
            if reserved - allocated > WORTH_RELEASING:
                cuda.empty_cache()

    def trim(self) -> None:
        """Give back what the allocators keep for later."""
        if (cuda := self._cuda()) is not None:
            cuda.empty_cache()
        with contextlib.suppress(AttributeError):  # glibc only
            libc.malloc_trim(0)

    def reset_peak(self) -> None:
        """Begin a new peak."""
        if self._clear is not None:
            with contextlib.suppress(OSError):
                os.write(self._clear, b"5")
        if (cuda := self._cuda()) is not None:
            for i in range(cuda.device_count()):
                cuda.reset_peak_memory_stats(i)

    def peaks(self) -> tuple[int | None, int | None, int | None]:
        """Peak bytes since the last reset: resident, allocated by torch on GPUs, reserved by it there."""
        resident = self._peak_resident()
        if (cuda := self._cuda()) is None:
            return resident, None, None
        return resident, *_held(cuda, "peak")

    def _peak_resident(self) -> int | None:
        if self._status is None:
            return None
        # The quick way also counts the program that this process was before `exec`: no more than its first value.
        if (most := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) > self._at_start:
            return most * 1024
        _, _, rest = os.pread(self._status, 2**14, 0).partition(b"VmHWM:")
        return int(rest.split(None, 1)[0]) * 1024 if rest else None


def _held(cuda: Any, when: str) -> tuple[int, int]:
    """Bytes that torch has allocated and reserved on the GPUs, ``current`` or at their ``peak``.

    Both from one reading, as the nested dict that the allocator gives: `torch.cuda.memory_allocated` and its like each
    sort all of its hundred figures into a flat one, which takes longer than a small task.
    """
    read = [cuda.memory_stats_as_nested_dict(i) for i in range(cuda.device_count())]
    allocated = sum(each["allocated_bytes"]["all"][when] for each in read)
    return allocated, sum(each["reserved_bytes"]["all"][when] for each in read)


def _open(name: str, flags: int) -> int | None:
    """Open a file of this process's own in /proc; None where there is none."""
    try:
        return os.open(f"/proc/self/{name}", flags | os.O_CLOEXEC)
    except OSError:
        return None


class MemoryReports(threading.Thread):
    """Reports to the parent process what torch holds on the GPUs, while tasks run and when it has changed.

    In a container NVML does not say which process holds what, and what torch has reserved and what it has allocated
    nobody else knows at all.
    """

    def __init__(self, memory: Memory, send: Callable[[bytes], None]) -> None:
        super().__init__(name="mgpu_nb-memory", daemon=True)
        self._memory = memory
        self._send = send
        self._busy = threading.Event()
        self._idle = threading.Event()

    def begin(self) -> None:
        """A task begins."""
        if not self.is_alive():
            self.start()
        self._idle.clear()
        self._busy.set()

    def end(self) -> None:
        """The task has ended."""
        self._busy.clear()
        self._idle.set()

    def run(self) -> None:
        """Look twice a second while a task runs; sleep while none does."""
        last = None
        while True:
            self._busy.wait()
            if (now := self._memory.on_gpu()) is not None and now != last:
                last = now
                try:
                    self._send(pickle.dumps(now))
                except OSError:  # the parent process has gone, and so will this one
                    return
            self._idle.wait(REPORT_EVERY)
