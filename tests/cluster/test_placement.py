"""What has agents started, asks what became of them, replaces those that are lost, and gives up."""

import functools
import operator
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
        Called with the number of agents to start, for how many come by it; for the status.
    lost
        Number of agents that have ended before they joined.
    """

    slots_per_node: int | None = 1

    def __init__(self, nodes: int | None = 1) -> None:
        self.nodes = nodes
        self.started: list[int] = []
        self.noted: list[Mapping[str, Any]] = []
        self.starts: Callable[[int], int] = int
        self.says: Callable[[], str] = str
        self.lost = self.works = self.looks = 0

    def start(self, command: Sequence[str], invitation: Path, count: int) -> int:
        del command, invitation
        self.started.append(count)
        return self.starts(count)

    def joined(self, facts: Mapping[str, Any]) -> None:
        self.noted.append(facts)

    def unheard(self) -> int:
        lost, self.lost = self.lost, 0
        return lost

    def worked(self) -> None:
        self.works += 1

    def status(self) -> str:
        self.looks += 1
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


def looked(placer: Scripted) -> None:
    """Wait until the placer has been asked twice more: all that was there before is seen."""
    before = placer.looks
    until(lambda: placer.looks >= before + 2)


def serves(placing: Placement, *nodes: str) -> None:
    """Have agents come and have slots."""
    for node in nodes:
        placing.came({"node": node})
        placing.served(node)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for long."""
    monkeypatch.setattr(placement_module, "ASK_EVERY", 0.02)
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
            serves(placing, "a")
            placing.went("a", given_back={"node": "a"})
            placing.ask_again(1)
            raise OSError("job 1: COMPLETED")

        placer.says = says
        placing.start()
        until(lambda: len(placer.started) > 1)
        assert placer.started[:2] == [1, 1]
        assert not reasons


def test_one_that_is_lost_is_replaced_and_who_joins_is_noted() -> None:
    placer = Scripted(2)
    with placement(placer) as (placing, reasons):
        placing.start()
        until(lambda: placer.started)
        serves(placing, "a", "b")
        placing.went("b")
        until(lambda: placer.started == [2, 1])
        assert [facts["node"] for facts in placer.noted] == ["a", "b"]
        looked(placer)
        assert placer.started == [2, 1]
        assert not reasons


def test_three_agents_without_slots_are_enough_beside_one_that_works(
    caplog: pytest.LogCaptureFixture,
) -> None:
    placer = Scripted(2)
    with placement(placer) as (placing, reasons):
        placing.start()
        until(lambda: placer.started)
        serves(placing, "works")
        for started in ([2], [2, 1], [2, 1, 1]):
            until(functools.partial(operator.eq, placer.started, started))
            placing.came({"node": "b"})
            placing.went("b", useless="node b: its connection ended")
        until(lambda: reasons)
        assert reasons == [
            "no agent can be started: 3 agents in a row were lost before they had slots, the last: node b: its "
            "connection ended"
        ]
        assert placer.started == [2, 1, 1]
    assert "1 of 2 nodes are there, and no more will come" in caplog.text


def test_those_between_which_one_had_slots_are_no_three_in_a_row() -> None:
    placer = Scripted(2)
    with placement(placer) as (placing, reasons):
        placing.start()
        for number in range(6):
            placing.came({"node": "b"})
            if number % 2:
                placing.served("b")
            placing.went("b", useless="" if number % 2 else "it ended")
            looked(placer)
        until(lambda: sum(placer.started) >= 2 + 6)
        assert not reasons


def test_while_others_are_on_their_way_it_does_not_give_up() -> None:
    placer = Scripted(5)
    with placement(placer) as (placing, reasons):
        placing.start()
        until(lambda: placer.started == [5])
        for node in "abc":
            placing.came({"node": node})
            placing.went(node, useless="it ended")
        looked(placer)
        placing.came({"node": "d"})
        looked(placer)
        assert not reasons  # d may have slots, and e come
        placing.served("d")
        looked(placer)
        assert not reasons
        placer.lost = 1  # that was e
        until(lambda: sum(placer.started) == 5 + 4)
        assert not reasons  # d has shown that it works


def test_with_no_more_to_start_it_gives_up_once_the_last_has_come_or_will_not() -> None:
    placer = Scripted(3)
    with placement(placer) as (placing, reasons):
        placing.start()
        until(lambda: placer.started == [3])
        serves(placing, "a")
        placer.starts = raises(NoMore("3 agents in a row have ended at once"))
        placing.went("a")
        until(lambda: placer.started == [3, 1])
        looked(placer)
        placing.came({"node": "b"})
        looked(placer)
        assert not reasons
        placing.served("b")
        until(lambda: placer.started == [3, 1, 1])  # once more
        looked(placer)
        assert not reasons
        placer.lost = 1
        until(lambda: reasons)
        assert reasons == ["no agent can be started: 3 agents in a row have ended at once"]
        assert placer.started == [3, 1, 1]


def test_what_ended_before_it_joined_is_replaced_once_another_has_slots() -> None:
    placer = Scripted(3)
    with placement(placer) as (placing, reasons):
        placing.start()
        until(lambda: placer.started == [3])
        placer.lost = 1
        looked(placer)
        placing.came({"node": "a"})
        looked(placer)
        assert placer.started == [3]
        placing.served("a")
        until(lambda: placer.started == [3, 1])
        placer.lost = 5  # never more than are missing
        until(lambda: placer.started == [3, 1, 2])
        looked(placer)
        assert placer.started == [3, 1, 2]
        assert not reasons


