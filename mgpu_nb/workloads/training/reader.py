"""Lands in files: arrays (.npz), tables (.parquet), pickled tables (.pkl), as the land model's batches or our own."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .cells import FITTING, Array, fill, fit, kind_of
from .land import GENERATED, Land
from .layout import INPUTS, OUTPUTS, TARGET, Column, Layout, unit_of
from .reading import Reading

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FORCINGS", "read_land", "table", "write_land"]

FORCINGS = ("FLDS", "PSRF", "FSDS", "QBOT", "PRECTmms", "TBOT")
LONGEST_LIST = 64  # items of a column that nobody said is one of months
_DIMENSIONS = {"series": 1, "static": 0, "lists": 1, "matrices": 2, "scalar": 0, "vector": 1, "matrix": 2}
_PICKLES = (".pkl", ".pickle")
_PACKED = (".gz", ".bz2", ".xz")  # of a pickle; pandas reads them
_SUFFIXES = (".npz", ".parquet", *_PICKLES)
_ATTRIBUTES = "mgpu_nb"  # of a table that we wrote: parts and units of its columns

_TIMES = re.compile(
    r"(?i)(date|time|datetime|timestamp|year|yr|month|mon|day|doy|hour|minute|second|mcdate|mcsec|nstep|calendar)s?"
    r"|.*_(date|time|year|month|day)|(date|time|year|month|day)_.*"
)
_IDS = re.compile(
    r"(?i)(id|index|level_0|unnamed: \d+|row|gridcell|grid|cell|pixel|site|landunit|member)s?|.*_?(id|index|idx)"
)
_PLACES = re.compile(r"(?i)(lat|lon|long|latitude|longitude|latixy|longxy)s?|.*_(lat|lon|latitude|longitude)")


def write_land(land: Land, path: str | Path) -> Path:
    """Write a land as .npz or .parquet, by the path's ending; return the path.

    An .npz file has the arrays of `Land` and for each ``<part>_names`` and ``<part>_units``.

    Raises
    ------
    ValueError
        For another ending.
    """
    file = Path(path).expanduser()
    if file.suffix not in (".npz", ".parquet"):
        raise ValueError(f"{file}: a land is written as .npz or .parquet")
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        table(land).to_parquet(file)
        return file
    arrays: dict[str, Any] = land.arrays()
    for part in (*INPUTS, *OUTPUTS):
        columns = land.layout.of(part)
        arrays[f"{part}_names"] = np.array([each.name for each in columns], dtype=str)
        arrays[f"{part}_units"] = np.array([each.unit for each in columns], dtype=str)
    np.savez(file, **arrays)
    return file


def table(land: Land) -> pd.DataFrame:
    """Land as a table: a row per column of land; numbers, lists and lists of lists in its cells."""
    import pandas as pd

    columns: dict[str, Any] = {}
    attributes: dict[str, Any] = {"parts": {}, "units": {}}
    for part in (*INPUTS, *OUTPUTS):
        array = np.moveaxis(getattr(land, part), 2, 1) if part == "series" else getattr(land, part)
        for n, column in enumerate(land.layout.of(part)):
            cells = array[:, n][(slice(None), *(slice(size) for size in column.size))]
            columns[column.name] = (
                cells if cells.ndim == 1 else [list(cell) if cell.ndim > 1 else cell for cell in cells]
            )
            attributes["parts"][column.name], attributes["units"][column.name] = part, column.unit
    frame = pd.DataFrame(columns)
    frame.attrs[_ATTRIBUTES] = attributes
    return frame


def read_land(
    path: str | Path | Sequence[str | Path],
    *,
    trust: bool = False,
    static: Sequence[str] = (),
    scalars: Sequence[str] = (),
    reading: Reading | None = None,
) -> Land:
    """Read a land, with shapes as they are in the data.

    Parameters
    ----------
    path
        A file, a folder of files, a pattern (``batch_*.pkl``), or several of them; files are joined in the order of
        their names.

        .parquet and .pkl files hold a table with a row per column of land. Columns that begin with ``Y_`` are outputs,
        the others inputs. Their cells are single numbers, lists (of plant types), or lists of lists (of rows with
        layers); the forcings ``FLDS``, ``PSRF``, ``FSDS``, ``QBOT``, ``PRECTmms`` and ``TBOT`` are lists of months.
        .npz files hold the arrays of `Land`, or an array for each such column by its name. A .pkl file may be called
        .pickle, and be packed (.gz, .bz2, .xz).
    trust
        Whether .pkl files may be read. Loading a pickle runs code from it: only of people whom you trust.
    static, scalars
        Columns of single numbers that are inputs, and outputs: ``static_columns`` and ``scalar_columns`` of `reading`.
    reading
        What may be done to the data: cropping, padding, filling.

    Returns
    -------
    Land
        Its ``layout`` says what was done to which columns, and which were left out.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or none in the folder.
    ValueError
        If a file is malformed, or holds what the options do not allow: the message names file, row, column and the
        option that helps; and for a .pkl without `trust`.
    """
    reading = reading or Reading()
    if static or scalars:
        reading = replace(
            reading,
            static_columns=tuple(static) or reading.static_columns,
            scalar_columns=tuple(scalars) or reading.scalar_columns,
        )
    reading.check_reading()
    paths = [path] if isinstance(path, (str, Path)) else list(path)
    files = [file for each in paths for file in _files(Path(each).expanduser())]
    if not files:
        raise FileNotFoundError("data: give at least one file or folder")
    lands = [_read(file, trust, reading) for file in files]
    lands = _aligned(files, lands)
    columns = [_sum([land.layout.columns[n] for land in lands]) for n in range(len(lands[0].layout.columns))]
    names = lands[0].arrays()
    arrays = {name: np.concatenate([getattr(land, name) for land in lands]) for name in names}
    notes = tuple(dict.fromkeys(note for land in lands for note in land.layout.notes))
    rows = f"{len(arrays['series'])} columns of land from {len(files)} file{'s' * (len(files) > 1)}"
    layout = Layout(tuple(columns), (rows, *notes)).with_units(reading.units)
    return _with_constants(Land(**arrays, layout=layout))


def _files(place: Path) -> list[Path]:
    if place.is_dir():
        # Hidden files are no data: a Mac puts a ._batch.pkl beside each that it copies.
        there = [each for each in place.iterdir() if each.is_file() and not each.name.startswith(".")]
        files = sorted(file for file in there if _suffix(file) in _SUFFIXES)
        if not files:
            odd = ", ".join(sorted({file.suffix for file in there} - {""}))
            held = f", but {odd}: {_REMEDY}" if odd else ""
            raise FileNotFoundError(f"{place} holds no {', '.join(_SUFFIXES)} file{held}")
        return files
    if place.is_file():
        return [place]
    if found := sorted(glob.glob(str(place))):  # noqa: PTH207 (an absolute pattern)
        return [Path(file) for file in found]
    raise FileNotFoundError(f"data={str(place)!r}: there is no such file or folder")


_REMEDY = "write a table as .parquet, by frame.to_parquet(file), or arrays as .npz, by numpy.savez(file, NAME=array)"


def _suffix(file: Path) -> str:
    """Ending of a file, of one that is packed the one before."""
    packed = file.suffix in _PACKED and Path(file.stem).suffix in _PICKLES
    return Path(file.stem).suffix if packed else file.suffix


def _aligned(files: Sequence[Path], lands: Sequence[Land]) -> list[Land]:
    """Lands with their columns in the order of the first; raise if files cannot be joined."""
    first = lands[0].layout
    for file, land in zip(files, lands, strict=True):
        theirs = {(each.name, each.part) for each in land.layout.columns}
        odd = sorted(name for name, _ in theirs ^ {(each.name, each.part) for each in first.columns})
        if odd:
            raise ValueError(
                f"{file} and {files[0]} differ in {', '.join(odd[:10])}: give files with the same columns, or name "
                "those in leave_out"
            )
        mine = {each.name: each for each in land.layout.columns}
        for column in first.columns:
            size = mine[column.name].size
            if size != column.size:
                raise ValueError(
                    f"{file}: {column.name} has shape {list(size)}, in {files[0]} {list(column.size)}: give "
                    f"{FITTING[column.part]} to make them alike, or leave out the file"
                )
    return [land if land.layout.columns == first.columns else _in_order_of(first, land) for land in lands]


def _in_order_of(first: Layout, land: Land) -> Land:
    """Land whose columns are in the order of another layout."""
    arrays = {}
    for part in (*INPUTS, *OUTPUTS):
        names = land.layout.names(part)
        order = [names.index(name) for name in first.names(part)]
        arrays[part] = getattr(land, part)[:, :, order] if part == "series" else getattr(land, part)[:, order]
    mine = {each.name: each for each in land.layout.columns}
    columns = tuple(mine[column.name] for column in first.columns)
    return replace(land, **arrays, layout=replace(land.layout, columns=columns))


def _sum(columns: Sequence[Column]) -> Column:
    """Column of several files: what was done to it in all of them."""
    whole = replace(columns[0], done=())
    for column in columns:
        for what, cells in column.done:
            whole = whole.and_done(what, cells)
    return whole


def _with_constants(land: Land) -> Land:
    """Land whose layout names the columns that are the same in all rows."""
    columns, learnt = [], 0
    places = dict.fromkeys((*INPUTS, *OUTPUTS), 0)
    for column in land.layout.columns:
        if column.part:
            array = getattr(land, column.part)
            cells = (
                array[:, :, places[column.part]] if column.part == "series" else array[:, places[column.part]]
            )
            places[column.part] += 1
            if len(land) > 1 and (cells == cells[:1]).all():
                value = cells.reshape(-1)[:1]
                same = cells.size > 0 and (cells == value).all()
                column = column.and_done(
                    f"constant: {value[0]:g}" if same else "the same in all rows", len(land)
                )
            else:
                learnt += column.part in OUTPUTS
        columns.append(column)
    notes = land.layout.notes
    if not learnt and len(land) > 1:
        notes = (*notes, "all outputs are constant: there is nothing to learn from these data")
    return replace(land, layout=Layout(tuple(columns), notes))


class _Source(NamedTuple):
    """What a file holds: cells by column, parts and units of those whose part is known, and the carbon balance.

    ``converted`` says of columns that were no numbers by their type what they were.
    """

    cells: Mapping[str, Any]
    parts: Mapping[str, str]
    units: Mapping[str, str]
    balance: Array | None = None
    converted: Mapping[str, str] = {}


def _read(file: Path, trust: bool, reading: Reading) -> Land:
    if _suffix(file) not in _SUFFIXES:
        raise ValueError(f"{file}: a land is read from {', '.join(_SUFFIXES)} files: {_REMEDY}")
    if _suffix(file) in _PICKLES and not trust:
        raise ValueError(
            f"{file} is a pickle, and loading it runs code from it: give trust=True where you trust who wrote it, "
            "or write it as .parquet"
        )
    source = _of_arrays(file, _arrays(file)) if file.suffix == ".npz" else _of_frame(file, _frame(file))
    columns = _Roles(file, source, reading).columns()
    parts: dict[str, list[Array]] = {part: [] for part in _DIMENSIONS}
    read: list[Column] = []
    count = len(next(iter(source.cells.values())))
    keep = np.ones(count, bool)
    for column in columns:
        if not column.part:
            read.append(column)
            continue
        what = f"{file}: {column.name}"
        array, shape, done = fit(source.cells[column.name], column.part, reading, what)
        if array.ndim - 1 != _DIMENSIONS[column.part]:
            raise ValueError(
                f"{what} has cells of shape {list(shape)}, as {column.part} it needs {_DIMENSIONS[column.part]} "
                "dimensions: name it in another option, or in leave_out"
            )
        array, kept, more = fill(array, reading, what, column.name)
        keep &= kept
        parts[column.part].append(array)
        unit = source.units.get(column.name) or unit_of(column.name)
        read.append(
            replace(column, shape=shape, size=array.shape[1:], unit=unit, done=(*column.done, *done, *more))
        )
    if not keep.any():
        raise ValueError(f"{file}: a number is missing in every row: nothing is left; give missing='fill'")
    arrays = {part: _joined(file, part, found, read, count)[keep] for part, found in parts.items()}
    notes = () if keep.all() else (f"{int((~keep).sum())} of {count} rows were dropped",)
    series = {each.name for each in read if each.part == "series"}
    absent = [name for name in FORCINGS if name not in series]
    if 0 < len(absent) < len(FORCINGS):
        notes = (*notes, f"there is no forcing {', '.join(absent)}")
    balance = (
        np.zeros(count) if source.balance is None else source.balance
    )  # of measured land nobody knows it
    return Land(**arrays, balance=balance[keep], layout=Layout(tuple(read), notes))


def _joined(file: Path, part: str, found: list[Array], read: list[Column], count: int) -> Array:
    """Array of a part: [B, months, n] of series, [B, n, ...] of others; smaller inputs have zeros behind them."""
    if not found:
        return np.zeros((count, *(1 + _DIMENSIONS[part]) * [0]))
    shape = tuple(np.max([array.shape[1:] for array in found], axis=0)) if _DIMENSIONS[part] else ()
    for n, column in enumerate(read):
        if column.part == part and column.size != shape:
            if part in OUTPUTS or part == "series":
                raise ValueError(
                    f"{file}: {column.name} has shape {list(column.size)}, another of the same kind "
                    f"{[int(size) for size in shape]}: give {FITTING[part]}, or "
                    "leave one of them out"
                )
            size = " x ".join(map(str, shape))
            read[n] = column.and_done(f"kept whole, beside others of {size}", count)
    whole = [
        np.pad(a, [(0, 0), *((0, m - s) for m, s in zip(shape, a.shape[1:], strict=True))]) for a in found
    ]
    return np.stack(whole, axis=2 if part == "series" else 1)


def _arrays(file: Path) -> dict[str, Array]:
    try:
        with np.load(file, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except Exception as error:  # zipfile, numpy and the disk have errors of their own
        objects = "Object arrays" in str(error)
        remedy = (
            "write lists of unequal lengths, or texts, as a table (.parquet)" if objects else "write it again"
        )
        raise ValueError(f"{file} is no .npz file of arrays that can be read ({error}): {remedy}") from error


def _of_arrays(file: Path, arrays: dict[str, Array]) -> _Source:
    """Content of an .npz file: the arrays of a land, or one of each column."""
    if not arrays:
        raise ValueError(f"{file} holds no arrays")
    own = [part for part in _DIMENSIONS if part in arrays]
    if not own:
        lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
        if len(set(lengths.values())) > 1 or not all(lengths.values()):
            told = ", ".join(f"{name} {length}" for name, length in list(lengths.items())[:20])
            raise ValueError(f"{file}: arrays have unequal numbers of rows: {told}")
        return _Source(arrays, {}, {})
    if missing := [part for part in _DIMENSIONS if part not in arrays]:
        raise ValueError(f"{file} has no array {', '.join(missing)}: wanted {', '.join(_DIMENSIONS)}")
    cells: dict[str, Array] = {}
    parts: dict[str, str] = {}
    units: dict[str, str] = {}
    count = max(len(np.atleast_1d(arrays[part])) for part in _DIMENSIONS)
    for part, dimensions in _DIMENSIONS.items():
        array = arrays[part]
        if array.ndim != dimensions + 2 or len(array) != count:
            raise ValueError(
                f"{file}: {part} has shape {list(array.shape)}, wanted {_wanted(part)} with B = {count}"
            )
        array = np.moveaxis(array, 2, 1) if part == "series" else array
        names = arrays.get(f"{part}_names", _usual_names(part, array.shape[1]))
        of_names = arrays.get(f"{part}_units", np.full(len(names), ""))
        if not array.shape[1] == len(names) == len(of_names):
            raise ValueError(
                f"{file}: {part} holds {array.shape[1]} columns, {part}_names names {len(names)}"
            )
        for n, (name, unit) in enumerate(zip(map(str, names), map(str, of_names), strict=True)):
            if name in cells:
                raise ValueError(f"{file}: {name} is the name of two columns")
            cells[name], parts[name], units[name] = array[:, n], part, unit
    balance = arrays.get("balance")
    if balance is not None and (balance.shape != (count,) or balance.dtype.kind != "f"):
        raise ValueError(f"{file}: balance has shape {list(balance.shape)}, wanted [{count}] numbers")
    return _Source(cells, parts, units, balance)


def _wanted(part: str) -> str:
    return {
        "series": "[B, months, columns]", "static": "[B, columns]", "scalar": "[B, columns]",
        "lists": "[B, columns, items]", "vector": "[B, columns, items]",
    }.get(part, "[B, columns, rows, layers]")  # fmt: skip


def _usual_names(part: str, count: int) -> Sequence[str]:
    names = GENERATED.names(part)
    start = TARGET * (part in OUTPUTS)
    return names if len(names) == count else [f"{start}{part}_{n}" for n in range(count)]


def _frame(file: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        frame = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_pickle(file)
    except ImportError as error:
        raise ValueError(f"{file} needs what is not installed ({error}): install it, or {_REMEDY}") from error
    except Exception as error:
        raise ValueError(
            f"{file} is no {file.suffix} file that can be read ({error}), damaged or of another kind: {_REMEDY}"
        ) from error
    if not isinstance(frame, pd.DataFrame) or not len(frame):
        empty = isinstance(frame, pd.DataFrame)
        found = (
            "a table without rows: leave the file out"
            if empty
            else f"a {type(frame).__name__}, no table: write one"
        )
        raise ValueError(f"{file} holds {found}")
    return frame


def _of_frame(file: Path, frame: pd.DataFrame) -> _Source:
    import pandas as pd

    names = [str(name) for name in frame.columns]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{file}: there are two columns {', '.join(twice)}: rename one")
    own = frame.attrs.get(_ATTRIBUTES, {})
    cells: dict[str, Any] = {}
    converted = {}
    for n, name in enumerate(names):
        column = frame.iloc[:, n]
        kind = kind_of(column)
        if kind == "truth":
            converted[name] = "truth values as 0 and 1"
        elif kind == "numbers" and column.dtype == object:
            converted[name] = "numbers in a column of objects"
        elif kind == "numbers" and isinstance(column.dtype, pd.CategoricalDtype):
            converted[name] = "categories as numbers"
        numeric = kind in ("numbers", "truth")
        cells[name] = column.to_numpy(np.float64, na_value=np.nan) if numeric else column
    return _Source(cells, own.get("parts", {}), own.get("units", {}), converted=converted)


@dataclass(frozen=True)
class _Roles:
    """Which column of a file is in which part of a land."""

    file: Path
    source: _Source
    reading: Reading

    def columns(self) -> list[Column]:
        """Columns with their parts, in the order of the file; those that options name in the order of the options.

        Raises
        ------
        ValueError
            If an option names a column that is not there or holds no numbers, or there is no input or no output.
        """
        reading, cells = self.reading, self.source.cells
        named = {
            "static": reading.static_columns,
            "scalar": reading.scalar_columns,
            "series": reading.series_columns,
        }
        asked = [name for names in named.values() for name in names]
        if missing := [name for name in asked if name not in cells]:
            raise ValueError(f"{self.file} has no column {', '.join(missing)}; it has {_listed(cells)}")
        if twice := sorted({name for name in asked if asked.count(name) > 1}):
            raise ValueError(
                f"{', '.join(twice)}: in two of static_columns, scalar_columns and series_columns"
            )
        part_of = {name: part for part, names in named.items() for name in names}
        found = {name: self._column(name, part_of) for name in cells}
        order = [*asked, *(name for name in cells if name not in part_of)]
        columns = [found[name] for name in order]
        for what, parts in (("input", INPUTS), ("output", OUTPUTS)):
            if not any(column.part in parts for column in columns):
                told = (
                    "begin with Y_, or are named in scalar_columns" if what == "output" else "are all others"
                )
                raise ValueError(
                    f"{self.file} has no {what} columns ({what}s {told}); it has {_listed(cells)}"
                )
        return columns

    def _column(self, name: str, part_of: Mapping[str, str]) -> Column:
        cells, reading = self.source.cells[name], self.reading
        kind = kind_of(cells)
        asked = part_of.get(name)
        if asked:
            if kind not in (("numbers", "truth") if asked != "series" else ("lists",)):
                raise ValueError(
                    f"{self.file}: {name} holds {kind}, and {asked}_columns needs "
                    f"{'a list of months a row' if asked == 'series' else 'a number a row'}"
                )
            return Column(name, asked)
        if name in reading.leave_out:
            return _left_out(name, "named in leave_out", cells)
        known = self.source.parts.get(name)
        output = name.startswith(TARGET) or known in OUTPUTS
        if kind == "complex numbers" or kind.startswith(("objects", "a mixture")):
            raise ValueError(
                f"{self.file}: {name} holds {kind}, of which nothing is made: write numbers, or name it in leave_out"
                + self._first(cells, kind)
            )
        if kind not in ("numbers", "truth", "lists"):
            if output:
                raise ValueError(f"{self.file}: output {name} holds {kind}, no numbers: name it in leave_out")
            return _left_out(name, f"holds {kind}", cells)
        if kind == "lists":
            return self._of_lists(name, known, output)
        chosen = {"static": reading.static_columns, "scalar": reading.scalar_columns}
        part = known if known in chosen else "scalar" if output else "static"
        if chosen[part]:
            option = f"{part}_columns"
            return _left_out(name, f"not among {option}", cells)
        if not known and not output:
            if _PLACES.fullmatch(name) and not reading.coordinates:
                return _left_out(name, "a place: give coordinates or name it in static_columns", cells)
            if _TIMES.fullmatch(name) or _IDS.fullmatch(name):
                what = "a time" if _TIMES.fullmatch(name) else "a number of a cell"
                return _left_out(name, f"{what}, by its name: static_columns can ask for it", cells)
        column = Column(name, part)
        told = "truth values as 0 and 1" if kind == "truth" else self.source.converted.get(name)
        return column.and_done(told, len(cells)) if told else column

    def _of_lists(self, name: str, known: str | None, output: bool) -> Column:
        cells, reading = self.source.cells[name], self.reading
        depth = cells.ndim - 1 if isinstance(cells, np.ndarray) and cells.ndim > 1 else _depth(cells)
        if depth not in (1, 2):
            raise ValueError(f"{self.file}: {name} holds cells of {depth} dimensions: name it in leave_out")
        if (
            known in _DIMENSIONS
            and _DIMENSIONS[known] == depth
            and not (known == "series" and reading.series_columns)
        ):
            return Column(name, known)
        if output:
            return Column(name, "vector" if depth == 1 else "matrix")
        if depth == 2:
            return Column(name, "matrices")
        if name in FORCINGS or known == "series":
            if reading.series_columns:
                return _left_out(name, "not among series_columns", cells)
            return Column(name, "series")
        longest = max(len(cell) for cell in cells if isinstance(cell, (list, tuple, np.ndarray)))
        if longest > LONGEST_LIST:
            raise ValueError(
                f"{self.file}: {name} holds {longest} numbers a row: if they are months, name all columns of months in "
                "series_columns, else name it in leave_out"
            )
        return Column(name, "lists")

    @staticmethod
    def _first(cells: Any, kind: str) -> str:
        """Where the first cell is that differs in type from the one before it, for a mixture."""
        if not kind.startswith("a mixture"):
            return ""
        kinds = [type(cell) for cell in cells]
        return f" (row {next((n for n, each in enumerate(kinds) if each is not kinds[0]), 0)} differs from row 0)"


def _left_out(name: str, why: str, cells: Any) -> Column:
    return Column(name, "", done=((why, len(cells)),))


def _depth(cells: Iterable[Any]) -> int:
    """Dimensions of the first cell that is no empty one."""
    lists = (list, tuple, np.ndarray)
    cell: Any = next((cell for cell in cells if isinstance(cell, lists) and len(cell)), None)
    depth = 0
    while isinstance(cell, lists) and len(cell):
        if isinstance(cell, np.ndarray) and cell.dtype != object:
            return depth + cell.ndim
        cell, depth = cell[0], depth + 1
    return depth


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:40]) + (f" and {len(names) - 40} more" if len(names) > 40 else "")
