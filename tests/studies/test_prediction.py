"""What more slots would take."""

import math

import pytest
from studies import study

from mgpu_nb.studies.study import makespan


def test_a_list_schedule() -> None:
    assert makespan([3, 3, 2, 2, 2], 2) == 7  # the example of Graham: 6 would be best
    assert makespan([1, 2, 3], 1) == 6
    assert makespan([1, 2, 3], 9) == 3


def test_prediction_lists_the_longest_first_with_the_measured_overhead() -> None:
    seconds = (3.0, 1.0, 1.0, 1.0)
    measured = study({1: [6.4]}, seconds)
    frame = measured.predict([1, 2, 8])
    assert frame["wall"].tolist() == pytest.approx([6.4, 3.3, 3.1])
    assert frame["speed_up"].tolist() == pytest.approx([1.0, 6.4 / 3.3, 6.4 / 3.1])
    with pytest.raises(ValueError, match="one or more"):
        measured.predict([0])


def test_a_gang_is_predicted_by_amdahls_law() -> None:
    walls = {n: [10 * (0.2 + 0.8 / n)] for n in (1, 2, 4)}
    gang = study(walls, gang=True)
    assert gang.predict([8])["wall"].tolist() == pytest.approx([10 * (0.2 + 0.8 / 8)])
    with pytest.raises(ValueError, match="measure several"):
        study({1: [1.0]}, gang=True).predict([2])


@pytest.mark.parametrize("gang", [False, True])
def test_a_prediction_has_an_interval(gang: bool) -> None:
    walls = {1: [4.4, 4.6, 4.5], 2: [2.4, 2.5, 2.4], 4: [1.4, 1.3, 1.35]}
    measured = study(walls, (0.25,) * 16, gang=gang)
    frame = measured.predict([1, 2, 4, 8, 16])
    for figure in ("wall", "speed_up"):
        assert (frame[f"{figure}_lower"] <= frame[figure] + 1e-12).all()
        assert (frame[figure] <= frame[f"{figure}_upper"] + 1e-12).all()
    width = (frame["speed_up_upper"] / frame["speed_up_lower"]).tolist()
    assert width[0] == 1
    assert width == sorted(width)  # the farther, the less is known
    assert measured.predict([8]).equals(measured.predict([8]))


def test_the_interval_holds_what_was_measured() -> None:
    measured = study(
        {1: [4.4, 4.5], 2: [2.6, 2.7], 4: [1.7, 1.75]}, (0.25,) * 16
    )  # worse than the list schedule
    there, ahead = measured.frame(), measured.predict([1, 2, 4])
    assert (ahead["speed_up_lower"] <= there["speed_up_lower"] + 1e-12).all()
    assert (ahead["speed_up_upper"] >= there["speed_up"]).all()


def test_no_prediction_is_more_than_linear() -> None:
    frame = study({1: [4.1, 4.6], 2: [1.9, 2.9]}, (0.25,) * 16).predict([2, 4, 8])
    assert (frame["speed_up_upper"] <= frame["slots"] + 1e-12).all()


@pytest.mark.parametrize("walls", [{1: [4.0], 2: [2.0]}, {1: [4.0, 4.1], 2: [2.0]}, {1: [4.0, 4.1, 4.0]}])
def test_too_few_repeats_give_no_interval(walls: dict[int, list[float]]) -> None:
    frame = study(walls).predict([4])
    assert math.isnan(frame["speed_up_lower"].iloc[0])
    assert math.isnan(frame["wall_upper"].iloc[0])


@pytest.mark.parametrize("wrong", [[0], [-1], [1.5], ["2"], [True], 8, "8"])
def test_bad_counts_are_refused(wrong: object) -> None:
    with pytest.raises((TypeError, ValueError), match=r"counts"):
        study({1: [4.0], 2: [2.0]}).predict(wrong)  # type: ignore[arg-type]
