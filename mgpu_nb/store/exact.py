"""What a file keeps of an array, a tensor or a table: all of it, or it is not written there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

__all__ = [
    "as_bytes",
    "from_bytes",
    "keeps_dtype",
    "ml_dtype",
    "read_frame",
    "same_frame",
    "simple_frame",
    "tensor_form",
]

# Types that safetensors of every version knows.
_SAFE = frozenset(
    f"torch.{name}"
    for name in (
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "bool",
    )
)


def keeps_dtype(np: Any, dtype: Any) -> bool:
    """Whether a file of numpy's gives an array of this type back: of another library's it makes raw bytes."""
    if dtype.hasobject:
        return False
    if dtype.kind in "biufcSUmM" and dtype.isbuiltin != 2:
        return True
    form = np.lib.format
    try:
        back = form.descr_to_dtype(form.dtype_to_descr(dtype))
    except (ValueError, TypeError):
        return False
    return bool(back == dtype) and back.type is dtype.type


def ml_dtype(dtype: Any) -> str:
    """Name of a type of the library ml_dtypes (JAX's bfloat16, float8, int4); empty for any other."""
    kind = dtype.type
    library = sys.modules.get("ml_dtypes")
    found = library is not None and getattr(library, kind.__name__, None) is kind
    return kind.__name__ if found and dtype.fields is None else ""


def tensor_form(torch: Any, tensor: Any) -> str:
    """How a tensor is kept: ``plain``, as its ``bytes``, or not at all (empty)."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_nested:
        return ""
    return "plain" if str(tensor.dtype) in _SAFE else "bytes"


def as_bytes(torch: Any, tensor: Any) -> Any:
    """Bytes of a tensor as a flat one.

    Raises
    ------
    RuntimeError
        If its type has no such view.
    """
    return tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def from_bytes(torch: Any, data: Any, dtype: str, shape: list[int]) -> Any:
    """The tensor whose bytes these are."""
    return data.clone().view(type_named(torch, dtype, torch.dtype)).reshape(shape)


def type_named(library: Any, name: object, kind: type) -> Any:
    """The type of numbers that a library has under a name, an instance or a subclass of `kind`.

    Raises
    ------
    ValueError
        If there is none: a file may name anything.
    """
    found = getattr(library, str(name), None)
    if isinstance(found, kind) or (isinstance(found, type) and issubclass(found, kind)):
        return found
    raise ValueError(f"{name!r} is no type of numbers that this {library.__name__} has")


def simple_frame(pandas: Any, frame: Any) -> bool:
    """Whether a table is one that parquet is known to keep: numbers in named columns, rows without names."""
    return (
        type(frame.index) is pandas.RangeIndex
        and frame.index.name is None
        and frame.columns.nlevels == 1
        and frame.columns.name is None
        and all(type(name) is str for name in frame.columns)
        and all(type(kind).__module__.startswith("numpy") and kind.kind in "biuf" for kind in frame.dtypes)
        and not frame.attrs
    )


def same_frame(pandas: Any, one: Any, other: Any) -> bool:
    """Whether two tables are equal: cells, their types, names, types of rows and columns."""
    same_axes = _same_index(pandas, one.index, other.index) and _same_index(
        pandas, one.columns, other.columns
    )
    if type(one) is not type(other) or one.shape != other.shape or not same_axes or one.attrs != other.attrs:
        return False
    return all(_same_column(pandas, one.iloc[:, i], other.iloc[:, i]) for i in range(one.shape[1]))


def _same_index(pandas: Any, one: Any, other: Any) -> bool:
    if type(one) is not type(other) or list(one.names) != list(other.names) or one.nlevels != other.nlevels:
        return False
    if one.nlevels > 1:
        return all(
            _same_index(pandas, one.get_level_values(n), other.get_level_values(n))
            for n in range(one.nlevels)
        )
    return bool(one.equals(other)) and _same_column(pandas, one, other)


def _same_column(pandas: Any, one: Any, other: Any) -> bool:
    if one.dtype != other.dtype or not one.equals(other):
        return False
    if isinstance(one.dtype, pandas.CategoricalDtype):
        ours, theirs = one.dtype.categories, other.dtype.categories
        return one.dtype.ordered == other.dtype.ordered and _same_index(pandas, ours, theirs)
    return str(one.dtype) != "object" or list(map(type, one)) == list(map(type, other))


def read_frame(path: Path, freq: str | None = None) -> Any:
    """The table of a file; `freq` is that of its index of times."""
    import pandas as pd

    frame: Any = pd.read_parquet(path)
    if freq is not None:
        frame.index.freq = freq
    return frame
