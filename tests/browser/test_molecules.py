"""Molecules in a browser: the picture gives way to the viewer if its script comes, and else stays."""

from typing import TYPE_CHECKING

import numpy as np
import pytest

from mgpu_nb.workloads.molecules.molecule import Molecule
from mgpu_nb.workloads.molecules.turnable import show_molecules

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.browser, pytest.mark.slow]
pytest.importorskip("py3Dmol")

# Draws nothing, but has what py3Dmol calls, and puts a canvas where 3Dmol.js does.
STAND_IN = """
window.$3Dmol = {createViewerGrid: (at, grid) => {
  at.appendChild(document.createElement("canvas"));
  const viewer = new Proxy({}, {get: () => () => viewer});
  return Array.from({length: grid.rows}, () => Array(grid.cols).fill(viewer));
}};
"""


@pytest.mark.parametrize("comes", [True, False])
def test_the_viewer_replaces_the_picture_if_its_script_comes(browser: "Browser", comes: bool) -> None:
    water = Molecule(np.array([8, 1, 1]), np.array([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]))
    html = show_molecules([water] * 3, columns=2, titles=["a", "b", "c"])._repr_html_()
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.route(
        "**/*3Dmol*",
        lambda route: (
            route.fulfill(body=STAND_IN, content_type="application/javascript") if comes else route.abort()
        ),
    )
    try:
        page.set_content(f"<body>{html}</body>", wait_until="load")
        picture, viewer = page.locator("[id$=-picture]"), page.locator("[id$=-viewer]")
        if comes:
            picture.wait_for(state="hidden", timeout=60_000)
            assert viewer.evaluate("e => e.getBoundingClientRect().height") > 300
        else:
            page.wait_for_timeout(500)
            assert picture.locator("img").is_visible()
            assert viewer.evaluate("e => e.getBoundingClientRect().height") == 0
        assert not errors
    finally:
        page.close()
