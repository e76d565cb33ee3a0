"""The devices of this machine, the slots of workers on them, and their free memory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple

from ..options import NonEmpty, PositiveInt, check_arguments
from ..places import device_name
from . import host, nodes, nvml
from .device import Device, DeviceTable
from .holders import holders
from .visible import VARIABLE, process_view

__all__ = [
    "Device",
    "DeviceTable",
    "GpuIds",
    "Memory",
    "Slot",
    "device_memory",
    "devices",
    "devices_here",
    "free_memory",
    "memory_bound",
    "memory_of",
    "resolve_slots",
    "total_memory",
    "unused_memory",
    "used_by",
    "with_defaults",
]

GpuIds = Annotated[Sequence[int | str], NonEmpty()]
"""Ids of GPUs as this process numbers them, or their UUIDs."""
# Variables that numerical libraries read at their first import.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_DEFAULTS = {
    # MKL sums in the same order on any number of threads, so that results are bitwise identical on any number of slots,
    # at almost no cost.
    "MKL_CBWR": "AUTO,STRICT",
    # Threads of GNU OpenMP, which PyTorch has, wait for each other awake. Beside another busy process one waits for a
    # thread that has no core, for all of its time slice: a product of two matrices takes 100 times as long. So they
    # sleep after some 50 us, as they do of themselves where one process has more threads than cores.
    "GOMP_SPINCOUNT": "1000",
}


def with_defaults(variables: Mapping[str, str]) -> dict[str, str]:
    """Return environment variables, and those of numerical libraries that the user leaves to us."""
    defaults = dict(_DEFAULTS)
    if "OMP_WAIT_POLICY" in variables:  # which the number of spins would overrule
        del defaults["GOMP_SPINCOUNT"]
    return {**defaults, **variables}


class Memory(NamedTuple):
    """Bytes of a slot's device; None if unknown."""

    total: int | None
    free: int | None


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
        CUDA's number of the GPU in the parent process; None for a virtual CPU device.
    uuid
        UUID of the GPU or MIG instance that the worker is pinned to; ``cpu:N`` for a virtual device. Slots
        with the same UUID share a device.
    name
        Model of the GPU; for a virtual device, its share of the cores.
    threads
        Number of CPU threads of the worker.
    host
        Name of the machine; empty until its engine sets it.
    shares_ram
        Whether it is on a GPU that has no memory but the machine's.
    """

    index: int
    kind: Literal["cuda", "cpu"]
    gpu_id: int | None
    uuid: str
    name: str
    threads: int
    host: str = ""
    shares_ram: bool = False

    @property
    def label(self) -> str:
        """Name of the device in the parent process: ``cuda:1``, ``cpu:0``."""
        return self.uuid if self.kind == "cpu" else f"cuda:{self.gpu_id}"

    @property
    def device(self) -> tuple[str, str]:
        """Host and UUID of its device: on two machines both may have a ``cpu:0``."""
        return self.host, self.uuid

    @property
    def group(self) -> str:
        """What it shares memory with: slots of one group are on one GPU, or are virtual devices of one host."""
        return f"{self.host}/{self.uuid if self.kind == 'cuda' else 'cpu'}"

    @property
    def memory_of(self) -> str:
        """Whose memory it uses, a GPU's or that of a host; also other pools' slots may be of the same."""
        on_gpu = self.kind == "cuda" and not self.shares_ram
        return f"{self.host}/{self.uuid}" if on_gpu else f"{self.host}/ram"

    @property
    def place(self) -> str:
        """`label` for a reader here: behind the name of its machine where that is another, ``n1 cuda:1``."""
        return device_name(self.label, self.host)

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that pin a worker to this slot; they must be set before it imports anything."""
        return {
            VARIABLE: self.uuid if self.kind == "cuda" else "",  # a CPU worker on a GPU machine sees no GPU
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # torch.cuda.is_available() without initialising CUDA
            **dict.fromkeys(THREAD_VARIABLES, str(self.threads)),
        }


def devices() -> DeviceTable:
    """List the devices of this machine: its GPUs and who holds them, or virtual CPU devices and why.

    Those of the nodes on which open pools of this process have workers follow, as the nodes have last said.
    """
    here = devices_here()
    there, notes = nodes.devices_of_nodes()
    return DeviceTable([*here, *there], here.reason, [*here.notes, *notes]) if there or notes else here


def devices_here() -> DeviceTable:
    """Devices of this machine, see `devices`."""
    table = _gpus()
    if table:
        held = [replace(gpu, holders=holders(used_by(gpu.uuid))) if gpu.uuid else gpu for gpu in table]
        notes = [*table.notes, *(host.notes() if any(gpu.shares_ram for gpu in table.gpus) else ())]
        table = DeviceTable(held, table.reason, notes)
    if table.has_gpu:
        return table
    total, used, free = host.memory()
    cores = host.cores()
    virtual = [
        Device(index=n, kind="cpu", name=_share(1), uuid=f"cpu:{n}", total=total, used=used, free=free)
        for n in range(cores)
    ]
    return DeviceTable([*table, *virtual], table.reason, [*table.notes, *host.notes()])


