"""A generated land: columns of soil with plants on them, their weather, and where their carbon goes.

For each column 20 years of weather drive production by 16 plant types; what they shed enters 18 patches of soil with
10 layers, in which three pools of carbon decay (fast, slow, passive; Q10 respiration, a moisture factor, transfers from
pool to pool). Water comes by rain and leaves by evaporation and runoff. All inputs act. Carbon is only moved: what was
produced is in the plants, in the soil or was breathed out or burnt, see `Land.balance`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .layout import INPUTS, OUTPUTS, Column, Layout

__all__ = [
    "GENERATED",
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
    "Sizes",
    "generate",
    "simulate",
]

Floats = npt.NDArray[np.float64]

MONTHS, SERIES, STATIC, PLANTS, PATCHES, LAYERS = 240, 6, 20, 16, 18, 10
LISTS = ("leaf_area", "efficiency", "root_depth")
MATRICES = ("fast_start", "slow_start", "passive_start")
SCALARS = ("production", "respiration", "litter", "plant_carbon", "soil_carbon")
VECTORS = ("plant_carbon_by_type", "production_by_type", "litter_by_type")
POOLS = ("fast", "slow", "passive")

# Name, unit, smallest and largest value of the static inputs; the three textures are shares that add up to one.
_STATIC = (
    ("latitude", "degrees", -60.0, 75.0),
    ("clay", "share", 0.0, 1.0),
    ("sand", "share", 0.0, 1.0),
    ("silt", "share", 0.0, 1.0),
    ("ph", "", 4.0, 8.5),
    ("bulk_density", "g/cm3", 0.9, 1.7),
    ("slope", "degrees", 0.0, 30.0),
    ("rock_depth", "layers", 3.0, 12.0),
    ("carbon_dioxide", "ppm", 280.0, 560.0),
    ("nitrogen", "gN/m2/year", 0.2, 4.0),
    ("phosphorus", "gP/m2", 0.5, 8.0),
    ("albedo", "share", 0.08, 0.35),
    ("water_table", "m", 0.1, 6.0),
    ("fire", "share/year", 0.0, 0.6),
    ("grazing", "share/year", 0.0, 0.3),
    ("lignin", "share", 0.1, 0.35),
    ("stones", "share", 0.0, 0.4),
    ("tillage", "share", 0.0, 1.0),
    ("roughness", "m", 0.02, 1.5),
    ("conductivity", "W/m/K", 0.4, 2.2),
)
_SERIES_UNITS = {
    "FLDS": "W/m2",
    "PSRF": "Pa",
    "FSDS": "W/m2",
    "QBOT": "kg/kg",
    "PRECTmms": "mm/s",
    "TBOT": "K",
}

GENERATED = Layout(
    (
        *(Column(name, "series", (MONTHS,), (MONTHS,), unit) for name, unit in _SERIES_UNITS.items()),
        *(Column(name, "static", unit=unit) for name, unit, _, _ in _STATIC),
        *(
            Column(name, "lists", (PLANTS,), (PLANTS,), unit)
            for name, unit in zip(LISTS, ("m2/m2", "share", "layers"), strict=True)
        ),
        *(Column(name, "matrices", (PATCHES, LAYERS), (PATCHES, LAYERS), "kg/m2") for name in MATRICES),
        *(Column(f"Y_{name}", "scalar", unit="kg/m2") for name in SCALARS),
        *(Column(f"Y_{name}", "vector", (PLANTS,), (PLANTS,), "kg/m2") for name in VECTORS),
        *(Column(f"Y_{name}", "matrix", (PATCHES, LAYERS), (PATCHES, LAYERS), "kg/m2") for name in POOLS),
    )
)
"""Layout of a generated land."""

Q10 = 2.0  # respiration doubles with ten degrees (e.g. Davidson and Janssens, 2006)
REFERENCE = 25.0  # degrees Celsius at which the decay times below hold
DECAY = np.array([1 / 6, 1 / 60, 1 / 1200])  # per month: half a year, five years, a century
PASSED_ON = np.array([0.35, 0.05, 0.0])  # of what decays, to the next pool; the rest is breathed out
SHED = 1 / 24  # of the plants' carbon per month
USED = 0.5  # of the light's carbon is breathed out by the plants at once
LIGHT = 6e-3  # kg carbon per month, m2 of leaves and W/m2 of short wave, at the best temperature
FREEZING = 273.15  # K
MONTH = 30.4 * 86400  # seconds
STEFAN_BOLTZMANN = 5.67e-8  # W/m2/K4
VAPORISATION = 2.45e6  # J/kg


class Sizes(NamedTuple):
    """Sizes of the parts of a land: shapes without the number of columns and, of the series, without the months.

    ``signed`` names the parts, of vector and matrix, that have numbers below zero.
    """

    series: int = SERIES
    static: int = STATIC
    lists: tuple[int, int] = (len(LISTS), PLANTS)
    matrices: tuple[int, int, int] = (len(MATRICES), PATCHES, LAYERS)
    scalar: int = len(SCALARS)
    vector: tuple[int, int] = (len(VECTORS), PLANTS)
    matrix: tuple[int, int, int] = (len(POOLS), PATCHES, LAYERS)
    signed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Land:
    """B columns of land, in S series of T months, K static numbers, L lists, M matrices, and the outputs.

    Sizes are those of the data; those of a generated land stand in brackets.

    Attributes
    ----------
    series
        [B, T, S] (240 months of 6 forcings): long wave and short wave (W/m2), pressure (Pa), humidity (kg/kg), rain
        (mm/s), temperature (K), in the order of the layout.
    static
        [B, K] (20): latitude, soil, site.
    lists
        [B, L, P] (3 of 16 plant types): leaf area (m2/m2), efficiency (a share) and root depth (layers).
    matrices
        [B, M, R, C] (3 of 18 patches with 10 layers): carbon of the three pools at the beginning (kg/m2).
    scalar, vector, matrix
        [B, k] (5), [B, v, p] (3, 16), [B, m, r, c] (3, 18, 10): what came of it; see `SCALARS`, `VECTORS` and `POOLS`
        (kg/m2).
    balance
        [B]: carbon that was produced and is nowhere, relative to all there is; 0 for data that are not generated.
    layout
        Names and units of all of these, and what was done to them when they were read.
    """

    series: Floats
    static: Floats
    lists: Floats
    matrices: Floats
    scalar: Floats
    vector: Floats
    matrix: Floats
    balance: Floats
    layout: Layout = GENERATED

    def __len__(self) -> int:
        return len(self.series)

    def __getitem__(self, index: Any) -> Land:
        """Some of the columns."""
        return Land(**{name: array[index] for name, array in self.arrays().items()}, layout=self.layout)

    def arrays(self) -> dict[str, Floats]:
        """Arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "layout"}

    def sizes(self) -> Sizes:
        """Sizes of the parts, which are those of its emulator."""
        found = {part: getattr(self, part).shape[1:] for part in (*INPUTS, *OUTPUTS)}
        found |= {"series": found["series"][-1:]}
        signed = tuple(part for part in ("vector", "matrix") if (getattr(self, part) < 0).any())
        sizes: dict[str, Any] = {part: shape if len(shape) > 1 else shape[0] for part, shape in found.items()}
        return Sizes(**sizes, signed=signed)


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
    warm = 27 - 32 * tilt**1.5 + (1 + 14 * tilt) * season + rng.normal(0, 1.2, MONTHS)  # degrees Celsius
    short = np.clip(230 - 110 * tilt + (20 + 110 * tilt) * season + rng.normal(0, 12, MONTHS), 5, None)
    rain = rng.gamma(2.0, rng.uniform(0.4, 2.5), MONTHS) * (1 + 0.4 * season)  # mm/d
    humidity = np.clip(3.8 * np.exp(0.06 * warm) * rng.uniform(0.5, 0.95), 0.1, None)  # g/kg
    long = STEFAN_BOLTZMANN * (warm + FREEZING) ** 4 * (0.7 + 0.005 * humidity)
    pressure = rng.uniform(750, 1015) + rng.normal(0, 4, MONTHS)  # hPa
    texture = rng.dirichlet([2.0, 2.0, 2.0])
    low, high = np.array([bounds[2:] for bounds in _STATIC[4:]]).T
    static = np.concatenate([[latitude], texture, low + (high - low) * rng.uniform(0, 1, STATIC - 4)])
    present = rng.random(PLANTS) < 0.5
    present[rng.integers(PLANTS)] = True
    lists = np.stack(
        [present * rng.gamma(3.0, 0.6, PLANTS), rng.uniform(0.5, 1.0, PLANTS), rng.uniform(1.0, 8.0, PLANTS)]
    )
    depth = np.exp(-np.arange(LAYERS) / rng.uniform(2, 5))
    pools = rng.gamma(2.0, 1.0, (3, PATCHES, 1)) * depth * np.array([0.02, 0.15, 0.5])[:, None, None]
    series = np.stack([long, 100 * pressure, short, 1e-3 * humidity, rain / 86400, warm + FREEZING], 1)
    return series, static, lists, pools


