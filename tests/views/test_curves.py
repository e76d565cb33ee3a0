"""Metrics as pictures: lines, groups with bands, many tasks, what is not finite."""

import time

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from mgpu_nb.views.curves import Curve, curves

mpl.use("agg")


def line(task: str, values: list[float], start: float = 0.0, step: float = 1.0) -> Curve:
    return Curve(task, start + step * np.arange(len(values), dtype=np.float64), np.array(values, np.float64))


def height(ax: Axes, place: int) -> list[float]:
    return [float(y) for y in np.asarray(ax.lines[place].get_ydata())]


def legend(ax: Axes) -> list[str]:
    ax.figure.canvas.draw()  # whatever is wrong shows here
    found = ax.get_legend()
    assert found is not None
    return [text.get_text() for text in found.get_texts()]


def test_a_line_per_task() -> None:
    ax = curves([line("fit $1$", [3, 2, 1]), line("fit-1", [1])], "loss", "step")
    assert legend(ax) == [r"fit \$1\$", "fit-1"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "loss")
    assert ax.lines[1].get_marker() == "o"  # a single point is seen


def test_of_many_tasks_three_lines_are_named() -> None:
    lines = [line(f"t-{n}", [10.0, float(n)]) for n in range(31)]
    ax = curves(lines, "loss", "step")
    assert legend(ax) == ["each of 31 tasks", "median", "t-30 (ends highest)", "t-0 (ends lowest)"]
    (grey,) = ax.collections
    assert isinstance(grey, LineCollection)
    assert len(grey.get_segments()) == 31
    assert height(ax, 0) == [10, 15]
    assert ax.get_ylim()[0] < 0 < 30 < ax.get_ylim()[1]


@pytest.mark.slow
def test_ten_thousand_tasks_take_no_minute_to_draw() -> None:
    lines = [line(f"t-{n}", [float((n * step) % 97) for step in range(50)]) for n in range(10_000)]
    began = time.process_time()  # of this process: the machine may be busy
    ax = curves(lines, "loss", "step")
    assert legend(ax)[0] == "500 of 10,000 tasks"
    assert time.process_time() - began < 10
    long = [line(f"t-{n}", [1.0] * 5000 + [9.0] + [1.0] * 4999) for n in range(20)]
    (grey,) = curves(long, "loss", "step").collections
    assert isinstance(grey, LineCollection)
    assert sum(map(len, grey.get_segments())) <= 60_000
    assert all(np.max(np.asarray(part)[:, 1]) == 9 for part in grey.get_segments())  # no spike is lost


def test_tasks_of_one_argument_are_a_mean_and_a_band() -> None:
    lines = [line("a", [1, 2, 3]), line("b", [3, 4]), line("c", [9, 9, 9]), line("d", [5, 5])]
    ax = curves(lines, "loss", "step", by="lr", groups={"a": 0.5, "b": 0.5, "c": 0.1})
    assert legend(ax) == ["lr=0.5 (2 tasks)", "lr=0.1 (1 task)", "no lr (1 task)"]
    assert height(ax, 0) == [2, 3, 3]
    assert len(ax.collections) == 1
    box = ax.collections[0].get_datalim(ax.transData)
    assert (box.y0, box.y1) == (1, 4)
    found = ax.get_legend()
    assert found is not None
    assert "band: lowest to highest" in found.get_title().get_text()
    numbers = curves(lines[:2], "loss", "step", by="lr", groups={"a": 2, "b": 0.5})
    assert legend(numbers) == ["lr=0.5 (1 task)", "lr=2 (1 task)"]


def test_tasks_that_reported_at_other_times_are_compared() -> None:
    generator = np.random.default_rng(0)
    lines = [Curve(f"t-{n}", np.sort(generator.random(300)), np.full(300, float(n))) for n in range(4)]
    ax = curves(lines, "loss", "seconds", by="lr", groups=dict.fromkeys(["t-0", "t-1", "t-2", "t-3"], 1))
    middle = height(ax, 0)[100:400]
    assert len(height(ax, 0)) == 500
    assert np.allclose(middle, 1.5)


def test_what_is_not_finite_is_marked() -> None:
    ax = curves([line("a", [1, np.inf, 2, np.nan]), line("b", [np.nan]), line("c", [1, 2])], "loss", "step")
    assert legend(ax)[-1] == "NaN or infinite from here"
    (mark,) = [item for item in ax.lines if item.get_marker() == "X"]
    assert np.asarray(mark.get_xydata()).tolist() == [[2, 2]]
    many = curves([line(f"t-{n}", [np.nan, np.inf]) for n in range(12)], "loss", "step")
    assert legend(many) == ["each of 12 tasks"]


def test_a_logarithmic_axis_needs_something_positive() -> None:
    assert curves([line("a", [0, 1, 10])], "loss", "step", log=True).get_yscale() == "log"
    with pytest.raises(ValueError, match="no value of 'loss' is positive"):
        curves([line("a", [0, -1])], "loss", "step", log=True)


def test_axes_that_are_given_are_drawn_on() -> None:
    import matplotlib.pyplot as plt

    _, ax = plt.subplots()
    assert curves([line("a", [0, 1])], "loss", "step", ax=ax) is ax
    plt.close("all")


def test_many_groups_are_drawn_like_many_tasks() -> None:
    lines = [line(f"t-{n}", [1.0, n]) for n in range(40)]
    ax = curves(lines, "loss", "step", by="seed", groups={f"t-{n}": n // 2 for n in range(40)})
    assert legend(ax) == [
        "each of 20 values of seed",
        "median",
        "seed=19 (ends highest)",
        "seed=0 (ends lowest)",
    ]
