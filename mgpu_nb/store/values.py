"""Values on disk: JSON if possible, with arrays, tensors and tables in files of their own. Never a pickle.

A value that JSON cannot represent is an object with one key that begins with ``$``:
``{"$array": "values/x.npz#a0"}``, ``{"$tensor": "values/x.safetensors#t0"}``, ``{"$frame": "values/x.0.parquet"}``,
``{"$tuple": [...]}``, ``{"$dict": [[key, value], ...]}``, ``{"$ordered": ...}`` (an OrderedDict),
``{"$float": "nan"}``, ``{"$bytes": base64}``,
``{"$path": "..."}``. Anything else is ``{"$unstored": type, "repr": text}``: it is kept in memory only, but for the
scalars of a dataclass or named tuple among its ``entries``, and a short text for the others.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..summary import columns, is_scalar, short
from .files import atomic_write

__all__ = ["NotStored", "brief_value", "load_value", "scalars", "store_value", "unwritten"]

_JSON = (type(None), bool, int, float, str)


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
        if kind is tuple:
            return {"$tuple": [self.encode(item) for item in value]}
        if kind is OrderedDict:  # such as a state dict of torch
            return {"$ordered": [[self.encode(key), self.encode(item)] for key, item in value.items()]}
        if kind is dict:
            if all(type(key) is str and not key.startswith("$") for key in value):
                return {key: self.encode(item) for key, item in value.items()}
            return {"$dict": [[self.encode(key), self.encode(item)] for key, item in value.items()]}
        if kind is bytes:
            return {"$bytes": base64.b64encode(value).decode()}
        if isinstance(value, Path):
            return {"$path": str(value)}
        return self._encode_large(value)

    def _encode_large(self, value: Any) -> Any:
        # An instance of a library's type implies that the library was imported.
        if (np := sys.modules.get("numpy")) is not None:
            number = isinstance(value, (np.bool_, np.number)) and not isinstance(value, np.timedelta64)
            if number and isinstance(value.item(), (bool, int, float)):
                return self.encode(value.item())
            if type(value) is np.ndarray and not value.dtype.hasobject:
                self.arrays[key := f"a{len(self.arrays)}"] = value
                return {"$array": f"{self.stem}.npz#{key}"}
        torch = sys.modules.get("torch")
        if torch is not None and type(value) is torch.Tensor and _is_plain(torch, value):
            self.tensors[key := f"t{len(self.tensors)}"] = value.detach().cpu().contiguous().clone()
            return {"$tensor": f"{self.stem}.safetensors#{key}"}
        pandas = sys.modules.get("pandas")
        if pandas is not None and type(value) is pandas.DataFrame and _keeps(pandas, value):
            path = f"{self.stem}.{self.frames}.parquet"
            try:
                self._write(path, value.to_parquet)
            except (
                ValueError,
                TypeError,
                NotImplementedError,
                OverflowError,
            ):  # parquet has no type for some cell
                pass
            else:
                self.frames += 1
                return {"$frame": path}
        return _unstored(value)

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


def _is_plain(torch: Any, tensor: Any) -> bool:
    return tensor.layout is torch.strided and not (
        tensor.is_complex() or tensor.is_quantized or tensor.is_meta
    )


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


_KINDS = ("int", "float", "tuple", "dict", "ordered", "bytes", "path", "array", "tensor", "frame")


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

    def _bytes(self, text: str) -> bytes:
        return base64.b64decode(text)

    def _path(self, text: str) -> Path:
        return Path(text)

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
        import pandas as pd

        return pd.read_parquet(self._file(name))

    def _file(self, name: str) -> Path:
        path = (self.folder / name).resolve()
        if not path.is_relative_to(
            self.folder.resolve()
        ):  # a journal is data and must not read files elsewhere
            raise ValueError(f"{name!r} is outside the run's folder")
        return path


class _Brief(_Reader):
    """Reads no file."""

    def decode(self, encoded: Any) -> Any:
        if isinstance(encoded, dict) and len(encoded) == 1:
            (key,) = encoded
            if key in ("$array", "$tensor", "$frame"):
                return f"<{key[1:]}>"
        return super().decode(encoded)
