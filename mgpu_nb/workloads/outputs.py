"""What a command prints: results to the standard output, notes beside it; to nowhere once the reader has gone."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from ..output import safe

__all__ = ["note", "say", "silence"]


def say(text: object, end: str = "\n") -> None:
    """Print to the standard output; to nowhere once its reader has gone."""
    _print(text, end, sys.stdout)


def silence(stream: TextIO) -> None:
    """Have an output go nowhere: whoever read it has gone, and the run goes on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def note(text: str) -> None:
    """Print a line that is no result, if there is one."""
    if text:
        _print(text, "\n", sys.stderr)


def _print(text: object, end: str, stream: TextIO) -> None:
    try:
        print(safe(str(text)), end=end, file=stream, flush=True)
    except BrokenPipeError:
        silence(stream)
