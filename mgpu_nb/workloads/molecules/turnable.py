"""Molecules in 3D that can be turned, with a picture of them wherever no script runs."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...tables import Html, block, escape, line
from ...views.palette import FAILURE, INK
from .bonds import bond_orders, unmet
from .molecule import NUMBERS, Molecule
from .views import ELEMENTS, draw_molecules, widest

__all__ = ["MOST_SHOWN", "ShownMolecules", "show_molecules"]

MOST_SHOWN = 24
"""Molecules that are shown at most: each takes a share of the browser's memory for graphics."""
_CELL = 190  # pixels
_SYMBOLS = {number: symbol for symbol, number in NUMBERS.items()}
_counter = itertools.count(1)

# The picture is there at first, and stays where 3Dmol.js does not come or cannot draw: offline, in a notebook that is
# not trusted, on a page without scripts. The viewer has its size from the start, or it would be drawn with none.
_SWITCH = """<script>
(function () {
  var tries = 0, timer = setInterval(function () {
    var viewer = document.getElementById("%(id)s-viewer"), picture = document.getElementById("%(id)s-picture");
    if (!viewer || !picture || ++tries > 300) { clearInterval(timer); return; }
    if (viewer.querySelector("canvas")) {
      clearInterval(timer);
      viewer.style.height = "auto";
      picture.style.display = "none";
    }
  }, 100);
})();
</script>"""


def show_molecules(
    molecules: Sequence[Molecule], columns: int = 4, titles: Sequence[str] | None = None
) -> ShownMolecules:
    """Show molecules beside each other: in a notebook to be turned and zoomed by the mouse, each by itself.

    Needs py3Dmol, whose script a browser fetches from the network. Without either the picture of `draw_molecules` is
    shown, which is also what is seen where a notebook is only read.

    Parameters
    ----------
    molecules
        At least one; of more than `MOST_SHOWN` the first are shown.
    columns
        Molecules per row at most.
    titles
        A text for each; none by default.

    Raises
    ------
    ValueError
        If there is no molecule, columns is below 1, or there are not as many titles as molecules.
    """
    if titles is not None and len(titles) != len(molecules):
        raise ValueError(f"titles must be one for each of {len(molecules)} molecules, got {len(titles)}")
    return ShownMolecules(molecules, columns, titles)


