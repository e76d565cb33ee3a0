"""Figures of predictions: R2, units, and whether the carbon closes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from land_batches import batch, write

from mgpu_nb.workloads.training import Land, generate, read_land
from mgpu_nb.workloads.training.figures import carbon_of, figures_of, layer_thickness
from mgpu_nb.workloads.training.layout import OUTPUTS, unit_of

Arrays = dict[str, np.ndarray]


def outputs(land: Land) -> Arrays:
    return {part: getattr(land, part).copy() for part in OUTPUTS}


def test_layers_are_those_of_the_land_model() -> None:
    wanted = [0.0175, 0.0276, 0.0455, 0.0750, 0.1236, 0.2038, 0.3360, 0.5539, 0.9133, 1.5058]
    np.testing.assert_allclose(layer_thickness(10), wanted, atol=6e-5)
    assert layer_thickness(15)[-1] == pytest.approx(13.8512, abs=1e-3)


def test_carbon_of_a_land_closes_and_what_is_lost_is_found() -> None:
    land = generate(20)
    true = outputs(land)
    for row in carbon_of(land, true, true):
        assert row["predicted"] < 1e-10, row["what"]
    lost = outputs(land)
    lost["matrix"][:, 2] *= 0.9  # a tenth of the passive pool
    passive = land.matrix[:, 2].sum((1, 2))
    rows = {row["what"]: row for row in carbon_of(land, lost, true)}
    left = rows["vegetation and soil pools change by production less respiration"]
    assert left["predicted"] == pytest.approx(0.1 * np.sqrt(np.square(passive).mean()))
    assert left["true"] < 1e-10
    assert rows["soil carbon is that of its pools"]["predicted"] == pytest.approx(left["predicted"])
    assert rows["litter is that of its types"]["predicted"] < 1e-10


def test_r2_is_one_none_or_that_of_the_mean() -> None:
    land = generate(20)
    true, mean = outputs(land), outputs(land)
    for part, array in mean.items():
        mean[part] = np.broadcast_to(array.mean(0), array.shape).copy()
    true["scalar"][:, 3] = mean["scalar"][:, 3] = 7.0
    stds = {part: np.ones(array.shape[1:]) for part, array in true.items()}
    found = figures_of(land, mean, true, stds)
    values = {row["output"]: row["r2"] for row in found["outputs"]}
    assert values.pop("plant_carbon") is None
    np.testing.assert_allclose(list(values.values()), 0, atol=1e-9)
    assert figures_of(land, true, true, stds)["r2"] == {f"{part}_r2": 1.0 for part in OUTPUTS}


def test_stocks_and_fluxes_of_the_land_model(tmp_path: Path) -> None:
    frame = batch().rename(columns={"Y_deadcrootc": "Y_totvegc"})
    frame["Y_AR"] = frame["Y_GPP"] - frame["Y_NPP"]
    frame["Y_cwdc_vr"] = frame["Y_soil1c_vr"]
    covers = np.full((12, 17), 100 / 17)
    frame = pd.concat([frame, pd.DataFrame(covers, columns=[f"PCT_NAT_PFT_{n}" for n in range(17)])], axis=1)
    land = read_land(write(frame, tmp_path / "a.parquet"))
    true, found = outputs(land), outputs(land)
    found["scalar"][:, 0] += 1e-6  # more is produced than is used
    rows = {row["what"]: row for row in carbon_of(land, found, true)}
    left = rows["net production is gross less plant respiration"]
    assert (left["unit"], left["true"]) == ("gC/m2/s", pytest.approx(0, abs=1e-15))
    assert left["predicted"] == pytest.approx(1e-6)
    soil = (np.array(frame["Y_soil1c_vr"].tolist()) * layer_thickness(15)).sum(2).mean()
    vegetation = np.array(frame["Y_totvegc"].tolist())[:, :17].sum(1).mean() / 17
    assert rows["stock: vegetation"]["true"] == pytest.approx(vegetation)
    assert rows["stock: soil"]["true"] == pytest.approx(soil)
    assert rows["stock: vegetation + woody debris + soil"]["true"] == pytest.approx(vegetation + 2 * soil)


@pytest.mark.parametrize(
    ("name", "unit"),
    [("Y_GPP", "gC/m2/s"), ("soil3n_vr", "gN/m3"), ("Y_deadstemp", "gP/m2"), ("QBOT", "kg/kg"), ("Latitude", "degrees"),
     ("PCT_CLAY_3", "%"), ("frootc_storage", "gC/m2"), ("smin_no3_vr", "gN/m3"), ("mine", "")],
)  # fmt: skip
def test_units_of_the_land_model_are_known(name: str, unit: str) -> None:
    assert unit_of(name) == unit
