"""Files of a training.

It reads lands: arrays (.npz), tables with the land model's own names (.parquet), pickled ones (.pkl). It leaves
weights, losses, results and predictions.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...store.files import atomic_write
from .land import (
    LAYERS,
    LISTS,
    MATRICES,
    MONTHS,
    PATCHES,
    PLANTS,
    POOLS,
    SCALARS,
    SERIES,
    STATIC,
    VECTORS,
    Floats,
    Land,
)

if TYPE_CHECKING:
    import pandas as pd
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

SHAPES: dict[str, tuple[int, ...]] = {
    "series": (MONTHS, SERIES),
    "static": (STATIC,),
    "lists": (len(LISTS), PLANTS),
    "matrices": (len(MATRICES), PATCHES, LAYERS),
    "scalar": (len(SCALARS),),
    "vector": (len(VECTORS), PLANTS),
    "matrix": (len(POOLS), PATCHES, LAYERS),
}
# Columns of a table, as the ELM land model names them: a list of months, of plant types, of patches with layers.
WEATHER = ("FLDS", "PSRF", "FSDS", "QBOT", "PRECTmms", "TBOT")
LIST_COLUMNS = ("tlai", "deadstemc", "deadcrootc")
MATRIX_COLUMNS = ("cwdc_vr", "soil3c_vr", "soil4c_vr")
TARGET = "Y_"  # begins the names of outputs
_SUFFIXES = (".npz", ".parquet", ".pkl")


def write_land(land: Land, path: str | Path) -> Path:
    """Write a land as .npz or .parquet, by the path's ending; return the path.

    Raises
    ------
    ValueError
        For another ending.
    """
    file = Path(path).expanduser()
    if file.suffix not in (".npz", ".parquet"):
        raise ValueError(f"{file}: a land is written as .npz or .parquet")
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".npz":
        np.savez(file, **{field.name: getattr(land, field.name) for field in fields(land)})
    else:
        table(land).to_parquet(file)
    return file


def table(land: Land) -> pd.DataFrame:
    """Land as a table with a row per column of land and the names of the land model."""
    import pandas as pd

    columns: dict[str, Any] = {name: list(land.series[:, :, n]) for n, name in enumerate(WEATHER)}
    columns |= {f"static_{n}": land.static[:, n] for n in range(STATIC)}
    columns |= {name: list(land.lists[:, n]) for n, name in enumerate(LIST_COLUMNS)}
    columns |= {name: _nested(land.matrices[:, n]) for n, name in enumerate(MATRIX_COLUMNS)}
    columns |= {f"{TARGET}{name}": land.scalar[:, n] for n, name in enumerate(SCALARS)}
    columns |= {f"{TARGET}{name}": list(land.vector[:, n]) for n, name in enumerate(LIST_COLUMNS)}
    columns |= {f"{TARGET}{name}": _nested(land.matrix[:, n]) for n, name in enumerate(MATRIX_COLUMNS)}
    return pd.DataFrame(columns)


def _nested(matrices: Floats) -> list[list[Floats]]:
    return [list(matrix) for matrix in matrices]


def read_land(
    path: str | Path, *, trust: bool = False, static: Sequence[str] = (), scalars: Sequence[str] = ()
) -> Land:
    """Read a land.

    Parameters
    ----------
    path
        An .npz file with the arrays of `Land`; a .parquet or .pkl file with a table: a row per column of land, in
        columns ``FLDS``, ``PSRF``, ``FSDS``, ``QBOT``, ``PRECTmms``, ``TBOT`` the last 240 months or more, in ``tlai``,
        ``deadstemc``, ``deadcrootc`` [16], in ``cwdc_vr``, ``soil3c_vr``, ``soil4c_vr`` [18, 10], the same with ``Y_``
        before them as outputs, and columns of single numbers; or a folder of such files, which are joined in the order
        of their names.
    trust
        Whether .pkl files may be read. Loading a pickle runs code from it: only of people whom you trust.
    static, scalars
        Of a table which 20 columns are the static inputs and which 5 the scalar outputs; by default all that hold a
        single number a row, outputs those that begin with ``Y_``.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or none in the folder.
    ValueError
        If a file is malformed, a column is missing or has another shape or numbers that are not finite; and for a
        .pkl without `trust`.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        files = sorted(file for file in place.iterdir() if file.suffix in _SUFFIXES)
        if not files:
            raise FileNotFoundError(f"{place} holds no {', '.join(_SUFFIXES)} file")
    elif place.is_file():
        files = [place]
    else:
        raise FileNotFoundError(f"data={str(place)!r}: there is no such file or folder")
    lands = [_read(file, trust, static, scalars) for file in files]
    return Land(**{f.name: np.concatenate([getattr(land, f.name) for land in lands]) for f in fields(Land)})