def test_one_that_was_not_needed_and_ended_is_not_replaced() -> None:
    placer = Scripted(2)
    placer.starts = lambda count: count + 1
    with placement(placer) as (placing, reasons):
        placing.start()
        until(lambda: placer.started == [2])
        serves(placing, "a", "b")
        placing.turned_away({"node": "c"})
        until(lambda: len(placer.noted) == 3)
        placing.went("b")
        until(lambda: placer.started == [2, 1])
        placer.lost = 1  # the surplus could not even knock
        looked(placer)
        assert placer.started == [2, 1]
        assert not reasons


def test_what_was_not_started_at_once_is_asked_for_again() -> None:
    placer = Scripted(3)
    placer.starts = lambda count: 1
    with placement(placer) as (placing, reasons):
        placing.start()
        until(lambda: placer.started == [3, 2, 1])
        looked(placer)
        assert placer.started == [3, 2, 1]
        assert not reasons


def test_each_agent_shows_once_that_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement_module, "WORKED", 0.05)
    placer = Scripted(3)
    with placement(placer) as (placing, _):
        placing.start()
        until(lambda: placer.started == [3])
        serves(placing, "a")
        until(lambda: placer.works == 1)
        looked(placer)
        time.sleep(0.1)
        assert placer.works == 1
        serves(placing, "b", "c")  # all are there: nothing else wakes it
        until(lambda: placer.works >= 2)
        monkeypatch.setattr(placement_module, "WORKED", 600.0)
        works = placer.works
        placing.went("c")
        serves(placing, "d")
        placing.went("d")
        looked(placer)
        assert placer.works <= works + 1


@pytest.mark.parametrize(
    ("served", "error", "starts"),
    [
        (False, OSError("the controller is away"), 3),
        (True, OSError("the controller is away"), 10),
        (True, NoMore("the controller is away"), 1),
        (True, ValueError("the controller is away"), 1),
    ],
)
def test_what_refuses_is_asked_again(served: bool, error: Exception, starts: int) -> None:
    placer = Scripted(2)
    placer.starts = raises(error)
    with placement(placer) as (placing, reasons):
        if served:
            serves(placing, "a", "b")
            placing.went("b")
            placing.went("a")  # the last one: patience goes on
        placing.start()
        until(lambda: reasons)
        assert reasons == ["no agent can be started: the controller is away"]
        assert placer.started == [2] * starts


def test_what_refused_and_then_does_not_is_forgotten() -> None:
    placer = Scripted(2)
    answers = iter([OSError("busy")] * 9 + [None] + [OSError("busy")] * 9 + [None])

    def starts(count: int) -> int:
        if (error := next(answers)) is not None:
            raise error
        return count

    placer.starts = starts
    with placement(placer) as (placing, reasons):
        serves(placing, "a")
        placing.start()
        until(lambda: len(placer.started) == 10)
        until(lambda: "busy" not in placing.words)
        serves(placing, "b")
        placing.went("b")
        until(lambda: len(placer.started) == 20)
        assert not reasons


def test_nodes_are_given_back_also_when_no_other_comes() -> None:
    given: list[Mapping[str, Any]] = []

    class GivesBack(Scripted):
        idle: float | None = 1.0

        def give_back(self, facts: Mapping[str, Any]) -> None:
            given.append(facts)

    placer = GivesBack(2)
    placer.starts = raises(NoMore("no more"))
    with placement(placer) as (placing, reasons):
        serves(placing, "a")
        placing.start()
        until(lambda: reasons)
        placing.went("a", given_back={"node": "a"})
        until(lambda: given == [{"node": "a"}])


@pytest.mark.parametrize(("nodes", "gives_up"), [(1, True), (None, True), (2, False)])
def test_who_can_have_no_slots_ends_it_if_nobody_else_comes(nodes: int | None, gives_up: bool) -> None:
    placer = Scripted(nodes)
    with placement(placer) as (placing, reasons):
        placing.start()
        until(lambda: placer.started)
        placing.came({"node": "a"})
        placing.went("a", useless="node a: it has no slots for this pool", hopeless=True)
        if gives_up:
            until(lambda: reasons)
            assert reasons == ["node a: it has no slots for this pool"]
        else:
            looked(placer)
            assert not reasons


def test_patience_ends_where_nobody_comes() -> None:
    placer = Scripted()
    placer.says = lambda: "job 1: PENDING"
    with placement(placer, 0.1) as (placing, reasons):
        placing.start()
        until(lambda: reasons)
        assert reasons == ["no agent has come within 0.1 s (start_timeout of the pool): job 1: PENDING"]


def test_a_fault_of_a_placer_is_told_and_leaves_its_agents(caplog: pytest.LogCaptureFixture) -> None:
    placer = Scripted(2)
    with placement(placer) as (placing, reasons):
        placer.joined = raises(ValueError("write to closed file"))  # type: ignore[method-assign]
        placing.start()
        until(lambda: placer.started)
        serves(placing, "a")
        until(lambda: reasons)
        assert reasons == ["ValueError: write to closed file"]
        assert placing.is_alive()
    assert "no agents can be placed any more" in caplog.text


def test_three_failures_are_enough() -> None:
    failures = Failures("agents have ended at once")
    for number in range(3):
        failures.check()
        failures.add(f"end {number}")
    with pytest.raises(NoMore, match="3 agents have ended at once, the last: end 2"):
        failures.check()
    failures.reset()
    assert (failures.count, failures.last) == (0, "")
    failures.check()
