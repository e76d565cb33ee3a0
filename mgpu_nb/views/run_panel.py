"""The live panel of a run: `run_html` with a button that cancels and its logs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..notebook import answers_while_busy, in_notebook
from ..telemetry import sampler
from .logs import LogBox
from .markup import block, line
from .metrics import metrics_html
from .panel import Panel, displayed
from .run import ObservedRun, run_html, state_of

__all__ = ["show"]

FRAME = 9_900  # bytes of a frame while the run goes on


def show(run: ObservedRun, *, waits: bool = False) -> None:
    """Display a run: live in a notebook, as text elsewhere.

    A cell that has displayed it in this execution, or has waited for it, does not display it again.

    Parameters
    ----------
    run
        The run.
    waits
        Whether the cell waits for the run. A kernel that handles no click while a cell runs shows no buttons then.
    """
    if not in_notebook():
        print(repr(run))
        return
    if displayed(run) == "here":
        return
    controls = _Controls(run)

    def render(live: bool) -> str:
        if live:
            controls.logs.update()
        history = list(sampler.shared.history)[-120:] if not run.done else []
        shown: str = run_html(state_of(run, history), live=live)
        charts, more = run.charts()
        left = FRAME - len(shown.encode()) if live else None
        shown += metrics_html(charts, live=live, budget=left, more=more)
        return shown if live else shown + controls.logs.html

    left = f"Run.open({str(run.folder)!r}) shows this run in another notebook."
    makes = controls.make if answers_while_busy() or not waits else tuple
    panel = Panel(render, lambda: run.done, block(line(left, "q")), makes, run)
    panel.show()
    run.when_done(panel.close)


class _Controls:
    """The button that cancels, and the logs."""

    def __init__(self, run: ObservedRun) -> None:
        self._run = run
        self.logs = LogBox(run)

    def make(self) -> Sequence[Any]:
        """Make the widgets."""
        import ipywidgets

        cancel = ipywidgets.Button(
            description="Cancel",
            tooltip="Cancel what has not begun and end what runs",
            layout=ipywidgets.Layout(width="7em"),
        )

        def pressed(_: Any) -> None:
            cancel.disabled = True
            cancel.description = "Cancelling"
            self._run.cancel()

        cancel.on_click(pressed)
        choices, text = self.logs.make()
        return ipywidgets.HBox([cancel, *choices]), text
