"""The devices of this machine, the slots that workers take on them, and the memory they have left."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from . import host, nvml
from .device import Device, DeviceTable
from .visible import VARIABLE, kernel_view

__all__ = [
    "Device",
    "DeviceTable",
    "Slot",
    "devices",
    "free_memory",
    "resolve_slots",
    "total_memory",
    "unused_memory",
    "used_by",
]

# What the numerical libraries read, each its own, at their first import.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
# Has MKL add up in one order on any number of threads, so that results are the same, bit for bit, on any number of
# slots. It costs next to nothing; who sets the variable otherwise has it so.
SAME_SUMS = {"MKL_CBWR": "AUTO,STRICT"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A place for one worker: a device, or a share of one.

    Attributes
    ----------
    index
        Number of the slot within its pool, from 0.
    kind
        ``cuda`` | ``cpu``.
    gpu_id
        Id of the GPU in the kernel's view; None on a virtual CPU device.
    uuid
        What pins the worker: UUID of the GPU or MIG instance; ``cpu:N`` on a virtual device. Slots
        with the same UUID share a device.
    name
        Model of the GPU; of a virtual device, the share of cores it is.
    threads
        CPU threads for the worker.
    """

    index: int
    kind: Literal["cuda", "cpu"]
    gpu_id: int | None
    uuid: str
    name: str
    threads: int

    @property
    def label(self) -> str:
        """The device as the kernel names it: ``cuda:1``, ``cpu:0``."""
        return self.uuid if self.kind == "cpu" else f"cuda:{self.gpu_id}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that pin a worker to this slot; they must be set before it imports anything."""
        return {
            VARIABLE: self.uuid if self.kind == "cuda" else "",  # a CPU worker on a GPU machine sees no GPU
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # torch.cuda.is_available() without waking CUDA
            **dict.fromkeys(THREAD_VARIABLES, str(self.threads)),
        }


def devices() -> DeviceTable:
    """List the devices of this machine: its GPUs, or virtual CPU devices and why there is no GPU."""
    table = _gpus()
    if table.has_gpu:
        return table
    total, used, free = host.memory()
    cores = host.cores()
    virtual = [
        Device(index=n, kind="cpu", name=_share(1), uuid=f"cpu:{n}", total=total, used=used, free=free)
        for n in range(cores)
    ]
    return DeviceTable([*table, *virtual], table.reason, table.notes)


