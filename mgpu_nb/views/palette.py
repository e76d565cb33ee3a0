"""Colours of the pictures."""

__all__ = ["COLOURS"]

# Okabe and Ito's palette: distinguishable with any colour vision.
COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#F0E442", "#999999")


def literal(text: object) -> str:
    """A text as matplotlib shows it verbatim: a dollar sign starts no formula."""
    return str(text).replace("$", r"\$")
