"""The file of a run's metrics: what is kept of many points, exact numbers, damaged lines, runs that go on."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpu_nb.store import metrics
from mgpu_nb.store.metrics import FILE, History, Series, SeriesKey, Thinning, format_points

LOSS = SeriesKey("loss", "a", 1)


def written(folder: Path, values: list[float], task: str = "a", attempt: int = 1) -> History:
    history = History(folder)
    history.add(format_points(task, attempt, [(n, n / 8, {"loss": v}) for n, v in enumerate(values)]))
    history.refresh()
    return history


@given(count=st.integers(0, 700), most=st.sampled_from([2, 8, 32, 100]))
@settings(max_examples=60)
def test_points_are_thinned_evenly_and_the_first_and_the_last_stay(count: int, most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "MOST", most)
        thinning, series, sent, last = Thinning(), Series(), 0, None
        for step in range(count):
            if thinning.keeps():
                series.append(step, float(step), step)
                sent, last = sent + 1, None
            else:
                last = step
        if last is not None:
            series.append(last, float(last), last)
    steps = list(series.steps)
    assert len(steps) <= most
    assert sent <= most + most / 2 * max(0.0, math.log2(max(count, 1) / most) + 1)
    if count:
        assert (steps[0], steps[-1]) == (0, count - 1)
        strides = {b - a for a, b in pairwise(steps[:-1])}
        assert len(strides) <= 1
        assert all(stride & (stride - 1) == 0 for stride in strides)
    if count <= most:
        assert steps == list(range(count))


NUMBERS = st.one_of(st.integers(-(2**70), 2**70), st.floats(), st.integers(-5, 5))


@given(st.lists(NUMBERS, max_size=20))
@settings(max_examples=60)
def test_numbers_are_what_they_were(values: list[float]) -> None:
    series = Series()
    for line in format_points("a", 1, [(n, 0.0, {"x": v}) for n, v in enumerate(values)]).splitlines():
        series.append(0, 0.0, json.loads(line)["values"]["x"])
    for found, value in zip(series.values, values, strict=True):
        assert found == value or (math.isnan(found) and math.isnan(value))
    if all(type(value) is int for value in values):
        assert all(type(found) is int for found in series.values)


def test_damaged_lines_are_left_out(tmp_path: Path) -> None:
    written(tmp_path, [1.0, 2.0])
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"task": 3, "attempt": 1, "step": 0, "time": 0, "values": {}}\n[1]\n}, {\n\xff\n')
        file.write(b'{"task": "a", "attempt": 1, "step": 0, "time": 0, "values": {"loss": "<b>"}}\n')
        file.write(b'{"task": "a", "attempt": 1, "step": NaN, "time": 0, "values": {"loss": 1}}\n')
        file.write(format_points("a", 1, [(7, 1.0, {"loss": math.inf})]))
        file.write(b'{"task": "a", "attempt": 1, "st')
    history = History(tmp_path)
    history.refresh()
    assert list(history.series(LOSS).values) == [1.0, 2.0, math.inf]
    assert list(history.series(LOSS).steps) == [0, 1, 7]
    with (tmp_path / FILE).open("ab") as file:  # the rest of the line arrives
        file.write(b'ep": 8, "time": 2, "values": {"loss": 0}}\n')
    history.refresh()
    assert list(history.series(LOSS).steps) == [0, 1, 7, 8]


def test_a_run_again_forgets_its_tasks_and_keeps_the_rest(tmp_path: Path) -> None:
    written(tmp_path, [1.0, 2.0], "a")
    written(tmp_path, [3.0], "b")
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"task": "b", "att')  # its writer was killed
    follower = History(tmp_path)
    follower.refresh()
    assert {key.task for key in follower.keys("loss")} == {"a", "b"}
    History(tmp_path).forget({"a", "c"})
    written(tmp_path, [5.0], "a")
    follower.refresh()  # of another process: it sees that the file is another
    assert {key.task: list(follower.series(key).values) for key in follower.keys("loss")} == {
        "a": [5.0],
        "b": [3.0],
    }
    History(tmp_path / "none").forget({"a"})


def test_a_file_is_read_in_portions(tmp_path: Path) -> None:
    written(tmp_path, [float(n) for n in range(100)])
    history = History(tmp_path)
    history.refresh(most=1000)
    assert 0 < len(history.series(LOSS)) < 30
    for _ in range(20):
        history.refresh(most=1000)
    assert len(history.series(LOSS)) == 100


def test_a_file_that_cannot_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE).mkdir()
    history = History(tmp_path)
    for _ in range(2):
        history.add(b"{}\n")
        history.flush()
    assert caplog.text.count("metrics are incomplete") == 1
