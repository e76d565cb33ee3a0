"""Values on disk: JSON if possible, with arrays, tensors and tables in files of their own. Never a pickle.

A value that JSON cannot represent is an object with one key that begins with ``$``:
``{"$array": "values/x.npz#a0"}``, ``{"$tensor": "values/x.safetensors#t0"}``, ``{"$frame": "values/x.0.parquet"}``,
``{"$tuple": [...]}``, ``{"$dict": [[key, value], ...]}``, ``{"$ordered": ...}`` (an OrderedDict),
``{"$float": "nan"}``, ``{"$bytes": base64}``, ``{"$path": "..."}``, ``{"$number": ["float32", 0.5]}`` (a scalar of
numpy) and more of that kind, see `_Reader`. What is read equals what was written, in type and value. Anything else is
``{"$unstored": type, "repr": text}``: it is kept in memory only, but for the
scalars of a dataclass or named tuple among its ``entries``, and a short text for the others.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import importlib
import json
import math
import re
import sys
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from ..hardware.host_copy import host_copy
from ..summary import columns, is_scalar, short
from .exact import (
    as_bytes,
    from_bytes,
    keeps_dtype,
    ml_dtype,
    read_frame,
    same_frame,
    simple_frame,
    tensor_form,
    type_named,
)
from .files import atomic_write

__all__ = [
    "NotStored", "brief_value", "has_files", "load_value", "not_kept", "readable", "scalars", "store_value",
    "unwritten",
]  # fmt: skip

_JSON = (type(None), bool, int, float, str)
_FILES = ('"$array"', '"$tensor"', '"$frame"')


class NotStored(ValueError):
    """A value, or a part of one, is of a type that is not kept on disk."""


def store_value(folder: Path, stem: str, value: Any) -> str:
    """Write the parts of a value that are not JSON to ``folder/values``; returns its JSON text.

    If a file cannot be written (the disk is full, the folder is gone) that says so: see `unwritten`.
    """
    if value is None:  # the most common value, and the worker's next task waits for this
        return "null"
    writer = _Writer(folder, stem)
    try:
        text = json.dumps(writer.encode(value))
        writer.finish()
    except RecursionError:  # a list that contains itself
        return json.dumps(_unstored(value))
    except OSError as error:
        reason = error.strerror or str(error)
        return json.dumps({**_unstored(value), "unwritten": reason})
    return text


def unwritten(text: str) -> str:
    """Why a value, given by its JSON text, could not be written; empty if it was."""
    if '"unwritten"' not in text[-1000:] or not text.startswith('{"$unstored"'):
        return ""
    return str(json.loads(text).get("unwritten", ""))


def has_files(text: str) -> bool:
    """Whether parts of a value, given by its JSON text, are in files."""
    return any(kind in text for kind in _FILES)


def not_kept(text: str) -> str:
    """Types of what is in memory only of a value, given by its JSON text; empty if all of it is on disk."""
    if '"$unstored"' not in text:
        return ""
    kinds = dict.fromkeys(re.findall(r'"\$unstored": "([^"\\]*)"', text))
    return ", ".join(list(kinds)[:3]) + (", ..." if len(kinds) > 3 else "") or "its own"


def readable(encoded: Any) -> Any:
    """Parsed JSON of a value with plain numbers in place of numpy's, for readers of other programs."""
    if isinstance(encoded, list):
        return [readable(item) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded
    if encoded.keys() == {"$number"}:
        return encoded["$number"][1]
    return {key: readable(item) for key, item in encoded.items()}


def load_value(folder: Path, encoded: Any) -> Any:
    """The value whose parsed JSON is `encoded`.

    Raises
    ------
    NotStored
        If a part of it was never on disk.
    OSError, ValueError
        If a file is missing or damaged.
    """
    return _Reader(folder).decode(encoded)


class _Writer:
    def __init__(self, folder: Path, stem: str) -> None:
        self.folder = folder
        self.stem = f"values/{stem}"
        self.arrays: dict[str, Any] = {}
        self.tensors: dict[str, Any] = {}
        self.frames = 0

    def encode(self, value: Any) -> Any:
        kind = type(value)
        if kind is int and value.bit_length() > 10_000:  # Python refuses to write it in decimals
            return {"$int": hex(value)}
        if value is None or kind in (bool, int, str):
            return value
        if kind is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        if kind is list:
            return [self.encode(item) for item in value]
        if kind is dict:
            if all(type(key) is str and not key.startswith("$") for key in value):
                return {key: self.encode(item) for key, item in value.items()}
            return {"$dict": [[self.encode(key), self.encode(item)] for key, item in value.items()]}
        if kind is OrderedDict:  # such as a state dict of torch
            return {"$ordered": [[self.encode(key), self.encode(item)] for key, item in value.items()]}
        if (parts := _PARTS.get(kind)) is not None:
            return {f"${kind.__name__}": [self.encode(part) for part in parts(value)]}
        if (text := _TEXTS.get(kind)) is not None and (written := text.write(value)) is not None:
            return {f"${text.name}": written}
        return self._encode_large(value)

    def _encode_large(self, value: Any) -> Any:
        # An instance of a library's type implies that the library was imported.
        if (np := sys.modules.get("numpy")) is not None:
            if isinstance(value, np.generic):
                return self._encode_number(np, value)
            if type(value) is np.ndarray:
                return self._encode_array(np, value)
        torch = sys.modules.get("torch")
        if torch is not None and type(value) is torch.Tensor:
            return self._encode_tensor(torch, value)
        pandas = sys.modules.get("pandas")
        if pandas is not None and type(value) is pandas.DataFrame and _keeps(pandas, value):
            return self._encode_frame(pandas, value)
        return _unstored(value)

    def _encode_number(self, np: Any, value: Any) -> Any:
        name = type(value).__name__
        if getattr(np, name, None) is type(value):
            if isinstance(value, (np.bool_, np.integer, np.floating)) and value.dtype.kind in "biuf":
                if type(plain := value.item()) in (bool, int, float):
                    return {"$number": [name, self.encode(plain)]}
            elif name in ("str_", "bytes_"):  # an array would drop zeros at their ends
                return {
                    "$number": [name, self.encode(str.__str__(value) if name == "str_" else bytes(value))]
                }
        array = self._encode_array(np, np.asarray(value))
        return _unstored(value) if "$unstored" in array else {"$scalar": array}

    def _encode_array(self, np: Any, value: Any) -> dict[str, Any]:
        name = ml_dtype(value.dtype)
        if not name and not keeps_dtype(np, value.dtype):
            return _unstored(value)
        stored = (
            np.ascontiguousarray(value).reshape(value.shape).view(f"u{value.itemsize}") if name else value
        )
        self.arrays[key := f"a{len(self.arrays)}"] = stored
        place = {"$array": f"{self.stem}.npz#{key}"}
        return {"$ml_dtypes": [name, place]} if name else place

    def _encode_tensor(self, torch: Any, value: Any) -> dict[str, Any]:
        form = tensor_form(torch, value)
        if not form:
            return _unstored(value)
        tensor = host_copy(value)
        try:
            stored = as_bytes(torch, tensor) if form == "bytes" else tensor.contiguous()
        except (RuntimeError, TypeError, NotImplementedError):
            return _unstored(value)
        self.tensors[key := f"t{len(self.tensors)}"] = stored.clone()
        encoded: dict[str, Any] = {"$tensor": f"{self.stem}.safetensors#{key}"}
        if form == "bytes":
            encoded = {"$torch": [str(value.dtype).removeprefix("torch."), list(value.shape), encoded]}
        return {"$gradient": encoded} if value.requires_grad else encoded

    def _encode_frame(self, pandas: Any, value: Any) -> dict[str, Any]:
        path = f"{self.stem}.{self.frames}.parquet"
        freq = getattr(getattr(value.index, "freq", None), "freqstr", None)
        if type(value.index) is not pandas.DatetimeIndex:
            freq = None
        try:
            self._write(path, value.to_parquet)
            # Whether it has changed on the way is known only when it has come back.
            file = self.folder / path
            kept = simple_frame(pandas, value) or same_frame(pandas, read_frame(file, freq), value)
        except OSError:
            raise
        except Exception:  # parquet, or pandas, has no type for some cell
            kept = False
        if not kept:
            (self.folder / path).unlink(missing_ok=True)
            return _unstored(value)
        self.frames += 1
        return {"$frame": path} if freq is None else {"$freq": [freq, path]}

    def finish(self) -> None:
        if self.arrays:
            import numpy as np

            self._write(f"{self.stem}.npz", lambda path: _save_npz(np, path, self.arrays))
        if self.tensors:
            from safetensors import SafetensorError
            from safetensors.torch import save_file

            try:
                self._write(f"{self.stem}.safetensors", lambda path: save_file(self.tensors, path))
            except SafetensorError as error:
                raise OSError(str(error)) from error

    def _write(self, name: str, save: Callable[[Path], object]) -> None:
        with atomic_write(self.folder / name) as part:
            save(part)


def brief_value(encoded: Any) -> Any:
    """What a table shows of a value, from its parsed JSON: arrays, tensors and tables are words."""
    try:
        return _Brief(Path()).decode(encoded)
    except NotStored:
        return _parts(_Brief(Path()), encoded)
    except Exception:  # a journal is data, with anything in it
        return None


def scalars(folder: Path, encoded: Any) -> dict[str, Any] | None:
    """Entries of a dict, dataclass or named tuple that is not stored whole, from its parsed JSON.

    What of them is not stored is a short text; None if none is a scalar.
    """
    return _parts(_Reader(folder), encoded)


def _parts(reader: _Reader, encoded: Any) -> dict[str, Any] | None:
    if not isinstance(encoded, dict):
        return None
    entries = encoded.get("entries") if "$unstored" in encoded else encoded
    if not isinstance(entries, dict):
        return None
    parts: dict[str, Any] = {}
    found = False
    for name, entry in entries.items():
        if name.startswith("$"):
            return None
        text = _text_of(entry)
        if text is None:
            try:
                parts[name] = reader.decode(entry)
            except NotStored:
                parts[name] = f"<{type(entry).__name__}>"
            except Exception:  # noqa: S112 (its file is missing or damaged, or it is nothing of ours)
                continue
        else:
            parts[name] = text
        found = found or (text is None and is_scalar(parts[name]))
    return parts if found else None


def _text_of(encoded: Any) -> str | None:
    """The text that stands for a part that is not stored."""
    return str(encoded.get("repr")) if isinstance(encoded, dict) and "$unstored" in encoded else None


def _unstored(value: Any) -> dict[str, Any]:
    kind = type(value)
    encoded: dict[str, Any] = {
        "$unstored": f"{kind.__module__}.{kind.__qualname__}",
        "repr": str(short(value)),
    }
    if dataclasses.is_dataclass(kind) or hasattr(kind, "_fields"):
        encoded["entries"] = {
            name: _entry(entry) for name, entry in columns(value).items() if entry is not value
        }
    return encoded


def _entry(value: Any) -> Any:
    """A scalar, or the text that stands for anything else: an object that is not stored has no files."""
    if type(value) is float and not math.isfinite(value):
        return {"$float": repr(value)}
    if type(value) in _JSON and (type(value) is not int or value.bit_length() <= 10_000):
        return value
    return {"$unstored": type(value).__qualname__, "repr": str(short(value))}


def _keeps(pandas: Any, frame: Any) -> bool:
    """Whether a table survives parquet unchanged.

    Lists, sets and dicts in cells would be read as arrays, and column names of mixed type as text.
    """
    columns = (frame.iloc[:, i] for i, kind in enumerate(frame.dtypes) if str(kind) == "object")
    containers = any(pandas.api.types.infer_dtype(column, skipna=True) == "mixed" for column in columns)
    return not containers and frame.columns.inferred_type != "mixed-integer"


def _save_npz(np: Any, path: Path, arrays: dict[str, Any]) -> None:
    with path.open("wb") as file:  # given a path, savez would append .npz to it
        np.savez(file, **arrays)


class _Text(NamedTuple):
    """How a type is written as a text, None if that cannot hold all of a value, and read again."""

    name: str
    write: Callable[[Any], str | None]
    read: Callable[[str], Any]


def _iso(value: Any) -> str | None:
    """Text of a date or a time; None for one of a time zone, which is an object, or of the second 2:30 of a night."""
    plain = getattr(value, "tzinfo", None) is None and not getattr(value, "fold", 0)
    return str(value.isoformat()) if plain else None


_PARTS: dict[type, Callable[[Any], Iterable[Any]]] = {
    tuple: iter,
    set: iter,
    frozenset: iter,
    complex: lambda value: (value.real, value.imag),
    range: lambda value: (value.start, value.stop, value.step),
}
_TEXTS: dict[type, _Text] = {
    bytes: _Text("bytes", lambda value: base64.b64encode(value).decode(), base64.b64decode),
    bytearray: _Text(
        "bytearray",
        lambda value: base64.b64encode(value).decode(),
        lambda text: bytearray(base64.b64decode(text)),
    ),
    type(Path()): _Text("path", str, Path),
    Decimal: _Text("decimal", str, Decimal),
    Fraction: _Text("fraction", str, Fraction),
    uuid.UUID: _Text("uuid", str, uuid.UUID),
    datetime.datetime: _Text("datetime", _iso, datetime.datetime.fromisoformat),
    datetime.date: _Text("date", _iso, datetime.date.fromisoformat),
    datetime.time: _Text("time", _iso, datetime.time.fromisoformat),
}
_READ = {text.name: text.read for text in _TEXTS.values()}
_KINDS = (
    "int", "float", "tuple", "dict", "ordered", "set", "frozenset", "complex", "range", "number", "scalar",
    "ml_dtypes", "array", "tensor", "torch", "gradient", "frame", "freq",
)  # fmt: skip


class _Reader:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def decode(self, encoded: Any) -> Any:
        if isinstance(encoded, list):
            return [self.decode(item) for item in encoded]
        if not isinstance(encoded, dict):
            return encoded
        if "$unstored" in encoded and "unwritten" in encoded:
            raise NotStored(f"it could not be written ({encoded['unwritten']})")
        if "$unstored" in encoded:
            raise NotStored(f"a value of type {encoded['$unstored']} is not kept on disk")
        if len(encoded) != 1 or not (key := next(iter(encoded))).startswith("$"):
            return {key: self.decode(item) for key, item in encoded.items()}
        if (read := _READ.get(key[1:])) is not None:
            return read(str(encoded[key]))
        if key[1:] not in _KINDS:
            raise ValueError(f"{key!r} is not a kind of value known to this version")
        return getattr(self, f"_{key[1:]}")(encoded[key])

    def _int(self, text: str) -> int:
        return int(text, 16)

    def _float(self, text: str) -> float:
        return float(text)

    def _tuple(self, items: list[Any]) -> tuple[Any, ...]:
        return tuple(self.decode(item) for item in items)

    def _dict(self, items: list[list[Any]]) -> dict[Any, Any]:
        return {self.decode(key): self.decode(item) for key, item in items}

    def _ordered(self, items: list[list[Any]]) -> OrderedDict[Any, Any]:
        return OrderedDict(self._dict(items))

    def _set(self, items: list[Any]) -> set[Any]:
        return {self.decode(item) for item in items}

    def _frozenset(self, items: list[Any]) -> frozenset[Any]:
        return frozenset(self._set(items))

    def _complex(self, parts: list[Any]) -> complex:
        return complex(*map(self.decode, parts))

    def _range(self, parts: list[Any]) -> range:
        return range(*map(self.decode, parts))

    def _number(self, parts: list[Any]) -> Any:
        import numpy as np

        return type_named(np, parts[0], np.generic)(self.decode(parts[1]))

    def _scalar(self, array: Any) -> Any:
        return self.decode(array)[()]

    def _ml_dtypes(self, parts: list[Any]) -> Any:
        import numpy as np

        try:
            ml_dtypes = importlib.import_module("ml_dtypes")
        except ImportError as error:
            raise NotStored(f"an array of {parts[0]} needs the package ml_dtypes to be read") from error
        return self.decode(parts[1]).view(type_named(ml_dtypes, parts[0], np.generic))

    def _torch(self, parts: list[Any]) -> Any:
        import torch

        dtype, shape, data = parts
        return from_bytes(torch, self.decode(data), dtype, shape)

    def _gradient(self, tensor: Any) -> Any:
        return self.decode(tensor).requires_grad_()

    def _array(self, place: str) -> Any:
        import numpy as np

        name, _, key = place.rpartition("#")
        with np.load(self._file(name), allow_pickle=False) as file:
            return file[key]

    def _tensor(self, place: str) -> Any:
        from safetensors import safe_open

        name, _, key = place.rpartition("#")
        with safe_open(self._file(name), framework="pt") as file:
            return file.get_tensor(key)

    def _frame(self, name: str) -> Any:
        return read_frame(self._file(name))

    def _freq(self, parts: list[str]) -> Any:
        return read_frame(self._file(parts[1]), parts[0])

    def _file(self, name: str) -> Path:
        path = (self.folder / name).resolve()
        if not path.is_relative_to(
            self.folder.resolve()
        ):  # a journal is data and must not read files elsewhere
            raise ValueError(f"{name!r} is outside the run's folder")
        return path


_IN_FILES = {
    "$array": "array", "$ml_dtypes": "array", "$scalar": "scalar", "$tensor": "tensor", "$torch": "tensor",
    "$gradient": "tensor", "$frame": "frame", "$freq": "frame",
}  # fmt: skip


class _Brief(_Reader):
    """Reads no file."""

    def decode(self, encoded: Any) -> Any:
        if isinstance(encoded, dict) and len(encoded) == 1:
            (key,) = encoded
            if key in _IN_FILES:
                return f"<{_IN_FILES[key]}>"
            if key == "$number":
                return self.decode(encoded[key][1])
        return super().decode(encoded)
