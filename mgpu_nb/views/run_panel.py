"""The live panel of a run: `run_html` with a button that cancels and a list that opens logs."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..notebook import in_notebook
from ..telemetry import sampler
from .markup import block, escape, line
from .metrics import metrics_html
from .panel import Panel, displayed
from .run import ObservedRun, run_html, state_of

__all__ = ["show"]

LOG_LINES = 40
LOG_BYTES = 2**16
FRAME = 9_900  # bytes of a frame while the run goes on
SETTLED = 5.0  # seconds that a task runs before its log is listed: a list that keeps changing cannot be read


def show(run: ObservedRun) -> None:
    """Display a run: live in a notebook, as text elsewhere.

    A cell that has displayed it in this execution, or has waited for it, does not display it again.

    Parameters
    ----------
    run
        The run.
    """
    if not in_notebook():
        print(repr(run))
        return
    if displayed(run) == "here":
        return
    controls = _Controls(run)

    def render(live: bool) -> str:
        if live:
            controls.update()
        history = list(sampler.shared.history)[-120:] if not run.done else []
        shown = run_html(state_of(run, history), live=live)
        charts, more = run.charts()
        left = FRAME - len(shown.encode()) if live else None
        return shown + metrics_html(charts, live=live, budget=left, more=more)

    left = f"Run.open({str(run.folder)!r}) shows this run in another notebook."
    panel = Panel(render, lambda: run.done, block(line(left, "q")), controls.make, run)
    panel.show()
    run.when_done(panel.close)


class _Controls:
    """The cancel button and the list of logs."""

    def __init__(self, run: ObservedRun) -> None:
        self._run = run
        self._logs: Any = None
        self._since: dict[str, float] = {}  # when each running task was first seen

    def make(self) -> Sequence[Any]:
        """Make the widgets."""
        import ipywidgets

        cancel = ipywidgets.Button(
            description="Cancel",
            tooltip="Cancel what has not begun and end what runs",
            layout=ipywidgets.Layout(width="7em"),
        )
        self._logs = ipywidgets.Dropdown(
            options=[("log of ...", "")], layout=ipywidgets.Layout(width="22em"), description_allow_html=False
        )
        text = ipywidgets.HTML()

        def pressed(_: Any) -> None:
            cancel.disabled = True
            cancel.description = "Cancelling"
            self._run.cancel()

        def chosen(change: Any) -> None:
            text.value = _tail(self._run, change["new"]) if change["new"] else ""

        cancel.on_click(pressed)
        self._logs.observe(chosen, names="value")
        self.update()
        return ipywidgets.HBox([cancel, self._logs]), text

    def update(self) -> None:
        """List the logs of the tasks that failed last and of those that run."""
        if self._logs is None:
            return
        names = [record.name for record in reversed(self._run.failures)]
        now = time.monotonic()
        self._since = {job.name: self._since.get(job.name, now) for job in self._run.running}
        names += [n for n, since in self._since.items() if now - since > SETTLED and n not in names]
        options = (("log of ...", ""), *((_line(name), name) for name in names))
        if self._logs.options != options:
            chosen = self._logs.value
            with self._logs.hold_trait_notifications():
                self._logs.options = options
                if chosen in names:
                    self._logs.value = chosen


def _line(name: str) -> str:
    """A task's name as one short line; a list shows plain text, so markup needs no escaping."""
    shown = "".join(c if c.isprintable() else "\ufffd" for c in name)
    return shown if len(shown) <= 60 else shown[:59] + "…"


def _last_lines(file: Path) -> list[str]:
    """The last lines of a file of any size, one more than is shown."""
    with file.open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_BYTES))
        return log.read().decode(errors="backslashreplace").splitlines()[-LOG_LINES - 1 :]


def _tail(run: ObservedRun, task: str) -> str:
    file = run.log_file(task)
    lines = _last_lines(file) if file.exists() else []
    shown = "<br>".join(escape(line, 500) for line in lines[-LOG_LINES:]) or "nothing was written"
    more = (
        f'<span class="q">the last {LOG_LINES} lines of {escape(str(file), 500)}</span><br>'
        if len(lines) > LOG_LINES
        else ""
    )
    return (
        f'<div class="mgpu" style="font-family:monospace;max-height:20em;overflow:auto">{more}{shown}</div>'
    )
