"""A JupyterLab for the tests of a module, a page for each."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lab import CHROMIUM, Lab, NotebookPage

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SCREENSHOTS = Path(__file__).parents[2] / ".ci" / "artefacts"

PLAYWRIGHT = importlib.util.find_spec("playwright") is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = "" if CHROMIUM and PLAYWRIGHT else "no Chromium here: apt-get install chromium"
    for item in items:
        if reason and item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def open_notebook(lab: Lab, browser: "Browser") -> Iterator[Callable[..., NotebookPage]]:
    """Opens a notebook in a page of its own; its kernel ends with the test."""
    pages = []

    def open_(name: str, cells: list[str], width: int = 1280) -> NotebookPage:
        lab.notebook(name, cells)
        page = browser.new_page(viewport={"width": width, "height": 900})
        pages.append(page)
        return NotebookPage(lab, page, name)

    yield open_
    for page in pages:
        page.close()
    lab.stop_kernels()


@pytest.fixture
def screenshot() -> Callable[["Page", str], None]:
    def take(page: "Page", name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"{name}.png")

    return take


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """Lab and browser outlive a test; `Lab.close` ends them all."""
