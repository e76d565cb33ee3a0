"""Without a GPU the suite runs dry (``MGPU_GPU_DRY=1``): a driver and a torch.cuda that only keep count.

What a process has taken stands in a file named after its pid, so that the driver that the kernel asks and the processes
that take memory agree, and what a dead process held is free again.
"""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest
    from torch import Tensor

DRY = os.environ.get("MGPU_GPU_DRY") == "1"
GIB = 2**30
TOTAL = 80 * GIB
CONTEXT = GIB // 2  # bytes that CUDA itself takes in every process
UUID = "GPU-00000000-aaaa-bbbb-cccc-000000000000"


def _folder() -> Path:
    path = Path(os.environ["MGPU_GPU_DRY_FOLDER"])
    path.mkdir(parents=True, exist_ok=True)
    return path


def holders() -> dict[int, int]:
    """Bytes that each living process has taken, by pid."""
    found = {}
    for file in _folder().iterdir():
        try:
            if Path(f"/proc/{file.name}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found[int(file.name)] = int(file.read_text() or 0)
        except OSError:
            continue
    return found


class Gpu:
    """What `fake_nvml.FakeNvml` reads of a GPU."""

    uuid, name, total, reserved = UUID, "NVIDIA H100 80GB HBM3 (dry)", TOTAL, 0
    bus, graphics, instances, ids = "00000000:07:00.0", (), None, None
    errors: dict[str, int] = {}  # noqa: RUF012 - as the dataclass beside it has them

    @property
    def used(self) -> int:
        return sum(holders().values())

    @property
    def compute(self) -> list[tuple[int, int]]:
        return list(holders().items())


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the dry GPU the only one of the machine."""
    import fake_nvml

    fake_nvml.install(monkeypatch, [Gpu()])  # type: ignore[list-item]  # its attributes are all that is read


class _Cuda:
    """The counts of this process, in place of torch.cuda's."""

    def __init__(self) -> None:
        self.held = self.peak = self.kept = self.most_kept = 0
        self.broken = ""

    def note(self, change: int) -> None:
        self.held += change
        self.peak = max(self.peak, self.held)
        self.kept = max(self.kept, self.held)  # the allocator keeps what is freed
        self.most_kept = max(self.most_kept, self.kept)
        self.write()

    def write(self) -> None:
        (_folder() / str(os.getpid())).write_text(str(CONTEXT + self.kept))

    def empty_cache(self) -> None:
        self.kept = self.held
        self.write()

    def reset(self, device: object = None) -> None:
        self.peak, self.most_kept = self.held, self.kept

    def synchronize(self, device: object = None) -> None:
        if self.broken:
            raise RuntimeError(f"CUDA error: {self.broken}")

    def free(self) -> int:
        return TOTAL - sum(holders().values())


_cuda: _Cuda | None = None


def wake() -> _Cuda:
    """Have torch.cuda look awake in this process."""
    global _cuda
    import torch

    if _cuda is None:
        _cuda = made = _Cuda()
        made.write()
        torch.cuda.is_initialized = lambda: True
        torch.cuda.device_count = lambda: 1
        torch.cuda.current_device = lambda: 0
        torch.cuda.memory_allocated = lambda device=None: made.held
        torch.cuda.memory_reserved = lambda device=None: made.kept
        torch.cuda.max_memory_allocated = lambda device=None: made.peak
        torch.cuda.max_memory_reserved = lambda device=None: made.most_kept
        torch.cuda.memory_stats_as_nested_dict = lambda device=None: {
            "allocated_bytes": {"all": {"current": made.held, "peak": made.peak}},
            "reserved_bytes": {"all": {"current": made.kept, "peak": made.most_kept}},
        }
        torch.cuda.mem_get_info = lambda device=None: (made.free(), TOTAL)
        torch.cuda.empty_cache = made.empty_cache
        torch.cuda.reset_peak_memory_stats = made.reset
        torch.cuda.synchronize = made.synchronize
    _cuda.synchronize()
    return _cuda


def take(size: int) -> Tensor:
    """Count `size` bytes as taken for as long as the tensor that is returned lives."""
    import torch

    cuda = wake()
    tensor = torch.zeros(16, dtype=torch.uint8)
    with _folder().with_suffix(".lock").open("w") as lock:
        fcntl.flock(
            lock, fcntl.LOCK_EX
        )  # that of two processes both find room for one is not what a driver does
        if size - (cuda.kept - cuda.held) > cuda.free():
            raise torch.cuda.OutOfMemoryError(  # its only name in torch 2.4
                f"CUDA out of memory. Tried to allocate {size / GIB:.2f} GiB. GPU 0 has a total capacity of "
                f"{TOTAL / GIB:.2f} GiB of which {cuda.free() / GIB:.2f} GiB is free."
            )
        cuda.note(size)
    weakref.finalize(tensor, cuda.note, -size)
    return tensor


def fail(message: str) -> None:
    """Break this process's CUDA as an assertion in a kernel does: for good."""
    cuda = wake()
    cuda.broken = message
    wake()
