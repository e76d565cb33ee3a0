"""The layout of a land: which columns are in which part, their units, and what was done to them when they were read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from ...tables import Table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["INPUTS", "OUTPUTS", "TARGET", "Column", "Layout", "unit_of"]

INPUTS = ("series", "static", "lists", "matrices")
OUTPUTS = ("scalar", "vector", "matrix")
TARGET = "Y_"  # begins the names of outputs in tables

_KINDS = {
    "series": "input, months",
    "static": "input, number",
    "lists": "input, list",
    "matrices": "input, matrix",
    "scalar": "output, number",
    "vector": "output, list",
    "matrix": "output, matrix",
    "": "left out",
}

# Of the E3SM land model's history and restart files. The first pattern that matches the whole name counts.
_UNITS = tuple(
    (re.compile(pattern), unit)
    for pattern, unit in (
        (r"F[LS]DS|FSDS.*", "W/m2"),
        (r"PSRF|PBOT", "Pa"),
        (r"QBOT", "kg/kg"),
        (r"PRECTmms|RAIN|SNOW", "mm/s"),
        (r"TBOT|T_.*|TS_.*|TSOI.*", "K"),
        (r"(?i)lat(itude)?|lon(gitude)?", "degrees"),
        (r"(?i)area", "km2"),
        (r"PCT_.*", "%"),
        (r"landfrac|LANDFRAC_PFT", "share"),
        (r"GPP|NPP|AR|HR|NEE|NBP|ER", "gC/m2/s"),
        (r"(?:OCCLUDED|SECONDARY|LABILE|APATITE)_P", "gP/m2"),
        (r"H2OSOI_(?:LIQ|ICE)|H2O(?:CAN|SFC|SNO)", "kg/m2"),
        (r"SNOWDP", "m"),
        (r"tlai|elai|esai|tsai", "m2/m2"),
        (r"pft_.*cn", "gC/gN"),
        (r"pft_(?:fr|lf)_.*|pft_c3psn|pft_woody|pft_crop|pft_evergreen", "share"),
        (r"(?:cwd|litr\d|soil\d)c_vr", "gC/m3"),
        (r"(?:cwd|litr\d|soil\d)n_vr|sminn_vr|smin_n[oh]\d_vr", "gN/m3"),
        (r"(?:cwd|litr\d|soil\d)p_vr|\w+p_vr", "gP/m3"),
        (r"(?:dead|live)(?:croot|stem)c(?:_\w+)?|(?:froot|leaf)c(?:_\w+)?|tot\w+c|cwdc", "gC/m2"),
        (r"(?:dead|live)(?:croot|stem)n(?:_\w+)?|(?:froot|leaf)n(?:_\w+)?|tot\w+n", "gN/m2"),
        (r"(?:dead|live)(?:croot|stem)p(?:_\w+)?|(?:froot|leaf)p(?:_\w+)?|tot\w+p|cwdp", "gP/m2"),
    )
)


def unit_of(name: str) -> str:
    """Unit of a column that the land model is known to write; empty for others."""
    plain = name.removeprefix(TARGET)
    return next((unit for pattern, unit in _UNITS if pattern.fullmatch(plain)), "")


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes
    ----------
    name
        As in the file.
    part
        Array of `Land` that holds it; empty if it is left out.
    shape
        Shape of a cell as it was found.
    size
        Shape of a cell as it is.
    unit
        Unit; empty if unknown.
    done
        What was done to it, and to how many cells (rows).
    """

    name: str
    part: str
    shape: tuple[int, ...] = ()
    size: tuple[int, ...] = ()
    unit: str = ""
    done: tuple[tuple[str, int], ...] = ()

    def and_done(self, what: str, cells: int) -> Column:
        """Column to which one thing more was done, or in more cells."""
        known = dict(self.done)
        known[what] = known.get(what, 0) + cells
        return replace(self, done=tuple(known.items()))


@dataclass(frozen=True)
class Layout:
    """Columns of a land.

    Attributes
    ----------
    columns
        All of them, also those that are left out; within a part in the order of its array.
    notes
        Lines about the data as a whole.
    """

    columns: tuple[Column, ...] = ()
    notes: tuple[str, ...] = ()

    def of(self, part: str) -> tuple[Column, ...]:
        """Columns of a part, in the order of its array."""
        return tuple(column for column in self.columns if column.part == part)

    def names(self, part: str) -> tuple[str, ...]:
        """Names of the columns of a part."""
        return tuple(column.name for column in self.of(part))

    def with_units(self, units: Iterable[str]) -> Layout:
        """Layout with units ``NAME=UNIT`` that a user states.

        Raises
        ------
        ValueError
            If there is no column of that name.
        """
        given = dict(unit.split("=", 1) for unit in units)
        if odd := sorted(set(given) - {column.name for column in self.columns}):
            raise ValueError(f"units: there is no column {', '.join(odd)}")
        columns = (replace(each, unit=given.get(each.name, each.unit)) for each in self.columns)
        return replace(self, columns=tuple(columns))

    def frame(self) -> pd.DataFrame:
        """Row per column and thing done to it: column, kind, shape, size, unit, done, cells."""
        import pandas as pd

        names = ["column", "kind", "shape", "size", "unit", "done", "cells"]
        return pd.DataFrame(
            [
                (each.name, _KINDS[each.part], each.shape, each.size, each.unit, what, cells)
                for each in self.columns
                for what, cells in each.done or (("", 0),)
            ],
            columns=names,
        )

    def table(self, whole: bool = False) -> Table:
        """Table of the columns to which something was done, by `whole` of all."""
        shown = [each for each in self.columns if each.done]
        others = [each for each in self.columns if not each.done]
        rows = [
            (each.name, _KINDS[each.part], _shape(each.shape), each.unit, what or "as it is", cells or "")
            for each in [*shown, *others * whole]
            for what, cells in each.done or (("", 0),)
        ]
        above = [*self.notes]
        if others and not whole:
            above.append(f"{len(others)} of {len(self.columns)} columns were read as they are")
        head = [
            ("column", ""),
            ("kind", ""),
            ("shape", ""),
            ("unit", "m"),
            ("what was done", ""),
            ("cells", "n"),
        ]
        return Table(head, rows, "columns of the data", above)

    def plain(self) -> dict[str, Any]:
        """Lists and texts that `of_plain` reads."""
        return {"columns": [asdict(column) for column in self.columns], "notes": list(self.notes)}

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> Layout:
        """Layout of what `plain` returned, from JSON as well."""
        columns = (
            Column(
                **{
                    **each,
                    "shape": tuple(each["shape"]),
                    "size": tuple(each["size"]),
                    "done": tuple((what, cells) for what, cells in each["done"]),
                }
            )
            for each in plain["columns"]
        )
        return cls(tuple(columns), tuple(plain["notes"]))


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "1"
