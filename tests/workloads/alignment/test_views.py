"""Pictures of an alignment, asserted on what they draw."""

import itertools
import math
from collections.abc import Iterator

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from contrast import least
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D
from matplotlib.text import Annotation

from mgpu_nb import Record
from mgpu_nb.views.palette import NEUTRAL
from mgpu_nb.workloads.alignment.exact import sums_frontier
from mgpu_nb.workloads.alignment.views import reward_against_kl, reward_by_round, timelines

pytestmark = pytest.mark.slow

mpl.use("Agg")

COLUMNS = ["algo", "family", "dataset", "round", "eta", "avg_reward", "avg_reward_se", "avg_kl", "avg_kl_se"]


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


def frame(family: str = "gpt2", less: float = 0.0) -> pd.DataFrame:
    rows = [("reference", family, "sums", 0, math.nan, 0.38, 0.03, 0.0, 0.0)]
    for number, reward in ((1, 0.5), (2, 0.6)):
        rows += [("PITA", family, "sums", number, e, reward + e / 40, 0.02, e / 10, 0.01) for e in (8.0, 1.0)]
        rows += [("DPO", family, "sums", number, math.nan, reward + 0.3, 0.02, 0.9, 0.03)]
    found = pd.DataFrame(rows, columns=COLUMNS)
    return found.assign(avg_reward=found["avg_reward"] - less)


def labels(ax: Axes) -> dict[str, Annotation]:
    return {text.get_text(): text for text in ax.texts if isinstance(text, Annotation)}


def data(line: Line2D) -> tuple[list[float], list[float]]:
    x, y = (np.asarray(part, float).round(6).tolist() for part in line.get_data())
    return x, y


def lines(ax: Axes) -> list[tuple[list[float], list[float]]]:
    return [data(line) for line in ax.get_lines()]


def test_etas_are_joined_in_their_order_and_rounds_apart() -> None:
    ax = reward_against_kl(frame())
    assert ([0.1, 0.8], [0.525, 0.7]) in lines(ax)
    assert ([0.1, 0.8], [0.625, 0.8]) in lines(ax)
    assert ([0.9, 0.9], [0.8, 0.9]) in lines(ax)  # the rounds of DPO
    assert ([0.0], [0.38]) in lines(ax)
    first, last = (
        next(line for line in ax.get_lines() if data(line)[1] == ys) for ys in ([0.525, 0.7], [0.625, 0.8])
    )
    assert (first.get_linestyle(), last.get_linestyle()) == ("--", "-")
    assert first.get_color() == last.get_color()
    assert first.get_markerfacecolor() == "none"
    assert ax.get_title(loc="left") == "along a line: eta 1, 8; dashed: round 1; bars: standard error"


def test_lines_are_named_in_their_colours_each_on_a_line_of_its_own() -> None:
    ax = reward_against_kl(frame())
    named = labels(ax)
    assert {"PITA", "DPO", "reference"} == named.keys()
    assert named["DPO"].xy == pytest.approx((0.9, 0.9))
    assert least(*(to_hex(text.get_color()) for text in named.values())) >= 3
    heights = sorted(named[name].get_position()[1] for name in ("PITA", "DPO"))
    assert heights[1] - heights[0] >= 0.074
    assert max(heights) <= 1.0


def test_many_labels_stay_on_the_picture() -> None:
    rows = [(f"A{n}", "gpt2", "sums", 1, math.nan, 0.9 + n / 1000, 0.02, 1.0, 0.0) for n in range(12)]
    named = labels(reward_against_kl(pd.DataFrame(rows, columns=COLUMNS)))
    heights = sorted(text.get_position()[1] for text in named.values())
    assert all(after - before >= 0.074 for before, after in itertools.pairwise(heights))
    assert 0 <= heights[0] < heights[-1] <= 1.0


def test_the_frontier_is_drawn_as_far_as_the_policies_go() -> None:
    curve = sums_frontier().curve(50)
    ax = reward_against_kl(frame().assign(avg_kl=lambda rows: 2 * rows["avg_kl"]), {("gpt2", "sums"): curve})
    [drawn] = [line for line in ax.get_lines() if line.get_color() == NEUTRAL]
    kl, reward = data(drawn)
    assert [*zip(kl, reward, strict=True)][:50] == [(round(x, 6), round(y, 6)) for x, y in curve]
    assert kl[-1] == pytest.approx(ax.get_xlim()[1])
    assert kl[-1] > 1.8
    assert reward[-1] == 1.0
    assert labels(ax)["best possible"].xy == (kl[-1], 1.0)  # left of the curve there is no room
    near = labels(reward_against_kl(frame(), {("gpt2", "sums"): curve}))["best possible"]
    assert 0.4 < near.xy[0] < 0.6


