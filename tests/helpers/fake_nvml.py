"""A pynvml that reads a scenario instead of a driver: pynvml's own names, constants and exceptions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pynvml

if TYPE_CHECKING:
    import pytest

GIB = 2**30


@dataclass(eq=False)
class Gpu:
    """A GPU, or with `ids` a MIG instance. `errors` maps a function (``*``: all others) to an NVML code or None."""

    uuid: str = "GPU-00000000-aaaa-bbbb-cccc-000000000000"
    name: str = "NVIDIA A100-SXM4-40GB"
    total: int = 40 * GIB
    used: int = 3 * GIB
    reserved: int = GIB
    bus: str = "00000000:07:00.0"
    compute: list[tuple[int, int | None]] = field(default_factory=list)
    graphics: list[tuple[int, int | None]] = field(default_factory=list)
    errors: dict[str, int | None] = field(default_factory=dict)
    instances: list[Gpu | None] | None = None
    ids: tuple[int, int] | None = None


def gpus(*names: str) -> list[Gpu]:
    """GPUs with UUIDs that begin with ``GPU-0``, ``GPU-1``, ... in PCI order."""
    return [Gpu(uuid(n), name, bus=f"00000000:{n:02X}:00.0") for n, name in enumerate(names)]


def uuid(n: int) -> str:
    return f"GPU-{n}0000000-aaaa-bbbb-cccc-000000000000"


class FakeNvml:
    """What `nvml.load` returns in a test.

    `old` is a driver of the 470 line with a binding that does not decode: bytes, no second version of
    the memory query, no third version of the process query.
    """

    def __init__(self, gpus: list[Gpu], old: bool = False, init_error: int | None = None) -> None:
        self.gpus, self.old, self.init_error = gpus, old, init_error
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        value = getattr(pynvml, name)
        if name.startswith("nvml") and callable(value):
            raise AttributeError(f"the fake has no {name}")
        return value

    def nvmlInit(self) -> None:  # noqa: N802
        self.calls["nvmlInit"] += 1
        if self.init_error is not None:
            raise pynvml.NVMLError(self.init_error)

    def nvmlSystemGetDriverVersion(self) -> str | bytes:  # noqa: N802
        return self._text("470.57.02" if self.old else "580.65.06")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Gpu:  # noqa: N802
        return self._use(self.gpus[index], "nvmlDeviceGetHandleByIndex")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Gpu:  # noqa: N802
        everything = [*self.gpus, *(i for g in self.gpus for i in g.instances or () if i)]
        for gpu in everything:
            if gpu.uuid == uuid:
                return self._use(gpu, "nvmlDeviceGetHandleByUUID")
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def nvmlDeviceGetUUID(self, handle: Gpu) -> str | bytes:  # noqa: N802
        return self._text(self._use(handle, "nvmlDeviceGetUUID").uuid)

    def nvmlDeviceGetName(self, handle: Gpu) -> str | bytes:  # noqa: N802
        return self._text(self._use(handle, "nvmlDeviceGetName").name)

    def nvmlDeviceGetPciInfo(self, handle: Gpu) -> Any:  # noqa: N802
        bus = self._use(handle, "nvmlDeviceGetPciInfo").bus
        return SimpleNamespace(busId=self._text(bus))

    def nvmlDeviceGetMemoryInfo(self, handle: Gpu, version: int | None = None) -> Any:  # noqa: N802
        gpu = self._use(handle, "nvmlDeviceGetMemoryInfo")
        if version and self.old:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        free = gpu.total - gpu.used - gpu.reserved
        used = gpu.used if version else gpu.used + gpu.reserved
        return SimpleNamespace(total=gpu.total, used=used, free=free)

    def nvmlDeviceGetUtilizationRates(self, handle: Gpu) -> Any:  # noqa: N802
        self._no_instance(handle, "nvmlDeviceGetUtilizationRates")
        return SimpleNamespace(gpu=37, memory=12)

    def nvmlDeviceGetTemperature(self, handle: Gpu, sensor: int) -> int:  # noqa: N802
        self._no_instance(handle, "nvmlDeviceGetTemperature")
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return 61

    def nvmlDeviceGetPowerUsage(self, handle: Gpu) -> int:  # noqa: N802
        self._no_instance(handle, "nvmlDeviceGetPowerUsage")
        return 250_500

    def nvmlDeviceGetMigMode(self, handle: Gpu) -> list[int]:  # noqa: N802
        gpu = self._use(handle, "nvmlDeviceGetMigMode")
        if gpu.instances is None and "A100" not in gpu.name:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [int(gpu.instances is not None)] * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Gpu) -> int:  # noqa: N802
        return len(handle.instances or ())

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Gpu, index: int) -> Gpu:  # noqa: N802
        assert handle.instances is not None
        instance = handle.instances[index]
        if instance is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return instance

    def nvmlDeviceGetGpuInstanceId(self, handle: Gpu) -> int:  # noqa: N802
        assert handle.ids is not None
        return handle.ids[0]

    def nvmlDeviceGetComputeInstanceId(self, handle: Gpu) -> int:  # noqa: N802
        assert handle.ids is not None
        return handle.ids[1]

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Gpu) -> list[Any]:  # noqa: N802
        self._no_mismatch()
        return self.nvmlDeviceGetComputeRunningProcesses_v2(handle)

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: Gpu) -> list[Any]:  # noqa: N802
        self._no_mismatch()
        return self.nvmlDeviceGetGraphicsRunningProcesses_v2(handle)

    def nvmlDeviceGetComputeRunningProcesses_v2(self, handle: Gpu) -> list[Any]:  # noqa: N802
        return _processes(self._use(handle, "nvmlDeviceGetComputeRunningProcesses").compute)

    def nvmlDeviceGetGraphicsRunningProcesses_v2(self, handle: Gpu) -> list[Any]:  # noqa: N802
        return _processes(self._use(handle, "nvmlDeviceGetGraphicsRunningProcesses").graphics)

    def _text(self, value: str) -> str | bytes:
        return value.encode() if self.old else value

    def _use(self, handle: Gpu, function: str) -> Gpu:
        self.calls[function] += 1
        code = handle.errors.get(function, handle.errors.get("*"))
        if code is not None:
            raise pynvml.NVMLError(code)
        return handle

    def _no_instance(self, handle: Gpu, function: str) -> None:
        if self._use(handle, function).ids:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def _no_mismatch(self) -> None:
        if self.old:
            raise pynvml.NVMLLibraryMismatchError("Unversioned function called")


def _processes(pairs: list[tuple[int, int | None]]) -> list[Any]:
    return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in pairs]


def install(monkeypatch: pytest.MonkeyPatch, gpus: list[Gpu], **driver: Any) -> FakeNvml:
    """Make `gpus` the machine's, under a fresh `nvml.shared` and no CUDA_VISIBLE_DEVICES."""
    from mgpu_nb.hardware import nvml

    fake = FakeNvml(gpus, **driver)
    monkeypatch.setattr(nvml, "load", lambda: fake)
    monkeypatch.setattr(nvml, "shared", nvml.Nvml())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    return fake


def mig_gpu(n: int = 0, old: bool = False) -> Gpu:
    """A GPU cut into two instances, with an empty place between them."""
    parent = uuid(n)
    ids = [(1, 0), (11, 0)]
    names = [f"MIG-{parent}/{gi}/{ci}" if old else f"MIG-{n}{gi}aaaaaa-0000" for gi, ci in ids]
    first, second = (
        Gpu(name, "NVIDIA A100-SXM4-40GB MIG 1g.5gb", total=5 * GIB, used=GIB, reserved=0, ids=pair)
        for name, pair in zip(names, ids, strict=True)
    )
    return Gpu(parent, instances=[first, None, second])
