"""Files that a training leaves: weights, losses, results and predictions."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...store.files import atomic_write, escape_formula
from .reader import read_land, table, write_land

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "CHECKPOINT",
    "HELD_OUT",
    "LOSSES",
    "MODEL",
    "NORMALISATION",
    "RESULTS",
    "SCALAR_TABLE",
    "read_land",
    "table",
    "weights_file",
    "write_land",
    "write_land_results",
    "write_losses",
    "write_results",
]

CHECKPOINT = "checkpoint.pt"
LOSSES = "training_validation_losses.csv"
RESULTS = "training_results.json"
MODEL = "model.safetensors"
NORMALISATION = "normalisation.npz"
HELD_OUT = "predictions/held_out.npz"
SCALAR_TABLE = "predictions/scalar.csv"


def write_losses(folder: Path, history: Sequence[dict[str, float]]) -> None:
    """Write a row per epoch; a metric need not be there in each."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in history for name in row))
    writer = csv.writer(text)
    writer.writerow(map(escape_formula, names))
    writer.writerows([row.get(name) for name in names] for row in history)
    _write(folder / LOSSES, text.getvalue())


def weights_file(weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Content of a safetensors file; equal for equal weights and metadata.

    The library writes metadata in the order of a hash table, which differs from process to process. Here the header is
    sorted, and what comes after it, which it points to, is as it was.
    """
    from safetensors.torch import save

    whole = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    seen: dict[int, str] = {}
    # Weights that are tied have one place in memory, and the format has a name for each.
    tensors = {
        name: w.clone() if seen.setdefault(w.data_ptr(), name) != name else w for name, w in whole.items()
    }
    content: bytes = save(tensors, dict(metadata))
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format aligns what follows
    return len(header).to_bytes(8, "little") + header + content[start:]


def write_results(
    folder: Path,
    results: dict[str, Any],
    weights: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    predictions: Mapping[str, npt.NDArray[Any]],
) -> None:
    """Write weights, results and predictions.

    Parameters
    ----------
    results
        What training_results.json holds, null in place of a number that is not finite.
    weights
        State dict of the model, whole.
    metadata
        Texts of the file of weights that say how to build the model.
    predictions
        Arrays of the held-out samples by name [n, ...]; none are written if there are none.
    """
    _write(folder / MODEL, weights_file(weights, metadata))
    if predictions:
        (folder / HELD_OUT).parent.mkdir(exist_ok=True)
        arrays: dict[str, Any] = dict(predictions)
        np.savez(folder / HELD_OUT, **arrays)
    _write(folder / RESULTS, json.dumps(_finite(results), indent=2, allow_nan=False) + "\n")


def write_land_results(
    folder: Path,
    normalisation: Mapping[str, Any],
    predictions: Mapping[str, npt.NDArray[Any]],
    scalars: Sequence[str],
) -> None:
    """Write what an emulator has beside other models: its normalisation, and a table of its scalars.

    Parameters
    ----------
    normalisation
        Arrays by name, ``<part>_mean`` and ``<part>_std``.
    predictions
        ``column`` [n] and, in the units of the land, ``scalar`` and ``true_scalar`` [n, k].
    scalars
        Names of the k scalars.
    """
    arrays: dict[str, Any] = dict(normalisation)
    np.savez(folder / NORMALISATION, **arrays)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["column", *map(escape_formula, scalars), *(f"true_{name}" for name in scalars)])
    rows = np.concatenate([predictions["scalar"], predictions["true_scalar"]], 1).tolist()
    writer.writerows([n, *row] for n, row in zip(predictions["column"].tolist(), rows, strict=True))
    _write(folder / SCALAR_TABLE, text.getvalue())


def _finite(value: Any) -> Any:
    """Lists and mappings with None in place of NaN and infinity, which JSON has not."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, content: str | bytes) -> None:
    """Write a file of which nobody sees a half."""
    with atomic_write(path) as part:
        if isinstance(content, str):
            part.write_text(content, encoding="utf-8", newline="")
        else:
            part.write_bytes(content)
