"""What is known of devices and workers at a moment: plain data, taken by the sampler, drawn by the views."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DeviceSample", "Snapshot", "WorkerSample", "WorkerState"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """A worker as its pool knows it.

    Attributes
    ----------
    pool
        Number of its pool in this kernel.
    slot, label, uuid, kind
        Its slot, the device's name there (``cuda:1``, ``cpu:0``), the device's UUID, ``cuda`` or ``cpu``. A task over
        several devices has one state per device.
    pid
        Process; None before it has started.
    task, run
        Name of the task it runs, ``""`` for none or a plain call; folder of that task's run.
    began
        Unix time at which the task began, seconds.
    allocated, reserved
        Bytes on its devices as torch in the worker reports them; None where it did not.
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
    """A worker and the bytes it holds on its device, None where nobody knows; `source` says who told them."""

    state: WorkerState
    memory: int | None
    source: str
    """``nvml``, ``torch`` (without what CUDA itself takes) or ``rss``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSample:
    """A device: bytes, percent, degrees Celsius, watts; None where NVML does not know.

    Attributes
    ----------
    ours, others
        Bytes held by this kernel's workers, and by everybody else.
    holders
        (pid, bytes) of the processes of others, the largest first, as far as NVML names them.
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
    holders: tuple[tuple[int, int | None], ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Devices and workers at one moment (`at`: Unix time, seconds); `note` says what the reader should know."""

    at: float
    devices: tuple[DeviceSample, ...]
    workers: tuple[WorkerSample, ...]
    note: str = ""
