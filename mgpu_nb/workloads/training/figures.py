"""Figures of the predictions in physical units: errors, share of variance explained, and whether the carbon closes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from .land import Floats, Land
from .layout import OUTPUTS, TARGET

__all__ = ["carbon_of", "figures_of", "layer_thickness"]

Arrays = Mapping[str, Floats]


def figures_of(land: Land, found: Arrays, true: Arrays, stds: Arrays) -> dict[str, Any]:
    """Figures of the predictions for held-out columns.

    Parameters
    ----------
    land
        The held-out columns [n].
    found, true
        Their outputs in the units of the land, ``scalar`` [n, k], ``vector`` [n, v, p], ``matrix`` [n, m, r, c].
    stds
        Standard deviations of the training columns, by which errors are divided.

    Returns
    -------
    dict
        ``outputs``: a row per output, with ``output``, ``part``, ``unit``, ``rmse`` and ``bias`` in the unit,
        ``rmse_std`` in standard deviations, ``r2`` (None where nothing varies). ``r2``: the mean of each part.
        ``carbon``: see `carbon_of`. All can be written as JSON.
    """
    rows: list[dict[str, Any]] = []
    for part in OUTPUTS:
        for n, column in enumerate(land.layout.of(part)):
            predicted, wanted = found[part][:, n], true[part][:, n]
            error = predicted - wanted
            rows.append(
                {
                    "output": column.name.removeprefix(TARGET),
                    "part": part,
                    "unit": column.unit,
                    "rmse": float(np.sqrt(np.square(error).mean())),
                    "bias": float(error.mean()),
                    "rmse_std": float(np.sqrt(np.square(error / stds[part][n]).mean())),
                    "r2": _explained(predicted, wanted),
                }
            )
    r2: dict[str, float | None] = {}
    for part in OUTPUTS:
        known = [row["r2"] for row in rows if row["part"] == part and row["r2"] is not None]
        r2[f"{part}_r2"] = sum(known) / len(known) if known else None
    return {"outputs": rows, "r2": r2, "carbon": carbon_of(land, found, true)}


def _explained(found: Floats, true: Floats) -> float | None:
    """Coefficient of determination: 1 less the squared error over that of the mean of the held-out columns.

    Of a list or a matrix both are sums over its items, each with a mean of its own. None where nothing varies.
    """
    spread = np.square(true - true.mean(0)).sum()
    scale = np.square(true).sum()
    return float(1 - np.square(found - true).sum() / spread) if spread > 1e-20 * scale else None


def layer_thickness(layers: int) -> Floats:
    """Thickness of the soil layers of the land model, m, from the top.

    Source: Oleson and others (2013), Technical description of CLM 4.5, equations 6.5 to 6.7, with 15 layers.
    """
    count = max(layers, 15)
    node = 0.025 * (np.exp(0.5 * (np.arange(1, count + 1) - 0.5)) - 1)
    thickness = np.empty(count)
    thickness[0] = 0.5 * (node[0] + node[1])
    thickness[1:-1] = 0.5 * (node[2:] - node[:-2])
    thickness[-1] = node[-1] - node[-2]
    return thickness[:layers]


# What must be zero, by name; each is looked at if all its terms are there. Terms with a slash are sums over the cells
# of an output, "start" is the carbon of all matrices of a generated land at the beginning.
_CLOSURES = (
    ("plant carbon is that of its types", ("plant_carbon", "-plant_carbon_by_type/")),
    ("production is that of its types", ("production", "-production_by_type/")),
    ("litter is that of its types", ("litter", "-litter_by_type/")),
    ("soil carbon is that of its pools", ("soil_carbon", "-fast/", "-slow/", "-passive/")),
    (
        "vegetation and soil pools change by production less respiration",
        ("start", "production", "-respiration", "-plant_carbon_by_type/", "-fast/", "-slow/", "-passive/"),
    ),
    ("net production is gross less plant respiration", ("NPP", "-GPP", "AR")),
    ("net exchange is respiration less net production", ("NEE", "-HR", "NPP")),
    (
        "ecosystem carbon is vegetation, debris, litter and soil",
        ("TOTECOSYSC", "-TOTVEGC", "-CWDC", "-TOTLITC", "-TOTSOMC"),
    ),
)
_POOLS = re.compile(r"(cwd|litr\d+|soil\d+)c_vr")


def carbon_of(land: Land, found: Arrays, true: Arrays) -> list[dict[str, Any]]:
    """Whether the carbon of the predictions closes, and how much there is of it.

    Returns
    -------
    list
        Of each relation that the outputs allow to test, and of each stock: ``what``, ``unit``; ``predicted`` and
        ``true``, for a relation the root mean square of what is left over, which is 0 where it closes, for a stock its
        mean; ``share``, what is left over in predictions as a share of the largest term, or the root mean square error
        of the stock as a share of its mean. Stocks of matrices per m3 are integrated over the land model's layers and
        averaged over their rows.
    """
    terms = [_terms(land, arrays) for arrays in (found, true)]
    units = {
        column.name.removeprefix(TARGET): column.unit
        for column in land.layout.columns
        if column.part in OUTPUTS
    }
    rows = []
    for what, names in _CLOSURES:
        plain = [name.lstrip("-") for name in names]
        if not all(name in terms[0] for name in plain):
            continue
        signs = [-1.0 if name.startswith("-") else 1.0 for name in names]
        left = [
            _size(
                sum(
                    (sign * part[name] for sign, name in zip(signs, plain, strict=True)),
                    np.zeros(len(land)),
                )
            )
            for part in terms
        ]
        largest = max(_size(terms[1][name]) for name in plain)
        unit = next((units[name.rstrip("/")] for name in plain if name.rstrip("/") in units), "")
        rows.append(_row(what, unit, left[0], left[1], left[0], largest))
    stocks = [_stocks(land, arrays) for arrays in (found, true)]
    for what, (unit, wanted) in stocks[1].items():
        predicted = stocks[0][what][1]
        mean = float(wanted.mean())
        rows.append(_row(what, unit, float(predicted.mean()), mean, _size(predicted - wanted), abs(mean)))
    return rows


def _row(what: str, unit: str, predicted: float, true: float, left: float, whole: float) -> dict[str, Any]:
    share = left / whole if whole > 0 else None
    return {"what": what, "unit": unit, "predicted": predicted, "true": true, "share": share}


def _size(values: Floats) -> float:
    return float(np.sqrt(np.square(values).mean()))


def _terms(land: Land, arrays: Arrays) -> dict[str, Floats]:
    """Numbers [n] by name: outputs that are single numbers, and sums of the others with a slash behind the name."""
    terms = {}
    for part in OUTPUTS:
        for n, column in enumerate(land.layout.of(part)):
            name, values = column.name.removeprefix(TARGET), arrays[part][:, n]
            if part == "scalar":
                terms[name] = values
            elif _POOLS.fullmatch(name):
                terms[f"{name.removesuffix('_vr')}/"] = _integrated(values)
            else:
                terms[f"{name}/"] = values.reshape(len(values), -1).sum(1)
    starts = [n for n, column in enumerate(land.layout.of("matrices")) if column.name.endswith("_start")]
    if starts:
        terms["start"] = land.matrices[:, starts].sum((1, 2, 3))
    return terms


def _integrated(matrix: Floats) -> Floats:
    """Carbon [n] of a pool [n, rows, layers] per m3: over the depth, the mean of the rows."""
    pool: Floats = (matrix * layer_thickness(matrix.shape[-1])).sum(-1).mean(-1)
    return pool


def _stocks(land: Land, arrays: Arrays) -> dict[str, tuple[str, Floats]]:
    """Unit and stock [n] of vegetation, litter and soil, and of all of them, as far as they are outputs."""
    layout = land.layout

    def pools(pattern: str) -> list[Floats]:
        return [
            _integrated(arrays["matrix"][:, n])
            for n, column in enumerate(layout.of("matrix"))
            if re.fullmatch(pattern, column.name.removeprefix(TARGET))
        ]

    found = {
        name: sum(parts[1:], parts[0])
        for name, pattern in (
            ("woody debris", "cwdc_vr"),
            ("litter", r"litr\d+c_vr"),
            ("soil", r"soil\d+c_vr"),
        )
        if (parts := pools(pattern))
    }
    covers = [n for n, name in enumerate(layout.names("static")) if name.startswith("PCT_NAT_PFT_")]
    if covers and f"{TARGET}totvegc" in layout.names("vector"):
        types = arrays["vector"][:, layout.names("vector").index(f"{TARGET}totvegc")]
        # The first cover is that of bare ground, which lists may have lost; the last items of 18 are of no type.
        share = land.static[:, covers][:, max(0, len(covers) - types.shape[1]) :] / 100
        found = {"vegetation": (share * types[:, : share.shape[1]]).sum(1), **found}
    if len(found) > 1:
        each = list(found.values())
        found[" + ".join(found)] = sum(each[1:], each[0])
    return {f"stock: {name}": ("gC/m2", stock) for name, stock in found.items()}
