"""The logs of a run in its panel: a list of tasks, and the log of the one that is chosen, which follows."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..output import clean
from .markup import Html, block, escape, line
from .run import ObservedRun

__all__ = ["LogBox", "log_html"]

LINES = 40
BYTES = 2**16
LONGEST = 300  # characters of a line
LISTED = 20  # tasks in the list; a field takes the name of any other
SETTLED = 2.0  # seconds that a task runs before its log is listed: a list that keeps changing cannot be read


class LogBox:
    """Widgets that show the log of a task, as it is written.

    Parameters
    ----------
    run
        The run.
    """

    def __init__(self, run: ObservedRun) -> None:
        self._run = run
        self._chosen = ""
        self._asked: list[str] = []  # by name, the newest first
        self._since: dict[str, float] = {}  # when each running task was first seen
        self._listed: list[str] = []
        self._updating = False
        self._seen: tuple[str, int, float] | None = None  # the chosen task, size and time of its log
        self._list: Any = None
        self._name: Any = None
        self._text: Any = None
        self._lock = threading.RLock()  # the sampler's thread updates, another has the clicks

    def make(self) -> tuple[Sequence[Any], Any]:
        """Make the widgets: those to choose with, and the log."""
        import ipywidgets

        self._list = ipywidgets.Dropdown(
            options=[("log of ...", "")], layout=ipywidgets.Layout(width="22em"), description_allow_html=False
        )
        self._list.observe(self._was_chosen, names="value")
        self._text = ipywidgets.HTML()
        choices = [self._list]
        if len(self._run.tasks) > LISTED:
            self._name = ipywidgets.Text(
                placeholder="name of another task",
                continuous_update=False,
                layout=ipywidgets.Layout(width="16em"),
            )
            self._name.observe(self._was_named, names="value")
            choices.append(self._name)
        self.update()
        return choices, self._text

    def update(self) -> None:
        """List tasks, and show what is new in the log of the chosen one."""
        if self._list is None:
            return
        with self._lock:
            names = self._names()
            if names != self._listed:
                self._listed = names
                with self._silently():  # a list with new options forgets what was chosen
                    self._list.options = (("log of ...", ""), *((_short(name), name) for name in names))
                    self._list.value = self._chosen
            self._follow()

    @property
    def html(self) -> Html:
        """The log of the chosen task, for an output without widgets; empty if there is none."""
        return log_html(self._run, self._chosen) if self._chosen else Html("")

    def _names(self) -> list[str]:
        """Tasks in the list: the chosen one and those asked for, then what runs, failed, and ran before."""
        now = time.monotonic()
        running = {job.name: None for job in self._run.running}
        for name in running:
            self._since.setdefault(name, now)
        for name, since in list(self._since.items()):
            if name not in running and now - since <= SETTLED:  # it was short, and may be one of thousands
                del self._since[name]
        settled = [name for name, since in self._since.items() if now - since > SETTLED]
        runs = [name for name in settled if name in running]
        ran = [name for name in reversed(settled) if name not in running]
        failed = [record.name for record in self._run.failures[: -LISTED - 1 : -1]]
        for name in ran[LISTED:]:
            del self._since[name]
        chosen = [self._chosen] if self._chosen else []
        return list(dict.fromkeys([*chosen, *self._asked, *runs, *failed, *ran]))[:LISTED]

    @contextlib.contextmanager
    def _silently(self) -> Iterator[None]:
        """Change the list as nobody chose."""
        self._updating = True
        try:
            yield
        finally:
            self._updating = False

    def _was_chosen(self, change: Any) -> None:
        with self._lock:
            if not self._updating:
                self._chosen = change["new"] or ""
                self._follow()

    def _was_named(self, change: Any) -> None:
        name = change["new"].strip()
        if not name:
            return
        with self._lock:
            if name in self._run.tasks:
                self._asked = [name, *(n for n in self._asked if n != name)][: LISTED // 2]
                self._chosen = name
                self._name.value = ""
                self.update()
            else:
                known = ", ".join(_named(name, self._run.tasks)) or f"the first is {self._run.tasks[0]}"
                self._chosen, self._seen = "", None
                with self._silently():
                    self._list.value = ""
                self._text.value = block(line(f"no task {name!r} in this run: {known}", "q"))

    def _follow(self) -> None:
        """Show the log anew if it has grown."""
        if not self._chosen:
            if self._seen is not None:
                self._seen, self._text.value = None, ""
            return
        try:
            status = self._run.log_file(self._chosen).stat()
            now = (self._chosen, status.st_size, status.st_mtime)
        except OSError:
            now = (self._chosen, 0, 0.0)
        if now != self._seen:
            self._seen = now
            self._text.value = log_html(self._run, self._chosen)


def log_html(run: ObservedRun, task: str) -> Html:
    """The last lines of a task's log, scrolled to their end."""
    file = run.log_file(task)
    lines, more = _last_lines(file)
    shown = "<br>".join(escape(text, LONGEST) for text in lines) or "nothing was written yet"
    what = f"the last {LINES} lines of {file}" if more else str(file)
    head = line(Html(f"log of <b>{escape(task, 60)}</b> · {escape(what, 300)}"), "q")
    # A column in reverse begins at its end, without a script.
    style = "display:flex;flex-direction:column-reverse;max-height:20em;overflow:auto"
    text = 'style="font-family:var(--jp-code-font-family,monospace);white-space:pre-wrap"'
    return block(head, Html(f'<div style="{style}"><div {text}>{shown}</div></div>'))


def _last_lines(file: Path) -> tuple[list[str], bool]:
    """The last lines of a file of any size, and whether there are more."""
    try:
        with file.open("rb") as log:
            start = max(0, log.seek(0, os.SEEK_END) - BYTES)
            log.seek(start)
            lines = log.read().split(b"\n")
    except OSError:
        return [], False
    if not lines[-1].strip(b"\r"):
        lines.pop()
    more = start > 0 or len(lines) > LINES
    return [clean(text) for text in lines[-LINES:]], more


def _named(part: str, tasks: Sequence[str]) -> Iterator[str]:
    """Up to five names that contain a text."""
    found = (name for name in tasks if part.casefold() in name.casefold())
    return (name for name, _ in zip(found, range(5), strict=False))


def _short(name: str) -> str:
    """A task's name as one short line; a list shows plain text, so markup needs no escaping."""
    shown = clean(name)
    return shown if len(shown) <= 60 else shown[:59] + "…"
