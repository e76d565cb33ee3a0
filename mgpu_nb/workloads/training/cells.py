"""Cells of a column as one array of numbers: their kind, shapes, cropping, padding, what is missing."""

from __future__ import annotations

import datetime
import numbers
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

from .reading import Reading

__all__ = ["FAR", "FITTING", "fill", "fit", "kind_of", "numbers_of"]

FAR = 1e20  # no quantity of a land model is beyond; 1e36 and 9.97e36 stand for none

FITTING = {
    "series": "months and pad_months",
    **dict.fromkeys(("lists", "vector"), "crop_lists and pad_lists"),
    **dict.fromkeys(("matrices", "matrix"), "crop_matrices and pad_matrices"),
}
"""Options that make cells of a part alike in shape."""

Array = npt.NDArray[Any]
Done = list[tuple[str, int]]

_DTYPES = {"b": "truth", "i": "numbers", "u": "numbers", "f": "numbers", "c": "complex numbers", "M": "dates"}
_DTYPES |= {"m": "durations", "U": "texts", "S": "texts"}
_DATES = (datetime.date, datetime.time, np.datetime64)


def _is_none(cell: Any) -> bool:
    """Whether a cell is empty: None, NaN, NaT, NA, or a list without items."""
    if isinstance(cell, (list, tuple, np.ndarray)):
        return not len(cell)
    return cell is None or type(cell).__name__ in ("NAType", "NaTType") or cell != cell  # NA compares to NA


def _kind_of_cell(cell: Any) -> str:
    """Kind of a single cell of an object column."""
    if isinstance(cell, (list, tuple, np.ndarray)):
        return "lists"
    if isinstance(cell, (bool, np.bool_)):
        return "truth"
    if isinstance(cell, (numbers.Real, Decimal)):
        return "numbers"
    if isinstance(cell, numbers.Complex):
        return "complex numbers"
    if isinstance(cell, (str, bytes)):
        return "texts"
    if isinstance(cell, (datetime.timedelta, np.timedelta64)):
        return "durations"
    # Calendars of climate models, cftime's say, have dates that are no datetime.
    if isinstance(cell, _DATES) or all(hasattr(cell, name) for name in ("year", "month", "day")):
        return "dates"
    return f"objects ({type(cell).__name__})"


def kind_of(column: Any) -> str:
    """Kind of the cells of a pandas or numpy column.

    Returns
    -------
    str
        ``numbers``, ``truth``, ``lists``, ``complex numbers``, ``dates``, ``durations``, ``texts``, ``nothing``,
        ``objects (...)``, or ``a mixture of ...``.
    """
    if isinstance(column, np.ndarray) and column.ndim > 1:
        kind = kind_of(column.reshape(-1))
        return "lists" if kind in ("numbers", "truth") else kind
    kind = getattr(column.dtype, "kind", "O")
    if kind in _DTYPES and str(column.dtype) not in ("category",):
        return _DTYPES[kind]
    found = {_kind_of_cell(cell) for cell in column if not _is_none(cell)}
    if found == {"numbers", "truth"}:
        found = {"numbers"}
    if len(found) > 1:
        return f"a mixture of {' and '.join(sorted(found))}"
    return found.pop() if found else "nothing"


def numbers_of(cells: Any, what: str) -> tuple[Array, list[Array] | None]:
    """Numbers of a column: one array [B, ...], or where their shapes differ, a list of arrays in its place.

    Parameters
    ----------
    cells
        Numbers, or lists of numbers, or lists of lists.
    what
        File and column, for messages.

    Raises
    ------
    ValueError
        If a cell holds anything but numbers, or lists of unequal lengths; the message names the row.
    """
    if isinstance(cells, np.ndarray) and cells.dtype.kind in "biuf":
        return cells.astype(np.float64), None
    arrays = [_numbers(cell, f"{what} of row {row}") for row, cell in enumerate(cells)]
    empty = [array is None for array in arrays]
    shapes = Counter(array.shape for array in arrays if array is not None)
    usual = shapes.most_common(1)[0][0] if shapes else ()
    whole = [np.full(usual, np.nan) if array is None else array for array in arrays]
    if len({array.ndim for array in whole}) > 1:
        row = next(n for n, array in enumerate(whole) if array.ndim != len(usual))
        raise ValueError(
            f"{what} of row {row} has {whole[row].ndim} dimensions, that of other rows {len(usual)}: mend the row"
        )
    if len(shapes) > 1:
        return np.array(empty), whole
    return np.stack(whole) if whole else np.empty(0), None


def _numbers(cell: Any, what: str) -> Array | None:
    """A cell as an array; None for an empty one."""
    if _is_none(cell):
        return None
    array = _part(cell) if not isinstance(cell, (list, tuple)) else _nested(cell, what)
    if array.dtype == object:
        array = _nested(array.tolist() if array.ndim > 1 else list(array), what)
    if array.dtype == object:  # None among the numbers
        kinds = {_kind_of_cell(each) for each in array.flat if each is not None}
        if kinds <= {"numbers", "truth"}:
            return array.astype(np.float64)
        raise ValueError(
            f"{what} holds {' and '.join(sorted(kinds))}, no numbers: name the column in leave_out"
        )
    kind = _DTYPES.get(array.dtype.kind, "objects")
    if kind not in ("numbers", "truth"):
        raise ValueError(f"{what} holds {kind}, no numbers: mend it, or name the column in leave_out")
    return array.astype(np.float64)


