"""Task functions of the suite on a GPU."""

from __future__ import annotations

import ctypes
import os
import signal
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import gpu_dry
from gpu_dry import DRY

from mgpu_nb import worker

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.utils.data import DataLoader, Dataset

GIB = 2**30
MIB = 2**20
KEPT: list[Tensor] = []  # outlives the task that fills it


def place() -> torch.device:
    """The device for a task's tensors; CUDA is awake afterwards."""
    import torch

    if DRY:
        gpu_dry.wake()
        return torch.device("cpu")
    device = torch.device(worker().device)
    torch.zeros(1, device=device)
    return device


def sync() -> None:
    import torch

    if not DRY:
        torch.cuda.synchronize()


def take(size: int) -> Tensor:
    """A tensor of `size` bytes on the GPU."""
    import torch

    return gpu_dry.take(size) if DRY else torch.empty(size, dtype=torch.uint8, device=place())


def cubes() -> Tensor:
    """A small tensor that the GPU computed."""
    import torch

    return torch.arange(4, device=place()) ** 3


def spin(seconds: float) -> None:
    """A kernel that keeps the GPU busy, waited for."""
    import torch

    place()
    if DRY:
        time.sleep(seconds)
    else:
        torch.cuda._sleep(int(seconds * 1.9e9))  # clock cycles of an H100 at full speed
        torch.cuda.synchronize()


def wait_for(path: str | Path, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not Path(path).exists():
        if time.monotonic() > end:
            raise TimeoutError(f"{path} did not come within {seconds} s")
        time.sleep(0.01)


def meet(folder: str | Path, count: int, seconds: float = 30.0) -> None:
    """Wait until `count` tasks are here, so that each has a slot of its own."""
    Path(folder).mkdir(exist_ok=True)
    (Path(folder) / f"{os.getpid()}").touch()
    end = time.monotonic() + seconds
    while len(list(Path(folder).iterdir())) < count:
        if time.monotonic() > end:
            raise TimeoutError(f"of {count} tasks {len(list(Path(folder).iterdir()))} came")
        time.sleep(0.01)


def cuda_uuids() -> list[str]:
    """UUIDs of the GPUs that CUDA shows to this process, by the driver's own word."""
    if DRY:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    cuda = ctypes.CDLL("libcuda.so.1")
    count, device, raw = ctypes.c_int(), ctypes.c_int(), (ctypes.c_ubyte * 16)()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return []
    found = []
    for ordinal in range(count.value):
        cuda.cuDeviceGet(ctypes.byref(device), ordinal)
        cuda.cuDeviceGetUuid_v2(raw, device)  # of a MIG instance its own UUID, not the GPU's
        found.append(str(uuid.UUID(bytes=bytes(raw))))
    return found


def sees(folder: str | None = None, count: int = 1) -> dict[str, Any]:
    """What a worker sees, after its first kernel."""
    import torch

    if folder is not None:
        meet(folder, count)
    bad_fork = torch.cuda._is_in_bad_fork()
    woken = torch.cuda.is_initialized()
    total = float(torch.arange(10.0, device=place()).sum())
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "slot": worker().slot,
        "device": worker().device,
        "pinned": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "bad_fork": bad_fork,
        "awake_before": woken,
        "count": torch.cuda.device_count(),
        "current": torch.cuda.current_device(),
        "uuids": cuda_uuids(),
        "total": total,
    }


def pid() -> int:
    return os.getpid()


def pinned_to() -> dict[str, Any]:
    """What this worker is pinned to and what CUDA shows it; CUDA of torch stays asleep."""
    return {"pinned": os.environ.get("CUDA_VISIBLE_DEVICES"), "uuids": cuda_uuids(), "pid": os.getpid()}


def first_kernel() -> float:
    import torch

    return float(torch.ones(10, device=place()).sum())


def own_memory() -> int | None:
    """Bytes that NVML says this process holds; None where it does not name it."""
    if DRY:
        return gpu_dry.holders().get(os.getpid())
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByUUID(worker().uuid)
    running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    return next((process.usedGpuMemory for process in running if process.pid == os.getpid()), None)


