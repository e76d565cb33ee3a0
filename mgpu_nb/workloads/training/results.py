"""What a training leaves in its folder."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...store.files import atomic_write
from .land import SCALARS

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "HELD_OUT",
    "LOSSES",
    "MODEL",
    "NORMALISATION",
    "RANKS",
    "RESULTS",
    "SCALAR_TABLE",
    "write_losses",
    "write_results",
]

LOSSES = "training_validation_losses.csv"
RESULTS = "training_results.json"
RANKS = "ranks"  # the run of the ranks: its journal, logs, samples
MODEL = "model.safetensors"
NORMALISATION = "normalisation.npz"
HELD_OUT = "predictions/held_out.npz"
SCALAR_TABLE = "predictions/scalar.csv"


def write_losses(folder: Path, history: Sequence[dict[str, float]]) -> None:
    """Write a row per epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(history[0]))
    writer.writeheader()
    writer.writerows(history)
    _write(folder / LOSSES, text.getvalue())


def write_results(
    folder: Path,
    results: dict[str, Any],
    weights: dict[str, Tensor],
    normalisation: dict[str, Any],
    index: np.ndarray,
    found: dict[str, np.ndarray],
    true: dict[str, np.ndarray],
) -> None:
    """Write weights, results and predictions.

    Parameters
    ----------
    results
        What training_results.json holds.
    weights
        State dict of the emulator; the file's metadata say how to build it.
    normalisation
        Arrays by name, ``<part>_mean`` and ``<part>_std``.
    index
        Numbers of the held-out columns [n].
    found, true
        Their outputs in the units of the land: [n, 5], [n, 3, 16], [n, 3, 18, 10].
    """
    from safetensors.torch import save

    config = results["config"]
    shape = {name: str(config[name]) for name in ("width", "layers", "heads", "batch_norm")}
    tensors = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    _write(folder / MODEL, save(tensors, shape))
    np.savez(folder / NORMALISATION, **normalisation)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["column", *SCALARS, *(f"true_{name}" for name in SCALARS)])
    rows = np.concatenate([found["scalar"], true["scalar"]], 1).tolist()
    writer.writerows([n, *row] for n, row in zip(index.tolist(), rows, strict=True))
    _write(folder / SCALAR_TABLE, text.getvalue())
    arrays: dict[str, Any] = {
        "column": index,
        **found,
        **{f"true_{name}": part for name, part in true.items()},
    }
    np.savez(folder / HELD_OUT, **arrays)
    _write(folder / RESULTS, json.dumps(results, indent=2, allow_nan=False) + "\n")


def _write(path: Path, content: str | bytes) -> None:
    """Write a file of which nobody sees a half."""
    with atomic_write(path) as part:
        if isinstance(content, str):
            part.write_text(content, encoding="utf-8", newline="")
        else:
            part.write_bytes(content)
