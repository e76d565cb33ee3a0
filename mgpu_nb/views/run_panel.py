"""The live panel of a run: `run_html` with a button that cancels and its logs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..notebook import answer_while_busy, answers_while_busy, in_notebook
from ..telemetry import sampler
from .activity import named
from .graph import MOST_NODES, graph_html
from .logs import LogBox, log_html
from .markup import Html, block, escape, line, shown_path
from .metrics import metrics_html
from .panel import Panel, displayed
from .run import PAST, ObservedRun, run_html, state_of

__all__ = ["show"]

FRAME = 9_900  # bytes of a frame while the run goes on
LOGS = 5  # of a run that has ended, folded below it
OTHERS = 5  # other runs that have a button


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
            controls.update()
        history = list(sampler.shared.history)[-PAST:] if not run.done else []
        shown: str = run_html(state_of(run, history), live=live)
        if len(run.after) <= MOST_NODES:
            shown += graph_html(run.after, run.states)
        charts, more = run.charts()
        left = FRAME - len(shown.encode()) if live else None
        shown += metrics_html(charts, live=live, budget=left, more=more)
        return shown if live else shown + controls.logs.html + (logs_html(run) if run.done else "")

    left = f"Run.open({str(run.folder)!r}) shows this run in another notebook."
    makes = controls.make if answers_while_busy() or not waits else tuple
    panel = Panel(render, lambda: run.done, block(line(left, "q")), makes, run, lambda: described(run))
    panel.show()
    run.when_done(panel.close)


def described(run: ObservedRun) -> str:
    """A run as text."""
    state = f", {run.state_words}" if run.state_words else ""
    return f"Run({run.name!r}: {run.progress}{state}; {shown_path(run.folder)!r})"


def logs_html(run: ObservedRun) -> Html:
    """Ends of the logs of the tasks that failed last, or ended last, folded: they are there when the run has ended."""
    chosen = list(run.failures[: -LOGS - 1 : -1]) + [record for record in run.records[-LOGS:] if record.log]
    names = list(dict.fromkeys(record.name for record in chosen if record.log))[:LOGS]
    logs = "".join(
        f"<details><summary>{escape(name, 60)}</summary>{log_html(run, name)}</details>" for name in names
    )
    if not logs:
        return Html("")
    more = (
        f" of {len(names)} of {len(run.tasks)} tasks, run.logs(name) has any"
        if len(run.tasks) > len(names)
        else ""
    )
    return block(Html(f'<details><summary class="q">logs{more}</summary>{logs}</details>'))


class _Controls:
    """The buttons that cancel, and the logs."""

    def __init__(self, run: ObservedRun) -> None:
        self._run = run
        self._others: Any = None
        self._buttons: dict[int, Any] = {}  # by the identity of the other run
        self.logs = LogBox(run)

    def make(self) -> Sequence[Any]:
        """Make the widgets."""
        import ipywidgets

        cancel = [_cancel_button(self._run, "Cancel", "7em")] if self._run.can_be_cancelled else []
        self._others = ipywidgets.HBox([])
        choices, text = self.logs.make()
        self.update()
        return ipywidgets.HBox([*cancel, *choices]), text, self._others

    def update(self) -> None:
        """Show what is new in the logs, and the other runs."""
        self.logs.update()
        if self._others is not None:
            self._update_others()

    def _update_others(self) -> None:
        """A button for each other run that has slots of this pool, or that an earlier execution of the cell left."""
        others = {id(other): other for other in list(self._run.others)[:OTHERS]}
        if others.keys() == self._buttons.keys():
            return
        gone = [button for key, button in self._buttons.items() if key not in others]
        self._buttons = {
            key: self._buttons.get(key)
            or _cancel_button(other, f"Cancel {named(other.name, other.began)}", "auto")
            for key, other in others.items()
        }
        self._others.children = tuple(self._buttons.values())
        for button in gone:
            button.close()


def _cancel_button(run: ObservedRun, label: str, width: str) -> Any:
    import ipywidgets

    button = ipywidgets.Button(
        description=label,
        tooltip="Cancel what has not begun and end what runs",
        layout=ipywidgets.Layout(width=width),
    )
    answer_while_busy(button)

    def pressed(_: Any) -> None:
        button.disabled = True
        button.description = f"Cancelling{label.removeprefix('Cancel')}"
        run.cancel()

    button.on_click(pressed)
    return button