def holds(
    size: int, seconds: float = 0.0, folder: str | None = None, count: int = 1, keep: bool = False
) -> dict[str, Any]:
    """Take memory and hold it for some seconds, with the GPU at work; return what torch and NVML count."""
    import torch

    if folder is not None:
        meet(folder, count)
    tensor = take(size)
    torch.cuda.reset_peak_memory_stats()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        spin(0.05)
    if keep:
        KEPT.append(tensor)
    return {
        "pid": os.getpid(),
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "nvml": own_memory(),
        "free": torch.cuda.mem_get_info()[0],
    }


def free_here() -> int:
    """Bytes free in a process that has CUDA awake."""
    import torch

    place()
    return torch.cuda.mem_get_info()[0]


def activations(unit: int, batch_size: int) -> int:
    """Stand in for a training step: three tensors of `unit` bytes per sample at the same time."""
    parts = [take(unit * batch_size) for _ in range(3)]
    sync()
    return len(parts)


def asserts_in_a_kernel() -> NoReturn:
    """Index past the end on the GPU: a device-side assert, and the context is of no use any more."""
    import torch

    if DRY:
        gpu_dry.fail("device-side assert triggered")
    device = place()
    table, wrong = torch.zeros(4, device=device), torch.tensor([1000], device=device)
    table[wrong] = 1.0
    torch.cuda.synchronize()
    raise AssertionError("the GPU did not mind an index past the end")


class FarAway:
    """Two numbers, of which the second would be 16 TiB behind the first: behind all that a process can address."""

    def __init__(self, first: Tensor) -> None:
        self.__cuda_array_interface__ = {
            "shape": (2,),
            "typestr": "<f4",
            "data": (first.data_ptr(), False),
            "strides": (2**44,),
            "version": 2,
        }


def writes_to_an_illegal_address() -> NoReturn:
    """Write to an address at which the GPU has nothing: its context is of no use any more."""
    import torch

    if DRY:
        gpu_dry.fail("an illegal memory access was encountered")
    first = torch.zeros(4, device=place())
    torch.as_tensor(FarAway(first), device=first.device).fill_(1.0)
    torch.cuda.synchronize()
    raise AssertionError("the GPU did not mind an address at which it has nothing")


def meets_and_writes_to_an_illegal_address(folder: str, count: int) -> NoReturn:
    place()
    meet(folder, count)
    writes_to_an_illegal_address()


def spins_with_memory(size: int, path: str, seconds: float) -> torch.Size:
    """Take memory, say so in a file, and keep the GPU busy with one kernel."""
    import torch

    tensor = take(size)
    if not DRY:
        torch.cuda._sleep(int(seconds * 1.9e9))
    part = Path(f"{path}.part")
    part.write_text(str(os.getpid()))
    part.rename(path)
    if DRY:
        time.sleep(seconds)
    sync()
    return tensor.shape


def meets_and_spins(folder: str, path: str) -> None:
    meet(folder, 4)
    spins_with_memory(GIB, path, 60.0)


def crashes_with_memory(size: int) -> Tensor:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core with all that CUDA maps would take minutes
    tensor = take(size)
    os.kill(os.getpid(), signal.SIGSEGV)
    return tensor


def values() -> dict[str, Any]:
    """Tensors on the GPU of all kinds, by name."""
    import torch

    device = place()
    base = torch.arange(24.0, device=device).reshape(4, 6)
    large = torch.arange(2**20, device=device).reshape(1024, 1024)
    return {
        "plain": base,
        "bf16": base.bfloat16(),
        "half": base.half(),
        "transposed": base.t(),
        "strided": base[::2, 1::2],
        "requires_grad": base.clone().requires_grad_(),
        "of_a_graph": (base.clone().requires_grad_() * 2),
        "scalar": base.sum(),
        "empty": base[:0],
        "long": base.long(),
        "bool": base > 3,
        "complex": torch.complex(base, -base).conj(),
        "large": torch.ones(2**22, device=device),
        "large transposed": large.t(),
        "large strided": large[::2, 1:].bfloat16(),
        "large expanded": large[:1].expand(1024, 1024),
        "large complex": torch.complex(large.float(), -large.float()).conj(),
        "nested": {"list": [base, base.bfloat16()]},
        "model": torch.nn.Linear(3, 2).to(device),
    }


