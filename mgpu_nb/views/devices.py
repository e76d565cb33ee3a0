"""Devices and the holders of their memory as HTML: a pure function of snapshots."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..telemetry.samples import DeviceSample, Snapshot, WorkerSample
from .markup import OTHERS, OURS, Html, block, escape, gib, line, number, sparkline, stacked_bar, table

__all__ = ["devices_html"]

MOST_HOLDERS = 4  # listed by name; the others are counted

_HEAD = [
    ("device", ""), ("", "o"), ("memory", ""), ("GiB", "n"), ("ours", "n"), ("others", "n"), ("util", "n"),
    ("temp", "n"), ("power", "n"), ("last minutes", "s"), ("held by", "t o"),
]  # fmt: skip


def devices_html(history: Sequence[Snapshot], *, live: bool) -> Html:
    """The panel: a row per device with its memory split into ours, others and free.

    Parameters
    ----------
    history
        Snapshots, oldest first; the last is shown, the others are its sparkline.
    live
        Whether the panel is updated; if not, it says when it was updated last.
    """
    if not history:
        return block(line("looking at the devices ...", "q"))
    now = history[-1]
    # Columns that no device has are left out: a laptop has no watts.
    rows = [_row(device, now, history) for device in now.devices]
    kept = [i for i in range(len(_HEAD)) if i < 3 or any(row[i].strip() for row in rows)]
    shown = table(
        [_HEAD[i] for i in kept], [[row[i] for i in kept] for row in rows], "memory of the devices", live=live
    )
    clock = time.strftime("%H:%M:%S", time.localtime(now.at))
    key = (
        f'<div class="q"><span style="color:{OURS}">■</span> workers of this process '
        f'<span style="color:{OTHERS}">■</span> others <span style="color:#999">■</span> free'
        f" · {'' if live else 'stopped, '}as of {clock}</div>"
    )
    return block(shown, Html(key), *([line(now.note, "q")] if now.note else []))


def _row(device: DeviceSample, now: Snapshot, history: Sequence[Snapshot]) -> list[str]:
    if device.problem:
        return [device.label, device.problem, *[""] * (len(_HEAD) - 2)]
    total, used = device.total, device.used
    past = bar = numbers = ""
    if total and used is not None:
        ours = min(device.ours, used)
        label = f"{gib(used)} of {gib(total)} GiB used, {gib(device.ours)} by workers of this process"
        bar = stacked_bar([(ours, OURS), (used - ours, OTHERS)], total, label)
        numbers = f"{gib(used)} / {gib(total)}"
        past = sparkline((d.used for s in history for d in s.devices if d.uuid == device.uuid), total)
    name = device.name.removeprefix("NVIDIA ")
    return [
        device.label, escape(name, 32), bar, numbers, gib(device.ours), gib(device.others),
        number(device.utilisation, " %"), number(device.temperature, " °C"), number(device.power, " W"),
        past, _holders(device, now),
    ]  # fmt: skip


def _holders(device: DeviceSample, now: Snapshot) -> Html:
    own = [w for w in now.workers if _on(w, device)]
    own.sort(key=lambda w: (-(w.memory or 0), w.state.slot))
    named = [
        f"{escape(w.state.task or f'worker {w.state.slot}', 30)} {gib(w.memory, 2)}".strip()
        for w in own
        if w.memory
    ]
    named += [f"pid {pid}{f' {gib(size, 2)}' if size else ''}" for pid, size in device.holders]
    more = len(named) - MOST_HOLDERS
    return Html(", ".join(named[:MOST_HOLDERS]) + (f" and {more} more" if more > 0 else ""))


def _on(worker: WorkerSample, device: DeviceSample) -> bool:
    return worker.state.uuid == device.uuid or (worker.state.kind == "cpu" == device.kind)
