"""GPUs that this process sees, in CUDA's order: CUDA_VISIBLE_DEVICES, evaluated without CUDA."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from .nvml import Reading

__all__ = ["View", "probe_cuda_order", "process_view"]

VARIABLE = "CUDA_VISIBLE_DEVICES"
_HIDES = ("", "-1", "NoDevFiles")  # written by people, and by Slurm, to end the list


@dataclass(frozen=True, slots=True)
class View:
    """GPUs and MIG instances in the order of their ids in this process, with warnings about that order."""

    devices: tuple[Reading, ...]
    notes: tuple[str, ...] = ()


def process_view(readings: Sequence[Reading]) -> View:
    """The devices that this process sees, in its order, under its own CUDA_VISIBLE_DEVICES.

    CUDA shows at most one MIG instance to a process. Workers are pinned by UUID, each to its own, so
    here a GPU in MIG mode stands for all of its instances.
    """
    chosen = [r for r in readings if not r.parent and (r.split or not r.problem)]
    value = os.environ.get(VARIABLE)
    if value is not None and value.strip() in _HIDES:
        return View(())
    unordered = cut = ""
    if value is None or not value.startswith(("GPU-", "MIG-")):  # only numbers need CUDA's order
        chosen, unordered = _cuda_order(chosen, failing=any(r.problem and not r.split for r in readings))
    if value is not None:
        chosen, cut = _select(value, chosen, readings)
    usable: list[Reading] = []
    for device in chosen:
        usable += [r for r in readings if r.parent == device.uuid] if device.split else [device]
    return View(tuple(usable), tuple(note for note in (unordered, cut) if note))


def _select(value: str, gpus: Sequence[Reading], readings: Sequence[Reading]) -> tuple[list[Reading], str]:
    """The devices that `value` names, as CUDA reads it: up to the first entry that it cannot use.

    The first entry decides whether all of them are numbers, GPU UUIDs or MIG UUIDs. A number may have
    space before it and anything after it. If a device is named twice, none is left.
    """
    chosen: list[Reading] = []
    prefix = value[:4] if value.startswith(("GPU-", "MIG-")) else ""
    for entry in value.split(","):
        found = None
        if prefix and entry.startswith(prefix):
            found = _match(entry, gpus if prefix == "GPU-" else [r for r in readings if r.parent])
        elif not prefix and (number := re.match(r"\s*([+-]?\d+)", entry)):
            place = int(number[1])
            found = gpus[place] if 0 <= place < len(gpus) else None
        if found is None:
            stop = f"{VARIABLE}={value!r}: CUDA stops reading at {entry!r}, which names no usable GPU"
            return chosen, "" if entry.strip() in _HIDES else stop
        if found in chosen:
            return [], f"{VARIABLE}={value!r} names a GPU twice, and CUDA then shows none: name each once"
        chosen.append(found)
    return chosen, ""


def _match(entry: str, readings: Sequence[Reading]) -> Reading | None:
    """The reading whose UUID is or begins with `entry`; None if there is none or several.

    A MIG instance also goes by ``MIG-GPU-<uuid of the GPU>/<GPU instance>/<compute instance>``.
    """
    for reading in readings:
        old = reading.instance and f"MIG-{reading.parent}/{reading.instance[0]}/{reading.instance[1]}"
        if entry in (reading.uuid, old):
            return reading
    found = [r for r in readings if r.uuid.startswith(entry)]
    return found[0] if len(found) == 1 else None


def _cuda_order(gpus: list[Reading], failing: bool) -> tuple[list[Reading], str]:
    """GPUs as CUDA numbers them, and a warning if CUDA's order could not be determined."""
    order = os.environ.get("CUDA_DEVICE_ORDER", "")
    alike = len({r.name for r in gpus}) <= 1
    if len(gpus) < 2 or (not failing and (alike or order == "PCI_BUS_ID")):
        return gpus, ""  # CUDA puts the fastest first; identical ones stay in PCI order, which is NVML's
    by_uuid = {r.uuid: r for r in gpus}
    uuids = probe_cuda_order(order)
    if set(uuids) == set(by_uuid):
        return [by_uuid[uuid] for uuid in uuids], ""
    return gpus, "ids are in PCI order, CUDA could not be asked for its own: name GPUs by UUID to be sure"


@functools.cache
def probe_cuda_order(order: str) -> tuple[str, ...]:
    """UUIDs of all GPUs as CUDA numbers them under CUDA_DEVICE_ORDER=`order`; empty if CUDA fails.

    CUDA is initialised in a process of its own, so that this process can still fork.
    """
    import subprocess

    environment = {k: v for k, v in os.environ.items() if k not in (VARIABLE, "CUDA_DEVICE_ORDER")}
    if order:
        environment["CUDA_DEVICE_ORDER"] = order
    command = [sys.executable, "-I", "-S", "-c", _PROBE]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(done.stdout.split())


_PROBE = """
import ctypes, os, sys, uuid
cuda = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
def call(name, *args):
    if getattr(cuda, name)(*args):
        sys.exit(name + " failed")
call("cuInit", 0)
count, device, raw = ctypes.c_int(), ctypes.c_int(), (ctypes.c_ubyte * 16)()
call("cuDeviceGetCount", ctypes.byref(count))
for ordinal in range(count.value):
    call("cuDeviceGet", ctypes.byref(device), ordinal)
    call("cuDeviceGetUuid", raw, device)
    print("GPU-" + str(uuid.UUID(bytes=bytes(raw))))
"""