def only_tensors() -> dict[str, Tensor]:
    found = values()
    return {
        name: found[name]
        for name in ("plain", "bf16", "transposed", "strided", "requires_grad", "large", "large transposed")
    }


def told(tensors: dict[str, Tensor]) -> dict[str, list[Any]]:
    """What arrives of tensors: kind of device, dtype, shape, whether it wants a gradient, numbers."""
    return {
        name: [
            t.device.type,
            str(t.dtype),
            list(t.shape),
            t.requires_grad,
            t.detach().double().flatten()[:50].tolist(),
        ]
        for name, t in tensors.items()
    }


def on_gpu_sum(tensor: Tensor) -> float:
    return float(tensor.to(place()).double().sum())


def rank() -> dict[str, Any]:
    """Where a rank works, and a sum over all of them."""
    import torch
    import torch.distributed as dist

    device = torch.device("cpu" if DRY else worker().device)
    x = torch.full((1000,), dist.get_rank() + 1.0, device=device)
    dist.all_reduce(x)
    return {
        "backend": dist.get_backend(),
        "device": worker().device,
        "current": None if DRY else torch.cuda.current_device(),
        "pinned": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "sum": float(x[0]),
        "drawn": float(torch.rand(1)),
        "drawn_on_gpu": float(torch.rand(1, device=device)),
        "pid": os.getpid(),
    }


def draws() -> tuple[float, float]:
    import torch

    return float(torch.rand(1)), float(torch.rand(1, device="cpu" if DRY else worker().device))


def fails_on_the_second() -> None:
    import torch
    import torch.distributed as dist

    if dist.get_rank() == 1:
        raise ValueError("mine")
    dist.all_reduce(torch.ones(1, device="cpu" if DRY else worker().device))


class Squares:
    """A data set."""

    def __len__(self) -> int:
        return 256

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        import torch

        return torch.full((64,), float(index)), os.getpid()


def loads_data(workers: int) -> tuple[float, int, bool]:
    """Go over a data set with processes that load, into the GPU; after CUDA is awake, as in a training."""
    import torch

    device = place()
    squares = cast("Dataset[tuple[Tensor, int]]", Squares())
    loader: DataLoader[tuple[Tensor, int]] = torch.utils.data.DataLoader(
        squares, batch_size=32, num_workers=workers, pin_memory=not DRY, persistent_workers=True
    )
    pids: set[int] = set()
    total = 0.0
    for _ in range(2):
        for batch, who in loader:
            total += float(batch.to(device, non_blocking=True)[:, 0].sum())
            pids |= set(who.tolist())
    return total, len(pids), os.getpid() in pids


def influences(precision: str, train: Tensor, test: Tensor) -> Tensor:
    """Products of gradients of a ConvE with random weights, on this worker's device."""
    import torch

    from mgpu_nb.workloads import tracin

    torch.manual_seed(0)
    kind = torch.float64 if precision == "fp64" else torch.float32
    device = worker().device
    model = tracin.ConvE(tracin.Shape(135, 46)).to(device=device, dtype=kind).eval()
    found = tracin.products(model, tracin.LOSSES["softplus"], train.to(device), test.to(device))
    return found.cpu()


def noise_of_molecules() -> list[float]:
    """Noise that the shipped model finds in four molecules, on this worker's device."""
    import torch

    from mgpu_nb.workloads import molecules

    device = worker().device
    model = molecules.load_model(device=device)
    draw = torch.Generator().manual_seed(0)
    x, h = (torch.randn(4, 12, size, generator=draw) for size in (3, model.features))
    inputs = (x - x.mean(1, keepdim=True), h, torch.full((4,), 0.3), torch.ones(4, 12, dtype=torch.bool))
    with torch.no_grad():
        found = model.eps(*(each.to(device) for each in inputs))
    return [float(number) for each in found for number in each.flatten().cpu()]
