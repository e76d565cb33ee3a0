"""NVML through nvidia-ml-py: the only module that queries the driver. It never initialises CUDA."""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from ..interrupts import uninterruptible

__all__ = ["Nvml", "Reading", "shared"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """NVML's values for a GPU or a MIG instance. An unknown value is None, never 0.

    Attributes
    ----------
    index
        NVML's number of the GPU, in PCI order; an instance has that of its GPU.
    total, used, free
        Bytes. Used excludes the memory reserved by the driver, if the driver distinguishes the two.
    shares_ram
        Whether it has no memory of its own but the machine's (GB10, Jetson): NVML then has no figures of it.
    utilisation, temperature, power
        Percent, degrees Celsius, watts.
    parent
        UUID of the GPU of a MIG instance; empty for GPUs.
    instance
        (GPU instance, compute instance) of a MIG instance.
    problem
        Why it cannot be used: it fails, or its MIG instances are used in its place.
    """

    index: int
    uuid: str = ""
    name: str = ""
    pci_bus: str = ""
    total: int | None = None
    used: int | None = None
    free: int | None = None
    shares_ram: bool = False
    utilisation: int | None = None
    temperature: int | None = None
    power: float | None = None
    parent: str = ""
    instance: tuple[int, int] | None = None
    split: bool = False
    problem: str = ""


class Nvml:
    """Readings of the driver, under one lock; NVML is initialised by the first query and stays open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid: int | None = None
        self._lib: Any = None
        # By UUID: the lookup of a handle costs more than most queries of it.
        self._handles: dict[str, Any] = {}

    def reason(self) -> str:
        """Why NVML cannot be used; empty if it can."""
        return self._alone(self._start)

    def driver(self) -> str:
        """Version of the driver; empty without one."""
        return self._alone(lambda: "" if self._start() else _text(self._ask("nvmlSystemGetDriverVersion")))

    def gpus(self) -> list[Reading]:
        """A reading per GPU in PCI order, each followed by its MIG instances; `problem` is set for a GPU that fails."""
        return self._alone(self._gpus)

    def _gpus(self) -> list[Reading]:
        if self._start():
            return []
        self._handles.clear()
        count = self._ask("nvmlDeviceGetCount") or 0
        return [reading for index in range(count) for reading in self._gpu(index)]

    def memory(self, uuid: str) -> tuple[int | None, int | None, int | None]:
        """Total, used and free bytes of a GPU or MIG instance; None if unknown to NVML."""
        return self._of(uuid, self._memory) or (None, None, None)

    def processes(self, uuid: str) -> dict[int, int | None]:
        """Bytes held by each live process on a GPU or MIG instance, by pid; None if unknown.

        In a container without the host's process ids NVML's pids are meaningless: they are dropped
        like those of processes that have ended.
        """
        import psutil

        held = self._of(uuid, self._processes) or {}
        return {pid: size for pid, size in held.items() if psutil.pid_exists(pid)}

    @uninterruptible
    def _alone(self, query: Callable[[], T]) -> T:
        """Result of a query, asked alone. An interrupt of the main thread must not leave the lock locked."""
        with self._lock:
            return query()

    def _start(self) -> str:
        """Initialise NVML once per process; returns why that fails, or ``""``. The lock is held."""
        if self._pid == os.getpid():
            return ""
        try:
            self._lib = load()
        except ImportError as error:
            return f"nvidia-ml-py cannot be imported ({error}): pip install nvidia-ml-py"
        try:
            self._lib.nvmlInit()
        except self._lib.NVMLError as error:
            return self._refusal(error)
        self._pid = os.getpid()
        self._handles.clear()
        return ""

    def _refusal(self, error: Exception) -> str:
        lib = self._lib
        if isinstance(error, (lib.NVMLError_LibraryNotFound, lib.NVMLError_DriverNotLoaded)):
            return f"no NVIDIA driver on this machine, or none passed into this container ({error})"
        if isinstance(error, lib.NVMLError_LibRmVersionMismatch):
            return f"the NVIDIA driver was updated while in use: restart the machine ({error})"
        if isinstance(error, lib.NVMLError_NoPermission):
            return f"this user may not ask the NVIDIA driver: give access to /dev/nvidia* ({error})"
        return f"the NVIDIA driver does not answer: see what nvidia-smi says ({error})"

    def _ask(self, function: str, *args: Any) -> Any:
        """Call NVML; None if it has no value. A lost GPU has no values at all, so that error is raised."""
        try:
            return getattr(self._lib, function)(*args)
        except self._lib.NVMLError_GpuIsLost:
            raise
        except (self._lib.NVMLError, self._lib.NVMLLibraryMismatchError, AttributeError, UnicodeDecodeError):
            # NVMLLibraryMismatchError: the driver is older than the binding. It is no NVMLError.
            # AttributeError: the binding is older than the function.
            # UnicodeDecodeError: some drivers return names that are no text.
            return None

    def _of(self, uuid: str, question: Callable[[Any], Any]) -> Any:
        """Call `question` with the handle of `uuid`; None if there is no such device, or it fails."""
        return self._alone(partial(self._asked, uuid, question))

    def _asked(self, uuid: str, question: Callable[[Any], Any]) -> Any:
        if self._start():
            return None
        try:
            if uuid not in self._handles:
                self._handles[uuid] = self._lib.nvmlDeviceGetHandleByUUID(uuid)
            return question(self._handles[uuid])
        except self._lib.NVMLError:
            self._handles.pop(uuid, None)
            return None

    def _gpu(self, index: int) -> list[Reading]:
        uuid = ""
        try:
            handle = self._lib.nvmlDeviceGetHandleByIndex(index)
            uuid = _text(self._lib.nvmlDeviceGetUUID(handle))
            mode = self._ask("nvmlDeviceGetMigMode", handle)
            if not mode or mode[0] != self._lib.NVML_DEVICE_MIG_ENABLE:
                return [self._read(handle, index, uuid)]
            instances = self._instances(handle, index, uuid)
            problem = "in MIG mode: its instances are used in its place"
            if not instances:
                problem = "in MIG mode without an instance: create one (nvidia-smi mig -cgi <profile> -C)"
            return [self._read(handle, index, uuid, split=True, problem=problem), *instances]
        except self._lib.NVMLError as error:
            return [Reading(index=index, uuid=uuid, problem=f"fails: {error} (GPU {index} in PCI order)")]

    def _instances(self, gpu: Any, index: int, parent: str) -> list[Reading]:
        readings = []
        for place in range(self._ask("nvmlDeviceGetMaxMigDeviceCount", gpu) or 0):
            handle = self._ask("nvmlDeviceGetMigDeviceHandleByIndex", gpu, place)
            uuid = "" if handle is None else _text(self._ask("nvmlDeviceGetUUID", handle))
            if not uuid:
                continue  # empty places are normal
            ids = (
                self._ask("nvmlDeviceGetGpuInstanceId", handle),
                self._ask("nvmlDeviceGetComputeInstanceId", handle),
            )
            instance = None if None in ids else ids
            readings.append(self._read(handle, index, uuid, parent=parent, instance=instance))
        return readings

    def _read(self, handle: Any, index: int, uuid: str, **more: Any) -> Reading:
        self._handles[uuid] = handle
        total, used, free = self._memory(handle)
        # An instance is a part of a GPU's own memory, whether or not the driver tells of it.
        shares_ram = not total and "parent" not in more and self._has_no_memory(handle)
        if shares_ram:
            total = used = free = None
        load = self._ask("nvmlDeviceGetUtilizationRates", handle)
        power = self._ask("nvmlDeviceGetPowerUsage", handle)
        pci = self._ask("nvmlDeviceGetPciInfo", handle)
        return Reading(
            index=index,
            uuid=uuid,
            name=_text(self._ask("nvmlDeviceGetName", handle)),
            pci_bus=_text(pci and pci.busId),
            total=total,
            used=used,
            free=free,
            shares_ram=shares_ram,
            utilisation=None if load is None else int(load.gpu),
            temperature=self._ask("nvmlDeviceGetTemperature", handle, self._lib.NVML_TEMPERATURE_GPU),
            power=None if power is None else power / 1000,  # NVML counts milliwatts
            **more,
        )

    def _memory(self, handle: Any) -> tuple[int | None, int | None, int | None]:
        # The second version distinguishes the driver's own memory from that of processes; drivers
        # before 510 do not have it.
        info = self._ask("nvmlDeviceGetMemoryInfo", handle, self._lib.nvmlMemory_v2)
        if info is None:
            info = self._ask("nvmlDeviceGetMemoryInfo", handle)
        return (None, None, None) if info is None else (int(info.total), int(info.used), int(info.free))

    def _has_no_memory(self, handle: Any) -> bool:
        """Whether the driver says that a GPU has no memory of its own, and not that it may not be asked."""
        try:
            return int(self._lib.nvmlDeviceGetMemoryInfo(handle).total) == 0
        except self._lib.NVMLError as error:
            return bool(error.value == self._lib.NVML_ERROR_NOT_SUPPORTED)

    def _processes(self, handle: Any) -> dict[int, int | None]:
        held: dict[int, int | None] = {}
        for function in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses"):
            running = self._ask(function, handle)
            if running is None:  # drivers before 510 know only the version before
                running = self._ask(f"{function}_v2", handle)
            for process in running or ():
                size = process.usedGpuMemory
                if size is not None and int(size) >= _NOT_AVAILABLE:
                    size = None
                # A process that computes and draws is in both lists with the same bytes.
                seen = held.get(process.pid)
                held[process.pid] = seen if size is None else max(int(size), seen or 0)
        return held


_NOT_AVAILABLE = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE as it arrives in an unsigned field


def _text(value: Any) -> str:
    """Text of a binding that returns bytes or text; empty for None."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return "" if value is None else str(value)


def load() -> Any:
    """Import nvidia-ml-py; tests replace this function."""
    return importlib.import_module("pynvml")


shared = Nvml()


def _after_fork() -> None:
    # A lock held by another thread during the fork would stay locked in the child.
    global shared
    shared = Nvml()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
