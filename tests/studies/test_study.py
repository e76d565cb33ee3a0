"""A study as it is shown: text, HTML, picture."""

from collections.abc import Callable
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.container import ErrorbarContainer
from studies import study

from mgpu_nb import Study
from mgpu_nb.studies.study import Measurement

NOISY = {1: [4.0, 4.01, 4.02], 2: [2.0, 3.1, 2.0]}


@pytest.mark.parametrize("shown", [str, repr, Study._repr_html_])
def test_the_study_shows_itself(shown: Callable[[Study], str]) -> None:
    text = shown(study({1: [4.0, 4.02], 2: [2.0, 2.01]}))
    for said in ("wall, s", "2.00", "100%", "95 % interval", "Serial fraction"):
        assert said in text


@pytest.mark.parametrize("shown", [str, Study._repr_html_])
def test_what_is_noise_says_so_in_its_row_and_below(shown: Callable[[Study], str]) -> None:
    made = study(NOISY)
    text = shown(made)
    assert text.count("this figure is noise") == 2
    assert all(note in text for note in made.notes)


def test_the_serial_fraction_has_an_interval() -> None:
    assert "60.0% (95 % interval" in str(study({1: [4.0, 4.1], 2: [3.2, 3.28]}))
    assert "60.0%." in str(study({1: [4.0], 2: [3.2]}))


def test_notes_are_shown_as_text() -> None:
    html = Study([Measurement(1, 0, 1.0, (1.0,))], ["<img src=x>"])._repr_html_()
    assert "<img" not in html
    assert "&lt;img src=x&gt;" in html


@pytest.mark.parametrize("wall", [0.0, -1.0, float("nan"), float("inf")])
def test_a_wall_is_a_time(wall: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Study([Measurement(1, 0, wall, (1.0,))])
    with pytest.raises(ValueError, match="needs measurements"):
        Study([])


def test_a_count_that_was_not_measured_has_no_wall() -> None:
    with pytest.raises(ValueError, match=r"\[1, 2\] were; predict"):
        study({1: [4.0], 2: [2.0]}).wall(4)


def test_completion_is_short() -> None:
    names = {name for name in dir(study({1: [1.0]})) if not name.startswith("_")}
    assert names == {
        "counts", "frame", "gang", "measurements", "notes", "plot", "predict", "serial_fraction", "wall",
    }  # fmt: skip


def test_the_picture_shows_what_was_measured() -> None:
    ax = study({1: [4.0, 4.4], 2: [2.1, 2.1]}).plot(predict=[8], published="tracin")
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert {"ideal", "predicted", "stated by the guide (tracin)"} <= lines.keys()
    assert lines["predicted"].get_linestyle() == "--"
    assert np.asarray(lines["predicted"].get_xdata()).tolist() == [2, 8]
    (bars,) = ax.containers
    assert isinstance(bars, ErrorbarContainer)
    assert np.asarray(bars.lines[0].get_ydata()).tolist() == pytest.approx([1.0, 2.0])
    mine = study({1: [4.0], 2: [2.1]}).plot(published={2: 1.9, 16: 12.0})
    published = {line.get_label(): line for line in mine.get_lines()}["published"]
    assert np.asarray(published.get_xdata()).tolist() == [2, 16]
    with pytest.raises(ValueError, match="did you mean 'training'"):
        study({1: [1.0]}).plot(published="trainin")
    with pytest.raises(ValueError, match="states no speed-ups"):
        study({1: [1.0]}).plot(published="tracin-batch")


def test_others_are_named() -> None:
    ax = study({1: [4.0], 2: [2.1]}).plot(published={"NVIDIA": {2: 1.9, 8: 7.0}, "us, in May": {2: 1.8}})
    labels = {str(line.get_label()) for line in ax.get_lines()}
    assert {"stated by NVIDIA", "stated by us, in May"} <= labels
    assert not any(
        "stated" in str(line.get_label()) for line in study({1: [4.0], 2: [2.1]}).plot().get_lines()
    )


def test_bars_and_band_are_explained() -> None:
    ax = study({1: [4.0, 4.4], 2: [2.1, 2.2]}, (0.25,) * 16).plot(predict=[8])
    legend = ax.get_legend()
    assert legend is not None
    words = [text.get_text() for text in legend.get_texts()]
    assert "measured (dots: repeats, bars: 95 % interval)" in words
    assert "predicted, with its interval" in words
    (band,) = (part for part in ax.collections if isinstance(part, PolyCollection))
    heights = band.get_paths()[0].vertices
    ahead = study({1: [4.0, 4.4], 2: [2.1, 2.2]}, (0.25,) * 16).predict([8])
    assert np.asarray(heights)[:, 1].max() == pytest.approx(ahead["speed_up_upper"].iloc[0])
    once = study({1: [4.0], 2: [2.1]}).plot(predict=[8]).get_legend()
    assert once is not None
    assert {"measured", "predicted"} <= {text.get_text() for text in once.get_texts()}


def test_bad_counts_are_refused_by_their_name() -> None:
    with pytest.raises(TypeError, match="predict must be a sequence of counts"):
        study({1: [4.0], 2: [2.1]}).plot(predict=8)  # type: ignore[arg-type]


def test_noise_is_named_in_the_picture() -> None:
    assert [text.get_text() for text in study(NOISY).plot().texts] == ["noise"]


def test_far_predictions_are_drawn_in_steps_of_two() -> None:
    ax = study({1: [4.0, 4.1], 2: [2.1, 2.0]}, (0.05,) * 80).plot(predict=[8, 64])
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "8", "64"]
    assert study({1: [4.0], 2: [2.1]}).plot(predict=[8]).get_xscale() == "linear"


def test_the_picture_fits_700_pixels() -> None:
    ax = study({1: [4.0, 4.1], 2: [2.1, 2.0]}, (0.05,) * 80).plot(predict=[8], published="tracin")
    figure = ax.figure
    figure.canvas.draw()
    wide, high = figure.bbox.width, figure.bbox.height
    assert wide <= 700
    legend = ax.get_legend()
    assert legend is not None
    boxes = [ax.get_tightbbox(), legend.get_window_extent()]
    for box in boxes:
        assert box is not None
        assert box.x0 >= 0
        assert box.x1 <= wide
        assert box.y0 >= 0
        assert box.y1 <= high
    assert legend.get_window_extent().y1 <= ax.xaxis.label.get_window_extent().y0  # on nothing
    labels = [label.get_window_extent() for label in ax.get_xticklabels()]
    assert all(a.x1 < b.x0 for a, b in pairwise(labels))
    plt.close("all")
