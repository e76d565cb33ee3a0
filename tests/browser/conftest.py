"""A JupyterLab for the tests of a module, a page for each."""

from pathlib import Path

import pytest
from lab import CHROMIUM, Lab, NotebookPage

SCREENSHOTS = Path(__file__).parents[2] / ".ci" / "artefacts"

collect_ignore_glob = []
try:
    from playwright.sync_api import sync_playwright
except ImportError:
    sync_playwright = None


def pytest_collection_modifyitems(items):
    reason = "" if CHROMIUM and sync_playwright else "no Chromium here: apt-get install chromium"
    for item in items:
        if reason and Path(__file__).parent in Path(item.fspath).parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def open_notebook(lab, browser):
    """Opens a notebook in a page of its own; its kernel ends with the test."""
    pages = []

    def open_(name, cells, width=1280):
        lab.notebook(name, cells)
        page = browser.new_page(viewport={"width": width, "height": 900})
        pages.append(page)
        return NotebookPage(lab, page, name)

    yield open_
    for page in pages:
        page.close()
    lab.stop_kernels()


@pytest.fixture
def screenshot():
    def take(page, name):
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"{name}.png")

    return take


@pytest.fixture(autouse=True)
def nothing_left():
    """Lab and browser outlive a test; `Lab.close` ends them all."""
