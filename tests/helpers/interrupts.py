"""Interrupts at every line of a call, in turn, by `sys.settrace`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import mgpu_nb

PACKAGE = str(Path(mgpu_nb.__file__).parent)

Line = tuple[str, int, int]  # file, number, how often it was met before


class Tracer:
    """Counts the lines of the package that this thread executes, and raises KeyboardInterrupt at one of them."""

    def __init__(self, at: Line | None = None) -> None:
        self.at = at
        self.lines: list[Line] = []
        self.struck = False
        self._met: Counter[tuple[str, int]] = Counter()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        """Trace function of threads."""
        return self.trace if frame.f_code.co_filename.startswith(PACKAGE) else None

    def trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        """Trace function of frames."""
        if event == "line" and not self.struck:
            place = frame.f_code.co_filename, frame.f_lineno
            line = (*place, self._met[place])
            self._met[place] += 1
            if self.at is None:
                self.lines.append(line)
            elif line == self.at:
                self.struck = True
                raise KeyboardInterrupt
        return self.trace


def lines_of(call: Callable[[], object], often: int = 2) -> list[Line]:
    """Lines that a call executes, each up to `often` times."""
    tracer = Tracer()
    sys.settrace(tracer)
    try:
        call()
    finally:
        sys.settrace(None)
    return [line for line in tracer.lines if line[2] < often]


def interrupted_at(line: Line, call: Callable[[], object]) -> BaseException | None:
    """What a call raises that is interrupted at a line; None if it does not come to it, or swallows the interrupt."""
    sys.settrace(Tracer(line))
    try:
        call()
    except BaseException as error:
        return error.with_traceback(None)
    finally:
        sys.settrace(None)
    return None


def every_line(
    call: Callable[[], object], files: tuple[str, ...] = (".py",)
) -> Iterator[tuple[Line, BaseException | None]]:
    """Interrupt a call at each of its lines, in turn; of files whose names end so."""
    for line in (line for line in lines_of(call) if line[0].endswith(files)):
        yield line, interrupted_at(line, call)
