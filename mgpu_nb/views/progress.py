"""The progress of a measurement: a line in a notebook, a bar on a terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol

from .markup import Html, block, duration, line
from .waiting import PERIOD, bar_line, place_for

__all__ = ["Steps", "steps"]


class _Drawer(Protocol):
    """Where the progress of a measurement is shown."""

    def show(self, share: float, text: str, left: float | None) -> None:
        """Show a share from 0 to 1, what is being done, and the seconds left if they are known."""

    def close(self, text: str) -> None:
        """Show no more; `text` says what was done."""


class Steps:
    """Progress of work of several steps; `steps` makes it."""

    def __init__(self, drawer: _Drawer | None) -> None:
        self._drawer = drawer
        self._began = time.monotonic()
        self._shown = -1.0

    def update(self, share: float, text: str = "", left: float | None = None) -> None:
        """Show how far the work is.

        Parameters
        ----------
        share
            Share of the work that is done, 0 to 1; it may become smaller where more work is found.
        text
            What is being done.
        left
            Seconds left; by default as the time so far and the share say.
        """
        if self._drawer is None:
            return
        share = min(1.0, max(0.0, share))
        if left is None and share > 0:
            left = (time.monotonic() - self._began) * (1 - share) / share
        self._drawer.show(share, text, left)

    def close(self, text: str) -> None:
        """End it; `text` says what was done, and the time it took is put behind it."""
        if self._drawer is not None:
            self._drawer.close(f"{text} in {duration(time.monotonic() - self._began)}")
            self._drawer = None


@contextlib.contextmanager
def steps(label: str, wanted: bool | None = None) -> Iterator[Steps]:
    """Show the progress of work while the block runs: a line of its own in a notebook, a bar on a terminal's stderr.

    Parameters
    ----------
    label
        What the work is.
    wanted
        Whether to show it; by default in the main thread, in a notebook or if stderr is a terminal.
    """
    shown = Steps(_drawer(label, wanted))
    try:
        yield shown
    finally:
        shown.close(f"{label}: stopped")  # unless the block has said how it ended


def _drawer(label: str, wanted: bool | None) -> _Drawer | None:
    where = place_for(wanted)
    if where == "notebook":
        return _Cell(label)
    return _Terminal(label) if where else None


class _Cell:
    """A line in the output of the cell, which is static when the work has ended: it needs no widgets."""

    def __init__(self, label: str) -> None:
        from IPython.display import display

        self._label = label
        self._began = time.monotonic()
        self._next = 0.0
        self._handle: Any = display(self._bundle(f"{label}: begins"), raw=True, display_id=True)

    def show(self, share: float, text: str, left: float | None) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + PERIOD
        shown = bar_line(self._label, share, text, [], now - self._began, left)
        self._handle.update(self._bundle(f"{self._label}: {share:.0%}, {text}", shown), raw=True)

    def close(self, text: str) -> None:
        self._handle.update(self._bundle(text), raw=True)

    @staticmethod
    def _bundle(text: str, shown: Html | None = None) -> dict[str, str]:
        """Mimebundle: text for what shows no HTML."""
        return {"text/plain": text, "text/html": shown or block(line(text, "q"))}


class _Terminal:
    """A bar on stderr, where the output of the program stays as it is."""

    def __init__(self, label: str) -> None:
        from tqdm import tqdm

        self._bar = tqdm(
            total=1.0,
            desc=label,
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=PERIOD,
            miniters=0,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}",
        )

    def show(self, share: float, text: str, left: float | None) -> None:
        words = [text, f"about {duration(left)} left" if left is not None else ""]
        self._bar.set_postfix_str(", ".join(word for word in words if word), refresh=False)
        self._bar.update(share - self._bar.n)

    def close(self, text: str) -> None:
        self._bar.bar_format = "{desc}"
        self._bar.set_description_str(text)
        self._bar.close()
