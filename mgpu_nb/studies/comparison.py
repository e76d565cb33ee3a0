"""Several runs side by side, displayed with units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from ..tables import Table, gib

__all__ = ["Comparison"]

# Heading, class and text of each column.
_COLUMNS: dict[str, tuple[str, str, Callable[[Any], str]]] = {
    "run": ("run", "t", str),
    "tasks": ("tasks", "n", str),
    "ok": ("ok", "n", str),
    "failed": ("failed", "n", str),
    "cancelled": ("cancelled", "n", str),
    "skipped": ("skipped", "n", str),
    "slots": ("slots", "n", str),
    "wall": ("wall, s", "n", "{:.2f}".format),
    "busy": ("busy", "n", "{:.0%}".format),
    "mean": ("mean, s", "n", "{:.3g}".format),
    "longest": ("longest, s", "n", "{:.3g}".format),
    "peak_memory": ("peak memory, GiB", "n", lambda size: "" if pd.isna(size) else gib(size, 2)),
}


class Comparison(pd.DataFrame):
    """The frame of `compare`: its columns are plain numbers, shown with their units. A part of it is a plain frame."""

    @property
    def _constructor(self) -> type[pd.DataFrame]:
        return pd.DataFrame

    def _table(self) -> Table:
        head = [(name, kind) for name, kind, _ in _COLUMNS.values()]
        rows = [
            [text(row[column]) for column, (_, _, text) in _COLUMNS.items()]
            for row in self.to_dict("records")
        ]
        return Table(head, rows, "runs side by side")

    def __repr__(self) -> str:
        return str(self._table())

    def _repr_html_(self) -> str:
        return self._table().to_html()
