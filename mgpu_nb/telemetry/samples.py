"""State of devices and workers at one time: plain data, taken by the sampler and shown by views."""

from __future__ import annotations

from dataclasses import dataclass

from ..hardware.holders import Holder

__all__ = ["DeviceSample", "Snapshot", "WorkerSample", "WorkerState"]


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
    pid
        Process id; None before it has started.
    task, run
        Name of the running task, ``""`` for none or a plain call; folder of that task's run.
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
    task: str = ""
    run: str = ""
    began: float | None = None
    allocated: int | None = None
    reserved: int | None = None


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


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Devices and workers at one time (`at`: Unix time, seconds); `note` is a warning for the reader."""

    at: float
    devices: tuple[DeviceSample, ...]
    workers: tuple[WorkerSample, ...]
    note: str = ""
