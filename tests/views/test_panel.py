"""A live panel, which several threads draw and close."""

import threading
import time
from typing import Any

import pytest

from mgpu_nb.telemetry.samples import Snapshot
from mgpu_nb.views.panel import Panel


def test_a_panel_that_is_closed_while_it_is_drawn_stays_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, Any]] = []
    monkeypatch.setattr(
        "IPython.display.update_display", lambda content, display_id, **_: sent.append((display_id, content))
    )
    drawing, go_on = threading.Event(), threading.Event()

    def render(live: bool) -> str:
        if not live and not drawing.is_set():  # the snapshot that is saved with the notebook
            drawing.set()
            assert go_on.wait(60)
        return "live" if live else "ended"

    panel = Panel(render, lambda: False, "left", described=lambda: "words")
    panel._make()
    sampler = threading.Thread(target=panel._tick, args=(Snapshot(at=time.time(), devices=(), workers=()),))
    closes = threading.Thread(target=panel.close)
    sampler.start()
    assert drawing.wait(60)
    closes.start()
    closes.join(0.2)  # without a lock it closes now, and is drawn over
    go_on.set()
    sampler.join(60)
    closes.join(60)
    last = dict(sent)
    assert last[panel._display_id]["text/html"] == "ended"
    assert last[panel._display_id + "-left"].data == ""
    panel._tick(Snapshot(at=time.time(), devices=(), workers=()))
    assert panel.frames == 0
