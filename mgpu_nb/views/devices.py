"""Devices and who holds their memory, as HTML: a pure function of snapshots."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..telemetry.samples import DeviceSample, Snapshot, WorkerSample
from .markup import OTHERS, OURS, STYLE, escape, gib, number, sparkline, stacked_bar, table

__all__ = ["devices_html"]

MOST_HOLDERS = 4  # named in a row; the others are counted

_HEAD = [
    ("device", ""), ("", "o"), ("memory", ""), ("GiB", "n"), ("ours", "n"), ("others", "n"), ("util", "n"),
    ("temp", "n"), ("power", "n"), ("last minutes", "s"), ("held by", "t o"),
]  # fmt: skip


def devices_html(history: Sequence[Snapshot], *, live: bool) -> str:
    """Return the panel: a row per device with its memory split into ours, others and free.

    Parameters
    ----------
    history
        Snapshots, oldest first; the last is shown, the others are its sparkline.
    live
        Whether the panel goes on; else it says when it was last looked at.
    """
    if not history:
        return f'{STYLE}<div class="mgpu q">looking at the devices ...</div>'
    now = history[-1]
    # Columns that no device has are left out: a laptop has no watts.
    rows = [_row(device, now, history) for device in now.devices]
    kept = [i for i in range(len(_HEAD)) if i < 3 or any(row[i].strip() for row in rows)]
    shown = table(
        [_HEAD[i] for i in kept], [[row[i] for i in kept] for row in rows], "memory of the devices", live=live
    )
    key = (
        f'<span class="q"><span style="color:{OURS}">■</span> workers of this kernel '
        f'<span style="color:{OTHERS}">■</span> others <span style="color:#999">■</span> free'
    )
    clock = time.strftime("%H:%M:%S", time.localtime(now.at))
    said = f"{key} · {'' if live else 'stopped, '}as of {clock}</span>"
    note = f'<div class="q">{escape(now.note)}</div>' if now.note else ""
    return f'{STYLE}<div class="mgpu">{shown}{said}{note}</div>'


def _row(device: DeviceSample, now: Snapshot, history: Sequence[Snapshot]) -> list[str]:
    if device.problem:
        return [escape(device.label), escape(device.problem), *[""] * (len(_HEAD) - 2)]
    total, used = device.total, device.used
    line = bar = numbers = ""
    if total and used is not None:
        ours = min(device.ours, used)
        label = f"{gib(used)} of {gib(total)} GiB used, {gib(device.ours)} by workers of this kernel"
        bar = stacked_bar([(ours, OURS), (used - ours, OTHERS)], total, label)
        numbers = f"{gib(used)} / {gib(total)}"
        past = [d.used for s in history for d in s.devices if d.uuid == device.uuid]
        line = sparkline(past, total)
    name = device.name.removeprefix("NVIDIA ")
    return [
        escape(device.label), escape(name, 32), bar, numbers, gib(device.ours), gib(device.others),
        number(device.utilisation, " %"), number(device.temperature, " °C"), number(device.power, " W"),
        line, _holders(device, now),
    ]  # fmt: skip


def _holders(device: DeviceSample, now: Snapshot) -> str:
    own = [w for w in now.workers if _on(w, device)]
    own.sort(key=lambda w: (-(w.memory or 0), w.state.slot))
    named = [
        f"{escape(w.state.task or f'worker {w.state.slot}', 30)} {gib(w.memory, 2)}".strip()
        for w in own
        if w.memory
    ]
    named += [f"pid {pid}{f' {gib(size, 2)}' if size else ''}" for pid, size in device.holders]
    more = len(named) - MOST_HOLDERS
    return ", ".join(named[:MOST_HOLDERS]) + (f" and {more} more" if more > 0 else "")


def _on(worker: WorkerSample, device: DeviceSample) -> bool:
    return worker.state.uuid == device.uuid or (worker.state.kind == "cpu" == device.kind)
