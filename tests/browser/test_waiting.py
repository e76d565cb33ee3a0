"""Cells that wait, in a real JupyterLab: their panel, its logs and its button while they wait, and how it ends."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lab import NotebookPage

if TYPE_CHECKING:
    from playwright.sync_api import Page

PANEL = ".jp-OutputArea-output .mgpu"
SETUP = """
import os, time
from mgpu_nb import GPUPool, Task
def until(path):
    print("waits for", path)
    while not os.path.exists(path): time.sleep(0.01)
pool = GPUPool(slots=2)
_ = [pool.submit(abs, i).result() for i in range(4)]
"""
START = "run = pool.run([Task(until, 'go', name=f't{i}') for i in range(6)], folder='run', name='six')\n"


def js_text(part: str) -> str:
    return f"() => [...document.querySelectorAll({PANEL!r})].some(e => e.innerText.includes({part!r}))"


def moved(folder: Path) -> str:
    return f"import os\nos.chdir({str(folder)!r})\n{SETUP}"


def choose_log(book: NotebookPage, task: str) -> None:
    options = (
        f"() => [...document.querySelectorAll('.widget-dropdown option')].some(o => o.label === {task!r})"
    )
    book.page.wait_for_function(options, timeout=60_000)
    book.page.locator(".widget-dropdown select").select_option(label=task)


def test_a_waiting_cell_shows_the_run_and_its_log_and_leaves_both(
    tmp_path: Path, open_notebook: Callable[..., NotebookPage], screenshot: Callable[["Page", str], None]
) -> None:
    cell = START + "run.wait(60)\nprint('after the wait')\nrun"
    book = open_notebook("waits.ipynb", [moved(tmp_path), cell])
    book.run_cell(0)
    book.idle()
    book.run_cell(1)
    book.page.wait_for_function(js_text("2 running"), timeout=60_000)
    choose_log(book, "t0")  # while the cell waits
    book.page.wait_for_function(js_text("waits for"), timeout=60_000)
    screenshot(book.page, "waiting-live")
    with (tmp_path / "run" / "logs" / "00000-t0.log").open("a") as log:
        log.write("".join(f"line {n}\n" for n in range(100)) + " 1%\r99%")
    book.page.wait_for_function(js_text("99%"), timeout=60_000)  # it follows
    at_its_end = (
        f"() => [...document.querySelectorAll({PANEL!r} + ' div')].some(e => e.scrollTop === 0"
        " && getComputedStyle(e).flexDirection === 'column-reverse' && e.scrollHeight > e.clientHeight)"
    )
    assert book.page.evaluate(at_its_end)
    (tmp_path / "go").touch()
    book.page.wait_for_function(js_text("6 of 6 done"), timeout=60_000)
    book.idle()
    book.page.wait_for_selector(".jp-OutputArea-output .widget-html", state="detached", timeout=60_000)
    assert book.page.locator(f"{PANEL}", has_text="6 of 6 done").count() == 1
    screenshot(book.page, "waiting-ended")
    saved = book.save()
    outputs = saved.cells[1].outputs
    assert "99%" in outputs[0].data["text/html"]
    assert not any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in outputs)
    assert outputs[-1].text == "after the wait\n"


def test_a_waiting_cell_is_cancelled_by_its_button(
    tmp_path: Path, open_notebook: Callable[..., NotebookPage]
) -> None:
    book = open_notebook("waits-cancel.ipynb", [moved(tmp_path), START + "values = run.wait(60)"])
    book.run_all()
    book.page.wait_for_function(js_text("2 running"), timeout=60_000)
    book.page.get_by_role("button", name="Cancel", exact=True).click()
    book.page.wait_for_function(js_text("6 cancelled"), timeout=60_000)
    book.idle()


def test_a_run_that_is_shown_elsewhere_is_a_line_in_the_cell_that_waits(
    tmp_path: Path, open_notebook: Callable[..., NotebookPage], screenshot: Callable[["Page", str], None]
) -> None:
    book = open_notebook(
        "waits-line.ipynb", [moved(tmp_path), START + "run", "values = run.results(60, stream=True)"]
    )
    book.run_all()
    book.page.wait_for_function(js_text("2 running"), timeout=60_000)
    book.page.wait_for_function(js_text("0 of 6 done, 2 running"), timeout=60_000)
    screenshot(book.page, "waiting-line")
    assert book.page.locator(".widget-dropdown").count() == 1
    book.page.wait_for_function(
        "() => document.querySelector('.jp-Notebook').innerText.includes('t0 | waits for')", timeout=60_000
    )
    (tmp_path / "go").touch()
    book.page.wait_for_function(js_text("6 of 6 done, 6 ok"), timeout=60_000)
    book.idle()
