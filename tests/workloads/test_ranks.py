"""Tasks shared among ranks: who does what, what rank 0 writes, and what is told if a rank fails or is gone.

Ranks are threads here that meet at a store in memory; `molecules/test_ranks.py` has processes of torchrun.
"""

from __future__ import annotations

import contextlib
import functools
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from torch.distributed import HashStore, Store  # type: ignore[attr-defined]

from mgpu_nb import Run, Task, ValueOf, worker
from mgpu_nb.distributed.environment import RankEnvironment
from mgpu_nb.workloads import board, ranks
from mgpu_nb.workloads.base import Workload
from mgpu_nb.workloads.board import Board, RankError
from mgpu_nb.workloads.ranks import join_tasks, rank_device

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Config:
    """Squares."""

    numbers: tuple[int, ...] = (3, 1, 2)
    seed: int = 0
    gpu_ids: str | None = "cpu"
    slots: int | None = None
    output_dir: str | None = None


def square(number: int) -> dict[str, Any]:
    """Square of a number, with an array and a random number."""
    if number < 0:
        raise ValueError(f"{number} is negative")
    worker().report(progress=1.0, number=number)
    time.sleep(0.01)
    return {"square": number**2, "drawn": np.random.rand(3), "rank": worker().slot}


def tasks(config: Config, slots: int) -> list[Task]:
    return [Task(square, n, name=f"n{n}", cost=abs(float(n))) for n in config.numbers]


def report(run: Any, config: Any = None) -> Any:
    raise NotImplementedError


SQUARES = Workload(name="squares", summary="", config=Config, tasks=tasks, collect=report, join=join_tasks)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> HashStore:
    """Store at which the ranks of a test meet; Config is that of a workload."""
    store = HashStore()

    @contextlib.contextmanager
    def meet(*_: object) -> Iterator[HashStore]:
        yield store

    monkeypatch.setattr(ranks, "meet", meet)
    monkeypatch.setattr(ranks, "workload_of", lambda config: SQUARES)
    monkeypatch.setattr(board, "BEAT", 0.05)
    return store


def rank(number: int, world: int = 2) -> RankEnvironment:
    return RankEnvironment(number, world, number, world)


