"""Which cell runs, whatever the front end tells of it."""

from types import SimpleNamespace
from typing import Any

import pytest

from mgpu_nb import notebook


def kernel(request: dict[str, Any]) -> SimpleNamespace:
    return SimpleNamespace(get_parent=lambda: request, shell=SimpleNamespace(execution_count=7))


def request(execution: str, code: str, **metadata: str) -> dict[str, Any]:
    return {"header": {"msg_id": execution}, "metadata": metadata, "content": {"code": code}}


def cell_of(monkeypatch: pytest.MonkeyPatch, message: dict[str, Any]) -> tuple[str, str]:
    monkeypatch.setattr(notebook, "_kernel", lambda: kernel(message))
    assert notebook.cell_number() == 7
    return notebook.cell()


def test_a_front_end_that_names_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cell_of(monkeypatch, request("e1", "x", cellId="c")) == ("c", "e1")
    assert cell_of(monkeypatch, request("e2", "edited", cellId="c")) == ("c", "e2")


def test_a_front_end_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    first, again = (cell_of(monkeypatch, request(execution, "run = 1")) for execution in ("e1", "e2"))
    assert first[0] == again[0] != cell_of(monkeypatch, request("e3", "run = 2"))[0]
    assert (first[1], again[1]) == ("e1", "e2")
    assert cell_of(monkeypatch, {"header": {"msg_id": "e"}}) == ("e", "e")


def test_outside_a_notebook() -> None:
    assert notebook.cell() == ("", "")
    assert notebook.cell_number() is None
    called: list[int] = []
    notebook.after_cell(lambda: called.append(1))
    assert called == [1]