def resolve_slots(
    gpu_ids: Sequence[int | str] | Literal["cpu"] | None = None,
    slots: int | None = None,
    threads: int | None = None,
) -> tuple[Slot, ...]:
    """Return the slots of a pool. Nothing is started, whatever is wrong is raised here.

    Parameters
    ----------
    gpu_ids
        Ids in the kernel's view, or UUIDs, or unique beginnings of them. An id given twice is two
        slots on that GPU. ``"cpu"`` takes virtual CPU devices on a machine that has GPUs. By default
        one slot per GPU; without a GPU, one virtual CPU device per core.
    slots
        How many, where `gpu_ids` does not say: dealt over the GPUs in turn, or that many virtual CPU
        devices which share the cores.
    threads
        CPU threads per worker; by default the cores divided by the slots, at least one.

    Raises
    ------
    TypeError, ValueError
        Where a parameter cannot be, or names a GPU that does not exist: lists those that do.
    """
    for what, count in (("slots", slots), ("threads", threads)):
        if count is not None and not _is_integer(count):
            raise TypeError(f"{what}={count!r}: give a whole number, one or more, or None")
        if count is not None and count < 1:
            raise ValueError(f"{what}={count}: give a whole number, one or more, or None")
    if gpu_ids is None or (isinstance(gpu_ids, str) and gpu_ids == "cpu"):
        chosen = list(_gpus().gpus) if gpu_ids is None else []
        if chosen and slots:
            chosen = [chosen[n % len(chosen)] for n in range(slots)]
        count = len(chosen) or slots or host.cores()
    else:
        chosen = _named(gpu_ids, slots)
        count = len(chosen)
    per_slot = threads or max(1, host.cores() // count)
    if chosen:
        return tuple(
            Slot(index=n, kind="cuda", gpu_id=d.index, uuid=d.uuid, name=d.name, threads=per_slot)
            for n, d in enumerate(chosen)
        )
    return tuple(
        Slot(index=n, kind="cpu", gpu_id=None, uuid=f"cpu:{n}", name=_share(per_slot), threads=per_slot)
        for n in range(count)
    )


def free_memory(slot: Slot) -> int | None:
    """Return the bytes free now on the slot's device (RAM on a virtual one); None where not known."""
    return nvml.shared.memory(slot.uuid)[2] if slot.kind == "cuda" else host.memory()[2]


def unused_memory(slot: Slot) -> int:
    """Return a lower bound of `free_memory` that is learnt in no time; 0 where there is none."""
    return 0 if slot.kind == "cuda" else host.unused()


def total_memory(slot: Slot) -> int | None:
    """Return the bytes of the slot's device (RAM on a virtual one); None where not known."""
    return nvml.shared.memory(slot.uuid)[0] if slot.kind == "cuda" else host.memory()[0]


def used_by(uuid: str) -> dict[int, int | None]:
    """Return the bytes that each living process holds on a GPU, by pid; None where not known, {} on a CPU."""
    return {} if uuid.startswith("cpu:") else nvml.shared.processes(uuid)


def _gpus() -> DeviceTable:
    """All GPUs, those with an index first; the reason where none of them can be used."""
    readings = nvml.shared.gpus()
    driver = nvml.shared.driver()
    view = kernel_view(readings)
    hidden = [r for r in readings if r not in view.devices]
    ordered = [*enumerate(view.devices), *((None, r) for r in hidden)]
    table = [
        Device(
            index=index,
            kind="cuda",
            name=r.name,
            uuid=r.uuid,
            total=r.total,
            used=r.used,
            free=r.free,
            utilisation=r.utilisation,
            temperature=r.temperature,
            power=r.power,
            driver=driver,
            pci_bus=r.pci_bus,
            mig=bool(r.parent),
            problem=r.problem or ("" if index is not None else f"hidden by {VARIABLE}"),
        )
        for index, r in ordered
    ]
    if view.devices:
        return DeviceTable(table, notes=view.notes)
    if not readings:
        reason = nvml.shared.reason() or "the NVIDIA driver answers, but shows no GPU to this process"
    elif all(r.problem for r in readings):
        reason = "none of the GPUs can be used: " + "; ".join(dict.fromkeys(r.problem for r in readings))
    else:
        variable = f"hidden by {VARIABLE}={os.environ.get(VARIABLE)!r}: set it otherwise, or unset it"
        reason = "; ".join(view.notes) or variable
    return DeviceTable(table, reason)


def _named(gpu_ids: Iterable[int | str], slots: int | None) -> list[Device]:
    if isinstance(gpu_ids, str) or not isinstance(gpu_ids, Iterable):
        raise TypeError(f'gpu_ids={gpu_ids!r}: give a list of ids, such as [0, 1], or "cpu"')
    ids = [int(i) if _is_integer(i) else i for i in gpu_ids]
    if not ids:
        raise ValueError('gpu_ids=[]: name a GPU, leave it out for all of them, or give "cpu"')
    for gpu_id in ids:
        if isinstance(gpu_id, bool) or not isinstance(gpu_id, (str, int)):
            raise TypeError(f"gpu_ids={ids}: {gpu_id!r} is neither a whole number nor a UUID")
    if slots is not None:
        hint = f"leave out slots={slots}; repeat an id for more slots on its GPU"
        raise ValueError(f"gpu_ids={ids} is {len(ids)} slots already: {hint}")
    table = _gpus()
    chosen = []
    for gpu_id in ids:
        if isinstance(gpu_id, str):
            found = [d for d in table.gpus if d.uuid == gpu_id]
            found = found or [d for d in table.gpus if gpu_id and d.uuid.startswith(gpu_id)]
        else:
            found = [d for d in table.gpus if d.index == gpu_id]
        if len(found) != 1:
            raise ValueError(_unknown(gpu_id, ids, table))
        chosen += found
    return chosen


def _unknown(gpu_id: int | str, ids: list[int | str], table: DeviceTable) -> str:
    if not table.has_gpu:
        cpu = f"Use slots={len(ids)} for virtual CPU devices"
        return f"gpu_ids={ids}, but there is no GPU to use: {table.reason}. {cpu}"
    there = ", ".join(f"{d.index} ({d.name}, {d.uuid})" for d in table.gpus)
    notes = "".join(f". {note}" for note in table.notes)
    return f"gpu_ids={ids}: there is no GPU {gpu_id!r}; there is {there}{notes}"


def _share(threads: int) -> str:
    return f"CPU, {threads} of {host.cores()} cores"


def _is_integer(value: object) -> bool:
    return hasattr(type(value), "__index__") and not isinstance(value, bool)
