"""The algorithms of alignment."""
