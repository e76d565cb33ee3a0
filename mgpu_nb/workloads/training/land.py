"""A generated land: columns of soil with plants on them, their weather, and where their carbon goes.

For each column 20 years of weather drive production by 16 plant types; what they shed enters 18 patches of soil with
10 layers, in which three pools of carbon decay (fast, slow, passive; Q10 respiration, a moisture factor, transfers from
pool to pool). Carbon is only moved: what was produced is in the plants, in the soil or was breathed out, see
`Land.balance`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "LAYERS",
    "LISTS",
    "MATRICES",
    "MONTHS",
    "PATCHES",
    "PLANTS",
    "POOLS",
    "SCALARS",
    "SERIES",
    "STATIC",
    "VECTORS",
    "Land",
    "generate",
    "simulate",
]

Floats = npt.NDArray[np.float64]

MONTHS, SERIES, STATIC, PLANTS, PATCHES, LAYERS = 240, 6, 20, 16, 18, 10
SERIES_NAMES = ("long_wave", "pressure", "short_wave", "humidity", "rain", "temperature")
LISTS = ("leaf_area", "efficiency", "root_depth")
MATRICES = ("fast_start", "slow_start", "passive_start")
SCALARS = ("production", "respiration", "litter", "plant_carbon", "soil_carbon")
VECTORS = ("plant_carbon_by_type", "production_by_type", "litter_by_type")
POOLS = ("fast", "slow", "passive")

Q10 = 2.0  # respiration doubles with ten degrees (e.g. Davidson and Janssens, 2006)
REFERENCE = 25.0  # degrees Celsius at which the decay times below hold
DECAY = np.array([1 / 6, 1 / 60, 1 / 1200])  # per month: half a year, five years, a century
PASSED_ON = np.array([0.35, 0.05, 0.0])  # of what decays, to the next pool; the rest is breathed out
ENTERS_FAST = 0.8  # of the litter; the rest enters the slow pool
SHED = 1 / 24  # of the plants' carbon per month
USED = 0.5  # of the light's carbon is breathed out by the plants at once
LIGHT = 4e-3  # kg carbon per month, m2 of leaves and W/m2 of short wave, at the best temperature


@dataclass(frozen=True)
class Land:
    """B columns.

    Attributes
    ----------
    series
        [B, 240, 6]: monthly long wave and short wave (W/m2), pressure (hPa), humidity (g/kg), rain (mm/d), temperature
        (degrees Celsius), in the order of `SERIES_NAMES`.
    static
        [B, 20]: latitude (degrees), clay, sand and so on, as shares.
    lists
        [B, 3, 16]: of each plant type leaf area (m2/m2), efficiency (a share) and root depth (layers).
    matrices
        [B, 3, 18, 10]: carbon of the three pools at the beginning (kg/m2).
    scalar, vector, matrix
        [B, 5], [B, 3, 16], [B, 3, 18, 10]: what came of it; see `SCALARS`, `VECTORS` and `POOLS` (kg/m2).
    balance
        [B]: carbon that was produced and is nowhere, relative to all there is.
    """

    series: Floats
    static: Floats
    lists: Floats
    matrices: Floats
    scalar: Floats
    vector: Floats
    matrix: Floats
    balance: Floats

    def __len__(self) -> int:
        return len(self.series)

    def __getitem__(self, index: Any) -> Land:
        """Some of the columns."""
        return Land(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


def generate(columns: int, seed: int = 0) -> Land:
    """Generated land. Column `i` depends on the seed and on `i` alone, not on how many there are.

    Raises
    ------
    ValueError
        For a number below one.
    """
    if columns < 1:
        raise ValueError(f"columns={columns!r}: give a whole number, one or more")
    drawn = [_drawn(np.random.default_rng([seed, n])) for n in range(columns)]
    series, static, lists, matrices = (np.stack(parts) for parts in zip(*drawn, strict=True))
    scalar, vector, matrix, balance = simulate(series, static, lists, matrices)
    return Land(series, static, lists, matrices, scalar, vector, matrix, balance)


def _drawn(rng: np.random.Generator) -> tuple[Floats, Floats, Floats, Floats]:
    """Weather, soil, plants and first pools of one column."""
    latitude = rng.uniform(-60, 75)
    season = np.cos(2 * np.pi * (np.arange(MONTHS) - (6 if latitude > 0 else 0)) / 12)
    tilt = abs(latitude) / 75
    temperature = 27 - 32 * tilt**1.5 + (1 + 14 * tilt) * season + rng.normal(0, 1.2, MONTHS)
    short = np.clip(230 - 110 * tilt + (20 + 110 * tilt) * season + rng.normal(0, 12, MONTHS), 5, None)
    rain = rng.gamma(2.0, rng.uniform(0.4, 2.5), MONTHS) * (1 + 0.4 * season)
    humidity = np.clip(3.8 * np.exp(0.06 * temperature) * rng.uniform(0.5, 0.95), 0.1, None)
    long = 5.67e-8 * (temperature + 273.15) ** 4 * (0.7 + 0.005 * humidity)
    pressure = rng.uniform(750, 1015) + rng.normal(0, 4, MONTHS)
    static = np.concatenate([[latitude], rng.dirichlet([2.0, 2.0, 2.0]), rng.uniform(0, 1, STATIC - 4)])
    present = rng.random(PLANTS) < 0.5
    present[rng.integers(PLANTS)] = True
    lists = np.stack(
        [present * rng.gamma(3.0, 0.6, PLANTS), rng.uniform(0.5, 1.0, PLANTS), rng.uniform(1.0, 8.0, PLANTS)]
    )
    depth = np.exp(-np.arange(LAYERS) / rng.uniform(2, 5))
    pools = rng.gamma(2.0, 1.0, (3, PATCHES, 1)) * depth * np.array([0.02, 0.15, 0.5])[:, None, None]
    return np.stack([long, pressure, short, humidity, rain, temperature], 1), static, lists, pools


def simulate(
    series: Floats, static: Floats, lists: Floats, matrices: Floats
) -> tuple[Floats, Floats, Floats, Floats]:
    """Move the carbon of B columns month by month; return scalar, vector, matrix and balance as in `Land`."""
    batch = len(series)
    short, rain, temperature = series[..., 2], series[..., 4], series[..., 5]
    clay = static[:, 1]
    leaf, efficiency, root = lists[:, 0], lists[:, 1], lists[:, 2]
    depth = np.arange(LAYERS)
    profile = np.exp(-depth / root[..., None])  # of each plant type's litter over the layers
    profile /= profile.sum(-1, keepdims=True)
    plants = np.zeros((batch, PLANTS))
    produced, shed_in_all = np.zeros((batch, PLANTS)), np.zeros((batch, PLANTS))
    pools = matrices.copy()
    breathed = np.zeros(batch)
    moisture = np.full(batch, 0.5)
    at_first = pools.sum((1, 2, 3))
    for month in range(series.shape[1]):
        warm = temperature[:, month]
        moisture = np.clip(0.8 * moisture + 0.06 * rain[:, month] - 0.002 * np.maximum(warm, 0), 0.05, 1.0)
        best = np.exp(-(((warm - 22) / 12) ** 2)) * moisture
        light = LIGHT * short[:, month] * best
        production = (1 - USED) * light[:, None] * efficiency * (1 - np.exp(-0.5 * leaf))
        litter = SHED * plants
        plants = plants + production - litter
        produced += production
        shed_in_all += litter
        # The litter of plant type p falls on patch p; the last two patches are bare.
        fallen = np.zeros((batch, PATCHES, LAYERS))
        fallen[:, :PLANTS] = litter[..., None] * profile
        # Deeper soil follows the air less; water speeds decay up, clay holds carbon back.
        soil = warm[:, None] * np.exp(-depth / 12) + 10 * (1 - np.exp(-depth / 12))
        speed = Q10 ** ((soil - REFERENCE) / 10) * moisture[:, None] * (1 - 0.5 * clay[:, None])
        decayed = pools * np.minimum(DECAY[:, None, None] * speed[:, None, None, :], 1.0)
        passed = decayed * PASSED_ON[:, None, None]
        breathed += (decayed - passed).sum((1, 2, 3))
        pools = pools - decayed
        pools[:, 0] += ENTERS_FAST * fallen
        pools[:, 1] += (1 - ENTERS_FAST) * fallen + passed[:, 0]
        pools[:, 2] += passed[:, 1]
    total = at_first + produced.sum(1)
    there = pools.sum((1, 2, 3)) + plants.sum(1) + breathed
    scalar = np.stack([produced.sum(1), breathed, shed_in_all.sum(1), plants.sum(1), pools.sum((1, 2, 3))], 1)
    return scalar, np.stack([plants, produced, shed_in_all], 1), pools, (total - there) / total
