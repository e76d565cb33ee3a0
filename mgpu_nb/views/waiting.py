"""What is shown of a run while a cell or a script waits for it: its panel, a line with a bar, a terminal's bar."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import unicodedata
import uuid
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal

from ..notebook import cell, has_widgets, in_notebook
from ..tasks import count_failed

if TYPE_CHECKING:  # a wait in a script needs none of these
    from ..tasks import Progress
    from .markup import Html
    from .run import ObservedRun

__all__ = ["PERIOD", "Line", "Waiting", "bar_line", "place_for", "waiting", "waiting_for_calls"]

PERIOD = 0.25  # seconds between two updates
PATIENCE = 0.5  # seconds that a cell waits before it shows anything: what flashes cannot be read
PATIENCE_WITH_CALLS = 1.0  # many are quick
WIDEST = 24  # columns of a name in a bar
NAMED = 3  # running tasks whose progress a terminal's bar tells

_last_cell = ""  # the last execution of a cell in which a panel was shown for a wait


class Waiting:
    """What is shown while something waits. This one shows nothing.

    Attributes
    ----------
    period
        Seconds between two updates; None if it needs none.
    """

    period: float | None = None

    def update(self) -> None:
        """Show the present state; called at each change and every `period` seconds."""

    def write(self, text: str) -> None:
        """Print whole lines; what stdout has no characters for, as escapes."""
        try:
            sys.stdout.write(text)
        except UnicodeEncodeError as error:
            sys.stdout.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        sys.stdout.flush()

    def close(self) -> None:
        """Show the last state, which stays."""


@contextlib.contextmanager
def waiting(run: ObservedRun, wanted: bool | None) -> Iterator[Waiting]:
    """Show a run while the block waits for it.

    In a notebook that is its panel, once the wait takes longer than half a second. Where a panel of it is live in
    another cell, or this cell has waited for another run before, it is a line. On a terminal it is a bar on stderr.

    Parameters
    ----------
    run
        The run.
    wanted
        Whether to show it; by default in the main thread, in a notebook or if stderr is a terminal. True shows it at
        once.
    """
    shown = _choose(run, wanted)
    try:
        shown.update()
        yield shown
    finally:
        shown.close()


def _choose(run: ObservedRun, wanted: bool | None) -> Waiting:
    where = "" if run.done else place_for(wanted)
    if where == "notebook":
        return _Cell(run, 0.0 if wanted else PATIENCE)
    return _Terminal(run) if where else Waiting()


@contextlib.contextmanager
def waiting_for_calls(
    name: str, count: Callable[[], tuple[int, int | None]], wanted: bool | None
) -> Iterator[Waiting]:
    """Show how many of many calls are done while the block waits for them, once that takes longer than a second.

    Parameters
    ----------
    name
        What is called.
    count
        Function that gives the number of those done and of all; None if unknown.
    wanted
        Whether to show it; by default in the main thread, in a notebook with a page or if stderr is a terminal. True
        shows it at once.
    """
    where = place_for(wanted)
    shown = Waiting()
    if where and (wanted or where == "terminal" or has_widgets()):
        shown = _Calls(name, count, 0.0 if wanted else PATIENCE_WITH_CALLS)
    try:
        shown.update()
        yield shown
    finally:
        shown.close()


def place_for(wanted: bool | None) -> Literal["notebook", "terminal", ""]:
    """Where to show how far something is; empty for nowhere.

    Parameters
    ----------
    wanted
        Whether to show it; by default in the main thread, in a notebook or if stderr is a terminal.
    """
    if wanted is False or not (wanted or threading.current_thread() is threading.main_thread()):
        return ""
    if in_notebook():
        return "notebook"
    return "terminal" if wanted or (sys.stderr is not None and sys.stderr.isatty()) else ""


class _Cell(Waiting):
    """A wait in a notebook."""

    period = PERIOD

    def __init__(self, run: ObservedRun, patience: float) -> None:
        from .panel import displayed

        self._run = run
        self._due = time.monotonic() + patience
        # A page that shows no changes, nbconvert's, has the end of it where it is displayed already.
        self._decided = not has_widgets() and displayed(run) != ""
        self._line: Line | None = None

    def update(self) -> None:
        if self._decided:
            if self._line is not None:
                self._line.update()
        elif time.monotonic() >= self._due and has_widgets():
            self._decide()

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
        elif not self._decided and time.monotonic() >= self._due:
            self._decide()  # no page shows what changes: this one sees the end of it

    def _decide(self) -> None:
        """Show the panel, or a line where there are panels already."""
        from .panel import displayed
        from .run_panel import show

        global _last_cell
        self._decided = True
        _, execution = cell()
        again, _last_cell = _last_cell == execution, execution
        where = displayed(self._run)
        if where == "here":
            return
        if where == "elsewhere" or again:
            self._line = Line(lambda: _line_of(self._run))
        else:
            show(self._run, waits=True)


class Line:
    """A line in the output of a cell that is drawn anew while the cell runs.

    Parameters
    ----------
    html
        Function that gives the line.
    """

    def __init__(self, html: Callable[[], Html]) -> None:
        from IPython.display import HTML, display

        self._html, self._make = html, HTML
        self._id = uuid.uuid4().hex
        self._shown: str = html()
        self._next = time.monotonic() + 2 * PERIOD
        display(HTML(self._shown), display_id=self._id)

    def update(self) -> None:
        """Draw it anew, unless it was just drawn."""
        if time.monotonic() >= self._next:
            self.close()

    def close(self) -> None:
        """Draw it for the last time."""
        from IPython.display import update_display

        shown = self._html()
        if shown != self._shown:
            update_display(self._make(shown), display_id=self._id)
            self._shown = shown
        self._next = time.monotonic() + 2 * PERIOD


def _line_of(run: ObservedRun) -> Html:
    progress, left = run.progress, run.time_left
    seconds = (run.ended_at or time.time()) - run.began
    return bar_line(
        run.name, run.share, f"{progress.done} of {progress.total} done", _counts(progress), seconds, left
    )


def bar_line(
    name: str, share: float | None, done: str, counts: list[str], seconds: float, left: float | None
) -> Html:
    """A line with a name, a bar, what is done, and the seconds so far and left."""
    from .markup import DONE, Html, bar, block, duration, escape, line

    words = [", ".join([done, *counts]), duration(seconds)]
    if left is not None:
        words.append(f"about {duration(left)} left")
    said = " · ".join(words)
    drawn = "" if share is None else bar(share, DONE, said)
    return block(line(Html(f"<b>{escape(name, 60)}</b> {drawn} {escape(said)}")))


def _counts(progress: Progress) -> list[str]:
    """What became of the tasks, those that failed together: ``2 ok``, ``1 failed``, ``3 running``."""
    known = progress.counts
    counts = {
        "ok": known.get("ok", 0), "failed": count_failed(known), "cancelled": known.get("cancelled", 0),
        "skipped": known.get("skipped", 0), "running": progress.running,
    }  # fmt: skip
    return [f"{count} {word}" for word, count in counts.items() if count]


class _Terminal(Waiting):
    """A bar on stderr, where it does not get into what a script prints."""

    period = PERIOD

    def __init__(self, run: ObservedRun) -> None:
        from tqdm import tqdm

        self._run = run
        self._bar = tqdm(
            total=1.0, desc=_short(run.name), file=sys.stderr, dynamic_ncols=True, bar_format="{desc}"
        )
        self._next = 0.0

    def update(self) -> None:
        if (now := time.monotonic()) >= self._next:
            self._next = now + PERIOD
            self._draw()

    def _draw(self) -> None:
        from .markup import duration

        run = self._run
        progress, left = run.progress, run.time_left
        words = _counts(progress)
        for job in run.running:
            share = job.metrics.get("progress")
            if isinstance(share, (int, float)) and len(words) < NAMED + 3:
                words.append(f"{_short(job.name)} {share:.0%}")
        times = duration(time.time() - run.began) + ("" if left is None else f"<{duration(left)}")
        said = f"| {progress.done}/{progress.total} [{times}] {', '.join(words)}"
        self._bar.n = run.share
        self._bar.bar_format = f"{_literal(_short(run.name))}: {{percentage:3.0f}}%|{{bar}}{_literal(said)}"
        self._bar.refresh()

    def write(self, text: str) -> None:
        with self._bar.external_write_mode(sys.stdout):  # the bar moves down
            super().write(text)

    def close(self) -> None:
        self._draw()
        self._bar.close()


class _Calls(Waiting):
    """A wait for many calls: a line in a notebook, a bar on a terminal."""

    period = PERIOD

    def __init__(self, name: str, count: Callable[[], tuple[int, int | None]], patience: float) -> None:
        self._name, self._count = name, count
        self._began = time.monotonic()
        self._due = self._began + patience
        self._line: Line | None = None
        self._bar: Any = None

    def update(self) -> None:
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + PERIOD
        if in_notebook():
            if self._line is None:
                self._line = Line(self._html)
            self._line.update()
        else:
            self._draw()

    def _draw(self) -> None:
        from tqdm import tqdm

        done, total = self._count()
        if self._bar is None:
            self._bar = tqdm(desc=_short(self._name), file=sys.stderr, dynamic_ncols=True, total=total)
            self._bar.start_t -= time.monotonic() - self._began
        self._bar.n, self._bar.total = done, total
        self._bar.refresh()

    def _html(self) -> Html:
        done, total = self._count()
        seconds = time.monotonic() - self._began
        left = None if total is None or not done or done >= total else seconds * (total - done) / done
        said = f"{done} done" if total is None else f"{done} of {total} done"
        return bar_line(self._name, done / total if total else None, said, [], seconds, left)

    def write(self, text: str) -> None:
        with nullcontext() if self._bar is None else self._bar.external_write_mode(sys.stdout):
            super().write(text)

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
        if self._bar is not None:
            self._draw()
            self._bar.close()


def _short(name: str) -> str:
    """A name in a bar."""
    shown, columns = "", 0
    for c in name:
        columns += 2 if unicodedata.east_asian_width(c) in "WF" else 1
        if columns > WIDEST:
            return f"{shown[:-1]}…"
        shown += c if c.isprintable() else "\ufffd"
    return shown


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
