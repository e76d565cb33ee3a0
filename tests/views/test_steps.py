"""The progress of a measurement: a line in a notebook, a bar in a terminal, else nothing."""

import io
import re
import time
from collections.abc import Mapping
from typing import Any

import pytest

from mgpu_nb.views import progress, waiting
from mgpu_nb.views.progress import steps


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Handle:
    """What IPython's display returns."""

    def __init__(self) -> None:
        self.shown: list[Mapping[str, str]] = []

    def update(self, bundle: Mapping[str, str], raw: bool) -> None:
        assert raw
        self.shown.append(bundle)


@pytest.fixture
def handle(monkeypatch: pytest.MonkeyPatch) -> Handle:
    """A notebook of which the output is kept."""
    import IPython.display

    kept = Handle()

    def display(bundle: Mapping[str, str], **options: Any) -> Handle:
        assert options == {"raw": True, "display_id": True}
        kept.shown.append(bundle)
        return kept

    monkeypatch.setattr(waiting, "in_notebook", lambda: True)
    monkeypatch.setattr(progress, "PERIOD", 0.0)
    monkeypatch.setattr(IPython.display, "display", display)
    return kept


def test_nothing_is_shown_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with steps("work") as shown:
        shown.update(0.5, "half")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("wanted", [None, True])
def test_a_terminal_has_a_bar_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wanted: bool | None
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(progress, "PERIOD", 0.0)
    with steps("work", wanted) as shown:
        shown.update(0.5, "half", 90.0)
        shown.update(0.75, "more", 10.0)
        shown.close("work: two things")
    said = terminal.getvalue()
    assert "50%|" in said
    assert "half, about 1:30 left" in said
    assert "75%|" in said
    assert re.search(r"work: two things in \d+:\d\d", said)
    assert capsys.readouterr().out == ""


def test_it_can_be_left_out(monkeypatch: pytest.MonkeyPatch, handle: Handle) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with steps("work", wanted=False) as shown:
        shown.update(0.5)
    assert (terminal.getvalue(), handle.shown) == ("", [])


def test_a_notebook_has_one_line_which_ends_static(handle: Handle) -> None:
    with steps("<work>") as shown:
        shown.update(0.25, "<i>one</i>", 60.0)
        assert handle.shown[-1]["text/plain"] == "<work>: 25%, <i>one</i>"
        assert "about 1:00 left" in handle.shown[-1]["text/html"]
        assert "&lt;i&gt;one" in handle.shown[-1]["text/html"]
        assert "<i>" not in handle.shown[-1]["text/html"]
        assert 'role="img"' in handle.shown[-1]["text/html"]
        shown.close("done")
        shown.update(0.5, "too late")
    assert re.fullmatch(r"done in \d+:\d\d", handle.shown[-1]["text/plain"])
    assert 'role="img"' not in handle.shown[-1]["text/html"]
    assert len(handle.shown) == 3


def test_work_that_fails_is_said_to_have_stopped(handle: Handle) -> None:
    def fail() -> None:
        with steps("work") as shown:
            shown.update(0.1)
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert handle.shown[-1]["text/plain"].startswith("work: stopped in ")


def test_the_time_left_follows_from_the_share(monkeypatch: pytest.MonkeyPatch, handle: Handle) -> None:
    with steps("work") as shown:
        monkeypatch.setattr(shown, "_began", time.monotonic() - 100)
        shown.update(0.1)
        assert "about 15:0" in handle.shown[-1]["text/html"]