def test_a_frontier_of_what_is_not_shown_is_not_drawn() -> None:
    ax = reward_against_kl(frame(), {("llama", "sums"): sums_frontier().curve(50)})
    assert "best possible" not in labels(ax)


def test_several_pairs_are_told_apart_by_markers() -> None:
    both = pd.concat([frame(), frame("llama", 0.1)])
    curve = sums_frontier().curve(50)
    ax = reward_against_kl(both, {("gpt2", "sums"): curve, ("llama", "sums"): [*curve]})
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "PITA",
        "DPO",
        "gpt2 on sums",
        "llama on sums",
    ]
    assert len([line for line in ax.get_lines() if line.get_color() == NEUTRAL]) == 1  # one curve is enough
    assert {"references", "best possible"} == labels(ax).keys()
    ax.figure.canvas.draw()
    other = [(0.0, 0.3), (1.0, 0.9)]
    ax = reward_against_kl(both, {("gpt2", "sums"): curve, ("llama", "sums"): other})
    assert {"best possible, gpt2 on sums", "best possible, llama on sums"} <= labels(ax).keys()


def test_rounds_begin_at_the_reference() -> None:
    ax = reward_by_round(frame())
    drawn = lines(ax)
    assert ([0, 1, 2], [0.38, 0.7, 0.8]) in drawn  # eta 8, which is best
    assert ([0, 1, 2], [0.38, 0.8, 0.9]) in drawn
    assert {"PITA, eta 8", "DPO"} == labels(ax).keys()
    assert all(float(tick).is_integer() for tick in ax.get_xticks())


def test_rounds_of_several_pairs_begin_at_their_own_references() -> None:
    ax = reward_by_round(pd.concat([frame(), frame("llama", 0.1)]))
    assert {y[0] for _, y in lines(ax) if len(y) == 3} == {0.38, 0.28}
    ax.figure.canvas.draw()


def test_what_has_not_been_evaluated_is_left_out() -> None:
    whole = frame()
    gaps = whole.assign(avg_reward=whole["avg_reward"].where(whole["round"] < 2))
    assert ([0, 1], [0.38, 0.8]) in lines(reward_by_round(gaps))
    assert len(lines(reward_against_kl(gaps))) < len(lines(reward_against_kl(whole)))
    for draw in (reward_against_kl, reward_by_round):
        for rows in (whole[:1], whole[:0]):
            assert draw(rows).get_ylabel() == "average reward"


def test_standard_errors_that_are_unknown_are_not_drawn() -> None:
    unknown = frame().assign(avg_reward_se=math.nan, avg_kl_se=math.nan)
    ax = reward_against_kl(unknown)
    assert "standard error" not in ax.get_title(loc="left")
    ax.figure.canvas.draw()


def test_names_are_shown_verbatim() -> None:
    rows = frame().assign(algo=lambda rows: rows["algo"].replace("DPO", "$D_P$"))
    ax = reward_against_kl(rows)
    ax.figure.canvas.draw()
    assert r"\$D_P\$" in labels(ax)


def test_given_axes_are_drawn_on() -> None:
    _, (left, right) = plt.subplots(1, 2)
    assert reward_against_kl(frame(), None, left) is left
    assert reward_by_round(frame(), right) is right


def test_timelines_have_one_scale_and_a_colour_for_each_round() -> None:
    names = ["reference_gpt2_sums_r0_evaluate", "DPO_gpt2_sums_r1_generate-0", "DPO_gpt2_sums_r2_train"]
    records = [
        Record(
            name=name, index=n, kind="f", status="ok", slot=0, device="cpu:0", started=2.0 * n, seconds=2.0
        )
        for n, name in enumerate(names)
    ]
    above, below = timelines({"as it was": records[:2], "another": records})
    assert above.get_xlim() == below.get_xlim()
    assert above.get_xlim()[1] > 6
    assert [area.get_label() for area in below.collections] == ["reference", "round 1", "round 2"]
    assert above.get_legend() is not None
    assert below.get_legend() is None
    assert (above.get_title("left"), below.get_title("left")) == ("as it was", "another")
