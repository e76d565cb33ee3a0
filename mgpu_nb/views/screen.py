"""The devices on a terminal, looked at again and again: in place, or as plain lines where that is not possible."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ..hardware.holders import current_user
from ..hardware.slots import devices
from ..telemetry import sampler
from ..telemetry.samples import DeviceSample, Snapshot
from .terminal import Line, device_lines, text

__all__ = ["of_user", "watch_devices"]

PLAIN = 120  # columns where there is no terminal
_STYLES = {"ours": "bright_blue", "others": "yellow", "free": "dim", "head": "bold", "error": "red"}
# For terminals that show ASCII only.
_ASCII = str.maketrans("▁▂▃▄▅▆▇█▒·…°", "_.-:=+*#%.~ ")


def watch_devices(interval: float, times: int | None = None) -> None:
    """Show the devices of this machine and who holds their memory, by user and command, again and again.

    Parameters
    ----------
    interval
        Seconds between two looks.
    times
        Number of looks; by default until an interrupt.

    Raises
    ------
    KeyboardInterrupt
        On an interrupt, which is how it ends.
    BrokenPipeError
        If nobody reads the output any more.
    """
    console = Console(highlight=False, soft_wrap=True)
    reason = devices().reason
    if console.is_terminal and not console.is_dumb_terminal and times != 1:
        _in_place(console, interval, times, reason)
    else:
        _one_below_the_other(interval, times, reason)


def of_user(snapshot: Snapshot) -> Snapshot:
    """The snapshot with what processes of this user hold as ours: tasks of other processes are not known here."""
    user = current_user()

    def split(device: DeviceSample) -> DeviceSample:
        mine = sum(holder.size or 0 for holder in device.holders if holder.user == user)
        return replace(device, ours=mine, others=None if device.used is None else max(0, device.used - mine))

    return replace(snapshot, devices=tuple(map(split, snapshot.devices)))


def _one_below_the_other(interval: float, times: int | None, reason: str) -> None:
    looks = 0
    while times is None or looks < times:
        time.sleep(interval if looks else 0)
        lines = _look(shutil.get_terminal_size((PLAIN, 24)).columns, reason)
        print(_shown(text(lines)) + "\n" * (times != 1), flush=True)
        looks += 1


def _in_place(console: Console, interval: float, times: int | None, reason: str) -> None:
    """Looks that take each other's place on the screen; the last one stays when it has ended."""
    looks, lines, ended = 0, [], f"every {interval:g} s, Ctrl-C ends"
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while times is None or looks < times:
                time.sleep(interval if looks else 0)
                width, height = console.size
                lines = _look(width, reason)
                live.update(
                    Text("\n").join(_styled([*_cut(lines, height - 1), [(ended, "free")]])), refresh=True
                )
                looks += 1
            time.sleep(interval)
    finally:
        console.print(Text("\n").join(_styled(lines)))


def _look(width: int, reason: str) -> list[Line]:
    sampler.shared.take()
    *before, now = sampler.shared.history
    lines = device_lines([*before, of_user(now)], width, current_user())
    return [*lines, *([[(f"No GPU: {reason}"[:width], "")]] if reason else [])]


def _cut(lines: list[Line], height: int) -> list[Line]:
    """Lines that fit a terminal."""
    if len(lines) <= height:
        return lines
    more = len(lines) - height + 1
    return [*lines[: height - 1], [(f"... {more} more lines: make the terminal higher", "")]]


def _styled(lines: Sequence[Line]) -> list[Text]:
    return [
        Text.assemble(*((_shown(piece), _STYLES.get(style, "")) for piece, style in line)) for line in lines
    ]


def _shown(piece: str) -> str:
    try:
        "█▁…".encode(sys.stdout.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return piece.translate(_ASCII)
    return piece
