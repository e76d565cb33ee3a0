"""What may be done to data on their way in: options of a training and of its check."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from ...options import Finite, NonEmpty, NonNegativeInt, PositiveInt, Unique

__all__ = ["FILLS", "READING", "Reading", "reading_of"]

Names = Annotated[tuple[str, ...], Unique()]

# The land model's 1e36 and netCDF's 9.97e36 are beyond 1e20 and need not be here.
FILLS = (-999.0, -9999.0, -99999.0, -32767.0, -2147483647.0)


@dataclass(frozen=True)
class Reading:
    """Options of reading tables in the land model's layout.

    Without them every shape is that of the data. The public loader of AI4BGC, https://github.com/daliwang/AI4BGC, does
    ``crop_lists=(1, 17), pad_lists=16, crop_matrices=(18, 10), pad_matrices=(18, 10), months=240, pad_months=True,
    missing="fill", coordinates=True``.
    """

    static_columns: Names = ()
    """Columns of single numbers that are inputs; by default all but outputs, dates, texts, ids and places."""
    scalar_columns: Names = ()
    """Columns of single numbers that are outputs; by default those that begin with Y_."""
    series_columns: Names = ()
    """Columns of months; by default the forcings FLDS, PSRF, FSDS, QBOT, PRECTmms, TBOT that are there."""
    leave_out: Names = ("Y_OCCLUDED_P", "Y_SECONDARY_P", "Y_LABILE_P", "Y_APATITE_P", "H2OSOI_10CM")
    """Columns that are neither inputs nor outputs; by default those that the public loader drops."""
    coordinates: bool = False
    """Whether latitude and longitude are inputs, as in the public loader; else only if static_columns names them."""
    months: PositiveInt | None = 240
    """Last months of longer series; None for all of them."""
    pad_months: bool = False
    """Append months of 0 to series shorter than months, as the public loader does."""
    crop_lists: tuple[NonNegativeInt, NonNegativeInt] | None = None
    """Part of longer lists, from and to; 1 17 leaves bare ground out of 17 or 18 plant types. None for whole lists."""
    pad_lists: PositiveInt | None = None
    """Append zeros to lists shorter than this, 16 in the public loader; None for none."""
    crop_matrices: tuple[PositiveInt, PositiveInt] | None = None
    """First rows and layers of larger matrices, 18 10 in the public loader; None for whole matrices."""
    pad_matrices: tuple[PositiveInt, PositiveInt] | None = None
    """Append rows and layers of 0 to matrices smaller than this, 18 10 in the public loader; None for none."""
    missing: Literal["refuse", "fill", "drop"] = "refuse"
    """NaN, infinity and fill values: refuse the file, fill in fill_value (the public loader: 0), or drop the row."""
    fill_value: Annotated[float, Finite()] = 0.0
    """Number in place of missing ones, with missing fill."""
    fill_values: Annotated[tuple[float, ...], NonEmpty()] | None = FILLS
    """Numbers that stand for missing ones, beside all beyond 1e20; None for no others."""
    units: Names = ()
    """Units of columns, NAME=UNIT; those of the land model are known."""

    def check_reading(self, read: bool = True) -> None:
        """Check options that depend on each other.

        Parameters
        ----------
        read
            Whether data are read at all.

        Raises
        ------
        ValueError
            If they do not go together, or would have no effect.
        """
        given = [each.name for each in fields(Reading) if getattr(self, each.name) != each.default]
        if given and not read:
            raise ValueError(f"{', '.join(given)}: what is done to data that are read; give data as well")
        if self.crop_lists is not None and self.crop_lists[0] >= self.crop_lists[1]:
            raise ValueError(f"crop_lists={self.crop_lists}: it must end after it begins, as 1 17 does")
        if self.pad_months and self.months is None:
            raise ValueError("pad_months=True needs months, the length to pad to")
        if odd := [unit for unit in self.units if not all(unit.partition("=")[::2])]:
            raise ValueError(f"units must be NAME=UNIT, got {odd[0]!r}")
        both = set(self.leave_out) & {*self.static_columns, *self.scalar_columns, *self.series_columns}
        if both:
            raise ValueError(
                f"leave_out names {', '.join(sorted(both))}, and another option asks for it: choose"
            )


READING = tuple(each.name for each in fields(Reading))


def reading_of(options: Any) -> Reading:
    """Options of reading that the options of a training or a check have."""
    return Reading(**{name: getattr(options, name) for name in READING})
