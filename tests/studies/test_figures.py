"""The figures of a study, and what is said of them."""

import pytest
from studies import study


def test_the_table_says_what_was_gained() -> None:
    frame = study({1: [4.4, 4.0, 4.1], 2: [2.2, 2.05], 4: [1.025]}).frame()
    assert frame["slots"].tolist() == [1, 2, 4]
    assert frame["wall"].tolist() == pytest.approx([4.1, 2.125, 1.025])
    assert frame["spread"].tolist() == pytest.approx([0.4, 0.15, 0.0])
    assert frame["speed_up"].tolist() == pytest.approx([1.0, 4.1 / 2.125, 4.0])
    assert frame["efficiency"].tolist() == pytest.approx([1.0, 4.1 / 4.25, 1.0])
    assert frame["busy"].tolist()[2] == pytest.approx(4 / 4.1)
    assert frame["overhead"].tolist()[2] == pytest.approx(0.1 / 4)
    assert frame["repeats"].tolist() == [3, 2, 1]
    assert (frame["wall_lower"][:2] < frame["wall"][:2]).all()
    assert (frame["wall_upper"][:2] > frame["wall"][:2]).all()
    assert frame["speed_up_lower"].isna().tolist() == [False, False, True]  # measured once


@pytest.mark.parametrize("serial", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("base", [1, 2])
def test_amdahls_fraction_is_found_again(serial: float, base: int) -> None:
    walls = {n: [10 * (serial + (1 - serial) * base / n)] for n in (base, 2 * base, 4 * base)}
    assert study(walls).serial_fraction == pytest.approx(serial)


def test_what_is_as_it_should_be_needs_no_word() -> None:
    good = study({1: [4.0, 4.02, 3.99], 2: [2.05, 2.04, 2.06], 4: [1.1, 1.11, 1.1]})
    assert good.notes == ()
    assert good.frame()["note"].tolist() == ["", "", ""]


def test_super_linear_figures_say_what_can_cause_them() -> None:
    odd = study({1: [28.0, 28.1, 28.0], 2: [1.0, 1.01, 1.0], 4: [7.0, 7.0, 7.02]})
    assert odd.frame()["note"].tolist() == ["", "super-linear", ""]
    (note,) = odd.notes
    assert note.startswith("2 slots (28.00 times): super-linear, more than so many slots can give")
    for cause in ("caches", "warm-up", "noise", "threads"):
        assert cause in note


def test_a_study_that_begins_with_two_slots_is_held_against_those() -> None:
    assert study({2: [4.0, 4.0], 4: [2.0, 2.0]}).notes == ()
    assert "super-linear" in study({2: [4.0, 4.0], 4: [1.0, 1.0]}).frame()["note"].tolist()


def test_above_linear_by_less_than_the_noise() -> None:
    near = study({1: [4.0, 4.5, 3.9], 2: [1.8, 2.05, 1.7]})
    assert near.frame()["efficiency"].iloc[1] > 1.05
    assert any("noise alone explains it" in note for note in near.notes)
    assert near.frame()["note"].tolist()[1] == "above linear, within the noise"


def test_a_figure_of_noise_that_is_far_above_linear_says_both() -> None:
    odd = study(
        {1: [1.2, 15.1, 15.7], 2: [0.70, 0.73, 0.80]}
    )  # what was measured with two threads on one side
    mark = odd.frame()["note"].tolist()[1]
    assert "this figure is noise" in mark
    assert "linear" in mark
    assert any("this figure is noise, and so is every speed-up" in note for note in odd.notes)
    assert any("threads per worker" in note for note in odd.notes)


def test_a_spread_above_half_of_the_wall_is_noise() -> None:
    noisy = study({1: [4.0, 4.01, 4.02], 2: [2.0, 3.1, 2.0], 4: [1.0, 1.01, 1.0]})
    assert [("noise" in note) for note in noisy.frame()["note"]] == [False, True, False]
    assert noisy.notes[0].startswith(
        "2 slots: the repeats took 2 to 3.1 s, a spread of 55% of the wall: this figure is noise."
    )


def test_where_the_smallest_count_is_noise_all_speed_ups_are() -> None:
    noisy = study({1: [4.0, 15.0, 4.02], 2: [2.0, 2.01, 2.0]})
    assert ["noise" in note for note in noisy.frame()["note"]] == [True, True]
    assert "and so is every speed-up" in noisy.notes[0]


def test_many_repeats_make_a_figure_of_noisy_ones() -> None:
    walls = [4.0, 4.1, 3.9, 4.05, 3.95] * 8
    assert study({1: [*walls, 8.0], 2: walls}).frame()["note"].tolist()[0] == ""


def test_an_interval_with_1_in_it_shows_no_gain() -> None:
    unclear = study({1: [1.0, 1.1, 0.95], 2: [0.93, 1.05, 0.9]})
    assert unclear.frame()["note"].tolist() == ["", "no gain shown"]
    assert any("the interval includes 1" in note for note in unclear.notes)


def test_more_slots_that_are_slower() -> None:
    slower = study({1: [1.0, 1.01, 1.0], 2: [1.5, 1.51, 1.5]})
    assert slower.frame()["note"].tolist() == ["", "slower"]
    assert slower.notes == ("2 slots (0.67 times): slower than 1 slot.",)


def test_what_was_measured_once_says_so() -> None:
    once = study({1: [4.0], 2: [2.0], 4: [0.5]})
    assert once.frame()["note"].tolist() == ["measured once"] * 2 + ["super-linear; measured once"]
    assert once.notes[-1].startswith("Measured once on 1, 2 and 4 slots")
