"""Rounds of measurements, without processes and by a clock of their own."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mgpu_nb import Record
from mgpu_nb.studies import rounds
from mgpu_nb.studies.rounds import Rounds
from mgpu_nb.views.progress import Steps


class Clock:
    """Time that passes where a run is started."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Pool:
    """A pool that is only opened and closed."""

    def __init__(self, count: int, events: list[str]) -> None:
        self.count, self.events = count, events
        events.append(f"open {count}")

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if wait:
            self.events.append(f"close {self.count}")


class Work:
    """Work whose runs take what `wall` says of number of slots and number of the run."""

    gang = None

    def __init__(self, clock: Clock, wall: Callable[[int, int], float], events: list[str]) -> None:
        self.clock, self.wall, self.events, self.runs = clock, wall, events, 0

    def start(self, pool: Pool, count: int, folder: Path) -> Any:
        assert pool.count == count
        took = self.wall(count, self.runs)
        self.runs += 1
        self.clock.now += took
        self.events.append(f"run {count}")
        folder.mkdir(parents=True)
        record = Record(
            name="a", index=0, kind="k", status="ok", queued=0.0, started=0.0, finished=took, seconds=took
        )
        return SimpleNamespace(done=True, records=[record], tasks=["a"], wait=lambda progress: None)

    def warm_up(self, pool: Pool, beat: Callable[[float], None]) -> None:
        self.events.append(f"warm {pool.count}")
        self.clock.now += 1.0


class Line:
    """A line of progress."""

    def __init__(self) -> None:
        self.shown: list[tuple[float, str, float | None]] = []
        self.closed = ""

    def show(self, share: float, text: str, left: float | None) -> None:
        self.shown.append((share, text, left))

    def close(self, text: str) -> None:
        self.closed = text


class Made:
    """Rounds and what became of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.clock, self.events, self.line, self.folder = Clock(), list[str](), Line(), tmp_path
        monkeypatch.setattr(rounds, "time", self.clock)

    def __call__(
        self,
        wall: Callable[[int, int], float],
        counts: tuple[int, ...] = (1, 2, 4),
        *,
        least: int = 3,
        until: float | None = None,
        limit: float = 1e9,
        keep: bool = False,
    ) -> Rounds:
        made = Rounds(
            Work(self.clock, wall, self.events),  # type: ignore[arg-type]
            counts,
            lambda n: Pool(n, self.events),  # type: ignore[arg-type, return-value]
            least=least,
            until=until,
            limit=limit,
            folder=self.folder,
            keep=keep,
            steps=Steps(self.line),
        )
        made.measure()
        return made


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Made:
    return Made(monkeypatch, tmp_path)


def noisy(count: int, run: int) -> float:
    return (1 + 0.02 * (run * 7 % 5)) / count


def test_there_and_back_with_one_pool_at_a_time(made: Made) -> None:
    measured = made(noisy).measured
    assert [m.slots for m in measured] == [1, 2, 4, 4, 2, 1, 1, 2, 4]
    assert [m.repeat for m in measured] == [0] * 3 + [1] * 3 + [2] * 3
    opened = [event for event in made.events if event.startswith(("open", "close"))]
    assert opened[::2] == [f"open {n}" for n in (1, 2, 4, 2, 1, 2, 4)]
    assert opened[1::2] == [f"close {n}" for n in (1, 2, 4, 2, 1, 2, 4)]
    for before, event in zip(made.events, made.events[1:], strict=False):
        assert before.startswith("open") == event.startswith(
            "warm"
        )  # each pool is warm before it is measured


def test_a_drift_of_the_machine_is_no_speed_up(made: Made) -> None:
    from mgpu_nb import Study

    drifting = made(lambda count, run: 10 * (1 + 0.05 * run), (1, 2), least=8).measured
    assert Study(drifting).frame()["speed_up"].iloc[1] == pytest.approx(1.0, abs=0.01)


def test_exactly_so_many_without_a_precision(made: Made) -> None:
    assert len(made(noisy, least=5, limit=0.1).measured) == 15


def test_until_the_intervals_are_narrow(made: Made) -> None:
    from mgpu_nb.studies.interval import half_width

    done = made(noisy, until=0.05)
    repeats = len(done.measured) // 3
    assert 3 < repeats < 30
    assert done.problem() == ""
    walls = [[m.wall for m in done.measured if m.slots == n] for n in (1, 2, 4)]
    assert all(half_width(each) <= 0.0488 for each in walls)
    assert any(half_width(each[:-1]) > 0.0488 for each in walls)  # it went no further


def test_steady_work_needs_the_least(made: Made) -> None:
    assert len(made(lambda count, run: 1 / count, until=0.05).measured) == 9


def test_the_limit_ends_it_and_is_told(made: Made) -> None:
    done = made(lambda count, run: 10 + 5 * (run % 2), (1, 2), until=0.01, limit=100.0)
    assert made.clock.now <= 100
    assert len(done.measured) == 6  # a fourth round would end later
    assert done.problem().startswith(
        "The limit of 100 s came before the walls were known to ±1% as wanted: they are known to ±"
    )


def test_the_least_is_measured_whatever_the_limit(made: Made) -> None:
    assert len(made(noisy, least=4, until=0.0001, limit=0.5).measured) == 12


@pytest.mark.parametrize("keep", [False, True])
def test_folders_stay_where_they_are_wanted(made: Made, keep: bool) -> None:
    made(noisy, (1, 2), least=2, keep=keep)
    names = [f"slots-{n}-repeat-{r}" for n in (1, 2) for r in (0, 1)]
    assert sorted(path.name for path in made.folder.iterdir()) == (names if keep else [])


def test_the_progress_says_how_far_and_how_long(made: Made) -> None:
    made(lambda count, run: 8 / count, (1, 2), least=2)
    runs = [shown for shown in made.line.shown if not shown[1].startswith("warm-up")]
    assert [share for share, _, _ in runs] == pytest.approx([0.0, 8 / 24, 12 / 24, 16 / 24])
    assert [text for _, text, _ in runs] == [
        "repeat 1, 1 slot", "repeat 1, 2 slots", "repeat 2, 2 slots", "repeat 2, 1 slot",
    ]  # fmt: skip
    assert [text for _, text, _ in made.line.shown if text.startswith("warm-up")] == [
        "warm-up, repeat 1, 1 slot", "warm-up, repeat 1, 2 slots", "warm-up, repeat 2, 1 slot",
    ]  # fmt: skip
    assert made.line.shown[0][2] is None
    lefts = [left for _, _, left in runs if left is not None]
    assert lefts == sorted(lefts, reverse=True)
    assert made.line.closed.startswith("speed-up study: 4 runs in ")


def test_the_progress_counts_what_the_precision_needs(made: Made) -> None:
    made(lambda count, run: 10 + run % 3, (1, 2), until=0.02, limit=300.0)
    assert "known to ±" in made.line.shown[-1][1]
    assert "wanted ±2%" in made.line.shown[-1][1]
    assert all(left is None or left <= 300 for _, _, left in made.line.shown)
    assert all(0 <= share <= 1 for share, _, _ in made.line.shown)


def test_an_interrupt_closes_the_pool(made: Made) -> None:
    def interrupted(count: int, run: int) -> float:
        if run == 3:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        made(interrupted, (1, 2))
    assert made.events[-1] == "close 1"
    assert [event.split()[0] for event in made.events].count("open") == 3
