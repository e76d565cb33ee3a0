"""Devices and the holders of their memory as HTML: a pure function of snapshots."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence

from ..telemetry.samples import DeviceSample, Snapshot, WorkerSample
from .markup import OTHERS, OURS, Html, block, escape, gib, line, number, sparkline, stacked_bar, table

__all__ = [
    "devices_html",
    "holder_names",
    "more_devices",
    "past_heading",
    "pasts",
    "size",
    "workers_by_device",
]

MOST_DEVICES = 32  # rows; the others are counted and added up
MOST_HOLDERS = 4  # listed by name; the others are counted
LONGEST = 64  # characters of the name of one
WINDOW = 300.0  # seconds of a sparkline, at most
WIDTH = 24  # characters of a sparkline

_HEAD = (
    ("device", ""), ("memory", ""), ("used", "n"), ("util", "n"), ("temp", "n m"), ("power", "n m"), ("", "s m"),
    ("held by", "t"),
)  # fmt: skip
_PAST = 6


def devices_html(history: Sequence[Snapshot], *, live: bool) -> Html:
    """The panel: a row per device with its memory split into ours, others and free; those of a node are together.

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
    head = list(_HEAD)
    head[_PAST] = (past_heading(history), "s m")
    # Columns that no device has are left out: a laptop has no watts.
    lines = pasts(history)
    own = workers_by_device(now)
    several = len({worker.state.pool for worker in now.workers}) > 1
    rows = [
        _row(device, own.get(device.key, ()), several, lines.get(device.key, ""))
        for device in now.devices[:MOST_DEVICES]
    ]
    kept = [i for i in range(len(head)) if i < 2 or any(row[i].strip() for row in rows)]
    shown = table(
        [head[i] for i in kept], [[row[i] for i in kept] for row in rows], "memory of the devices", live=live
    )
    clock = time.strftime("%H:%M:%S", time.localtime(now.at))
    key = (
        f'<div class="q"><span style="color:{OURS}">■</span> workers of this process '
        f'<span style="color:{OTHERS}">■</span> others □ free'
        f'<span class="m"> · ▁ empty to █ full: all memory of the device</span>'
        f" · {'' if live else 'stopped, '}as of {clock}</div>"
    )
    said = [more] if (more := more_devices(now.devices[MOST_DEVICES:])) else []
    said += [*now.notices, *([now.note] if now.note else [])]
    return block(shown, Html(key), *(line(words, "q") for words in said))


def size(value: int | None, digits: int = 1) -> str:
    """Bytes in GiB with the unit; empty if unknown."""
    return "" if value is None else f"{gib(value, digits)} GiB"


def past_heading(history: Sequence[Snapshot], what: str = "memory, ") -> str:
    """Heading of a column of `pasts`, with the time that it covers: ``memory, last 40 s``, ``memory, last 5 min``."""
    seconds = history[-1].at - _recent(history)[0].at
    return f"{what}last {f'{seconds:.0f} s' if seconds < 90 else f'{seconds / 60:.0f} min'}"


def more_devices(left: Sequence[DeviceSample]) -> str:
    """What is to be said of devices that have no row; empty if there are none."""
    if not left:
        return ""
    known = [device for device in left if device.total and device.used is not None]
    used, total = sum(device.used or 0 for device in known), sum(device.total or 0 for device in known)
    nodes = len({device.host for device in left})
    where = f"{len(left):,} more device{'s' * (len(left) > 1)} on {nodes:,} machine{'s' * (nodes > 1)}"
    return f"and {where}: {gib(used)} of {gib(total)} GiB used" if known else f"and {where}"


