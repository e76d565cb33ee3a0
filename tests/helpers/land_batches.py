"""Batches in the layout of the public AI4BGC data: a table of numbers, lists and lists of lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

FORCINGS = {"FLDS": 300.0, "PSRF": 1e5, "FSDS": 180.0, "QBOT": 5e-3, "PRECTmms": 3e-5, "TBOT": 285.0}


def batch(rows: int = 12, seed: int = 0, months: int = 20, shape: tuple[int, int] = (2, 15)) -> pd.DataFrame:
    """Batch as the public ones: 17 columns, series as arrays, lists of 17 or 18 types, matrices as lists of lists."""
    rng = np.random.default_rng(seed)

    def lists(length: int) -> list[list[float]]:
        cells: list[list[float]] = rng.gamma(2.0, size=(rows, length)).tolist()
        return cells

    def matrices() -> list[list[list[float]]]:
        cells: list[list[list[float]]] = rng.gamma(2.0, 50.0, size=(rows, *shape)).tolist()
        return cells

    columns: dict[str, Any] = {
        name: list(mean * (1 + 0.1 * rng.standard_normal((rows, months)))) for name, mean in FORCINGS.items()
    }
    columns["Latitude"] = np.linspace(-90, -87, rows, dtype=np.float32)
    columns["Longitude"] = np.linspace(0, 358.75, rows, dtype=np.float32)
    columns["pft_leafcn"] = [np.linspace(1.0, 40.0, 17).tolist()] * rows
    columns |= {"deadcrootc": lists(18), "Y_deadcrootc": lists(18)}
    gpp, npp = 1e-5 * rng.gamma(2.0, size=(2, rows))
    columns |= {"GPP": gpp, "NPP": npp, "Y_GPP": 1.1 * gpp, "Y_NPP": 0.9 * npp}
    columns |= {"soil1c_vr": matrices(), "Y_soil1c_vr": matrices()}
    return pd.DataFrame(columns)


def write(frame: pd.DataFrame, path: Path) -> Path:
    """Write a batch as .pkl, .parquet or .npz, an array for each column, by the path's ending."""
    if path.suffix == ".npz":
        arrays: dict[str, Any] = {name: np.array(frame[name].tolist()) for name in frame.columns}
        np.savez(path, **arrays)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_pickle(path)
    return path