class _Site(NamedTuple):
    """What the static inputs of B columns are for the processes, [B] each if nothing else is said."""

    day_length: Floats  # [B, 12]: relative to 12 hours
    capacity: Floats  # mm of water that the soil holds
    runoff: Floats  # share of the water above half the capacity that runs off in a month
    fertility: Floats  # factor of production by nitrogen and phosphorus
    carbon_dioxide: Floats  # ppm
    albedo: Floats
    conductance: Floats  # factor of evaporation by wind over rough ground
    burnt: Floats  # share of plants and litter pools in a month
    grazed: Floats  # share of the plants in a month, to the litter
    lignin: Floats  # share of the litter that enters the slow pool
    speed: Floats  # [B, 3, 10]: factor of decay by pool and layer
    damping: Floats  # layers over which the warmth of the air fades
    rooted: Floats  # [B, 10]: share of each layer that is soil, no rock


def _site(static: Floats) -> _Site:
    (
        latitude, clay, sand, silt, ph, density, slope, rock, dioxide, nitrogen, phosphorus, albedo, table, fire,
        grazing, lignin, stones, tillage, roughness, conductivity,
    ) = static.T  # fmt: skip
    depth = np.arange(LAYERS)
    # Length of the day by the sun's declination (e.g. Forsythe and others, 1995, at the middle of each month).
    declination = np.radians(-23.44) * np.cos(2 * np.pi * (np.arange(12) + 0.8) / 12)
    hour = -np.tan(np.radians(latitude))[:, None] * np.tan(declination)
    day_length = 2 / np.pi * np.arccos(np.clip(hour, -0.98, 0.98))
    porosity = 1 - density / 2.65  # g/cm3 of mineral grains
    capacity = 400 * (1 - stones) * porosity * (0.05 + 0.9 * silt + 0.6 * clay + 0.15 * sand)
    acid = 1 / (1 + np.exp(-(ph - 4.5) / 0.6))  # few decomposers in acid soil
    aerated = table / (table + 0.3)  # and little oxygen above a shallow water table
    tilled = 1 + 0.6 * tillage[:, None] * np.exp(-depth / 1.5)
    protected = 1 - np.array([0.2, 0.5, 0.7]) * clay[:, None]  # clay holds carbon back, old carbon most
    return _Site(
        day_length=day_length,
        capacity=capacity,
        runoff=0.1 + 0.8 * np.sin(np.radians(slope)) + 0.3 * sand,
        fertility=nitrogen / (nitrogen + 0.6) * phosphorus / (phosphorus + 0.8),
        carbon_dioxide=dioxide,
        albedo=albedo,
        conductance=0.7 + 0.4 * np.log1p(roughness / 0.1) / np.log(16.0),
        burnt=fire / 12,
        grazed=grazing / 12,
        lignin=lignin,
        speed=(acid * aerated)[:, None, None] * tilled[:, None] * protected[:, :, None],
        damping=6 * np.sqrt(conductivity),
        rooted=1 / (1 + np.exp(-(rock[:, None] - depth) / 0.7)),
    )


