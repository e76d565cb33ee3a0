"""State of devices, workers and slots at one time: plain data, shown by views."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..hardware.holders import Holder
from ..places import device_name, elsewhere

__all__ = [
    "DeviceSample",
    "PoolActivity",
    "SlotActivity",
    "Snapshot",
    "Wait",
    "WorkerSample",
    "WorkerState",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """A worker as seen by its pool.

    Attributes
    ----------
    pool
        Number of its pool in this process.
    slot, label, uuid, kind
        Number of its slot, name of the device (``cuda:1``, ``cpu:0``), UUID of the device, ``cuda`` or ``cpu``. A task
        on several devices has one state per device.
    host
        Name of its machine; empty if that is not known.
    pid
        Process id; None before it has started.
    task, run, run_name
        Name of the running task, ``""`` for none or a plain call; folder and name of that task's run.
    began
        Start of the task, Unix time in seconds.
    allocated, reserved
        Bytes on its devices by torch's allocator in the worker; None if not reported.
    """

    pool: int
    slot: int
    label: str
    uuid: str
    kind: str
    pid: int | None
    host: str = ""
    task: str = ""
    run: str = ""
    run_name: str = ""
    began: float | None = None
    allocated: int | None = None
    reserved: int | None = None

    @property
    def device(self) -> tuple[str, str]:
        """`DeviceSample.key` of its device; all virtual devices of a machine are one."""
        return elsewhere(self.host), self.uuid if self.kind == "cuda" else "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotActivity:
    """What a slot of a pool does.

    Attributes
    ----------
    slot, label, host
        Its number, the name of its device and that of its machine.
    state
        ``starting``: its worker is not ready yet; ``busy``, ``idle``; ``ending``: its process was asked to end;
        ``out of use``: no worker starts here any more; ``closed``: its pool has ended.
    task
        Task that it is taken for, or ``a call of NAME`` for a plain call; empty if none.
    run, run_name, run_began
        Folder, name and start (Unix time, seconds) of the task's run; empty and None for a plain call.
    since
        Start of the task or of the worker, Unix time in seconds; None if nothing was started.
    why
        What it starts with, why it ends or is out of use.
    """

    slot: int
    label: str
    state: Literal["starting", "busy", "idle", "ending", "out of use", "closed"]
    host: str = ""
    task: str = ""
    run: str = ""
    run_name: str = ""
    run_began: float | None = None
    since: float | None = None
    why: str = ""

    @property
    def place(self) -> str:
        """Its device for a reader: ``cuda:1``, and ``n1 cuda:1`` on another machine."""
        return device_name(self.label, self.host)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """A task at the head of the queue that cannot start though slots are idle.

    Attributes
    ----------
    task, run, run_name
        As in `SlotActivity`.
    slots
        Number of slots that it waits for at once; 0 if it does not wait for slots.
    memory
        Bytes of device memory that it waits for; None if it does not wait for memory.
    why
        Why it waits for slots to come, if it does not for those that are there.
    """

    task: str
    run: str = ""
    run_name: str = ""
    slots: int = 0
    memory: int | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolActivity:
    """What a pool does: its number, its slots, what waits though slots are idle, the number of queued tasks.

    `waits_for` is a clause, what must come before all its slots are there, and `given_back` a sentence, which nodes are
    not there as they had nothing to do; empty for nothing.
    """

    pool: int
    slots: tuple[SlotActivity, ...] = ()
    waits: tuple[Wait, ...] = ()
    queued: int = 0
    waits_for: str = ""
    given_back: str = ""


@dataclass(frozen=True, slots=True)
class WorkerSample:
    """A worker and the bytes it holds on its device, None if unknown; `source` names where the number comes from."""

    state: WorkerState
    memory: int | None
    source: str
    """``nvml``, ``torch`` (without CUDA's own memory) or ``rss``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSample:
    """A device: bytes, percent, degrees Celsius, watts; None if unknown to NVML.

    Attributes
    ----------
    ours, others
        Bytes held by workers of this process, and by all other processes.
    holders
        Other processes, the largest first, as far as NVML lists them.
    host
        Name of the machine that it is a device of, if that is another.
    """

    uuid: str
    label: str
    name: str
    kind: str
    total: int | None = None
    used: int | None = None
    ours: int = 0
    others: int | None = None
    utilisation: float | None = None
    temperature: int | None = None
    power: float | None = None
    holders: tuple[Holder, ...] = ()
    problem: str = ""
    host: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Host and UUID: two hosts may have devices of one UUID, ``cpu``."""
        return self.host, self.uuid

    @property
    def place(self) -> str:
        """Its name for a reader: ``cuda:1``, and ``n1 cuda:1`` on another machine."""
        return device_name(self.label, self.host)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Devices and workers at one time (`at`: Unix time, seconds); those of this machine come first.

    `note` is a warning for the reader, `notices` are lines on nodes that were lost or are silent.
    """

    at: float
    devices: tuple[DeviceSample, ...]
    workers: tuple[WorkerSample, ...]
    note: str = ""
    notices: tuple[str, ...] = ()