def _read(file: Path, trust: bool, static: Sequence[str], scalars: Sequence[str]) -> Land:
    if file.suffix not in _SUFFIXES:
        raise ValueError(f"{file}: a land is read from {', '.join(_SUFFIXES)} files")
    if file.suffix == ".pkl" and not trust:
        raise ValueError(
            f"{file} is a pickle, and loading it runs code from it: give trust=True where you trust who wrote it, "
            "or write it as .parquet"
        )
    arrays = _arrays(file) if file.suffix == ".npz" else _columns(file, _frame(file), static, scalars)
    count = max(len(np.atleast_1d(array)) for array in arrays.values())
    for name, shape in SHAPES.items():
        if arrays[name].shape != (count, *shape):
            wanted = ", ".join(map(str, ("B", *shape)))
            raise ValueError(f"{file}: {name} has shape {list(arrays[name].shape)}, wanted [{wanted}]")
        try:
            arrays[name] = arrays[name].astype(np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: {name} holds what is no number: {error}") from error
        if not np.isfinite(arrays[name]).all():
            bad = int(np.argmin(np.isfinite(arrays[name].reshape(count, -1)).all(1)))
            raise ValueError(f"{file}: {name} of row {bad} is not finite: fill it in, or leave the row out")
    arrays.setdefault("balance", np.zeros(count))  # of measured land nobody knows it
    return Land(**arrays)


def _arrays(file: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with np.load(file, allow_pickle=False) as content:
            arrays = {name: content[name] for name in (*SHAPES, "balance") if name in content}
    except Exception as error:  # zipfile, numpy and the disk have errors of their own
        raise ValueError(f"{file} is no .npz file of arrays: {error}") from error
    missing = [name for name in SHAPES if name not in arrays]
    if missing:
        raise ValueError(f"{file} has no array {', '.join(missing)}: wanted {', '.join(SHAPES)}")
    return arrays


def _frame(file: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        frame = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_pickle(file)
    except Exception as error:
        raise ValueError(f"{file} is no {file.suffix} file that can be read: {error}") from error
    if not isinstance(frame, pd.DataFrame) or not len(frame):
        raise ValueError(f"{file} holds no table with rows")
    return frame


def _columns(
    file: Path, frame: pd.DataFrame, static: Sequence[str], scalars: Sequence[str]
) -> dict[str, npt.NDArray[Any]]:
    import pandas as pd

    numbers = [str(name) for name in frame.columns if pd.api.types.is_numeric_dtype(frame[name])]
    outputs = [name for name in numbers if name.startswith(TARGET)]
    static = static or [name for name in numbers if name not in outputs and name not in scalars]
    scalars = scalars or outputs
    for what, chosen, wanted in (("static", static, STATIC), ("scalar", scalars, len(SCALARS))):
        if len(chosen) != wanted:
            raise ValueError(
                f"{file}: {wanted} {what} columns are wanted, these are {len(chosen)}: {', '.join(chosen[:40])}. "
                f"Name them: {what}_columns=(...)"
            )
    lists = [f"{TARGET}{name}" for name in LIST_COLUMNS]
    matrices = [f"{TARGET}{name}" for name in MATRIX_COLUMNS]
    needed = [*WEATHER, *LIST_COLUMNS, *MATRIX_COLUMNS, *lists, *matrices, *static, *scalars]
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        raise ValueError(f"{file} has no column {', '.join(missing)}")
    weather = [_stacked(file, frame, name, last=MONTHS) for name in WEATHER]
    return {
        "series": np.stack(weather, -1),
        "static": frame[list(static)].to_numpy(),
        "lists": np.stack([_stacked(file, frame, name) for name in LIST_COLUMNS], 1),
        "matrices": np.stack([_stacked(file, frame, name, LAYERS) for name in MATRIX_COLUMNS], 1),
        "scalar": frame[list(scalars)].to_numpy(),
        "vector": np.stack([_stacked(file, frame, name) for name in lists], 1),
        "matrix": np.stack([_stacked(file, frame, name, LAYERS) for name in matrices], 1),
    }


def _stacked(
    file: Path, frame: pd.DataFrame, name: str, layers: int | None = None, last: int | None = None
) -> npt.NDArray[Any]:
    """Cells of a column as one array: [B, n], with `layers` [B, n, layers], with `last` the last so many."""
    wanted = MONTHS if last else PLANTS if layers is None else PATCHES
    rows = []
    for row, cell in enumerate(frame[name]):
        try:
            array = np.array([np.asarray(part, np.float64) for part in cell])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: {name} of row {row} is no list of numbers: {error}") from error
        array = array[-last:] if last else array
        if array.shape != ((wanted,) if layers is None else (wanted, layers)):
            shape = [wanted] if layers is None else [wanted, layers]
            raise ValueError(f"{file}: {name} of row {row} has shape {list(array.shape)}, wanted {shape}")
        rows.append(array)
    return np.stack(rows)


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
    weights: Mapping[str, Tensor],
    metadata: dict[str, str],
    predictions: Mapping[str, npt.NDArray[Any]],
) -> None:
    """Write weights, results and predictions.

    Parameters
    ----------
    results
        What training_results.json holds.
    weights
        State dict of the model, whole.
    metadata
        Texts of the file of weights that say how to build the model.
    predictions
        Arrays of the held-out samples by name [n, ...]; none are written if there are none.
    """
    from safetensors.torch import save

    whole = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    seen: dict[int, str] = {}
    # Weights that are tied have one place in memory, and the format has a name for each.
    tensors = {
        name: w.clone() if seen.setdefault(w.data_ptr(), name) != name else w for name, w in whole.items()
    }
    _write(folder / MODEL, save(tensors, metadata))
    if predictions:
        (folder / HELD_OUT).parent.mkdir(exist_ok=True)
        arrays: dict[str, Any] = dict(predictions)
        np.savez(folder / HELD_OUT, **arrays)
    _write(folder / RESULTS, json.dumps(results, indent=2, allow_nan=False) + "\n")


def write_land_results(
    folder: Path, normalisation: Mapping[str, Any], predictions: Mapping[str, npt.NDArray[Any]]
) -> None:
    """Write what an emulator has beside other models: its normalisation, and a table of its scalars.

    Parameters
    ----------
    normalisation
        Arrays by name, ``<part>_mean`` and ``<part>_std``.
    predictions
        ``column`` [n] and, in the units of the land, ``scalar`` and ``true_scalar`` [n, 5].
    """
    arrays: dict[str, Any] = dict(normalisation)
    np.savez(folder / NORMALISATION, **arrays)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["column", *SCALARS, *(f"true_{name}" for name in SCALARS)])
    rows = np.concatenate([predictions["scalar"], predictions["true_scalar"]], 1).tolist()
    writer.writerows([n, *row] for n, row in zip(predictions["column"].tolist(), rows, strict=True))
    _write(folder / SCALAR_TABLE, text.getvalue())


def _write(path: Path, content: str | bytes) -> None:
    """Write a file of which nobody sees a half."""
    with atomic_write(path) as part:
        if isinstance(content, str):
            part.write_text(content, encoding="utf-8", newline="")
        else:
            part.write_bytes(content)
