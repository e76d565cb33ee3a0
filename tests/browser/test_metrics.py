"""Curves of metrics in the panel of any run, in a real JupyterLab: live, on a narrow page, in what is saved."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from lab import NotebookPage

if TYPE_CHECKING:
    from playwright.sync_api import Page

SETUP = """
import os, tempfile, time
from mgpu_nb import GPUPool, Task, worker
folder = tempfile.mkdtemp()
def fit(lr, path):
    for step in range(40):
        worker().report(step=step, loss=lr + 1 / (1 + step), acc=1 - 1 / (1 + lr * step), progress=step / 40)
        time.sleep(0.02)
    while not os.path.exists(path): time.sleep(0.01)
pool = GPUPool(slots=3)
_ = [pool.submit(abs, i).result() for i in range(4)]
"""
RUN = """
tasks = [Task(fit, lr, folder + "/go", name=f"lr={lr} <b>") for lr in (0.1, 0.2, 0.4)]
run = pool.run(tasks, folder=folder + "/run", name="sweep")
run
"""
PANEL = ".jp-OutputArea-output .mgpu"
SVG = f"[...document.querySelectorAll({PANEL + ' svg'!r})]"
# A copy is hidden, for the saved notebook.
SEEN = "filter(e => e.closest('svg').checkVisibility())"
LINES = f"() => [...document.querySelectorAll({PANEL + ' svg path + path'!r})].{SEEN}.length"


def test_any_run_shows_the_curves_of_its_metrics(
    open_notebook: Callable[..., NotebookPage], screenshot: Callable[["Page", str], None]
) -> None:
    book = open_notebook(
        "metrics.ipynb", [SETUP, RUN, "open(folder + '/go', 'w').close(); _ = run.wait(30)"], 700
    )
    book.run_cell(0)
    book.idle()
    book.run_cell(1)
    book.page.wait_for_function(f"{LINES} == 6", timeout=60_000)
    book.page.wait_for_function(
        f"() => [...document.querySelectorAll({PANEL!r})].some(e => e.innerText.includes('step 0 to 39'))",
        timeout=60_000,
    )
    assert book.page.locator(f"{PANEL} b b").count() == 0  # the names of tasks are no markup
    wide = book.page.evaluate(f"() => Math.max(...{SVG}.map(e => e.getBoundingClientRect().right))")
    assert wide <= 700
    screenshot(book.page, "metrics-live")
    book.run_cell(2)
    book.page.wait_for_selector(".jp-OutputArea-output .widget-html", state="detached", timeout=60_000)
    screenshot(book.page, "metrics-ended")
    saved = book.save()
    html = saved.cells[1].outputs[0].data["text/html"]
    assert "last loss" in html
    assert "last acc" in html
    assert "▁" in html
