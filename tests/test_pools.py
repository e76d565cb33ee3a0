"""The pools of a process and their runs, as lists that show themselves; a second pool on the same devices."""

import gc
import os
import time
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
from virtual import VirtualEngine

import mgpu_nb
from mgpu_nb import GPUPool, Run, Task, TaskError, launch, pools
from mgpu_nb.runs import rerun
from mgpu_nb.scheduler import opened

pytestmark = pytest.mark.filterwarnings("error:a second pool takes:UserWarning")


def until(path: Path) -> None:
    end = time.monotonic() + 20
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.01)


def wait_until(what: object, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def two() -> Iterator[GPUPool]:
    """A pool that knows of no other."""
    with GPUPool(slots=2, share=True) as pool:
        yield pool


def test_runs_under_way_come_first_and_ended_ones_are_not_kept(two: GPUPool, tmp_path: Path) -> None:
    go = tmp_path / "go"
    done = two.run([Task(abs, 1)], name="done", folder=tmp_path / "done").wait(30)
    two.run([Task(until, go, name="waits")], name="lost", folder=tmp_path / "lost")
    gc.collect()
    listed = two.runs
    assert [run.name for run in listed] == ["lost", "done"]
    assert listed[1] is done
    assert len(listed) == 2
    assert done in listed
    assert isinstance(listed[0], Run)
    assert [run.name for run in listed[:1]] == ["lost"]
    text, html = str(listed), listed._repr_html_()
    for shown in (text, html):
        for part in ("lost", "under way", "0 of 1 done", "ended"):
            assert part in shown
    assert str(tmp_path / "lost") in html
    go.touch()
    assert listed[0].wait(30).records[0].status == "ok"
    del listed, done
    wait_until(lambda: gc.collect() is not None and not two.runs)
    assert "no runs" in str(two.runs)


def test_a_run_whose_handle_is_lost_is_cancelled_from_the_list(two: GPUPool, tmp_path: Path) -> None:
    two.run([Task(until, tmp_path / "never")], name="lost", folder=tmp_path / "lost")
    (found,) = two.runs
    found.cancel()
    assert found.wait(30).records[0].status == "cancelled"


def test_pools_list_what_each_does(two: GPUPool, tmp_path: Path) -> None:
    go = tmp_path / "go"
    run = two.run([Task(until, go, name="t")], name="long", folder=tmp_path / "long")
    wait_until(lambda: run.running)
    assert two in mgpu_nb.pools()
    shown = pools()
    for text in (str(shown), shown._repr_html_()):
        assert "'long' of " in text.replace("&#x27;", "'")
        assert "cpu:0, cpu:1" in text
    wait_until(lambda: sorted(s.state for s in two._dispatcher.activity().slots) == ["busy", "idle"])
    assert "1 busy" in str(pools())
    html = two._repr_html_().replace("&#x27;", "'")
    assert "'t' of run 'long' of " in html
    assert "under way" in html
    go.touch()
    run.wait(30)


def test_a_pool_that_is_lost_is_listed_while_it_has_tasks(tmp_path: Path) -> None:
    pool = GPUPool(slots=1, share=True)
    number = pool._dispatcher.number
    future = pool.submit(until, tmp_path / "go")
    handle = weakref.ref(pool)
    del pool
    # The thread that made it may still have it.
    wait_until(lambda: gc.collect() is not None and handle() is None)
    (lost,) = [pool for pool in pools() if pool._dispatcher.number == number]
    wait_until(lambda: lost._dispatcher.closing)  # by a thread that is started when the handle is lost
    with pytest.raises(RuntimeError, match="after shutdown"):
        lost.submit(abs, 1)
    (tmp_path / "go").touch()
    future.result(30)
    lost.shutdown()
    assert number not in [pool._dispatcher.number for pool in pools()]


def test_a_second_pool_on_taken_devices_is_warned_of(tmp_path: Path) -> None:
    with GPUPool(slots=2, share=True) as first:
        run = first.run([Task(until, tmp_path / "go")], name="long", folder=tmp_path / "long")
        wait_until(lambda: run.running)
        number = first._dispatcher.number
        place = [pool._dispatcher.number for pool in pools()].index(number)
        with pytest.warns(UserWarning, match="a second pool takes the cores") as found, GPUPool(slots=1):
            pass
        (warning,) = [w for w in found if f"pool {number} " in str(w.message)]
        assert f"pool {number} (2 slots on cpu:0, cpu:1; runs 'long')" in str(warning.message)
        assert f"mgpu_nb.pools()[{place}].shutdown" in str(warning.message)
        assert warning.filename == __file__
        (tmp_path / "go").touch()


def test_sharing_that_is_meant_is_silent(tmp_path: Path) -> None:
    with warnings.catch_warnings(), GPUPool(slots=1, share=True) as first:
        warnings.simplefilter("error")
        with GPUPool(slots=1, share=True):
            pass
        assert launch(os.getpid, nprocs=2, folder=tmp_path / "launch").results()
        mgpu_nb.speedup([Task(abs, 1)], slots=[1, 2], repeats=1)
        first.submit(time.sleep, 0.2)
        first.shutdown(wait=False)
        with pytest.MonkeyPatch.context() as patch:  # those of other tests' modules are open as well
            others = [p for p in opened.opened._pools if p.dispatcher is first._dispatcher]
            patch.setattr(opened.opened, "_pools", others)
            with GPUPool(slots=1):  # the first is being shut down
                pass


def test_other_gpus_are_not_taken() -> None:
    engines = [VirtualEngine([0, 1], blocks=True), VirtualEngine([1, 2], blocks=True)]
    with GPUPool(engine=engines[0]):
        with pytest.warns(UserWarning, match="a second pool takes host-0 cuda:1"), GPUPool(engine=engines[1]):
            pass
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with GPUPool(engine=VirtualEngine([3], blocks=True)):
                pass


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A notebook of one cell, executed as often as its execution is changed."""
    from mgpu_nb import pool as made
    from mgpu_nb.runs import ledger

    now = {"cell": "c", "execution": "1"}
    for module in (rerun, opened, made, ledger):
        monkeypatch.setattr(module, "cell", lambda: (now["cell"], now["execution"]))
        if hasattr(module, "cell_number"):
            monkeypatch.setattr(module, "cell_number", lambda: 7)
    return now


@pytest.mark.parametrize("other_pool", [False, True])
def test_a_cell_executed_again_names_the_run_it_left(
    two: GPUPool, tmp_path: Path, cells: dict[str, str], other_pool: bool
) -> None:
    left = two.run([Task(until, tmp_path / "go")], name="long", folder=tmp_path / "1")
    cells["execution"] = "2"
    with GPUPool(slots=1, share=True, rerun="keep") as another:
        pool = another if other_pool else two
        with pytest.warns(
            UserWarning, match=r"earlier execution of this cell left run 'long' \(0 of 1 done.*\) under way"
        ) as found:
            again = pool.run([Task(until, tmp_path / "seen")], name="long", folder=tmp_path / "2")
        assert found[0].filename == __file__
        assert 'rerun="cancel"' in str(found[0].message)
        assert again._ledger.left_behind == [left._ledger]
        assert left._ledger in again._ledger.others  # while it is under way itself
        (tmp_path / "seen").touch()
        cells["cell"] = "d"  # another cell
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pool.run([Task(abs, 1)], name="long", folder=tmp_path / "3").wait(30)
            cells["cell"] = "c"
            pool.run([Task(abs, 1)], name="long", folder=tmp_path / "4", rerun="keep").wait(30)
        assert "[7]" in str(two.runs)
        (tmp_path / "go").touch()
        left.wait(30)
        assert again._ledger.left_behind == []


@pytest.mark.parametrize("way", ["run", "launch", "workload"])
def test_a_cell_executed_again_cancels_what_it_left(
    two: GPUPool, tmp_path: Path, cells: dict[str, str], way: str
) -> None:
    left = two.run([Task(until, tmp_path / "go") for _ in range(3)], name="long", folder=tmp_path / "run")
    wait_until(lambda: left.running)
    cells["execution"] = "2"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if way == "run":
            again = two.run(
                [Task(until, tmp_path / "go") for _ in range(3)],
                name="long",
                folder=tmp_path / "run",
                rerun="cancel",
            )
        elif way == "launch":
            again = launch(os.getpid, nprocs=1, folder=tmp_path / "launch", rerun="cancel")
        else:
            from mgpu_nb.workloads import protein

            config = protein.Config(output_dir=str(tmp_path / "protein"))
            again = protein.start(config, two, rerun="cancel")
            again.cancel()
        assert left.done
    assert {record.status for record in left.records} == {"cancelled"}
    (tmp_path / "go").touch()
    again.wait(60)


def test_a_folder_in_use_says_by_which_run(two: GPUPool, tmp_path: Path) -> None:
    run = two.run([Task(until, tmp_path / "go")], name="long", folder=tmp_path / "run")
    with pytest.raises(BlockingIOError, match=r"by run 'long' of this process \(0 of 1 done"):
        two.run([Task(until, tmp_path / "go")], name="long", folder=tmp_path / "run")
    (tmp_path / "go").touch()
    run.wait(30)


def test_a_cell_executed_again_names_or_ends_the_pool_it_left(tmp_path: Path, cells: dict[str, str]) -> None:
    first = GPUPool(slots=1)
    begun, waiting = (first.submit(until, tmp_path / "never") for _ in range(2))
    wait_until(begun.running)
    cells["execution"] = "2"
    with pytest.warns(UserWarning, match=r"earlier execution of this cell left pool \d+ .* open") as found:
        second = GPUPool(slots=1)
    assert found[0].filename == "cell [7]"
    cells["execution"] = "3"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with GPUPool(slots=1, rerun="cancel"):
            assert not first._dispatcher.thread.is_alive()
            assert not second._dispatcher.thread.is_alive()
    with pytest.raises(TaskError, match="cancelled while it ran"):
        begun.result(1)
    with pytest.raises(CancelledError):
        waiting.result(1)


@pytest.mark.parametrize("call", [lambda **k: GPUPool(**k), lambda **k: launch(abs, 1, **k)])
def test_a_bad_choice_is_refused(call: object) -> None:
    with pytest.raises(ValueError, match="rerun must be one of ask, cancel, keep"):
        call(rerun="yes")  # type: ignore[operator]
