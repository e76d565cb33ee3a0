"""Colours of the pictures."""

__all__ = ["COLOURS"]

# Okabe and Ito's palette: told apart by all kinds of colour vision.
COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#F0E442", "#999999")


def literal(text: object) -> str:
    """Return a text as matplotlib shows it letter by letter: a dollar sign begins no formula."""
    return str(text).replace("$", r"\$")
