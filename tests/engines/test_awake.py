"""Waiting awake: where something has just come, the next may come at once."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from mgpu_nb.engines import base, channel
from mgpu_nb.engines.awake import awake
from mgpu_nb.engines.base import SystemClock
from mgpu_nb.engines.channel import Channel


def test_the_first_true_answer_ends_it() -> None:
    answers = [[], [], ["it"], ["later"]]
    assert awake(lambda: answers.pop(0), 60.0) == ["it"]
    assert answers == [["later"]]


def test_without_one_it_ends_all_the_same() -> None:
    began, looks = time.monotonic(), []
    assert awake(lambda: looks.append(1), 0.01) is None
    assert time.monotonic() - began >= 0.01
    assert looks


class Selector:
    """One whose events a test gives; it notes how long it was to wait."""

    def __init__(self, *events: list[Any]) -> None:
        self.events, self.asked = list(events), list[float | None]()

    def select(self, timeout: float | None) -> list[Any]:
        self.asked.append(timeout)
        return self.events.pop(0) if self.events else []


def test_a_clock_stays_awake_after_an_event_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "AWAKE", 60.0)
    clock, selector = SystemClock(), Selector([], ["first"], [], [], ["second"])
    found: list[Any] = [clock.select(selector, 100.0) for _ in range(3)]
    assert found == [[], ["first"], ["second"]]
    assert selector.asked == [100.0, 100.0, 0, 0, 0]
    monkeypatch.setattr(base, "AWAKE", 0.0)
    assert clock.select(selector, 100.0) == []
    assert selector.asked[-1] == 100.0  # then it sleeps
    asked = len(selector.asked)
    clock.select(selector, None)
    assert selector.asked[asked:] == [None]  # and wakes no more before something comes


@pytest.mark.parametrize("timeout", [0.0, 0.00001])
def test_a_clock_that_is_to_wait_for_no_longer_does_not_stay_awake(timeout: float) -> None:
    clock, selector = SystemClock(), Selector(["first"])
    clock.select(selector, None)
    clock.select(selector, timeout)
    assert selector.asked == [None, timeout]


def test_a_channel_lingers_until_something_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[bool] = []

    def noting(look: Callable[[], Any], seconds: float) -> Any:
        found = awake(look, seconds)
        looks.append(bool(found))
        return found

    monkeypatch.setattr(channel, "awake", noting)
    ours, theirs = (Channel(end, blocking=True) for end in Channel.pair())
    try:
        ours.linger(0.01)
        theirs.send(1, 7, body=b"it")
        ours.linger(60.0)
        assert [frame.body for frame in ours.receive()] == [b"it"]
        theirs.close()
        ours.linger(60.0)  # the end is something, too
        assert looks == [False, True, True]
        assert list(ours.receive()) == []
        assert ours.closed
    finally:
        ours.close()
        theirs.close()
