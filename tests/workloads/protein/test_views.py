from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.patches import Rectangle

from mgpu_nb.tasks import Record
from mgpu_nb.workloads.protein import Config, collect, run_experiment
from mgpu_nb.workloads.protein.report import Report


@pytest.fixture(scope="module")
def report() -> Report:
    config = Config(num_samples=2, sample_length=20, steps=10, num_folds=3)
    pairs = [("standard", 1), ("best_of_n", 4), ("best_of_n", 2), ("noise_search", 2)]
    records = [
        Record(
            name=f"{m}-b{b}",
            index=i,
            kind="k",
            status="ok",
            value=run_experiment(m, b, config),
            device="cpu:0",
        )
        for i, (m, b) in enumerate(pairs)
    ]
    records.append(Record(name="divergence_free_ode-b2", index=9, kind="k", status="killed", error="killed"))
    return collect(SimpleNamespace(records=records, folder=None))


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


def test_scores_are_drawn_against_nfe(report: Report) -> None:
    ax = report.plot()
    artists, labels = ax.get_legend_handles_labels()
    handles = cast("list[ErrorbarContainer]", artists)  # the stubs know only artists
    assert labels == ["standard", "best_of_n", "noise_search"]
    means = {r["nfe"]: r["mean_score"] for r in report.succeeded if r["method"] == "best_of_n"}
    (line,) = [each for each in ax.lines if np.size(each.get_xdata()) == 4]  # of 1, 2, 3, 4 starts
    assert np.asarray(line.get_xdata()).tolist() == [10, 20, 30, 40]
    assert np.asarray(line.get_ydata())[[1, 3]] == pytest.approx([means[20], means[40]], abs=1e-6)
    assert ax.get_xlabel() == "network calls (NFE) per sample"
    legend = ax.get_legend()
    assert legend is not None
    assert legend.get_title().get_text() == "bars, band: standard error"
    assert ax.get_ylabel() == "mean TM-score to nearest fold"
    assert ax.get_xscale() == "log"
    assert len({handle.lines[0].get_marker() for handle in handles}) == 3
    assert len({handle.lines[0].get_color() for handle in handles}) == 3


def test_differences_at_equal_work_are_drawn_about_best_of_n(report: Report) -> None:
    assert report.at_equal_work() == []  # 4 starts are not enough
    assert not report.plot_equal_work().containers
    many = run_experiment("best_of_n", 9, Config(num_samples=2, sample_length=20, steps=10, num_folds=3))
    both = Report([*report.results, {**many, "name": "best_of_n-b9", "status": "ok"}])
    (each,) = both.at_equal_work()
    assert (each.result["nfe"], each.starts) == (78, 8)
    ax = both.plot_equal_work()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["noise_search, 2 (78 calls)"]
    (point,) = cast("list[ErrorbarContainer]", ax.containers)
    assert list(np.asarray(point.lines[0].get_xdata())) == [each.difference]
    assert "over best_of_n with as many network calls" in ax.get_xlabel()


def test_improvements_are_bars_with_their_scores(report: Report) -> None:
    ax = report.plot_methods()
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "best_of_n, 4",
        "best_of_n, 2",
        "noise_search, 2",
    ]
    widths = [bar.get_width() for bar in ax.patches if isinstance(bar, Rectangle)]
    assert widths == pytest.approx([report.improvement(r) for r in report.succeeded[1:]])
    assert [text.get_text() for text in ax.texts] == [f"{r['mean_score']:.3f}" for r in report.succeeded[1:]]


def test_the_best_structure_is_drawn_beside_its_reference(report: Report) -> None:
    ax: Any = report.plot_best()  # matplotlib has no types for 3D axes
    reference, sample = ax.lines
    assert reference.get_label().startswith("nearest reference fold: generated")
    assert len(sample.get_data_3d()[0]) == len(reference.get_data_3d()[0]) == 20
    limits = [ax.get_xlim(), ax.get_ylim(), ax.get_zlim()]
    assert len({round(high - low, 6) for low, high in limits}) == 1  # one scale for all axes


def test_axes_of_the_callers_are_drawn_on(report: Report) -> None:
    left, right = plt.subplots(1, 2)[1]
    assert report.plot(ax=left) is left
    assert report.plot_methods(ax=right) is right
    solid = plt.figure().add_subplot(projection="3d")
    assert report.plot_best(ax=solid) is solid
    with pytest.raises(ValueError, match="needs 3D axes"):
        report.plot_best(ax=left)


def test_a_run_in_which_all_failed_has_empty_pictures() -> None:
    failed = Record(name="standard-b1", index=0, kind="k", status="error", error="no")
    report = collect(SimpleNamespace(records=[failed], folder=None))
    assert not report.plot().lines
    assert not report.plot_methods().patches