def pasts(history: Sequence[Snapshot], width: int = WIDTH) -> dict[tuple[str, str], str]:
    """Sparklines of the used memory by device: blank where nobody looked, a full block where no byte was free."""
    recent = _recent(history)
    if len(recent) < 2:
        return {}  # one look is no course of time
    began, seconds = recent[0].at, recent[-1].at - recent[0].at
    # Two snapshots for each character: they are not equally far apart.
    count = max(1, min(width, len(recent) // 2))
    devices = recent[-1].devices[:MOST_DEVICES]
    bins: dict[tuple[str, str], list[int | None]] = {d.key: [None] * count for d in devices}
    for snapshot in recent:
        n = int((snapshot.at - began) / seconds * count) if seconds > 0 else 0
        n = max(0, min(count - 1, n))  # a clock may be set back
        for device in snapshot.devices:
            line, used = bins.get(device.key), device.used
            if line is not None and used is not None and used >= (line[n] or 0):
                line[n] = used
    return {d.key: sparkline(bins[d.key], d.total, count) for d in devices if d.total}


def _recent(history: Sequence[Snapshot]) -> Sequence[Snapshot]:
    """The snapshots of the last minutes; those before may be of an hour ago."""
    return history[bisect_left(history, history[-1].at - WINDOW, key=lambda snapshot: snapshot.at) :]


def _row(device: DeviceSample, own: Sequence[WorkerSample], several: bool, before: str) -> list[Html | str]:
    name = _below(device.place, device.name.removeprefix("NVIDIA "))
    if device.problem:
        return [name, *[""] * (len(_HEAD) - 2), Html(f'<span class="e">{escape(device.problem)}</span>')]
    total, used = device.total, device.used
    bar: Html | str = ""
    numbers = ""
    if total and used is not None:
        ours = min(device.ours, used)
        label = f"{gib(used)} of {gib(total)} GiB used, {gib(device.ours)} GiB by workers of this process"
        bar = stacked_bar([(ours, OURS), (used - ours, OTHERS)], total, label)
        bar = _below(bar, f"ours {size(device.ours)}, others {size(device.others)}")
        numbers = f"{gib(used)} / {gib(total)} GiB"
    names = holder_names(device, own, several)
    more = len(names) - MOST_HOLDERS
    shown = [escape(text, LONGEST) for text in names[:MOST_HOLDERS]] + [f"and {more} more"] * (more > 0)
    return [
        name, bar, numbers,
        number(device.utilisation, " %"), number(device.temperature, " °C"), number(device.power, " W"),
        before, Html("<br>".join(shown)),
    ]  # fmt: skip


def _below(first: str, second: str) -> Html:
    """Two lines of a cell; the second, secondary one is left out on a narrow page."""
    return Html(f'{escape(first)}<div class="q o">{escape(second, 32)}</div>')


def workers_by_device(now: Snapshot) -> dict[tuple[str, str], list[WorkerSample]]:
    """Workers of this process that hold memory, by the key of their device."""
    found: dict[tuple[str, str], list[WorkerSample]] = {}
    for worker in now.workers:
        if worker.memory:
            found.setdefault(worker.state.device, []).append(worker)
    return found


def holder_names(device: DeviceSample, own: Sequence[WorkerSample], several: bool) -> list[str]:
    """Who holds the memory of a device and how much: workers of this process, then others; each the largest first.

    Parameters
    ----------
    device
        The device.
    own
        Workers of this process on it, see `workers_by_device`.
    several
        Whether they are of several pools, which are named then.
    """
    ordered = sorted(own, key=lambda w: (-(w.memory or 0), w.state.slot))
    named = [(_worker_name(worker, several), worker.memory) for worker in ordered]
    named += [(str(holder), holder.size) for holder in device.holders]
    return [f"{name} {size(held, 1 if (held or 0) >= 2**30 else 2)}".strip() for name, held in named]


def _worker_name(worker: WorkerSample, several: bool) -> str:
    """Name of a worker of this process: by its task, and by its pool if there are several."""
    state = worker.state
    pool = f" of pool {state.pool}" if several else ""
    if not state.task:
        return f"worker {state.slot}{pool}"
    run = f" of run '{state.run_name}'" if state.run_name else ""
    return f"{state.task}{run}{pool}"