def _evaporation(
    long: Floats, pressure: Floats, short: Floats, humidity: Floats, warm: Floats, site: _Site
) -> tuple[Floats, Floats]:
    """Potential evaporation (mm/month, Priestley and Taylor, 1972) and the air's lack of vapour (kPa), [B] each."""
    saturated = 0.6108 * np.exp(17.27 * warm / (warm + 237.3))  # kPa (Tetens)
    vapour = humidity * 1e-3 * pressure / (0.622 + 0.378 * humidity)
    lack = np.maximum(saturated - vapour, 0)
    rise = 4098 * saturated / (warm + 237.3) ** 2  # kPa/K
    psychrometric = 1.005e3 * 1e-3 * pressure / (0.622 * VAPORISATION)  # kPa/K
    net = (1 - site.albedo) * short + 0.97 * (long - STEFAN_BOLTZMANN * (warm + FREEZING) ** 4)
    potential = 1.26 * rise / (rise + psychrometric) * np.maximum(net, 0) / VAPORISATION * MONTH
    return potential * site.conductance * (0.6 + 0.4 * lack / (lack + 1)), lack


def simulate(
    series: Floats, static: Floats, lists: Floats, matrices: Floats
) -> tuple[Floats, Floats, Floats, Floats]:
    """Move the carbon of B columns month by month; return scalar, vector, matrix and balance as in `Land`."""
    batch = len(series)
    site = _site(static)
    leaf, efficiency, root = lists[:, 0], lists[:, 1], lists[:, 2]
    depth = np.arange(LAYERS)
    # Of each plant type's litter over the layers: most where its roots are, none in rock.
    profile = np.exp(-depth / root[..., None]) * site.rooted[:, None]
    profile /= profile.sum(-1, keepdims=True)
    plants = np.zeros((batch, PLANTS))
    produced, shed_in_all = np.zeros((batch, PLANTS)), np.zeros((batch, PLANTS))
    pools = matrices.copy()
    breathed = np.zeros(batch)
    water = 0.5 * site.capacity
    at_first = pools.sum((1, 2, 3))
    damped = np.exp(-depth / site.damping[:, None])
    for month in range(series.shape[1]):
        long, pressure, short, humidity, rain, kelvin = series[:, month].T
        warm = kelvin - FREEZING
        potential, lack = _evaporation(long, pressure, short, humidity, warm, site)
        water = water + MONTH * rain
        water = water - np.minimum(potential * water / (water + site.capacity), 0.9 * water)
        water = water - site.runoff * np.maximum(water - 0.5 * site.capacity, 0)
        moisture = 1.25 * water / (water + 0.25 * site.capacity)  # 1 in soil that is full
        # Stomata close in dry air (Medlyn and others, 2011, in form); leaves feel the pressure of the dioxide.
        partial = site.carbon_dioxide * pressure / 101325
        fertilised = partial / (partial + 250) * (1 - 0.5 * lack / (lack + 1.5))
        best = np.exp(-(((warm - 22) / 12) ** 2)) * moisture * fertilised * site.fertility
        light = LIGHT * short * site.day_length[:, month % 12] * best
        production = (1 - USED) * light[:, None] * efficiency * (1 - np.exp(-0.5 * leaf))
        burnt = site.burnt * np.exp(-2 * moisture)  # a share; wet land burns little
        lost = burnt[:, None] * plants
        litter = (SHED + site.grazed)[:, None] * plants
        plants = plants + production - litter - lost
        produced += production
        shed_in_all += litter
        # The litter of plant type p falls on patch p; the last two patches are bare.
        fallen = np.zeros((batch, PATCHES, LAYERS))
        fallen[:, :PLANTS] = litter[..., None] * profile
        soil = warm[:, None] * damped + 10 * (1 - damped)  # deeper soil follows the air less
        speed = Q10 ** ((soil - REFERENCE) / 10) * moisture[:, None]
        decayed = pools * np.minimum(DECAY[:, None] * speed[:, None] * site.speed, 1.0)[:, :, None]
        passed = decayed * PASSED_ON[:, None, None]
        breathed += (decayed - passed).sum((1, 2, 3)) + lost.sum(1)
        pools = pools - decayed
        slow = site.lignin[:, None, None]
        pools[:, 0] += (1 - slow) * fallen
        pools[:, 1] += slow * fallen + passed[:, 0]
        pools[:, 2] += passed[:, 1]
    total = at_first + produced.sum(1)
    there = pools.sum((1, 2, 3)) + plants.sum(1) + breathed
    scalar = np.stack([produced.sum(1), breathed, shed_in_all.sum(1), plants.sum(1), pools.sum((1, 2, 3))], 1)
    return scalar, np.stack([plants, produced, shed_in_all], 1), pools, (total - there) / total
