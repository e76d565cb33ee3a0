"""Colours and bars as Chromium draws them, on a light and on a dark page."""

from typing import TYPE_CHECKING

import pytest
from contrast import PAGES, TEXT, contrast

from mgpu_nb.tables import Table, block, line
from mgpu_nb.views.markup import DONE, stacked_bar, status_bar

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BARS = [
    status_bar(
        {"ok": 3, "error": 2, "timeout": 1, "cancelled": 1}, 9, "tasks", running=[0.17, None], width=320
    ),
    status_bar({"ok": 9_990, "error": 1}, 10_000, "one failed of many", running=[None] * 4),
    *(stacked_bar([(1, DONE)] * n, n, f"{n} parts") for n in (3, 7, 30, 199)),
]
# What a colour looks like on the page: the canvas mixes it in as the browser does.
SEEN = """page => [...document.querySelectorAll('.mgpu *')].filter(e => e.childNodes.length
    && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())).map(e => {
  const ink = document.createElement('canvas').getContext('2d');
  for (const colour of [page, getComputedStyle(e).color]) { ink.fillStyle = colour; ink.fillRect(0, 0, 1, 1); }
  return [e.textContent.trim().slice(0, 20), ...ink.getImageData(0, 0, 1, 1).data];
})"""
PIECES = """() => [...document.querySelectorAll('.mgpu [role=img]')].map(bar => {
  const whole = bar.getBoundingClientRect();
  const places = [...bar.children].map(piece => piece.getBoundingClientRect());
  return [whole.left, whole.right, whole.height, ...places.map(p => [p.left, p.right, p.top, p.bottom])];
})"""


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [700, 1400])
@pytest.mark.parametrize("theme", PAGES)
def test_texts_can_be_read_and_bars_stay_on_one_line(browser: "Browser", theme: str, width: int) -> None:
    page_colour, (text, alpha) = PAGES[theme], TEXT[theme]
    rows = [["a", "✗ error", 1, "▁▅█"]]
    table = Table([("name", ""), ("status", ""), ("n", "n"), ("past", "s")], rows, "t")
    html = block(line("first"), line("secondary", "q"), line("an error", "e"), *table.parts(), *BARS)
    ink = f"rgba({', '.join(str(int(text[i : i + 2], 16)) for i in (1, 3, 5))}, {alpha})"
    page = browser.new_page(viewport={"width": width, "height": 600})
    page.set_content(
        f"<!doctype html><body style='background:{page_colour};--jp-ui-font-color1:{ink}'>{html}</body>"
    )
    seen = page.evaluate(SEEN, page_colour)
    assert len(seen) >= 11
    background = tuple(int(page_colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    found = {words: contrast(tuple(c / 255 for c in colour[:3]), background) for words, *colour in seen}
    assert min(found.values()) >= 4.5, found
    for left, right, height, *pieces in page.evaluate(PIECES):
        assert height == 10
        assert all(left < p[0] < p[1] < right for p in pieces if p[0] < right)  # what is not seen is cut off
        assert len({round((top + bottom) / 2, 2) for _, _, top, bottom in pieces}) == 1
    page.close()
