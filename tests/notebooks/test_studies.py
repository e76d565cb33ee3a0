"""A study from a real notebook kernel: what a cell shows while it measures, and afterwards."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kernel import Notebook, wait_until


@pytest.fixture
def notebook(tmp_path: Path) -> Iterator[Notebook]:
    notebook = Notebook(tmp_path)
    yield notebook
    notebook.close()


def shown(notebook: Notebook, code: str) -> list[dict[str, Any]]:
    """Displays of a cell, in their order, as a page gets them."""
    messages = notebook.outputs(notebook.start(code))
    assert not [message for message in messages if message["msg_type"] in ("error", "stream")]
    kinds = ("display_data", "update_display_data", "execute_result")
    return [message for message in messages if message["msg_type"] in kinds]


def test_a_study_has_one_line_while_it_measures_and_its_table(notebook: Notebook) -> None:
    displays = shown(
        notebook,
        """
        import time
        from mgpu_nb import speedup
        speedup(time.sleep, [0.05] * 8, slots=[1, 2], repeats=3)
        """,
    )
    first, *updates, table = displays
    assert table["msg_type"] == "execute_result"
    assert "95 % interval" in table["content"]["data"]["text/html"]
    assert first["msg_type"] == "display_data"
    assert {message["msg_type"] for message in updates} == {"update_display_data"}
    ids = {message["content"]["transient"]["display_id"] for message in (first, *updates)}
    assert len(ids) == 1  # no panel for any of its runs
    last = updates[-1]["content"]["data"]
    assert re.match(r"speed-up study: 6 runs in \d+:\d\d", last["text/plain"])
    assert 'role="img"' in updates[0]["content"]["data"]["text/html"]
    assert 'role="img"' not in last["text/html"]


def test_a_study_can_be_silent(notebook: Notebook) -> None:
    displays = shown(
        notebook,
        "from mgpu_nb import speedup; speedup(abs, [1, 2], slots=[1, 2], repeats=1, progress=False)",
    )
    assert [message["msg_type"] for message in displays] == ["execute_result"]


def test_an_interrupt_cancels_what_runs_and_shows_what_was_measured(notebook: Notebook) -> None:
    notebook.run("import time, pathlib; from mgpu_nb import speedup")
    cell = notebook.start("""
        def work(folder):
            mark = pathlib.Path(folder) / "warm"
            if mark.exists():
                (pathlib.Path(folder) / "measured").touch()
                time.sleep(600)
            mark.touch()
        speedup(work, [str(pathlib.Path().absolute())], slots=[1, 2], repeats=3)
    """)
    wait_until((notebook.folder / "measured").exists)
    notebook.manager.interrupt_kernel()
    assert "the study was interrupted" in notebook.finish(cell)
    wait_until(lambda: len(notebook.descendants()) <= 1)
