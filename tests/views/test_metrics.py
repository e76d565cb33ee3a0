"""Charts of metrics in a panel: what is drawn, in how many bytes, and what is left where pictures are stripped."""

import math
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from mgpu_nb.runs.ledger import Ledger
from mgpu_nb.store.metrics import format_points
from mgpu_nb.tasks import Record
from mgpu_nb.views.metrics import Chart, Trace, metrics_html


def trace(place: int, values: list[float], task: str = "", *, running: bool = True) -> Trace:
    return Trace(task or f"t-{place}", place, running, range(len(values)), values)


def chart(*traces: Trace, name: str = "loss") -> Chart:
    ends = tuple((float(item.values[-1]), item.task) for item in traces)
    return Chart(name, len(traces), traces, ends)


def points(page: str, place: int = 0) -> list[tuple[int, int]]:
    """Points of a line, in pixels."""
    path = re.findall(r'<path d="(M[^"]*)" stroke="#', page)[place]
    at, found = (0, 0), []
    for kind, words in re.findall(r"([Mlh])([^Mlh]*)", path):
        numbers = [int(word) for word in words.split()]
        if kind == "M":
            at = numbers[0], numbers[1]
        elif kind == "l":
            at = at[0] + numbers[0], at[1] + numbers[1]
        else:
            at = at[0] + numbers[0], at[1]
            continue
        found.append(at)
    return found


