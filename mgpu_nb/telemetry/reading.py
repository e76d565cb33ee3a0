"""A snapshot of all devices: one NVML query, its processes matched with our workers by UUID and pid."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import psutil

from ..hardware import host, nvml
from ..hardware.holders import holders
from ..hardware.slots import memory_of
from ..places import elsewhere
from .samples import DeviceSample, Snapshot, WorkerSample, WorkerState

__all__ = ["read"]

NO_PIDS = (
    "NVML lists no processes here (a container, or WSL): the memory of tasks is that reserved by torch, "
    "without CUDA's own"
)


def read(workers: Iterable[WorkerState]) -> Snapshot:
    """A snapshot of every GPU and, if virtual devices are in use or there is no GPU, of this machine's RAM."""
    # Of workers elsewhere neither NVML nor pids of this machine tell anything.
    states = [state for state in workers if not elsewhere(state.host)]
    gpus = [reading for reading in nvml.shared.gpus() if not reading.split]
    samples: list[WorkerSample] = []
    devices: list[DeviceSample] = []
    blind = False
    for reading in gpus:
        held = nvml.shared.processes(reading.uuid) if reading.uuid else {}
        own = [_on_gpu(state, held) for state in states if state.uuid == reading.uuid]
        blind |= any(sample.source == "torch" for sample in own)
        samples += own
        pids = {sample.state.pid for sample in own}
        strangers = {pid: size for pid, size in held.items() if pid not in pids}
        ours = sum(sample.memory or 0 for sample in own)
        total, used, _ = memory_of(reading)
        devices.append(
            DeviceSample(
                uuid=reading.uuid,
                label=_label(reading, own),
                name=reading.name,
                kind="cuda",
                total=total,
                used=used,
                ours=ours,
                others=None if used is None else max(0, used - ours),
                utilisation=reading.utilisation,
                temperature=reading.temperature,
                power=reading.power,
                holders=holders(strangers),
                problem=reading.problem,
            )
        )
    virtual = [state for state in states if state.kind == "cpu"]
    if virtual or not gpus:
        own = [_on_cpu(state) for state in virtual]
        samples += own
        devices.append(_machine(own))
    return Snapshot(time.time(), tuple(devices), tuple(samples), NO_PIDS if blind else "")


def _label(reading: nvml.Reading, own: Sequence[WorkerSample]) -> str:
    """Name of a GPU in the parent process if it has a worker of ours, else its number in PCI order."""
    if own:
        return own[0].state.label
    if reading.instance is not None:
        return f"MIG {reading.index}/{reading.instance[0]}"
    return f"GPU {reading.index}"


def _on_gpu(state: WorkerState, held: dict[int, int | None]) -> WorkerSample:
    size = held.get(state.pid) if state.pid is not None else None
    if size is not None:
        return WorkerSample(state, size, "nvml")
    if state.reserved:  # it holds memory that NVML does not report
        return WorkerSample(state, state.reserved, "torch")
    return WorkerSample(state, state.reserved, "nvml")


def _on_cpu(state: WorkerState) -> WorkerSample:
    return WorkerSample(state, host.resident(state.pid), "rss")


def _machine(own: Sequence[WorkerSample]) -> DeviceSample:
    total, used, _ = host.memory()
    ours = sum(
        {sample.state.pid: sample.memory or 0 for sample in own}.values()
    )  # a gang has several devices
    cores = host.cores()
    return DeviceSample(
        uuid="cpu",
        label="cpu",
        name=f"{cores} core{'s' if cores != 1 else ''} of this machine",
        kind="cpu",
        total=total,
        used=used,
        ours=ours,
        others=None if used is None else max(0, used - ours),
        utilisation=psutil.cpu_percent(),
    )