def together(*calls: Callable[[], None]) -> list[BaseException | None]:
    """What each of these calls raised, made at the same time."""
    raised: list[BaseException | None] = [None] * len(calls)

    def make(place: int) -> None:
        try:
            calls[place]()
        except BaseException as error:
            raised[place] = error

    threads = [threading.Thread(target=make, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    return raised


def joined(folder: Path, world: int, config: Config | None = None) -> list[BaseException | None]:
    config = config or Config()
    return together(*[functools.partial(join_tasks, config, rank(n, world), folder) for n in range(world)])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_ranks_leave_the_folder_of_a_run(store: HashStore, tmp_path: Path, world: int) -> None:
    config = Config(tuple(range(1, 13)))
    assert joined(tmp_path / "run", world, config) == [None] * world
    run = Run.open(tmp_path / "run")
    assert run.name == "squares"
    assert run.tasks == tuple(f"n{n}" for n in range(1, 13))
    assert [record.value["square"] for record in run.records] == [n**2 for n in range(1, 13)]
    if world == 1:  # the ranks of this test are threads, and have one worker's place between them
        assert run.records[0].metrics == {"progress": 1.0, "number": 1}
    assert {record.value["rank"] for record in run.records} <= set(range(world))
    assert len(json.loads((tmp_path / "run" / "detailed_results.json").read_text())) == 12
    assert (tmp_path / "run" / "summary_results.csv").is_file()
    assert not [key for key in range(12) if store.check([f"mgpu_nb/part/{key}/0"])]


def test_what_the_folder_holds_is_not_done_again(
    store: HashStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert joined(tmp_path, 1) == [None]
    before = {record.name: record.started for record in Run.open(tmp_path).records}
    fresh = HashStore()

    @contextlib.contextmanager
    def meet(*_: object) -> Iterator[HashStore]:
        yield fresh

    monkeypatch.setattr(ranks, "meet", meet)
    assert joined(tmp_path, 2, Config((3, 1, 2, 5))) == [None, None]
    run = Run.open(tmp_path)
    assert run.tasks == ("n3", "n1", "n2", "n5")
    assert {r.name: r.started for r in run.records if r.name != "n5"} == before


def test_a_task_that_fails_is_a_record_and_the_others_go_on(
    store: HashStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert joined(tmp_path, 2, Config((2, -1, 1))) == [None, None]
    ok, failed, last = Run.open(tmp_path).records
    assert (ok.status, failed.status, last.status) == ("ok", "error", "ok")
    assert failed.error == "ValueError: -1 is negative"
    assert "square" in failed.traceback
    assert "squares: 3 of 3 tasks done" in capsys.readouterr().err


def test_values_longer_than_a_key_may_be_travel_in_parts(
    store: HashStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "PART", 50)
    assert joined(tmp_path, 2, Config(tuple(range(8)))) == [None, None]
    assert [record.value["square"] for record in Run.open(tmp_path).records] == [n**2 for n in range(8)]


def test_ranks_with_other_options_are_told(store: HashStore, tmp_path: Path) -> None:
    first, second = together(
        lambda: join_tasks(Config((1, 2)), rank(0), tmp_path),
        lambda: join_tasks(Config((1, 3)), rank(1), tmp_path),
    )
    assert isinstance(second, ValueError)
    assert "rank 1 has other tasks than rank 0: give all ranks the same options" in str(second)
    assert isinstance(first, RankError)
    assert str(first).startswith("rank 1 has failed: ValueError: rank 1 has other tasks")


def test_a_rank_that_never_came_is_named(
    store: HashStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "MEETING", 3.0)
    first, second = together(
        lambda: join_tasks(Config(), rank(0, 3), tmp_path), lambda: join_tasks(Config(), rank(1, 3), tmp_path)
    )
    assert isinstance(first, RankError)
    assert str(first) == "rank 2 has not come within 3 s"
    assert second is None or str(second) == str(first)


def test_a_rank_that_is_gone_is_named(
    store: HashStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "SILENCE", 0.5)
    store.add("mgpu_nb/beat/1", 1)
    (first,) = together(lambda: join_tasks(Config(), rank(0), tmp_path))
    said = "rank 1 has given no sign of life for 0.5 s: its process or machine is gone"
    assert (type(first), str(first)) == (RankError, said)
    (late,) = together(lambda: join_tasks(Config(), rank(1), tmp_path))
    assert str(late) == said


def test_a_store_that_is_lost_is_an_error(tmp_path: Path, store: HashStore) -> None:
    class Lost:
        def __getattr__(self, name: str) -> Any:
            def ask(*_: object) -> None:
                raise RuntimeError("Connection reset by peer\nmore")

            return ask

    with (
        pytest.raises(RankError, match=r"rank 1 has lost the store .* \(Connection reset by peer\)"),
        Board(cast(Store, Lost()), rank(1)) as lost,
    ):
        lost.look()


def test_what_ranks_cannot_share_is_refused(store: HashStore, tmp_path: Path) -> None:
    of_another = Task(square, ValueOf("a"), name="b")
    for task in (Task(square, 1, name="b", after="a"), Task(square, 1, name="b", devices=2), of_another):
        with pytest.raises(ValueError, match="task 'b' waits for others or takes several devices"):
            ranks._Plan([Task(square, 1, name="a"), task], 0)
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(FileExistsError, match="holds files that are not a run's"):
        join_tasks(Config(), rank(0, 1), tmp_path)
    with pytest.raises(ValueError, match="slots: torchrun and srun say how many ranks"):
        join_tasks(Config(slots=2), rank(0, 1), tmp_path / "new")
    with pytest.raises(ValueError, match="torchrun and srun say which GPUs a rank has"):
        rank_device(rank(0), (0,))