def _nested(cell: Sequence[Any], what: str) -> Array:
    parts = [_part(part) if isinstance(part, (list, tuple, np.ndarray)) else part for part in cell]
    lengths = {part.shape if isinstance(part, np.ndarray) else () for part in parts}
    if len(lengths) > 1:
        told = ", ".join(str(shape[0]) if shape else "a single number" for shape in sorted(lengths))
        raise ValueError(
            f"{what} holds lists of unequal lengths ({told}): mend the row, or name the column in leave_out"
        )
    return np.asarray(parts) if lengths else np.empty(0)


def _part(cell: Any) -> Array:
    """List or array as an array; what is masked, as in what netCDF4 reads, is NaN."""
    if isinstance(cell, np.ma.MaskedArray) and cell.dtype.kind in "biuf":
        return np.ma.filled(cell.astype(np.float64), np.nan)
    return np.asarray(cell)


def fit(cells: Any, part: str, reading: Reading, what: str) -> tuple[Array, tuple[int, ...], Done]:
    """Numbers of a column, cropped and padded as the options say.

    Returns
    -------
    tuple
        Array [B, ...]; shape of a cell as it was found (the most frequent one); what was done, and in how many cells.

    Raises
    ------
    ValueError
        If shapes differ between rows after that; the message names the first row that differs and the option.
    """
    found, ragged = numbers_of(cells, what)
    count = len(found)
    if ragged is None:
        shape = found.shape[1:]
        array, done = _fitted(found, part, reading)
        return array, shape, [(text, count) for text in done]
    shapes = Counter(array.shape for array, empty in zip(ragged, found, strict=True) if not empty)
    usual = shapes.most_common(1)[0][0]
    total: Counter[str] = Counter()
    fitted = []
    for cell in ragged:
        array, done = _fitted(cell[None], part, reading)
        fitted.append(array[0])
        total.update(done)
    sizes = Counter(array.shape for array in fitted)
    wanted = sizes.most_common(1)[0][0]
    for row, array in enumerate(fitted):
        if array.shape != wanted:
            if found[row]:
                fitted[row] = np.full(wanted, np.nan)
                continue
            raise ValueError(
                f"{what} of row {row} has shape {list(ragged[row].shape)}, that of other rows {list(usual)}: "
                f"give {FITTING[part]} to make them alike, or leave out the row"
            )
    return np.stack(fitted), usual, list(total.items())


def _fitted(array: Array, part: str, reading: Reading) -> tuple[Array, list[str]]:
    """Cells [B, ...], cropped and padded, and what was done."""
    done = []
    if part == "series":
        months = reading.months
        if months is not None and array.shape[1] > months:
            done.append(f"the last {months} months of {array.shape[1]}")
            array = array[:, -months:]
        if months is not None and reading.pad_months:
            array, text = _padded(array, (months,), "months")
            done += text
    elif part in ("lists", "vector"):
        crop = reading.crop_lists
        if crop is not None and array.shape[1] > crop[1] - crop[0]:
            done.append(f"cropped to [{crop[0]}:{crop[1]}] of {array.shape[1]}")
            array = array[:, crop[0] : crop[1]]
        if reading.pad_lists is not None:
            array, text = _padded(array, (reading.pad_lists,), "items")
            done += text
    elif part in ("matrices", "matrix"):
        if reading.crop_matrices is not None:
            rows, layers = reading.crop_matrices
            if array.shape[1] > rows or array.shape[2] > layers:
                kept = array[:, :rows, :layers]
                done.append(f"cropped from {_size(array)} to {_size(kept)}")
                array = kept
        if reading.pad_matrices is not None:
            array, text = _padded(array, reading.pad_matrices, "rows and layers")
            done += text
    return array, done


def _size(array: Array) -> str:
    return " x ".join(map(str, array.shape[1:]))


def _padded(array: Array, wanted: tuple[int, ...], what: str) -> tuple[Array, list[str]]:
    """Cells with zeros appended, and what was done."""
    missing = [max(0, size - there) for size, there in zip(wanted, array.shape[1:], strict=True)]
    if not any(missing):
        return array, []
    padded = np.pad(array, [(0, 0), *((0, each) for each in missing)])
    return padded, [f"padded with {what} of 0 from {_size(array)} to {_size(padded)}"]


def fill(array: Array, reading: Reading, what: str, name: str) -> tuple[Array, npt.NDArray[np.bool_], Done]:
    """Numbers [B, ...] without missing ones, the rows that are to be kept [B], and what was done.

    Raises
    ------
    ValueError
        If numbers are missing and ``missing`` is ``refuse``; the message names the first row.
    """
    far = np.abs(array) >= FAR
    bad = ~np.isfinite(array) | far
    if reading.fill_values is not None:
        bad |= np.isin(array, reading.fill_values)
    count = len(array)
    rows: npt.NDArray[np.bool_] = np.asarray(bad.reshape(count, -1).any(1))
    if not rows.any():
        return array, np.ones(count, bool), []
    kinds = sorted({_told(value) for value in np.unique(array[bad])})
    told = ", ".join([*kinds[:5], *["..."] * (len(kinds) > 5)])
    if reading.missing == "refuse":
        row = int(np.argmax(rows))
        raise ValueError(
            f"{what} of row {row} holds {told}, and so do {int(rows.sum())} of {count} rows, {int(bad.sum())} numbers: "
            f"give missing='fill' to put fill_value in their place, missing='drop' to drop the rows, or name {name} in "
            "leave_out"
        )
    cells = int(rows.sum())
    if reading.missing == "fill":
        filled = np.where(bad, reading.fill_value, array)
        return (
            filled,
            np.ones(count, bool),
            [(f"{int(bad.sum())} missing ({told}) filled with {reading.fill_value:g}", cells)],
        )
    return array, np.logical_not(rows), [(f"rows dropped: {told}", cells)]


def _told(value: float) -> str:
    return "NaN" if np.isnan(value) else "infinity" if np.isinf(value) else f"{value:g}"
