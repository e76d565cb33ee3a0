"""Live output of a cell: one HTML widget, updated from the sampler's thread, replaced by static HTML at the end.

A panel changes nothing in the notebook but the value of its widget. When it stops, a static output replaces the
widget, so that the saved notebook, GitHub and a restarted notebook kernel show the last state.
"""

from __future__ import annotations

import threading
import time
import uuid
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from ..notebook import answer_while_busy, cell, has_widgets
from ..telemetry import sampler
from ..telemetry.samples import Snapshot

__all__ = ["Panel", "displayed"]

MOST_OFTEN = 0.5  # seconds between two updates
FIRST_SNAPSHOT, MOST_SELDOM = 2.0, 60.0  # seconds between two snapshots that are saved with the notebook
MOST_TEXT = 10_000  # characters


class _Shown(NamedTuple):
    """A panel and what it shows. Both may be gone: an output that is static keeps no values in memory."""

    panel: weakref.ref[Panel]
    subject: weakref.ref[Any]


_of_cells: dict[str, tuple[str, list[_Shown]]] = {}  # by cell: its last execution and what it showed
_lock = threading.Lock()


def displayed(subject: object) -> Literal["here", "elsewhere", ""]:
    """Where a panel shows something: in this execution of the running cell, live in another cell, or nowhere."""
    _, now = cell()
    # Without the lock, which an interrupt of the main thread could leave locked: lists are replaced and never changed.
    shown = [(execution, each) for execution, all_ in _of_cells.copy().values() for each in all_]
    shown = [(execution, each) for execution, each in shown if each.subject() is subject]
    if any(execution == now for execution, _ in shown):
        return "here"
    live = [panel for _, each in shown if (panel := each.panel()) is not None and not panel.closed]
    return "elsewhere" if live else ""


class Panel:
    """A view that is updated while it is displayed.

    Parameters
    ----------
    render
        HTML of the panel; called with whether it is live.
    ended
        Whether no further update will come.
    left
        HTML that stands below the last snapshot of it where the notebook kernel is gone.
    controls
        Function that makes the widgets below it.
    subject
        What it shows, for `displayed`.
    described
        It as text, for pages that show no HTML; by default the subject's repr.
    """

    def __init__(
        self,
        render: Callable[[bool], str],
        ended: Callable[[], bool],
        left: str,
        controls: Callable[[], Sequence[Any]] = tuple,
        subject: object = None,
        described: Callable[[], str] | None = None,
    ) -> None:
        self.subject = self if subject is None else subject
        self._described = described
        self._pause = FIRST_SNAPSHOT / 2
        self._render = render
        self._ended = ended
        self._left = left
        self._controls = controls
        self._widget: Any = None
        self._html: Any = None
        self._shot = 0.0
        self._display_id = uuid.uuid4().hex
        self._shown = ""
        self._moved = 0.0
        self._closed = False
        # The sampler's thread draws, others close it: what is closed must not be drawn over.
        self._drawing = threading.RLock()
        self.frames = 0
        """Updates sent."""

    def show(self) -> None:
        """Display it in the running cell. A panel that an earlier execution of the cell showed is closed."""
        from IPython.display import display

        _take_over(self)
        if self._ended():
            self._closed = True
            display(self._bundle(self._render(False)), raw=True)
            return
        if has_widgets():
            self._make()
            view = {"version_major": 2, "version_minor": 0, "model_id": self._widget.model_id}
            bundle = {"application/vnd.jupyter.widget-view+json": view, "text/plain": self._text()}
            display(bundle, raw=True, display_id=self._display_id)
            display(self._bundle(self._snapshot()), raw=True, display_id=self._display_id + "-left")
        else:  # nbconvert, papermill: live updates would not be seen
            display(self._bundle(self._render(False)), raw=True, display_id=self._display_id)
        sampler.shared.listen(self._tick)

    def _make(self) -> None:
        import ipywidgets

        self._shown = self._render(True) + self._hides_snapshot
        wide = ipywidgets.Layout(width="100%", overflow="auto")
        self._html = ipywidgets.HTML(self._shown, layout=wide)
        self._widget = ipywidgets.VBox([self._html, *self._controls()])
        for widget in _all(self._widget):
            answer_while_busy(widget)

    def _tick(self, _: Snapshot) -> None:
        if self._ended():
            self.close()
            return
        now = time.monotonic()
        if self._html is None or now - self._moved < 0.9 * MOST_OFTEN:
            return
        with self._drawing:
            if not self._closed:
                self._draw(now)

    def _draw(self, now: float) -> None:
        shown = self._render(True) + self._hides_snapshot
        if shown != self._shown:
            self._html.value = self._shown = shown
            self._moved = now
            self.frames += 1
        if now >= self._shot:
            self._shoot(now)

    # What is left of a live panel in a notebook that is saved now, and opened without this notebook kernel.

    @property
    def _hides_snapshot(self) -> str:
        """Style that hides the snapshot for as long as the widget is there."""
        return f"<style>.mgpu-left-{self._display_id}{{display:none}}</style>"

    def _snapshot(self) -> str:
        """The last state, and how to see more."""
        return f'<div class="mgpu-left-{self._display_id}">{self._render(False)}{self._left}</div>'

    def _shoot(self, now: float) -> None:
        """Renew the snapshot: at first soon, then ever more seldom, for each time the notebook counts as changed."""
        from IPython.display import update_display

        self._pause = min(MOST_SELDOM, 2 * self._pause)
        self._shot = now + self._pause
        update_display(self._bundle(self._snapshot()), raw=True, display_id=self._display_id + "-left")

    def _text(self) -> str:
        text = repr(self.subject) if self._described is None else self._described()
        return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 1] + "…"

    def _bundle(self, html: str) -> dict[str, str]:
        return {"text/html": html, "text/plain": self._text()}

    @property
    def closed(self) -> bool:
        """Whether no further update will come."""
        return self._closed

    def close(self) -> None:
        """Stop updating; the last state stays as a static output."""
        from IPython.display import HTML, update_display

        with self._drawing:
            first = self._stop()
            if (
                first or self._widget is None
            ):  # nbconvert records only the output of the running cell: repeat it
                update_display(self._bundle(self._render(False)), raw=True, display_id=self._display_id)
            if first and self._widget is not None:
                update_display(HTML(""), display_id=self._display_id + "-left")
                self._discard()

    def abandon(self) -> None:
        """Stop updating, after its output was removed."""
        with self._drawing:
            if self._stop():
                self._discard()

    def _stop(self) -> bool:
        with _lock:
            first, self._closed = not self._closed, True
        sampler.shared.leave(self._tick)
        return first

    def _discard(self) -> None:
        if self._widget is not None:
            for widget in _all(self._widget):
                widget.close()


def _all(widget: Any) -> list[Any]:
    """A widget and those in it."""
    return [*(each for child in getattr(widget, "children", ()) for each in _all(child)), widget]


def _take_over(panel: Panel) -> None:
    """Abandon the panels of the cell's earlier execution, whose output is gone."""
    here, execution = cell()
    new = _Shown(weakref.ref(panel), weakref.ref(panel.subject))
    with _lock:
        last, shown = _of_cells.get(here, ("", []))
        _of_cells[here] = (execution, [*shown, new] if last == execution else [new])
    for before in shown if last != execution else ():
        if (old := before.panel()) is not None:
            old.abandon()
