"""Weights as they are stored: whether they are numbers, told before a worker loads them, and without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .folders import not_finite, weight_files

__all__ = ["check_stored"]

_READ = 2**28  # bytes of the weights of a folder that are read at most
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # numpy has no bfloat16
_BF16_EXPONENT = (
    0x7F80  # all of its bits are set in infinity and NaN alone, as of the upper half of a float32
)


def check_stored(folder: Path) -> None:
    """Check that no weight of a model folder is NaN or infinite.

    Of a folder with more than 256 MiB of weights the first numbers of each tensor are read: a training that diverged
    leaves none whole. `check_finite` looks at all of them when they are loaded.

    Parameters
    ----------
    folder
        A folder that `check_weights` has passed.

    Raises
    ------
    ValueError
        If one is; the message names the folder and the weight.
    """
    files = weight_files(folder)
    share = min(1.0, _READ / max(1, sum(file.stat().st_size for file in files)))
    whole = [
        (name, _is_good(name, kind, values)) for file in files for name, kind, values in _tensors(file, share)
    ]
    if bad := [name for name, good in whole if not good]:
        raise ValueError(not_finite(folder, bad, len(whole)))


def _tensors(file: Path, share: float) -> Iterator[tuple[str, str, npt.NDArray[Any]]]:
    """Name, type and first numbers of each tensor of a .safetensors file that has floating-point numbers."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        entries = json.loads(opened.read(size))
        for name, entry in entries.items():
            if name == "__metadata__" or (kind := entry["dtype"]) not in _FLOATS:
                continue
            start, stop = entry["data_offsets"]
            dtype = np.dtype(_FLOATS[kind])
            opened.seek(8 + size + start)
            part = opened.read(math.ceil(share * (stop - start) / dtype.itemsize) * dtype.itemsize)
            yield name, kind, np.frombuffer(part, dtype)


def _is_good(name: str, kind: str, values: npt.NDArray[Any]) -> bool:
    """Whether there is no NaN in a tensor, and no infinity if it is a weight: a mask that is stored may have some."""
    if kind == "BF16":
        values = (values[values & _BF16_EXPONENT == _BF16_EXPONENT].astype("<u4") << 16).view("<f4")
    good = np.isfinite(values) if name.endswith(("weight", "bias")) else ~np.isnan(values)
    return bool(good.all())
