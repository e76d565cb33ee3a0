"""Devices and the holders of their memory as lines of a terminal: the facts of `views.devices`, as pure a function."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from ..telemetry.samples import DeviceSample, Snapshot
from .devices import MOST_DEVICES, holder_names, more_devices, past_heading, pasts, size, workers_by_device
from .markup import gib, number

__all__ = ["Line", "device_lines", "text"]

Line = list[tuple[str, str]]
"""Pieces of a line: text and the name of its style, ``ours``, ``others``, ``free``, ``head``, ``error`` or ``""``."""

NARROWEST = 40  # columns
INDENT = "  "
# Each part of a bar has a character of its own: colour is never the only sign.
BAR = {"ours": "█", "others": "▒", "free": "·"}


def device_lines(
    history: Sequence[Snapshot], width: int = 80, ours: str = "workers of this process"
) -> list[Line]:
    """Two lines a device, which fit a terminal: figures, bar and sparkline; below, who holds its memory.

    Parameters
    ----------
    history
        Snapshots, oldest first, at least one.
    width
        Columns of the terminal. On a narrow one bars are shorter, then sparklines are left out, then power and
        temperature.
    ours
        Whose the first part of a bar is.
    """
    now, devices = history[-1], history[-1].devices[:MOST_DEVICES]
    columns = _columns(history, max(NARROWEST, width))
    rows = [[cell(device) for _, _, cell in columns] for device in devices]
    own, several = workers_by_device(now), len({worker.state.pool for worker in now.workers}) > 1
    widths = [
        max(map(_length, column))
        for column in zip([[(h, "head")] for h, _, _ in columns], *rows, strict=True)
    ]
    lines = [_joined([[(heading, "head")] for heading, _, _ in columns], widths, columns)]
    for device, row in zip(devices, rows, strict=True):
        if device.problem:
            lines.append([(f"{device.place}  ", ""), (device.problem, "error")])
            continue
        lines.append(_joined(row, widths, columns))
        if names := holder_names(device, own.get(device.key, ()), several):
            lines.append([(INDENT, ""), (_listed(names, width - len(INDENT)), "")])
    key: Line = [
        (f"{BAR['ours']} ", "ours"),
        (f"{ours}  ", ""),
        (f"{BAR['others']} ", "others"),
        ("others  ", ""),
    ]
    if not any(device.ours or device.holders for device in now.devices):  # whose it is, nobody says
        key = [(f"{BAR['others']} ", "others"), ("in use  ", "")]
    key += [
        (f"{BAR['free']} ", "free"),
        ("free  ", ""),
        (time.strftime("%H:%M:%S", time.localtime(now.at)), ""),
    ]
    more = more_devices(now.devices[MOST_DEVICES:])
    said: list[Line] = [[(words, "")] for words in (more, *now.notices, now.note) if words]
    return [_cut(line, width) for line in [*lines, key, *said]]


def text(lines: Sequence[Line]) -> str:
    """The lines without their styles."""
    return "\n".join("".join(piece for piece, _ in line).rstrip() for line in lines)


_Column = tuple[str, bool, Callable[[DeviceSample], Line]]
"""Heading, whether it stands to the right, and the cell of a device."""


def _columns(history: Sequence[Snapshot], width: int) -> list[_Column]:
    """Columns that some device has, as many as fit the width."""
    devices = [device for device in history[-1].devices[:MOST_DEVICES] if not device.problem]
    bar, line = (20, 24) if width >= 104 else (12, 12) if width >= 78 else (8, 0)
    head = past_heading(history, "" if line < 18 else "memory, ")
    columns: list[_Column] = [
        ("device", False, lambda d: [(d.place, "")]),
        ("memory", False, lambda d: _bar(d, bar)),
        ("used", True, lambda d: [(_used(d), "")]),
        ("util", True, lambda d: [(number(d.utilisation, " %"), "")]),
    ]
    if width >= 60:
        columns += [
            ("temp", True, lambda d: [(number(d.temperature, " °C"), "")]),
            ("power", True, lambda d: [(number(d.power, " W"), "")]),
        ]
    if line:
        lines = pasts(history, line)
        columns.append((head, False, lambda d: [(lines.get(d.key, ""), "")]))
    if width >= 120:
        columns.insert(1, ("", False, lambda d: [(d.name.removeprefix("NVIDIA ")[:24], "")]))
    filled = [column for column in columns if any(text([column[2](device)]) for device in devices)]
    return filled or columns[:1]


def _used(device: DeviceSample) -> str:
    return f"{gib(device.used)} / {size(device.total)}" if device.used is not None and device.total else ""


def _bar(device: DeviceSample, width: int) -> Line:
    """A bar of `width` characters; what is held at all has at least one."""
    total, used = device.total, device.used
    if not total or used is None:
        return []
    parts = [min(device.ours, used), used - min(device.ours, used)]
    ends = [round(width * share / total) for share in accumulate(parts)]
    pairs = pairwise([0, *ends])
    counts = [
        max(end - begin, int(part > total / 200)) for (begin, end), part in zip(pairs, parts, strict=True)
    ]
    counts[1] = min(counts[1], width - counts[0])
    free = width - sum(counts)
    return [(BAR[name] * count, name) for name, count in zip(BAR, [*counts, free], strict=True) if count]


def _listed(names: Sequence[str], width: int) -> str:
    """Names that fit the width; the others are counted."""
    for count in range(len(names), 0, -1):
        rest = len(names) - count
        shown = "; ".join(names[:count]) + (f"; and {rest} more" if rest else "")
        if len(shown) <= width:
            return shown
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0][: max(0, width - len(more) - 1)]}…{more}"


def _length(line: Line) -> int:
    return sum(len(piece) for piece, _ in line)


def _joined(cells: Sequence[Line], widths: Sequence[int], columns: Sequence[_Column]) -> Line:
    line: Line = []
    for cell, width, (_, right, _) in zip(cells, widths, columns, strict=True):
        space = " " * (width - _length(cell))
        line += [(space, ""), *cell] if right else [*cell, (space, "")]
        line.append(("  ", ""))
    return line[:-1]


def _cut(line: Line, width: int) -> Line:
    """The line without what does not fit, and without what would move a terminal's cursor."""
    left = width
    kept: Line = []
    for piece, style in line:
        shown = "".join(c if c.isprintable() else "\ufffd" for c in piece)[:left]
        left -= len(shown)
        kept.append((shown, style))
    return kept
