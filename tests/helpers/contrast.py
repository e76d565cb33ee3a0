"""Contrast of colours as WCAG 2 defines it."""

import itertools

PAGES = {"light": "#FFFFFF", "dark": "#111111"}
"""Page colours of JupyterLab's themes."""
TEXT = {"light": ("#000000", 0.87), "dark": ("#FFFFFF", 1.0)}
"""Colour and opacity of their text."""


def rgb(colour: str) -> tuple[float, ...]:
    """Red, green and blue from 0 to 1."""
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


def over(colour: tuple[float, ...], alpha: float, page: str) -> tuple[float, ...]:
    """A colour that is transparent in part, as seen on a page."""
    return tuple(alpha * c + (1 - alpha) * p for c, p in zip(colour, rgb(page), strict=True))


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Contrast from 1 to 21."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def least(*colours: str) -> float:
    """Lowest contrast of the colours on either page."""
    return min(contrast(rgb(c), rgb(page)) for c, page in itertools.product(colours, PAGES.values()))


def _luminance(colour: tuple[float, ...]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