def resolve_slots(
    gpu_ids: GpuIds | Literal["cpu"] | None = None,
    slots: PositiveInt | None = None,
    threads: PositiveInt | None = None,
) -> tuple[Slot, ...]:
    """The slots of a pool. Nothing is started; invalid arguments are raised here.

    Parameters
    ----------
    gpu_ids
        CUDA's numbers in this process, or UUIDs, or unique prefixes of them. A repeated id gives several
        slots on that GPU. ``"cpu"`` takes virtual CPU devices on a machine that has GPUs. By default
        one slot per GPU; without a GPU, one virtual CPU device per core.
    slots
        Number of slots if `gpu_ids` is not given: assigned to the GPUs in turn, or virtual CPU devices
        that share the cores.
    threads
        Number of CPU threads per worker; by default the cores divided by the slots, at least one.

    Raises
    ------
    TypeError, ValueError
        If a parameter is invalid, or names a GPU that does not exist: the message lists those that do.
    """
    ids, slots, threads = check_arguments(resolve_slots, gpu_ids=gpu_ids, slots=slots, threads=threads)
    if ids is None or ids == "cpu":
        chosen = list(_gpus().gpus) if ids is None else []
        if chosen and slots:
            chosen = [chosen[n % len(chosen)] for n in range(slots)]
        count = len(chosen) or slots or host.cores()
    else:
        chosen = _named(list(ids), slots)
        count = len(chosen)
    per_slot = threads or max(1, host.cores() // count)
    if chosen:
        return tuple(
            Slot(
                index=n,
                kind="cuda",
                gpu_id=d.index,
                uuid=d.uuid,
                name=d.name,
                threads=per_slot,
                shares_ram=d.shares_ram,
            )
            for n, d in enumerate(chosen)
        )
    return tuple(
        Slot(index=n, kind="cpu", gpu_id=None, uuid=f"cpu:{n}", name=_share(per_slot), threads=per_slot)
        for n in range(count)
    )


def device_memory(slot: Slot) -> Memory:
    """Total and free bytes of the slot's device now (RAM for one that has no memory of its own); None if unknown.

    On a virtual device the total is that of one process, if processes are limited to less than there is.
    """
    if _on_gpu(slot):
        total, _, free = nvml.shared.memory(slot.uuid)
        return Memory(total, free)
    ram, _, unused = host.memory()
    most = host.process_limit() if slot.kind == "cpu" else None  # CUDA takes much more addresses than memory
    return Memory(min(ram, most or ram), unused)


def free_memory(slot: Slot) -> int | None:
    """Free bytes of the slot's device now, as `device_memory` has them."""
    return device_memory(slot).free


def unused_memory(slot: Slot) -> int:
    """Lower bound of `free_memory` at almost no cost; 0 if there is none."""
    return 0 if _on_gpu(slot) else host.unused()


def total_memory(slot: Slot) -> int | None:
    """Total bytes of the slot's device, as `device_memory` has them."""
    return device_memory(slot).total


def memory_bound(slot: Slot) -> str:
    """What bounds the memory of the slot's device other than its own size; empty if that is all."""
    if _on_gpu(slot):
        return ""
    found, most = host.bound(), host.process_limit()
    if slot.kind == "cpu" and most is not None and most < found.total:
        return "address space of a process, ulimit -v"
    return found.source or "RAM of this machine"


def memory_of(reading: nvml.Reading) -> tuple[int | None, int | None, int | None]:
    """Total, used and free bytes of a GPU; those of the RAM if it has no memory of its own."""
    return host.memory() if reading.shares_ram else (reading.total, reading.used, reading.free)


def _on_gpu(slot: Slot) -> bool:
    """Whether its memory is a GPU's own."""
    return slot.kind == "cuda" and not slot.shares_ram


def used_by(uuid: str) -> dict[int, int | None]:
    """Bytes held by each live process on a GPU, by pid; None if unknown, {} for a CPU."""
    return {} if uuid.startswith("cpu:") else nvml.shared.processes(uuid)


def _gpus() -> DeviceTable:
    """All GPUs, usable ones first; with the reason if none can be used."""
    readings = nvml.shared.gpus()
    driver = nvml.shared.driver()
    view = process_view(readings)
    hidden = [r for r in readings if r not in view.devices]
    ordered = [*enumerate(view.devices), *((None, r) for r in hidden)]
    table = [
        Device(
            index=index,
            kind="cuda",
            name=r.name,
            uuid=r.uuid,
            total=total,
            used=used,
            free=free,
            utilisation=r.utilisation,
            temperature=r.temperature,
            power=r.power,
            driver=driver,
            pci_bus=r.pci_bus,
            mig=bool(r.parent),
            shares_ram=r.shares_ram,
            problem=r.problem or ("" if index is not None else f"hidden by {VARIABLE}"),
        )
        for index, r in ordered
        for total, used, free in [memory_of(r)]
    ]
    if view.devices:
        sharing = [d.label for d in table if d.index is not None and d.shares_ram]
        ram = "has no memory of its own: its figures are those of the machine's RAM, which it shares"
        return DeviceTable(table, notes=[*view.notes, *(f"{label} {ram}" for label in sharing)])
    if not readings:
        reason = nvml.shared.reason() or "the NVIDIA driver answers, but shows no GPU to this process"
    elif all(r.problem for r in readings):
        reason = "none of the GPUs can be used: " + "; ".join(dict.fromkeys(r.problem for r in readings))
    else:
        variable = f"hidden by {VARIABLE}={os.environ.get(VARIABLE)!r}: set it otherwise, or unset it"
        reason = "; ".join(view.notes) or variable
    return DeviceTable(table, reason)


def _named(ids: list[int | str], slots: int | None) -> list[Device]:
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
