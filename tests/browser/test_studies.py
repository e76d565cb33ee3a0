"""A speed-up study in a real JupyterLab: a line while it measures, then its table and its picture."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from lab import NotebookPage

if TYPE_CHECKING:
    from playwright.sync_api import Page

SETUP = """
import pathlib, time
from mgpu_nb import speedup
def work(item):
    mark = pathlib.Path("measured")
    if item == 0 and mark.exists():
        while not pathlib.Path("go").exists(): time.sleep(0.01)
    mark.touch()
    time.sleep(0.05)
"""
STUDY = "study = speedup(work, range(4), slots=[1, 2], repeats=3); study"
PICTURE = "_ = study.plot(predict=[4, 8])"
OUTPUT = ".jp-OutputArea-output .mgpu"


def test_a_study_on_a_narrow_page(
    open_notebook: Callable[..., NotebookPage], screenshot: Callable[["Page", str], None]
) -> None:
    book = open_notebook("study.ipynb", [SETUP, STUDY, PICTURE], width=700)
    book.command("application:toggle-left-area")
    book.run_cell(0)
    book.idle()
    book.run_cell(1)
    book.page.wait_for_function(
        f"() => [...document.querySelectorAll({OUTPUT!r})].some(e => /repeat 1, 1 slot/.test(e.innerText))",
        timeout=60_000,
    )
    assert book.page.locator(OUTPUT).count() == 1  # a line, and no panel of any run
    assert book.page.locator(f"{OUTPUT} [role=img]").count() == 1
    screenshot(book.page, "study-measures")
    (book.lab.root / "go").touch()
    book.page.wait_for_selector(f"{OUTPUT} table", timeout=60_000)
    book.idle()
    line, table = book.page.locator(OUTPUT).all_inner_texts()
    assert re.fullmatch(r"speed-up study: 6 runs in 0:\d\d", line)
    assert "95 % interval" in table
    assert book.page.locator(f"{OUTPUT} [role=img]").count() == 0
    screenshot(book.page, "study-table")
    wide = book.page.evaluate(
        f"[...document.querySelectorAll({OUTPUT!r})].map(e => e.scrollWidth - e.clientWidth)"
    )
    assert max(wide) <= 1  # nothing is cut off
    book.run_cell(2)
    book.page.wait_for_selector(".jp-OutputArea-output img", timeout=60_000)
    screenshot(book.page, "study-ended")
