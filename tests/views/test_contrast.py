"""Colours can be told from the page, light or dark, and texts be read on it."""

import ast
import re
from pathlib import Path
from typing import Any

import contrast
import matplotlib as mpl
import matplotlib.pyplot as plt
import matplotlib_inline.backend_inline as inline
import numpy as np
import pytest
from contrast import PAGES, TEXT, least, over, rgb
from matplotlib.colors import to_rgba

import mgpu_nb
from mgpu_nb.tables import ERROR, LINE, SHARE, STYLE
from mgpu_nb.views import markup, palette
from mgpu_nb.views.palette import drawing

PACKAGE = Path(mgpu_nb.__file__).parent


def test_pieces_of_bars_stand_out_from_both_pages() -> None:
    pieces = (
        markup.OURS,
        markup.OTHERS,
        markup.DONE,
        markup.FAILED,
        markup.RUNNING,
        markup.CANCELLED,
    )
    assert least(*pieces, "#808080") >= 3  # the last is the bar's edge
    assert len({*pieces[2:]}) == 4


def test_lines_and_texts_of_pictures_stand_out_from_both_pages() -> None:
    assert least(*palette.COLOURS, palette.FAILURE, palette.NEUTRAL) >= 3
    assert least(palette.INK) >= 4.3
    assert least(*palette._TICKS.values()) >= 3.9


@pytest.mark.slow
def test_every_colour_of_the_package_stands_out_from_both_pages() -> None:
    written = {
        (file.relative_to(PACKAGE).as_posix(), colour)
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for colour in re.findall(r"#[0-9A-Fa-f]{6}\b", node.value)
    }
    assert written
    assert {
        (file, c): round(least(c), 2) for file, c in written if c not in (ERROR, LINE) and least(c) < 3
    } == {}


@pytest.mark.slow
def test_no_picture_has_a_look_of_its_own() -> None:
    own = {}
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text())
        calls = [
            n
            for n in ast.walk(tree)
            if isinstance(n, ast.Call) and ast.unparse(n.func) in ("plt.subplots", "plt.figure")
        ]
        styled = {
            inner
            for block in ast.walk(tree)
            if isinstance(block, ast.With) and ast.unparse(block.items[0].context_expr) == "style()"
            for inner in ast.walk(block)
        }
        if wrong := [n.lineno for n in calls if n not in styled]:
            own[file.relative_to(PACKAGE).as_posix()] = wrong
    assert own == {}


@pytest.mark.parametrize("theme", PAGES)
def test_texts_of_tables_and_panels_can_be_read(theme: str) -> None:
    page, (text, alpha) = PAGES[theme], TEXT[theme]
    seen = {"text": over(rgb(text), alpha, page), "secondary": over(rgb(text), 0.75 * alpha, page)}
    share = SHARE / 100
    for name, colour in {"error": ERROR, "sparkline": LINE}.items():
        # color-mix in srgb: colours weighted by their opacity.
        opacity = share * alpha + 1 - share
        mixed = tuple(
            (share * alpha * t + (1 - share) * c) / opacity
            for t, c in zip(rgb(text), rgb(colour), strict=True)
        )
        seen[name] = over(mixed, opacity, page)
    found = {name: contrast.contrast(colour, rgb(page)) for name, colour in seen.items()}
    assert min(found.values()) >= 4.5, found
    # No colour is given to a text but these two, each mixed with the page's own.
    assert set(re.findall(r"#[0-9A-Fa-f]{6}", STYLE)) == {ERROR, LINE}
    assert STYLE.count(f"currentColor {SHARE}%") == 2


def test_a_new_picture_shows_the_page_and_one_given_keeps_its_style() -> None:
    with drawing(None) as ax:
        assert ax.plot([0, 1])[0].get_color() == palette.COLOURS[0]
        text = ax.text(0, 0, "text")
    assert to_rgba(ax.figure.get_facecolor())[3] == to_rgba(ax.get_facecolor())[3] == 0
    assert text.get_color() == ax.xaxis.label.get_color() == palette.INK
    assert not ax.spines["top"].get_visible()
    # None: no slab of another colour is put behind it.
    metadata: Any = inline._fetch_figure_metadata
    assert metadata(ax.figure) is None
    plt.close("all")
    assert mpl.rcParams["figure.facecolor"] == "white"
    with palette.style():
        mpl.rcParams["interactive"] = True  # as a notebook's back end does when the first figure loads it
    assert mpl.rcParams["interactive"]
    mpl.rcParams["interactive"] = False
    _, mine = plt.subplots()
    with drawing(mine) as ax:
        assert ax is mine
        assert ax.figure.get_facecolor() == (1, 1, 1, 1)
    plt.close("all")


def test_colours_of_lines_are_apart_with_any_colour_vision() -> None:
    # Machado, Oliveira and Fernandes (2009), full deuteranopia and protanopia.
    sights: list[Any] = [np.eye(3)]
    sights.append(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    )
    sights.append(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    )
    for sight in map(np.array, sights):
        seen = [_oklab(sight @ _linear(colour)) for colour in palette.COLOURS]
        apart = [np.linalg.norm(a - b) for n, a in enumerate(seen) for b in seen[:n]]
        assert min(apart) > 0.07


def _linear(colour: str) -> Any:
    values = np.array(rgb(colour))
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _oklab(linear: Any) -> Any:
    """Ottosson's space, in which distances are as seen; 0.02 is just noticed."""
    lms = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return lab @ np.cbrt(lms @ np.clip(linear, 0, 1))
