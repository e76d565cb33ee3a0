"""Curves of a training, and predicted against true."""

from __future__ import annotations

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from mgpu_nb.views.run import Row, RunState, run_html
from mgpu_nb.workloads.training.land import generate
from mgpu_nb.workloads.training.views import columns_of_land, curves, predicted_against_true

matplotlib.use("Agg")


def test_curves_of_several_trainings() -> None:
    frame = pd.DataFrame({"loss": [2.0, 1.0], "validation": [1.5, 1.2]}, index=pd.Index([0, 1], name="epoch"))
    ax = curves({"one": frame, "$two_2": 2 * frame}, 3.0)
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert np.asarray(lines["one: training"].get_ydata()).tolist() == [2.0, 1.0]
    assert np.asarray(lines["one: training"].get_xdata()).tolist() == [1, 2]
    assert lines["one: validation"].get_linestyle() == "--"
    assert np.asarray(lines[r"\$two_2: validation"].get_ydata()).tolist() == [3.0, 2.4]
    assert lines["one: training"].get_linewidth() > lines[r"\$two_2: training"].get_linewidth()
    assert lines["mean predictor"].get_ydata() == [3.0, 3.0]
    assert ax.get_ylim()[0] == 0


def test_predicted_against_true_pools() -> None:
    true = np.random.default_rng(0).gamma(2.0, size=(20, 3, 18, 10))
    axes = predicted_against_true({"true_matrix": true, "matrix": true})
    assert [ax.get_title() for ax in axes] == [f"{name}, R² = 1.00" for name in ("fast", "slow", "passive")]
    points = np.asarray(axes[1].collections[0].get_offsets())
    np.testing.assert_allclose(points[:, 0], true[:, 1].sum((1, 2)))
    np.testing.assert_allclose(points[:, 1], points[:, 0])
    mean = np.broadcast_to(true.mean(0), true.shape)
    assert "R² = 0.00" in predicted_against_true({"true_matrix": true, "matrix": mean})[0].get_title()


def test_a_panel_shows_what_tasks_report() -> None:
    row = Row(slot=0, device="cpu:0", task="rank-0", said=(("loss", 0.123456), ("note", "<b>"), ("n", 7)))
    state = RunState(name="train", folder="f", at=0.0, total=1, counts={}, running=1, done=False, rows=(row,))
    page = run_html(state, live=True)
    assert "loss 0.1235, note &lt;b&gt;, n 7" in page
    silent = RunState(
        name="train",
        folder="f",
        at=0.0,
        total=1,
        counts={},
        running=1,
        done=False,
        rows=(Row(slot=0, device=""),),
    )
    assert "loss" not in run_html(silent, live=True)


def test_land_is_drawn_with_units_on_every_axis() -> None:
    axes = columns_of_land(generate(12))
    assert [ax.get_ylabel() for ax in axes] == [
        "temperature (°C)",
        "produced carbon (kg/m²)",
        "carbon (kg/m²)",
    ]
    assert all(ax.get_xlabel() for ax in axes)
    legends = [legend for ax in axes if (legend := ax.get_legend())]
    assert len(legends) == 2
    assert not any(legend.get_frame_on() for legend in legends)  # no box of another colour than the page
    mine = plt.subplots(1, 3)[1]
    assert list(columns_of_land(generate(12), mine)) == list(mine)
    plt.close("all")