class ShownMolecules:
    """What `show_molecules` displays: HTML, and a picture for what shows no HTML."""

    def __init__(self, molecules: Sequence[Molecule], columns: int, titles: Sequence[str] | None) -> None:
        self.molecules = list(molecules[:MOST_SHOWN])
        self.titles = None if titles is None else list(titles[:MOST_SHOWN])
        self.columns = columns
        self.left_out = len(molecules) - len(self.molecules)
        file = io.BytesIO()
        figure = draw_molecules(self.molecules, columns, self.titles)
        figure.savefig(file, format="png", dpi=100, metadata={"Software": None})
        self.picture = _few_colours(file)

    def __repr__(self) -> str:
        return f"{len(self.molecules)} molecules" + (
            f", {self.left_out} more are not shown" if self.left_out else ""
        )

    def _repr_html_(self) -> str:
        image = base64.b64encode(self.picture).decode()
        words = "; ".join(self.titles or [repr(self)])
        more = [line(f"{self.left_out} more are not shown", "q")] if self.left_out else []
        shown = f'<img alt="{escape(words, 400)}" src="data:image/png;base64,{image}" style="max-width:100%">'
        if importlib.util.find_spec("py3Dmol") is None:
            return block(Html(shown), *more)
        mark = f"mgpu-{hashlib.sha256(self.picture).hexdigest()[:12]}-{next(_counter)}"
        return block(
            Html(f'<div id="{mark}-picture">{shown}</div>'),
            Html(
                f'<div id="{mark}-viewer" style="height:0;overflow:hidden">{self._viewer(mark)}{self._key()}</div>'
            ),
            Html(_SWITCH % {"id": mark}),
            *more,
        )

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {"text/html": self._repr_html_(), "image/png": self.picture, "text/plain": repr(self)}

    def _key(self) -> Html:
        present = {n for molecule in self.molecules for n in molecule.numbers.tolist()}
        dot = '<span style="color:{}">●</span> {}'
        parts = [
            dot.format(colour, symbol) for symbol, colour in ELEMENTS.items() if NUMBERS[symbol] in present
        ]
        if any(unmet(molecule).any() for molecule in self.molecules):
            parts.append(dot.format(FAILURE, "around: valence not met"))
        return Html(f"<div>{' &nbsp; '.join(parts)} &nbsp; drag: turn, scroll: zoom</div>")

    def _viewer(self, mark: str) -> str:
        """The viewers, all in one canvas."""
        import py3Dmol

        columns = min(self.columns, len(self.molecules))
        rows = math.ceil(len(self.molecules) / columns)
        view = py3Dmol.view(
            width=columns * _CELL, height=rows * _CELL, viewergrid=(rows, columns), linked=False
        )
        view.setBackgroundColor("white", 0)  # the page's own
        for n, molecule in enumerate(self.molecules):
            at = divmod(n, columns)
            view.addModel(_mol_block(molecule), "sdf", viewer=at)
            for symbol, colour in ELEMENTS.items():
                sphere = {"scale": 0.25, "color": colour}
                view.setStyle(
                    {"elem": symbol},
                    {"stick": {"radius": 0.12, "color": colour}, "sphere": sphere},
                    viewer=at,
                )
            if self.titles is not None:
                view.addLabel(_label(self.titles[n]), _LABEL, viewer=at)
            for x, y, z in widest(molecule.positions)[unmet(molecule)].tolist():
                ball = {
                    "center": {"x": x, "y": y, "z": z},
                    "radius": 0.5,
                    "color": FAILURE,
                    "wireframe": True,
                    "linewidth": 1,
                }
                view.addSphere(ball, viewer=at)
            view.zoomTo(viewer=at)
            view.zoom(1.3, viewer=at)
        html = str(view.write_html())
        return html.replace(str(view.uniqueid), mark.replace("-", "_"))


def _few_colours(file: io.BytesIO) -> bytes:
    """The same PNG with a palette, a quarter of its size: a notebook holds it twice, within HTML and beside it."""
    from PIL import Image

    small = io.BytesIO()
    with Image.open(file) as picture:
        picture.quantize(64, method=Image.Quantize.FASTOCTREE).save(small, "png", optimize=True)
    return small.getvalue()


_LABEL = {
    "useScreen": True,
    "position": {"x": 4, "y": 0, "z": 0},
    "fontSize": 12,
    "fontColor": INK,
    "showBackground": False,
}


def _label(text: str) -> str:
    """A text without what would end the script that it is written in."""
    return text.replace("<", "‹").replace(">", "›")


def _mol_block(molecule: Molecule) -> str:
    """The molecule as `widest` turns it, as an MDL mol block: with the bonds of `bond_orders`, so none are guessed."""
    orders = np.triu(bond_orders(molecule))
    bonds = np.argwhere(orders).tolist()
    lines = ["", "", "", f"{len(molecule.numbers):3d}{len(bonds):3d}  0  0  0  0  0  0  0  0999 V2000"]
    for number, (x, y, z) in zip(molecule.numbers.tolist(), widest(molecule.positions).tolist(), strict=True):
        lines.append(f"{x:10.4f}{y:10.4f}{z:10.4f} {_SYMBOLS[number]:<3} 0  0  0  0  0  0  0  0  0  0  0  0")
    lines += [f"{i + 1:3d}{j + 1:3d}{orders[i, j]:3d}  0" for i, j in bonds]
    return "\n".join([*lines, "M  END", ""])
