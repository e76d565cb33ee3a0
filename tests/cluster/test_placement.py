"""What has agents started, asks what became of them, replaces those that are lost, and gives up."""

import functools
import logging
import operator
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mgpu_nb.cluster import placement as placement_module
from mgpu_nb.cluster.placement import Placement
from mgpu_nb.cluster.placer import Failures, NoMore, Placer

WAIT = 60.0


class Scripted(Placer):
    """A placer that does what a test says.

    Attributes
    ----------
    starts, says
        Called with the number of agents to start; for the status.
    lost
        Number of agents that have ended before they joined.
    """

    slots_per_node: int | None = 1

    def __init__(self, nodes: int | None = 1) -> None:
        self.nodes = nodes
        self.started: list[int] = []
        self.noted: list[Mapping[str, Any]] = []
        self.starts: Callable[[int], object] = int
        self.says: Callable[[], str] = str
        self.lost = 0

    def start(self, command: Sequence[str], invitation: Path, count: int) -> None:
        del command, invitation
        self.started.append(count)
        self.starts(count)

    def joined(self, facts: Mapping[str, Any]) -> None:
        self.noted.append(facts)

    def unheard(self) -> int:
        lost, self.lost = self.lost, 0
        return lost

    def status(self) -> str:
        return self.says()

    def close(self) -> None:
        """Nothing is left."""


def raises(error: Exception) -> Callable[..., Any]:
    """A function that raises."""

    def function(*_: object) -> None:
        raise error

    return function


