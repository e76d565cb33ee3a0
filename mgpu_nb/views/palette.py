"""Colours of the pictures."""

__all__ = ["COLOURS"]

# Okabe and Ito's palette: told apart by all kinds of colour vision.
COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#F0E442", "#999999")
