"""What has agents started, asks what became of them, and gives up."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mgpu_nb.cluster.placement import Placement

WAIT = 30.0


class Jobs:
    """A placer whose jobs have all ended, whenever it is asked."""

    nodes: int | None = 1
    slots_per_node: int | None = 1

    def __init__(self) -> None:
        self.asked: Callable[[], object] = int
        self.started: list[int] = []
        self.again = threading.Event()

    def start(self, command: Sequence[str], invitation: Path, count: int) -> None:
        del command, invitation
        self.started.append(count)
        if len(self.started) > 1:
            self.again.set()

    def status(self) -> str:
        self.asked()
        raise OSError("job 1: COMPLETED")

    def close(self) -> None:
        """Nothing is left."""


@contextmanager
def placement(placer: Jobs) -> Iterator[tuple[Placement, list[str]]]:
    reasons: list[str] = []
    gave_up = threading.Event()

    def note(reason: str) -> None:
        reasons.append(reason)
        gave_up.set()
        placer.again.set()

    placing = Placement(placer, ["agent"], Path("invitation"), 600.0, note)
    try:
        yield placing, reasons
    finally:
        placing.close()
        assert not placing.is_alive()


def test_who_has_no_job_left_gives_up() -> None:
    placer = Jobs()
    with placement(placer) as (placing, reasons):
        placing.start()
        assert placer.again.wait(WAIT)
        assert reasons == ["no agent will come: job 1: COMPLETED"]
        assert placer.started == [1]


def test_what_is_asked_for_while_the_last_job_is_seen_to_have_ended_is_started() -> None:
    placer = Jobs()
    with placement(placer) as (placing, reasons):

        def asked() -> None:
            placer.asked = int
            placing.came()
            placing.went({})  # given back
            placing.ask_again(1)

        placer.asked = asked
        placing.start()
        assert placer.again.wait(WAIT)
        assert placer.started == [1, 1]
        assert not reasons or reasons[0].endswith("COMPLETED")