@contextmanager
def placement(placer: Placer, patience: float = 600.0) -> Iterator[tuple[Placement, list[str]]]:
    reasons: list[str] = []
    placing = Placement(placer, ["agent"], Path("invitation"), patience, reasons.append)
    try:
        yield placing, reasons
    finally:
        placing.close()
        assert not placing.is_alive()


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for long."""
    monkeypatch.setattr(placement_module, "ASK_EVERY", 0.05)
    monkeypatch.setattr(placement_module, "PAUSE", 0.001)


def test_who_has_no_job_left_gives_up() -> None:
    placer = Scripted()
    placer.says = raises(OSError("job 1: COMPLETED"))
    with placement(placer) as (placing, reasons):
        placing.start()
        until(lambda: reasons)
        assert reasons == ["no agent will come: job 1: COMPLETED"]
        assert placer.started == [1]


def test_what_is_asked_for_while_the_last_job_is_seen_to_have_ended_is_started() -> None:
    placer = Scripted()
    with placement(placer) as (placing, reasons):

        def says() -> str:
            placer.says = raises(OSError("job 1: COMPLETED"))
            placing.came({"node": "a"})
            placing.went(given_back={"node": "a"})
            placing.ask_again(1)
            raise OSError("job 1: COMPLETED")

        placer.says = says
        placing.start()
        until(lambda: len(placer.started) == 2)
        assert placer.started == [1, 1]
        assert not reasons or reasons[0].endswith("COMPLETED")


def test_one_that_is_lost_is_replaced_and_who_joins_is_noted() -> None:
    placer = Scripted(2)
    with placement(placer) as (placing, reasons):
        placing.start()
        placing.came({"node": "a"})
        placing.came({"node": "b"})
        placing.served()
        placing.went()
        until(lambda: placer.started == [2, 1])
        assert [facts["node"] for facts in placer.noted] == ["a", "b"]
        assert not reasons


def test_three_agents_without_slots_are_enough_beside_one_that_works(
    caplog: pytest.LogCaptureFixture,
) -> None:
    placer = Scripted(2)
    with placement(placer) as (placing, reasons):
        placing.start()
        placing.came({"node": "works"})
        placing.served()
        for started in ([2], [2, 1], [2, 1, 1]):
            until(functools.partial(operator.eq, placer.started, started))
            placing.came({"node": "b"})
            placing.went(useless="node b: its connection ended")
        until(lambda: reasons)
        assert reasons == [
            "no agent can be started: 3 agents in a row were lost before they had slots, the last: node b: its "
            "connection ended"
        ]
        assert placer.started == [2, 1, 1]
    said = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("1 of 2 nodes are there, no other is asked for: ") for line in said)


def test_those_between_which_one_had_slots_are_no_three_in_a_row() -> None:
    placer = Scripted(2)
    with placement(placer) as (placing, reasons):
        placing.start()
        for number in range(6):
            placing.came({"node": "b"})
            if number % 2:
                placing.served()
            placing.went(useless="" if number % 2 else "it ended")
        until(lambda: sum(placer.started) == 2 + 6)
        assert not reasons


def test_what_ended_before_it_joined_is_replaced_once_another_has_slots() -> None:
    placer = Scripted(3)
    placer.lost = 1
    asked = threading.Event()

    def says() -> str:
        asked.set()
        return ""

    placer.says = says
    with placement(placer) as (placing, reasons):
        placing.start()
        assert asked.wait(WAIT)
        assert placer.started == [3]
        placing.came({"node": "a"})
        placing.served()
        until(lambda: placer.started == [3, 1])
        placer.lost = 5  # never more than are missing
        until(lambda: placer.started == [3, 1, 2])
        assert not reasons


def test_who_is_told_that_there_are_no_more_gives_up_beside_one_that_works() -> None:
    placer = Scripted(2)
    with placement(placer) as (placing, reasons):
        placing.came({"node": "a"})
        placing.served()
        placer.says = raises(NoMore("3 agents in a row have ended at once"))
        placing.start()
        until(lambda: reasons)
        assert reasons == ["no agent will come: 3 agents in a row have ended at once"]


@pytest.mark.parametrize(
    ("there", "error", "starts"),
    [
        (0, OSError("the controller is away"), 3),
        (1, OSError("the controller is away"), 10),
        (1, NoMore("the controller is away"), 1),
        (1, ValueError("the controller is away"), 1),
    ],
)
def test_what_refuses_is_asked_again(
    there: int, error: Exception, starts: int, caplog: pytest.LogCaptureFixture
) -> None:
    placer = Scripted(2)
    placer.starts = raises(error)
    with caplog.at_level(logging.CRITICAL, "mgpu_nb"), placement(placer) as (placing, reasons):
        for _ in range(there):
            placing.came({"node": "a"})
        placing.start()
        until(lambda: reasons)
        assert reasons == ["no agent can be started: the controller is away"]
        assert placer.started == [2] * starts


def test_what_refused_and_then_does_not_is_forgotten() -> None:
    placer = Scripted(2)
    answers = iter([OSError("busy")] * 9 + [None] + [OSError("busy")] * 9 + [None])

    def starts(_: int) -> None:
        if (error := next(answers)) is not None:
            raise error

    placer.starts = starts
    with placement(placer) as (placing, reasons):
        placing.came({"node": "a"})
        placing.start()
        until(lambda: len(placer.started) == 10)
        until(lambda: "busy" not in placing.words)
        placing.went()
        placing.came({"node": "b"})
        until(lambda: len(placer.started) == 20)
        assert not reasons


def test_nodes_are_given_back_also_when_no_other_comes() -> None:
    given: list[Mapping[str, Any]] = []

    class GivesBack(Scripted):
        idle: float | None = 1.0

        def give_back(self, facts: Mapping[str, Any]) -> None:
            given.append(facts)

    placer = GivesBack(2)
    placer.says = raises(NoMore("no more"))
    with placement(placer) as (placing, reasons):
        placing.came({"node": "a"})
        placing.start()
        until(lambda: reasons)
        placing.went(given_back={"node": "a"})
        until(lambda: given == [{"node": "a"}])


def test_patience_ends_where_nobody_comes() -> None:
    placer = Scripted()
    placer.says = lambda: "job 1: PENDING"
    with placement(placer, 0.1) as (placing, reasons):
        placing.start()
        until(lambda: reasons)
        assert reasons == ["no agent has come within 0.1 s (start_timeout of the pool): job 1: PENDING"]


def test_failures_are_forgotten_once_for_each_that_works() -> None:
    failures = Failures("agents have ended at once")
    for _ in range(2):
        failures.add("it ended")
    failures.worked("a")
    assert (failures.count, failures.last) == (0, "")
    for number in range(3):
        failures.check()
        failures.add(f"end {number}")
        failures.worked("a")
    with pytest.raises(NoMore, match="3 agents have ended at once, the last: end 2"):
        failures.check()
    failures.worked("b")
    failures.check()
