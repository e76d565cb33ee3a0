"""Colours and axes of the pictures, for light and dark pages alike.

A picture has no background of its own: it shows the page's. All of its colours therefore have a contrast of at least 3
on white and on JupyterLab's dark page (#111), lines and markers as well as text. Text is a grey in the middle, with
the highest contrast that one colour can have on both, 4.3.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

__all__ = [
    "COLOURS",
    "FAILURE",
    "INK",
    "NEUTRAL",
    "colour_of",
    "drawing",
    "drawings",
    "literal",
    "plain_ticks",
    "save_picture",
    "style",
    "whole_ticks",
]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#9C78FC", "#786054", "#CC009C")
"""Colours of lines and bars, in this order; apart from each other with any colour vision, the first three the most."""

FAILURE = "#D55E00"
NEUTRAL = "#808080"
"""Colour of what is no result: references, ideals, what was cancelled."""

INK = "#797979"
"""Colour of text."""

# matplotlib's notebook back end puts a white slab behind a transparent picture in a dark theme, unless its tick labels
# are in part light, in part dark: these two greys stand on either side of its border.
_TICKS = {"xtick": INK, "ytick": "#808080"}

_STYLE: dict[Any, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": NEUTRAL,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "font.size": 10,
    "grid.color": NEUTRAL,
    "hatch.color": INK,
    "legend.fontsize": "small",
    "legend.frameon": False,
    "patch.edgecolor": NEUTRAL,
    "text.color": INK,
    "axes.labelcolor": INK,
    **{f"{axis}.{part}": colour for axis, colour in _TICKS.items() for part in ("color", "labelcolor")},
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Figures and axes made within the block have the look of all pictures of this package.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> with style():
    ...     figure, axes = plt.subplots(1, 3, layout="constrained")
    """
    import matplotlib as mpl
    from cycler import cycler

    # Not rc_context, which restores all: the first figure loads the back end, and a notebook's sets "interactive" then.
    before = {name: mpl.rcParams[name] for name in (*_STYLE, "axes.prop_cycle")}
    mpl.rcParams.update({**_STYLE, "axes.prop_cycle": cycler(color=COLOURS)})
    try:
        yield
    finally:
        mpl.rcParams.update(before)


@contextlib.contextmanager
def drawing(
    ax: Axes | None, size: tuple[float, float] = (7.0, 3.4), projection: str | None = None
) -> Iterator[Axes]:
    """Axes to draw on within the block: those given, with the style that they have, or new ones with ours.

    Parameters
    ----------
    ax
        Axes of the caller, or None.
    size
        Width and height of a new figure, inches.
    projection
        Projection of new axes.

    Examples
    --------
    >>> def picture(values, ax=None):
    ...     with drawing(ax) as ax:
    ...         ax.plot(values)
    ...     return ax
    """
    if ax is not None:
        yield ax
        return
    import matplotlib.pyplot as plt

    with style():
        figure = plt.figure(figsize=size, layout="constrained")
        yield figure.add_subplot(projection=projection)


def save_picture(draw: Callable[[Axes], object], path: Path, size: tuple[float, float] = (7.0, 3.4)) -> None:
    """Write a picture to a PNG file with our style, without a figure that a notebook would show.

    Parameters
    ----------
    draw
        What draws it on the axes that it is given.
    path
        The file.
    size
        Width and height, inches.
    """
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(path, format="png", dpi=150, metadata={"Software": None})


@contextlib.contextmanager
def drawings(
    axes: Sequence[Axes] | None, count: int, size: tuple[float, float], *, below: bool = False
) -> Iterator[Sequence[Axes]]:
    """Axes beside or below each other to draw on within the block: those given, or `count` new ones with our style."""
    if axes is not None:
        yield axes
        return
    import matplotlib.pyplot as plt

    with style():
        shape = (count, 1) if below else (1, count)
        yield list(plt.subplots(*shape, figsize=size, layout="constrained", squeeze=False)[1].flat)


def colour_of(place: int) -> str:
    """Colour of the `place`-th line or bar of a picture, from 0; the colours repeat after the last."""
    return COLOURS[place % len(COLOURS)]


def whole_ticks(axis: Axis) -> None:
    """Have the ticks of an axis at whole numbers: epochs, ranks, numbers of tasks."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def plain_ticks(axis: Axis) -> None:
    """Have the ticks of a logarithmic axis as plain numbers where they are: 0.3 and not 3 x 10^-1."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    axis.set_major_formatter(Plain(labelOnlyBase=False))
    axis.set_minor_formatter(Plain(labelOnlyBase=False))


def literal(text: object) -> str:
    """A text as matplotlib shows it verbatim: a dollar sign starts no formula."""
    return str(text).replace("$", r"\$")