class Words(HTMLParser):
    """What a page shows that strips all tags."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def words(page: str) -> str:
    parser = Words()
    parser.feed(page)
    return " ".join(parser.words)


def test_a_line_goes_from_the_first_step_to_the_last_and_down_where_it_falls() -> None:
    page = metrics_html([chart(trace(0, [4.0, 2.0, 1.0]))], live=True)
    line = points(page)
    assert [x for x, _ in line] == [3, 110, 217]
    assert [y for _, y in line] == sorted(y for _, y in line)
    assert "loss 1 to 4 · step 0 to 2" in " ".join(words(page).split())


def test_values_of_several_magnitudes_have_a_logarithmic_axis() -> None:
    page = metrics_html([chart(trace(0, [100.0, 10.0, 1.0]))], live=True)
    ys = [y for _, y in points(page)]
    assert abs((ys[1] - ys[0]) - (ys[2] - ys[1])) <= 1
    assert "(log)" in page


def test_no_spike_is_lost_and_no_value_that_is_not_finite_is_drawn() -> None:
    values = [1.0] * 5000
    values[1234], values[777] = 50.0, math.nan
    page = metrics_html([chart(trace(0, values))], live=True)
    line = points(page)
    assert len(line) <= 120
    assert min(y for _, y in line) == 2  # the top
    assert 'stroke-width="5"' in metrics_html([chart(trace(0, [1.0]))], live=True)
    for odd in ([math.nan], [math.inf, math.nan], [1e308, -1e308, 1.0], [5], [10**300, 1]):
        shown = metrics_html([chart(trace(0, list(odd)))], live=False)
        drawn = re.findall(r' d="([^"]*)"', shown)
        assert not any("n" in path for path in drawn)
    broken = metrics_html([chart(trace(0, [1.0, math.nan, 3.0]))], live=True)
    assert broken.count("h0") == 2
    lost = chart(trace(0, [math.nan]))._replace(ends=((math.nan, "t-0"), (math.inf, "t-1")), tasks=2)
    assert "no last value is finite" in metrics_html([lost], live=False)


def test_names_are_escaped() -> None:
    odd = "<img src=x onerror=alert(1)>\"'\u202e"
    page = metrics_html([chart(trace(0, [1.0, 2.0], odd), trace(1, [1.0]), name=odd)], live=False, more=[odd])
    parser = Words()
    parser.feed(page)
    assert parser.tags <= {"div", "b", "span", "svg", "path", "table", "thead", "tbody", "tr", "th", "td"}
    assert "\u202e" not in page
    assert "<img" not in page


def test_what_stays_where_pictures_are_stripped_can_be_read() -> None:
    shown = chart(trace(0, [4.0, 2.0]), trace(1, [3.0, math.nan]), trace(2, [9.0, 8.0]))
    assert "median" not in metrics_html([shown], live=False)  # the table has them all
    page = metrics_html([shown._replace(traces=shown.traces[:2])], live=False)
    text = " ".join(words(page).split())
    assert "last loss of 3 tasks: 2 (t-0) to 8 (t-2), median 5, 1 not finite" in text
    assert "last loss" in text
    assert re.search(r"t-0 2 [▁-█]", text)
    assert "nan" in text


@pytest.mark.parametrize("budget", [6000, 4000, 2500, 100])
def test_charts_fit_into_what_the_panel_has_left(budget: int) -> None:
    generator = np.random.default_rng(0)
    charts = [
        chart(*(trace(place, generator.random(10_000).tolist()) for place in range(12)), name=name)
        for name in ("loss", "acc", "rate", "norm")
    ]
    page = metrics_html(charts, live=True, budget=budget)
    assert len(page.encode()) <= budget
    assert bool(page) == (budget > 100)


@pytest.mark.slow
def test_a_frame_of_ten_thousand_tasks_takes_milliseconds(tmp_path: Path) -> None:
    names = [f"fit-{n}" for n in range(10_000)]
    ledger = Ledger("r", tmp_path, names)
    for place, name in enumerate(names):
        ledger.reported(
            format_points(name, 1, [(s, s / 10, {"loss": 1 / (1 + s + place), "acc": s}) for s in range(5)])
        )
        ledger.ended(Record(name=name, index=place, kind="m:f", status="ok"))
    ledger.history.refresh()
    took = []
    for _ in range(20):
        began = time.perf_counter()
        charts, more = ledger.charts()
        took.append(time.perf_counter() - began)
    assert not more
    assert len(charts[0].ends) == 10_000  # the run is over: all are told
    live = Ledger("r", tmp_path, [*names, "one more"])
    for _ in range(100):
        live.charts()  # catches up in portions
    took = []
    for _ in range(20):
        began = time.perf_counter()
        charts, more = live.charts()
        page = metrics_html(charts, live=True, budget=6000, more=more)
        took.append(time.perf_counter() - began)
    assert [(item.name, item.tasks, len(item.traces)) for item in charts] == [
        ("loss", 10_000, 12),
        ("acc", 10_000, 12),
    ]
    assert len(page.encode()) <= 6000
    assert min(took) < 0.05  # 3 ms on an idle machine
    ledger.close()


def test_tasks_that_run_are_drawn_first_and_what_has_no_curve_is_left_out(tmp_path: Path) -> None:
    ledger = Ledger("r", tmp_path, [f"t-{n}" for n in range(40)])
    for n in range(40):
        ledger.reported(
            format_points(
                f"t-{n}", 1, [(0, 0.0, {"progress": 0.5, "epoch": 1, "a": n, "b": n, "c": n, "d": n, "e": n})]
            )
        )
    charts, more = ledger.charts()
    assert [item.name for item in charts] == ["a", "b", "c", "d"]
    assert more == ["e"]
    assert {item.task for item in charts[0].traces} == {f"t-{n}" for n in range(28, 40)}


@pytest.mark.parametrize("live", [True, False])
def test_of_many_tasks_with_one_value_each_the_panel_has_words(live: bool) -> None:
    traces = tuple(trace(place, [float(place)]) for place in range(6))
    ends = () if live else tuple((float(n), f"t-{n}") for n in range(20))
    html = metrics_html([Chart("rms", 20, traces, ends)], live=live)
    known = "6 of 20 tasks: 0 (t-0) to 5 (t-5)" if live else "20 tasks: 0 (t-0) to 19 (t-19)"
    assert f"last rms of {known}" in html
    assert "<svg" not in html
    curve = Chart("loss", 20, (trace(0, [3.0, 2.0]), *traces[1:]))
    assert metrics_html([curve], live=live).count("<svg") == 1
    assert metrics_html([Chart("rms", 6, traces)], live=live).count("<svg") == 1
