"""The choice of GPUs on a machine that is shared: the freest ones, and who holds those that are not."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from ..options import PositiveInt, check_arguments
from .device import Device
from .holders import held_by
from .slots import devices

__all__ = ["better_choice", "freest_gpus"]

CONTEXT = 512 * 2**20  # bytes: what CUDA itself takes on a GPU before a task does
STEP = 256 * 2**20  # bytes: GPUs that differ by less are equally free
_NONE: Mapping[str, int] = MappingProxyType({})


def freest_gpus(slots: PositiveInt | None = None, taken: Mapping[str, int] = _NONE) -> list[str]:
    """UUIDs of the freest GPUs, one for each slot, the freest first; empty if there is no GPU.

    The order is that of free memory (differences below 256 MiB do not count), then of utilisation, then of the number
    of processes that others have there, then of `taken`, then of the index. Unknown values come last. A GPU without
    room for a CUDA context (512 MiB) is left out; if there are more slots than GPUs, each gets another in turn.

    Parameters
    ----------
    slots
        Number of slots; by default one for each GPU that has room.
    taken
        Slots that this process has on a GPU already, by UUID: their workers may hold no memory yet.

    Raises
    ------
    ValueError
        If no GPU has room; the message names who holds them.
    """
    (slots,) = check_arguments(freest_gpus, slots=slots)
    gpus = devices().gpus
    roomy = _sorted([gpu for gpu in gpus if _has_room(gpu)], taken)
    if gpus and not roomy:
        full = "; ".join(f"{gpu.label} is held by {_names(gpu)}" for gpu in gpus)
        raise ValueError(
            f"pick='free': no GPU has {CONTEXT >> 20} MiB free ({full}). Wait, or take gpu_ids='cpu'"
        )
    return [roomy[n % len(roomy)].uuid for n in range(slots or len(roomy))] if roomy else []


def better_choice(chosen: Collection[str], taken: Mapping[str, int] = _NONE) -> str:
    """Sentence on GPUs that others hold although freer ones are left, and how to take those; empty without reason.

    Parameters
    ----------
    chosen
        UUIDs of the GPUs that were taken.
    taken
        Slots that this process has on a GPU, by UUID: where the driver lists no processes, the memory in use on these
        may be its own.
    """
    gpus = devices().gpus
    busy = [gpu for gpu in gpus if gpu.uuid in chosen and _is_held(gpu, taken)]
    least = min((gpu.free or 0 for gpu in busy), default=0)
    better = [
        gpu.label
        for gpu in gpus
        if gpu.uuid not in chosen and _has_room(gpu) and (gpu.free or 0) >= least + STEP
    ]
    if not busy or not better:
        return ""
    held = ", ".join(f"{gpu.label} is held by {_names(gpu)}" for gpu in busy)
    more = f"{_listed(better)} {'has' if len(better) == 1 else 'have'} more free memory"
    ids = sorted(
        gpu.index or 0 for gpu in _sorted([gpu for gpu in gpus if _has_room(gpu)], taken)[: len(chosen)]
    )
    return f"{held}, and {more}: pick='free' takes the freest GPUs, gpu_ids={ids}"


def _has_room(gpu: Device) -> bool:
    return gpu.free is None or gpu.free >= CONTEXT


def _sorted(gpus: Sequence[Device], taken: Mapping[str, int]) -> list[Device]:
    """GPUs, the freest first."""
    most = max((gpu.free or 0 for gpu in gpus), default=0)

    def busy(gpu: Device) -> tuple[float, ...]:
        less = math.inf if gpu.free is None else (most - gpu.free) // STEP
        load = math.inf if gpu.utilisation is None else gpu.utilisation
        others = sum(not holder.ours for holder in gpu.holders)
        return less, load, others, taken.get(gpu.uuid, 0), gpu.index or 0

    return sorted(gpus, key=busy)


def _is_held(gpu: Device, taken: Mapping[str, int]) -> bool:
    """Whether others hold so much of a GPU that it matters: a desktop's few MiB do not."""
    if gpu.holders:
        others = [holder.size for holder in gpu.holders if not holder.ours]
        return bool(others) and (None in others or sum(size or 0 for size in others) >= CONTEXT)
    return gpu.uuid not in taken and (gpu.used or 0) >= CONTEXT


def _names(gpu: Device) -> str:
    """Who holds a GPU, processes of this one left out."""
    others = [holder for holder in gpu.holders if not holder.ours]
    return held_by(others or gpu.holders) or "processes that the driver does not list"


def _listed(labels: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(labels[:-1]), labels[-1]]))
